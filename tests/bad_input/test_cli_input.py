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


@pytest.mark.row("B2")
def test_b2_an_unknown_preset_lists_them_all(refused):
    err = refused(2, "--preset", "balancd")
    assert "there is no preset 'balancd'" in err
    assert "balanced" in err.split("hint:")[1]


@pytest.mark.row("B4")
@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\0b", "x" * 300, "Balanced", "a b", "-x"]
)
def test_b4_a_preset_is_a_name_and_never_a_path(refused, name):
    err = refused(2, f"--preset={name}")
    assert "--preset: " in err
    assert "\0" not in err
    assert "root:" not in err


@pytest.mark.row("B5")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "1e-400", "10", "fast"])
def test_b5_the_learning_rate_is_finite_and_in_range(refused, value):
    err = refused(2, f"--learning-rate={value}", learning_rate=None)
    assert f"flag --learning-rate: {value} " in err
    assert "a number above 0 to 1" in err


@pytest.mark.row("B6")
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


@pytest.mark.row("B7")
def test_b7_an_indivisible_batch_names_the_two_nearest(refused):
    err = refused(
        2, "--batch-size", "3", "--effective-batch-size", "8",
        per_device_train_batch_size=None, gradient_accumulation_steps=None,
    )  # fmt: skip
    assert "8 is not a multiple of 3" in err
    assert "effective_batch_size 6 or 9" in err


@pytest.mark.row("B8")
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


@pytest.mark.row("B8")
def test_b8_bfloat16_on_a_device_without_it_is_refused(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(
        *train_arguments(tmp_path / "run", "--dry-run", "--hardware", "t4", device=None),
        *("--compute-dtype", "bfloat16"),
    )
    assert outcome.code == 4
    assert "NVIDIA T4 cannot compute in bfloat16" in outcome.err
    assert "--compute-dtype float32" in outcome.err.split("hint:")[1]


@pytest.mark.row("B8")
@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"])
def test_b8_optimizers_for_cuda_are_refused_on_a_mac(refused, optim):
    err = refused(4, "--dry-run", "--hardware", "m3-18gb", "--optim", optim, device=None)
    assert f"optim {optim}: " in err
    assert "--optim adamw_torch" in err.split("hint:")[1]


@pytest.mark.row("B8")
@pytest.mark.parametrize(
    ("installed", "why"), [(None, "is not installed"), ((0, 48), "quantizes on CUDA only")]
)
def test_b8_four_bits_without_a_bitsandbytes_that_can(refused, monkeypatch, installed, why):
    from lorafit.hardware import capabilities

    monkeypatch.setattr(capabilities, "bitsandbytes_version", lambda: installed)
    err = refused(4, "--quantization", "nf4")
    assert why in err
    assert "pip install" in err.split("hint:")[1]


@pytest.mark.row("B8")
def test_b8_four_bits_on_a_cpu_are_allowed(run_lorafit, train_arguments, tmp_path):
    outcome = run_lorafit(*train_arguments(tmp_path / "run", "--dry-run", "--quantization", "nf4"))
    assert outcome.code == 0, outcome.err


@pytest.mark.row("B8")
def test_b8_flash_attention_without_its_package_is_refused(monkeypatch):
    import dataclasses
    import importlib.util

    from lorafit.config.schema import Settings
    from lorafit.errors import DeviceError
    from lorafit.hardware.capabilities import verify_supported
    from lorafit.hardware.detect import planned_device

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "flash_attn" else found(name)
    )
    device = dataclasses.replace(planned_device("a100-40gb"), detected=True)
    with pytest.raises(DeviceError, match="the package flash-attn is not installed") as caught:
        verify_supported(device, Settings(attn_implementation="flash_attention_2"))
    assert "--attn-implementation sdpa" in caught.value.hint


@pytest.mark.row("B10")
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "hides every GPU"),
        ("-1", "hides every GPU"),
        ("7", "asks for GPU 7, which this machine lacks"),
        ("0,,1", "has an empty entry"),
        ("0,0", "names a GPU twice"),
        ("gpu0", "which is neither an index nor a UUID"),
        ("GPU-ffff", "which fits no GPU of this machine"),
        ("\x1b[2J", "which is neither an index nor a UUID"),
    ],
)
def test_b10_a_garbled_list_of_visible_gpus_names_the_variable(value, why):
    from lorafit.errors import DeviceError
    from lorafit.hardware.visible import visible_indexes

    with pytest.raises(DeviceError) as caught:
        visible_indexes(value, [["GPU-0000"], ["GPU-0001"]])
    assert caught.value.exit_code == 4
    assert "CUDA_VISIBLE_DEVICES=" in str(caught.value)
    assert why in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert "unset CUDA_VISIBLE_DEVICES" in caught.value.hint


@pytest.mark.row("B9")
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


@pytest.mark.row("B10")
@pytest.mark.parametrize("device", ["cuda:7", "cuda", "mps"])
def test_b10_a_device_that_is_not_here_is_refused(refused, device):
    import torch

    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    assert device in refused(4, "--device", device, device=None)


@pytest.mark.row("B10")
@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:-1", "tpu"])
def test_b10_what_is_no_device_is_a_usage_error(refused, device):
    assert repr(device) in refused(2, "--device", device, device=None)


@pytest.mark.row("B15")
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


@pytest.mark.row("B16")
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


@pytest.mark.row("B16")
def test_b16_there_is_no_flag_for_a_token(run_lorafit):
    outcome = run_lorafit("train", "--hub-token", "mine")
    assert outcome.code == 2
    assert "No such option: --hub-token" in outcome.err


@pytest.mark.row("B16")
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--hub-token", SECRET],
        ["train", f"--hub-token={SECRET}"],
        ["train", f"--{SECRET}"],
        ["train", "--preset", SECRET],
        ["train", SECRET],
        ["train", f"token={SECRET}"],
        ["train", "--resume", SECRET],
        ["train", "--config", f"https://me:{SECRET}@example.com/a.yaml"],
        ["train", "--output-dir", "s3://key:s3cr3t-value@bucket/run"],
        ["generate", "--prompt", "x", "--adapter", "https://me:s3cr3t-value@example.com/a"],
        ["generate", "--prompt-file", SECRET],
        ["estimate-memory", f"--model={SECRET}"],
        ["presets", "show", SECRET],
        ["data", "inspect", SECRET],
        ["config", "validate", f"{SECRET}.yaml"],
        ["demo", "--output-dir", SECRET],
        [SECRET],
        [f"--{SECRET}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(SECRET, "SECRET"),
)
def test_b16_a_secret_is_refused_wherever_it_stands_and_never_shown(run_lorafit, arguments):
    outcome = run_lorafit(*arguments)
    assert outcome.code == 2, outcome.err
    assert "looks like a token or holds a password" in outcome.err
    for secret in (SECRET, SECRET.replace("_", "-"), "s3cr3t-value"):
        assert secret not in outcome.out + outcome.err


@pytest.mark.row("B16")
def test_b16_words_that_only_resemble_secrets_are_taken(run_lorafit):
    """Commit hashes, hf_ in a name, and prompts about e-mail addresses are no secrets."""
    for arguments in (
        ["config", "show", "--revision", "0123456789abcdef0123456789abcdef01234567"],
        ["config", "show", "--model", "hf_internal_testing/hf_tiny_model"],
        ["config", "show", "--model", "someone/risk-sk-model"],
    ):
        assert run_lorafit(*arguments).code == 0
    outcome = run_lorafit("generate", "--model", "./missing", "--prompt", "ftp://me:pw@host?")
    assert "there is no model folder" in outcome.err


@pytest.mark.row("B13")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--output-dir", "run-\udcff"], 7),
        (["train", "--checkpoint_dir=run-\udcff"], 7),
        (["train", "--data", "rows-\udcff.jsonl"], 2),
        (["train", "model=\udcff"], 2),
        (["generate", "--prompt", "\udcff"], 2),
        (["data", "inspect", "\udcff.jsonl"], 2),
        (["\udcff"], 2),
    ],
)
def test_b13_a_word_that_is_not_utf8_is_shown_escaped(run_lorafit, arguments, code):
    outcome = run_lorafit(*arguments)
    assert outcome.code == code
    assert "\\udcff" in outcome.err
    assert "is not UTF-8" in outcome.err
    assert "\udcff" not in outcome.err


def test_all_problems_come_at_once_each_with_its_origin(refused, tmp_path, monkeypatch):
    config = tmp_path / "mine.yaml"
    config.write_text("lora_aplha: 3\nwarmup_ratio: 2\n")
    monkeypatch.setenv("LORAFIT_SEED", "many")
    err = refused(3, "--config", config, "lora_r=0", "--max-grad-norm", "-1")
    for part in ("lora_aplha", "mine.yaml:2", "LORAFIT_SEED", "lora_r", "--max-grad-norm"):
        assert part in err


@pytest.mark.row("B30")
def test_b30_a_target_that_the_model_lacks_names_where_it_was_asked_for(refused):
    err = refused(3, "--target-modules", "q_proj,Wqkv")
    assert "target_modules (flag --target-modules): 'Wqkv' matches no Linear module" in err
    assert "write q_proj,k_proj,v_proj instead of Wqkv" in err


@pytest.mark.row("B30")
@pytest.mark.parametrize(
    ("targets", "culprit"),
    [("all", "all"), ("(.*", "(.*"), (".*proj", ".*proj"), ("q_proj,k_prj", "k_prj"),
     ("embed_tokens", "embed_tokens"), ("fc", "fc")],
)  # fmt: skip
def test_b30_every_target_must_be_the_name_of_a_module(refused, targets, culprit):
    err = refused(3, "--target-modules", targets)
    assert f"'{culprit}' matches no Linear module" in err
    assert "there are: q_proj, k_proj, v_proj, dense, fc1, fc2" in err


@pytest.mark.row("B30")
def test_b30_an_empty_name_among_targets_is_refused(refused):
    assert "the list holds an empty name" in refused(2, "--target-modules", "q_proj,")


@pytest.mark.row("B33")
@pytest.mark.parametrize("value", ["0", "1", "-5"])
def test_b33_rows_of_no_length_are_refused(refused, value):
    err = refused(2, f"--max-length={value}", max_length=None)
    assert f"{value} is not allowed; it must be a whole number from 8" in err


@pytest.mark.row("B4")
@pytest.mark.parametrize("command", [["presets", "show"], ["config", "show", "--preset"]])
def test_b4_no_command_takes_a_path_for_a_preset(run_lorafit, command):
    outcome = run_lorafit(*command, "../../etc/passwd")
    assert outcome.code == 2
    assert "'../../etc/passwd' is not a preset's name" in outcome.err


@pytest.mark.row("B3")
@pytest.mark.parametrize("flag", ["--preset", "--config", "--output-dir", "--data", "--model",
                                  "--resume", "--hardware"])  # fmt: skip
def test_b3_an_empty_value_is_no_value(run_lorafit, flag):
    outcome = run_lorafit("train", f"{flag}=")
    assert outcome.code == 2
    assert flag in outcome.err
    assert "empty" in outcome.err
