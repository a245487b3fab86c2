"""Nothing that a file says can steer the terminal that shows it."""

import json
import unicodedata

import pytest
from tiny import END, colour_rows, write_jsonl

STEER = "\x1b[2J\x1b]0;mine\x07\x9b31m\u202e\r\b"
"""Clears a screen, sets a title, colours, turns the reading direction, overwrites the line."""


def assert_tame(outcome, code=None):
    """Check that both streams hold characters to read only, and that there was something."""
    assert code is None or outcome.code == code, outcome.err
    shown = outcome.out + outcome.err
    assert shown
    steering = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t"}
    assert not steering
    return shown


@pytest.mark.row("B51")
@pytest.mark.parametrize(
    "row",
    [
        {"text": STEER + "\ud800"}, {STEER: 1}, {"prompt": 1, "completion": STEER},
        {"messages": [{"role": STEER, "content": "x"}]}, [STEER], STEER,
    ],
    ids=["text", "key", "value", "role", "list", "string"],
)  # fmt: skip
def test_rows_that_are_refused(run_lorafit, tmp_path, row):
    data = write_jsonl(tmp_path / "rows.jsonl", [row])
    assert_tame(run_lorafit("data", "inspect", data), code=3)


@pytest.mark.row("B51")
@pytest.mark.parametrize("mask", [True, False])
def test_rows_that_are_shown(run_lorafit, tiny_model, tmp_path, mask):
    rows = [{"prompt": STEER, "completion": f"{STEER}{END}", "label": STEER, STEER: 1}] * 3
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    more = ("--show-mask", 1) if mask else ()
    outcome = run_lorafit("data", "inspect", data, "--model", tiny_model(), *more)
    assert "mine" in assert_tame(outcome, code=0)


@pytest.mark.row("B51")
@pytest.mark.parametrize(
    "content",
    [f"{STEER}: 1", f"model: '{STEER}'", f"seed: '{STEER}'", f"lora: {{'{STEER}': 1}}",
     f"a: [{STEER}", f"? {STEER}"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_settings_files(run_lorafit, tmp_path, content, suffix):
    path = tmp_path / f"mine.{suffix}"
    path.write_text(content, encoding="utf-8", newline="")
    assert_tame(run_lorafit("config", "validate", path), code=3)


@pytest.mark.row("B51")
def test_keys_of_a_json_settings_file(run_lorafit, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({STEER: STEER, "optim": STEER, "lora": {STEER: 1}}))
    assert "mine" in assert_tame(run_lorafit("config", "validate", path), code=3)


@pytest.mark.row("B51")
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--data", f"{STEER}.jsonl"], ["train", "--model", f"./{STEER}", "--data", "x"],
        ["train", "--preset", STEER], ["train", "--config", f"{STEER}.yaml"],
        ["train", f"{STEER}=1"], ["train", STEER], ["train", "--resume", STEER],
        ["train", "--optim", STEER], ["train", "--device", STEER], ["train", "--hardware", STEER],
        ["generate", "--prompt", "x", "--adapter", STEER, "--model", f"./{STEER}"],
        ["generate", "--prompt-file", STEER], ["config", "validate", f"{STEER}.yaml"],
        ["presets", "show", STEER], ["data", "inspect", f"{STEER}.jsonl"], [STEER],
        ["train", f"--{STEER}"], ["train", f"--{STEER}=1"], ["train", f"-{STEER}"],
        ["generate", "--prompt", "x", "--max-new-tokens", STEER], ["presets", STEER],
        ["evaluate", "--answers", f"{STEER}/x"],
        ["doctor", "--check", STEER],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).replace(STEER, "STEER"),
)  # fmt: skip
def test_arguments(run_lorafit, arguments):
    outcome = run_lorafit(*arguments)
    assert_tame(outcome)
    assert outcome.code in (2, 3, 4, 5, 7)


@pytest.mark.row("B51")
def test_variables(run_lorafit, monkeypatch):
    monkeypatch.setenv("LORAFIT_SEED", STEER)
    monkeypatch.setenv(f"LORAFIT_{STEER}", "1")
    assert_tame(run_lorafit("config", "show"), code=2)


@pytest.mark.row("B51")
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": STEER}),
        ("config.json", {"hidden_size": STEER}),
        ("config.json", {"hidden_act": STEER}),
        ("config.json", {"quantization_config": {"quant_method": STEER}}),
        ("config.json", {"attn_implementation": f"{STEER}/x"}),
        ("config.json", {"auto_map": {STEER: STEER}}),
        ("tokenizer_config.json", {"eos_token": STEER, "pad_token": STEER}),
        ("tokenizer_config.json", {"tokenizer_class": STEER}),
    ],
    ids=str,
)
def test_models(run_lorafit, train_arguments, own_model, tmp_path, file, changes):
    model = own_model()
    path = model / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (model / f"{STEER}.bin").touch()
    assert_tame(run_lorafit(*train_arguments(tmp_path / "run", "--dry-run", model=model)))


@pytest.mark.row("B51")
def test_weights_that_an_index_names(run_lorafit, train_arguments, own_model, tmp_path):
    model = own_model()
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": f"{STEER}.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_tame(run_lorafit(*train_arguments(tmp_path / "run", model=model)), code=3)


@pytest.mark.row("B51")
@pytest.mark.parametrize(
    "changes",
    [{"peft_type": STEER}, {"r": STEER}, {"lora_alpha": STEER}, {"target_modules": STEER},
     {"target_modules": [STEER]}, {"rank_pattern": {STEER: 1}}, {"bias": STEER},
     {"base_model_name_or_path": STEER, "target_modules": ["x"]}],
    ids=str,
)  # fmt: skip
def test_adapters(run_lorafit, tiny_model, tmp_path, changes):
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    save_file({STEER: torch.ones(2)}, folder / "adapter_model.safetensors")
    outcome = run_lorafit(
        *("generate", "--model", tiny_model(), "--adapter", folder, "--device", "cpu"),
        *("--prompt", "x", "--max-new-tokens", "1", "--max-length", "64"),
    )
    assert_tame(outcome, code=3)


@pytest.mark.row("B51", "B13")
def test_a_whole_run_in_a_folder_with_such_a_name(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / STEER.replace("/", "")
    data = write_jsonl(tmp_path / f"{STEER}.jsonl", colour_rows(12))
    arguments = train_arguments(run_dir, data=data, max_steps=1, warmup_steps=0)
    assert_tame(run_lorafit(*arguments), code=0)
    assert_tame(run_lorafit(*arguments), code=0)


@pytest.mark.row("B51")
def test_generated_text_is_tame_on_a_terminal_and_exact_in_a_pipe(monkeypatch):
    from lorafit.cli.generate import _shown

    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert _shown(f"a{STEER}\n\tb") == f"a{STEER}\n\tb"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    shown = _shown(f"a{STEER}\n\tb\\t")
    assert not {"\x1b", "\x9b", "\u202e", "\r", "\b", "\x07"} & set(shown)
    assert shown.endswith("\n\tb\\t")
