"""Rows B64 to B66: adapters that are damaged, foreign or hostile, as `generate` meets them."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def adapter(kept, run_lorafit, train_arguments, tmp_path, tmp_path_factory):
    """A copy of a trained adapter without its run."""
    if "adapter" not in kept:
        run_dir = tmp_path_factory.mktemp("kept") / "run"
        assert run_lorafit(*train_arguments(run_dir, max_steps=2)).code == 0
        kept["adapter"] = run_dir / "adapter"
    return shutil.copytree(kept["adapter"], tmp_path / "adapter")


@pytest.fixture
def generate(run_lorafit, tiny_model):
    def generate(adapter, architecture="phi", **options):
        model = tiny_model(architecture, **options)
        return run_lorafit(
            *("generate", "--model", model, "--adapter", adapter, "--device", "cpu"),
            *("--prompt", "the colour", "--max-new-tokens", "2"),
        )

    return generate


def refusal(outcome):
    assert outcome.code == 3, outcome.err
    assert outcome.out == ""
    return outcome.err


def rewrite(adapter, change):
    """Let `change` turn the tensors of an adapter into others."""
    path = adapter / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def configure(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_adapter_writes(generate, adapter):
    assert generate(adapter).code == 0


def test_a_missing_folder_is_named(generate, tmp_path):
    err = refusal(generate(tmp_path / "nowhere"))
    assert f"there is no adapter folder {tmp_path / 'nowhere'}" in err
    assert "OUTPUT_DIR/adapter" in err


def test_the_run_folder_is_not_the_adapter_but_near(generate, adapter, tmp_path):
    err = refusal(generate(tmp_path))
    assert "has no adapter_config.json" in err
    assert f"did you mean --adapter {adapter}?" in err


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.row("B64")
def test_b64_an_adapter_that_is_only_a_pickle_is_refused_unopened(generate, adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    assert "has only a pickle (adapter_model.bin), which can run code" in refusal(generate(adapter))
    assert not (tmp_path / "ran").exists()


@pytest.mark.row("B64")
def test_b64_a_pickle_beside_the_weights_is_ignored(generate, adapter, tmp_path):
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    assert generate(adapter).code == 0
    assert not (tmp_path / "ran").exists()


def test_an_adapter_without_weights_says_so(generate, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refusal(generate(adapter))


@pytest.mark.row("B65")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"x.{n}": v for n, v in t.items()}, "24 tensors are missing and 24 have no"),
        (lambda t: dict(list(t.items())[:12]), "12 tensors are missing and 0 have no place"),
        (lambda t: {**t, "extra": torch.ones(2)}, "0 tensors are missing and 1 have no place"),
        (lambda t: {}, "holds no tensors"),
        (lambda t: {n: v * float("nan") for n, v in t.items()}, "is not finite"),
        (
            lambda t: {n: torch.zeros_like(v) if "lora_B" in n else v for n, v in t.items()},
            "every lora_B is zero, so the adapter has no effect",
        ),
        (lambda t: {n: v[..., :3].contiguous() for n, v in t.items()}, "has other shapes"),
    ],
    ids=["renamed", "half", "extra", "empty", "nan", "zero", "shapes"],
)
def test_b65_weights_that_do_not_fit_are_counted(generate, adapter, change, message):
    rewrite(adapter, change)
    assert message in refusal(generate(adapter))


@pytest.mark.row("B65")
@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"", b"\x80\x02}q"],
)
def test_b65_a_file_of_another_kind_is_recognized(generate, adapter, content):
    (adapter / "adapter_model.safetensors").write_bytes(content)
    assert "is not a safetensors file" in refusal(generate(adapter))


@pytest.mark.row("B65")
def test_b65_a_file_that_was_cut_off_is_named(generate, adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "the file was cut off: download it again" in refusal(generate(adapter))


@pytest.mark.row("B65")
def test_b65_another_rank_than_the_weights_have(generate, adapter):
    configure(adapter, r=4)
    assert "has other shapes than the base model" in refusal(generate(adapter))


@pytest.mark.row("B65")
def test_b65_an_adapter_of_another_architecture_names_its_base(generate, adapter):
    err = refusal(generate(adapter, "llama"))
    assert f"{adapter}: " in err


@pytest.mark.row("B65")
def test_b65_an_adapter_of_a_larger_model_has_other_shapes(generate, adapter):
    assert "has other shapes than the base model" in refusal(generate(adapter, hidden_size=64))


@pytest.mark.row("B66")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": "4"}, "r is '4'; it must be a whole number of 1 to 4096"),
        ({"r": 4.0}, "r is 4.0; it must be"),
        ({"r": -1}, "r is -1; it must be"),
        ({"r": True}, "r is True; it must be"),
        ({"r": 10**9}, "r is 1000000000; it must be"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan; it must be a positive number"),
        ({"lora_alpha": -1}, "lora_alpha is -1; it must be"),
        ({"peft_type": "TROJAN"}, "is not a LoRA adapter (peft_type 'TROJAN')"),
        ({"peft_type": None}, "is not a LoRA adapter (peft_type None)"),
        ({"target_modules": "(.*a){99}$"}, "it must be a list of names"),
        ({"target_modules": [1]}, "it must be a list of names"),
        ({"target_modules": ["nothing_here"]}, "does not fit the base model"),
        ({"auto_mapping": {"base_model_class": "os"}}, "asks to import code (auto_mapping)"),
        ({"layers_pattern": "(.*a)+$"}, "layers_pattern is '(.*a)+$'; only plain module names"),
        ({"rank_pattern": {"(.*a)+$": 2}}, "rank_pattern is {'(.*a)+$': 2}; only plain"),
        ({"exclude_modules": "(.*a)+$"}, "exclude_modules is '(.*a)+$'; only plain"),
        ({"exclude_modules": 7}, "exclude_modules is 7; only plain"),
        ({"lora_dropout": "x"}, "does not fit the base model"),
        ({"modules_to_save": 7}, "does not fit the base model"),
        ({"bias": "purple"}, "does not fit the base model"),
        ({"rank_pattern": {"q_proj": 8}}, None),
        ({"init_lora_weights": "pissa"}, None),
        ({"a_key_of_the_future": 1}, None),
        ({"base_model_name_or_path": "../../etc"}, None),
    ],
    ids=str,
)
def test_b66_a_configuration_is_checked_before_peft_sees_it(generate, adapter, changes, message):
    configure(adapter, **changes)
    outcome = generate(adapter)
    if message is None:
        assert outcome.code == 0, outcome.err
    else:
        assert message in refusal(outcome)


@pytest.mark.row("B66")
@pytest.mark.parametrize("content", ["{", "[]", "null", "[" * 100_000, "\x00"])
def test_b66_a_configuration_that_is_no_object_is_refused(generate, adapter, content):
    (adapter / "adapter_config.json").write_text(content)
    assert "adapter_config.json: is not" in refusal(generate(adapter))


@pytest.mark.row("B66")
def test_b66_a_configuration_that_is_not_utf8_is_refused(generate, adapter):
    (adapter / "adapter_config.json").write_bytes(b'{"r": "\xff"}')
    assert "is not JSON" in refusal(generate(adapter))
