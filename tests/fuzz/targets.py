"""What is fuzzed: one function a reader, each of which takes bytes and raises nothing.

A `LorafitError` with an exit code of its own is an answer; any other exception is a finding, and
so is a run folder that a refused command leaves behind. Used by the property tests and by the
coverage-guided harness, `atheris_readers.py`.
"""

import atexit
import contextlib
import functools
import hashlib
import io
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorafit.errors import ExitCode, LorafitError

FOLDER = Path(tempfile.mkdtemp(prefix="lorafit-fuzz-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
ANSWERS = {
    ExitCode.OK, ExitCode.USAGE, ExitCode.BAD_INPUT, ExitCode.DEVICE, ExitCode.CHECKPOINT,
    ExitCode.STORAGE,
}  # fmt: skip


def _answers(function: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """Let a target end with any `LorafitError` but the one that means a bug."""

    @functools.wraps(function)
    def target(data: bytes) -> None:
        try:
            function(data)
        except LorafitError as answer:
            _check_answer(answer)

    return target


def _check_answer(answer: LorafitError) -> None:
    assert answer.exit_code in ANSWERS, answer
    assert str(answer), "an error without a word"
    assert "\x1b" not in str(answer), "a control character in a message"


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


@_answers
def settings_yaml(data: bytes) -> None:
    """A settings file in YAML, as `--config` and `config validate` read it."""
    _resolve(_file("settings.yaml", data))


@_answers
def settings_json(data: bytes) -> None:
    """A settings file in JSON."""
    _resolve(_file("settings.json", data))


@_answers
def settings_toml(data: bytes) -> None:
    """A settings file in TOML."""
    _resolve(_file("settings.toml", data))


def _resolve(path: Path) -> None:
    from lorafit.config.batch import resolve_batch
    from lorafit.config.resolve import resolve_run
    from lorafit.hardware.detect import planned_device

    resolved = resolve_run(
        preset=None, config_file=path, overrides=(), flags={}, environ={},
        device=planned_device("cpu"),
    )  # fmt: skip
    resolve_batch(resolved, num_devices=1)


@_answers
def foreign_python(data: bytes) -> None:
    """A training script in Python, as `config convert` reads it without running it."""
    _convert(_file("train.py", data))


@_answers
def foreign_yaml(data: bytes) -> None:
    """A configuration of another tool, as `config convert` reads it."""
    _convert(_file("foreign.yaml", data))


def _convert(path: Path) -> None:
    from lorafit.config.convert.translate import convert_file
    from lorafit.config.convert.write import render_config

    text = render_config(convert_file(path))
    _resolve(_file("converted.yaml", text.encode()))


@_answers
def preset(data: bytes) -> None:
    """A preset file."""
    from lorafit.config.presets import load_preset_file

    load_preset_file(_file("mine.yaml", data), "mine")


@_answers
def rows_jsonl(data: bytes) -> None:
    """Training data as JSON lines."""
    _read_rows(_file("rows.jsonl", data))


@_answers
def rows_json(data: bytes) -> None:
    """Training data as one JSON array."""
    _read_rows(_file("rows.json", data))


@_answers
def rows_csv(data: bytes) -> None:
    """Training data as CSV."""
    _read_rows(_file("rows.csv", data))


@_answers
def rows_parquet(data: bytes) -> None:
    """Training data as Parquet: the bytes between the marks of the format."""
    _read_rows(_file("rows.parquet", b"PAR1" + data + b"PAR1"))


def _read_rows(path: Path) -> None:
    from lorafit.config.schema import Settings
    from lorafit.data.records import read_records
    from lorafit.data.sources import resolve_source

    read_records(resolve_source(str(path)), Settings())


@_answers
def manifest(data: bytes) -> None:
    """A checkpoint's manifest."""
    from lorafit.training.checkpoints.checkpoint import list_checkpoints, verify_checkpoint

    folder = FOLDER / "run" / "checkpoint-1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(data)
    (folder / "a").write_bytes(b"a")
    list_checkpoints(folder.parent)
    verify_checkpoint(folder)


@_answers
def adapter_config(data: bytes) -> None:
    """The configuration of an adapter, beside sound weights."""
    from lorafit.model.adapter import verify_adapter

    verify_adapter(_with_weights("adapter", "adapter_config.json", data))


@_answers
def adapter_weights(data: bytes) -> None:
    """The weights of an adapter, beside a sound configuration."""
    from lorafit.model.adapter import verify_adapter

    folder = FOLDER / "weights"
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["a"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(data)
    verify_adapter(folder)


def _with_weights(name: str, file: str, data: bytes) -> Path:
    folder = FOLDER / name
    if not folder.is_dir():
        import torch
        from safetensors.torch import save_file

        folder.mkdir()
        save_file({"a.lora_B.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    (folder / file).write_bytes(data)
    return folder


@_answers
def model_config(data: bytes) -> None:
    """The config.json of a model."""
    from lorafit.model.source import locate_model, read_config

    folder = FOLDER / "model"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(data)
    read_config(locate_model(str(folder), need_weights=False))


@_answers
def weight_index(data: bytes) -> None:
    """The index of sharded weights."""
    from lorafit.model.weights import read_weight_files

    read_weight_files(_with_weights("index", "model.safetensors.index.json", data))


@_answers
def run_record(data: bytes) -> None:
    """The run.json of an earlier run, as continuing it reads it."""
    from lorafit.training.run_folder.folder import read_run

    folder = FOLDER / "record"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(data)
    read_run(folder)


@_answers
def events(data: bytes) -> None:
    """The events.jsonl of a run, as reports and a resumed run read it."""
    from lorafit.report.events import read_events

    read_events(_file("events.jsonl", data).parent)


def arguments(data: bytes) -> None:
    """A command line, its words divided by zero bytes, run in this process.

    Nothing that trains: `train` is given data that is not there.
    """
    from lorafit.cli.main import main

    words = data.decode("utf-8", "surrogateescape").split("\0")
    if words[:1] == ["train"]:
        words += ["--data", str(FOLDER / "missing.jsonl"), "--output-dir", str(FOLDER / "out")]
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert code in ANSWERS, f"{code}: {stderr.getvalue()}"
    assert "Traceback" not in stderr.getvalue()
    assert not (FOLDER / "out").exists(), "a run folder was left behind"
    shutil.rmtree(FOLDER / "out", ignore_errors=True)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        settings_yaml, settings_json, settings_toml, foreign_python, foreign_yaml, preset,
        rows_jsonl, rows_json, rows_csv, rows_parquet, manifest, adapter_config, adapter_weights,
        model_config, weight_index, run_record, events, arguments,
    )
}  # fmt: skip


def _weights(dtype: str, num_values: int) -> bytes:
    """Return a safetensors file of one value, whose header says that it holds `num_values`."""
    entry = {"dtype": dtype, "shape": [num_values], "data_offsets": [0, 4]}
    header = json.dumps({"a.lora_B.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0)


_MANIFEST = {
    "schema_version": 1, "step": 1, "run_id": "x",
    "files": {"a": {"bytes": 1, "sha256": hashlib.sha256(b"a").hexdigest()}},
}  # fmt: skip
_ADAPTER = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["a"]}
_MODEL = {"model_type": "phi", "hidden_size": 32, "vocab_size": 64, "num_hidden_layers": 1}
_RECORD = {"run_id": "x", "status": "running", "fingerprint": {"seed": 1}}
SEEDS: dict[str, list[bytes]] = {
    "settings_yaml": [b"lora:\n  r: 8\nlearning_rate: 2e-4\n", b"preset: low\nseed: 1 # a\n"],
    "settings_json": [b'{"lora": {"r": 8}, "target_modules": ["q_proj"]}'],
    "settings_toml": [b'model = "a/b"\n[lora]\nr = 8\n', b"seed = 1979-05-27T07:32:00Z"],
    "foreign_python": [
        b"from peft import LoraConfig\nR = 8\nlora = LoraConfig(r=R, lora_alpha=2 * 8)\n"
        b'args = TrainingArguments(output_dir="x", learning_rate=2e-4, num_train_epochs=3)\n',
        b'CONFIG = {"batch_size": 4, "max_seq_length": 512}\nCONFIG["lora_r"] = 8\n',
    ],
    "foreign_yaml": [
        b"base_model: a/b\nadapter: qlora\nlora_r: 32\nmicro_batch_size: 2\nsequence_len: 512\n",
        b"finetuning_type: lora\nlora_rank: 8\nlora_target: all\ncutoff_len: 1024\n",
        b"training:\n  num_epochs: 3\n  batch_size: 4\nmodel:\n  name: a/b\n",
    ],
    "preset": [
        b"schema_version: 1\nname: mine\ndescription: x\nsettings:\n  lora_r: 16\nhardware:\n"
        b"  default:\n    effective_batch_size: 32\n    max_length: 512\n"
    ],
    "rows_jsonl": [
        b'{"text": "a"}\n',
        b'{"prompt": "a", "completion": "b", "label": 1}\n',
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        b'{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n',
    ],
    "rows_json": [b'[{"text": "a"}]', b'{"data": [{"text": "a"}]}'],
    "rows_csv": [b"text,label\na,b\n", b'prompt,completion\n"a ""b""",c\n'],
    "rows_parquet": [b"", b"\x15\x04\x19\x35\x00\x06schema"],  # and a whole one: `seeds_of`
    "manifest": [json.dumps(_MANIFEST).encode()],
    "adapter_config": [json.dumps(_ADAPTER).encode()],
    "adapter_weights": [_weights("F32", 1), _weights("F32", 2), _weights("F9", 1)],
    "model_config": [json.dumps(_MODEL).encode()],
    "weight_index": [
        b'{"weight_map": {"a": "b.safetensors"}}',
        b'{"weight_map": {"a.lora_B.weight": "adapter_model.safetensors"}}',
    ],
    "run_record": [json.dumps(_RECORD).encode()],
    "events": [
        b'{"step": 1, "loss": 2.5, "learning_rate": 1e-4}\n{"step": 2, "loss": 2.25}\n{"st',
        b'{"step": 3, "validation_loss": 2.0}\n',
    ],
    "arguments": [
        b"config\0show\0--lora-r\0008",
        b"presets\0show\0low\0--json",
        b"presets\0diff\0low\0high",
        b"train\0--preset\0low\0seed=1\0--max-steps=2",
        b"config\0validate\0x.yaml",
        b"data\0inspect\0x.jsonl\0--max-length\x0064",
        b"--version",
        b"train\0--resume\0auto",
    ],
}
"""Inputs of each target for a fuzzer to damage, sound ones and ones that are nearly so."""


def seeds_of(name: str) -> list[bytes]:
    """Return the inputs of a target that fuzzing begins with."""
    if name != "rows_parquet":
        return SEEDS[name]
    import pyarrow
    from pyarrow import parquet

    stream = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), stream)
    return [*SEEDS[name], stream.getvalue().removeprefix(b"PAR1").removesuffix(b"PAR1")]
