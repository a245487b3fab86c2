"""Rows B2 to B10 and B15 to B17 through the real command line of `train`."""

import os

import pytest

SECRET = "hf_" + "Q" * 34


@pytest.fixture
def refused(run_lorafit, train_arguments, tmp_path):
    """Return a function that runs a command that must fail and leave nothing behind."""

    def refused(code, *more, **changes):
        run_dir = tmp_path / "run"
        outcome = run_lorafit(*train_arguments(run_dir, *more, **changes))
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert not run_dir.exists()
        return outcome.err

    return refused


def test_b2_an_unknown_preset_lists_them_all(refused):
    err = refused(2, "--preset", "balancd")
    assert "there is no preset 'balancd'" in err
    assert "balanced" in err.split("hint:")[1]


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 300, "Balanced", "a b", "-x"]
)
def test_b4_a_preset_is_a_name_and_never_a_path(refused, name):
    err = refused(2, f"--preset={name}")
    assert "--preset: " in err
    assert "\0" not in err
    assert "root:" not in err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e-400", "10", "fast"])
def test_b5_the_learning_rate_is_finite_and_in_range(refused, value):
    err = refused(2, f"--learning-rate={value}", learning_rate=None)
    assert f"flag --learning-rate: {value} " in err
    assert "a number above 0 to 1" in err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--max-steps", "0"), ("--max-steps", "-5"), ("--max-steps", "1" + "0" * 20),
     ("--lora-r", "0"), ("--lora-r", "8.0"), ("--lora-r", "1_000"), ("--lora-r", "257"),
     ("--lora-rank", "0"), ("--seed", "-1"), ("--lora-dropout", "1.5"), ("--lora-alpha", "nan")],
)  # fmt: skip
def test_b6_numbers_keep_their_range_and_kind(refused, flag, value):
    err = refused(2, f"{flag}={value}", max_steps=None, lora_dropout=None)
    assert f"{value} " in err
    assert "flag --" in err


def test_b7_an_indivisible_batch_names_the_two_nearest(refused):
    err = refused(
        2, "--batch-size", "3", "--effective-batch-size", "8",
        per_device_train_batch_size=None, gradient_accumulation_steps=None,
    )  # fmt: skip
    assert "8 is not a multiple of 3" in err
    assert "effective_batch_size 6 or 9" in err


@pytest.mark.parametrize(
    ("arguments", "why", "alternative"),
    [
        (["--optim", "adamw_8bit"], "8-bit AdamW is made for CUDA", "--optim adamw_torch"),
        (["--optim", "paged_adamw_8bit"], "unified memory", "--optim adamw_torch"),
        (["--attn-implementation", "flash_attention_2"], "needs a CUDA GPU",
         "--attn-implementation sdpa"),
        (["--attn-implementation", "sdpa-efficient"], "exists for CUDA only",
         "--attn-implementation sdpa"),
    ],
)  # fmt: skip
def test_b8_what_the_device_cannot_do_is_refused_before_loading(
    refused, arguments, why, alternative
):
    err = refused(4, *arguments, model="not/looked-for")
    assert why in err
    assert alternative in err.split("hint:")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seed", "1", "--seed", "2"],
        ["--seed", "1", "--seed=1"],
        ["--lora-r", "8", "--lora_r", "8"],
        ["--lora-r", "8", "--lora-rank", "8"],
        ["--use-dora", "--no-use-dora"],
    ],
)
def test_b9_an_option_given_twice_is_refused(refused, arguments):
    assert "given twice" in refused(2, *arguments)


@pytest.mark.parametrize("device", ["cuda:7", "cuda", "mps"])
def test_b10_a_device_that_is_not_here_is_refused(refused, device):
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert device in refused(4, "--device", device, device=None)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "tpu"])
def test_b10_what_is_no_device_is_a_usage_error(refused, device):
    assert repr(device) in refused(2, "--device", device, device=None)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "missing", "stdin"])
def test_b15_data_is_a_regular_file(refused, tmp_path, kind):
    path = tmp_path / "data.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "stdin":
        path = "/dev/stdin"
    err = refused(3, data=path)
    assert str(path) in err


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": f"https://user:{SECRET}@example.com/x.jsonl"},
        {"model": f"https://user:{SECRET}@example.com/model"},
        {"model": SECRET},
        {"revision": SECRET},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_b16_a_token_is_refused_and_never_echoed(refused, arguments):
    err = refused(2, **arguments)
    assert SECRET not in err
    assert "looks like a token or holds a password" in err


def test_b16_there_is_no_flag_for_a_token(run_lorafit):
    outcome = run_lorafit("train", "--hub-token", SECRET)
    assert outcome.code == 2
    assert "No such option: --hub-token" in outcome.err
    assert SECRET not in outcome.err


def test_all_problems_come_at_once_each_with_its_origin(refused, tmp_path, monkeypatch):
    config = tmp_path / "mine.yaml"
    config.write_text("lora_aplha: 3\nwarmup_ratio: 2\n")
    monkeypatch.setenv("LORAFIT_SEED", "many")
    err = refused(3, "--config", config, "lora_r=0", "--max-grad-norm", "-1")
    for part in ("lora_aplha", "mine.yaml:2", "LORAFIT_SEED", "lora_r", "--max-grad-norm"):
        assert part in err


def test_b30_a_target_that_the_model_lacks_names_where_it_was_asked_for(refused):
    err = refused(3, "--target-modules", "q_proj,Wqkv")
    assert "target_modules (flag --target-modules): 'Wqkv' matches no Linear module" in err
    assert "write q_proj,k_proj,v_proj instead of Wqkv" in err
