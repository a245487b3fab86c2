"""Run folders as `lorafit train` leaves them, written by its own writers but without training."""

import json
import math
from pathlib import Path
from typing import Any

from lorafit.config.schema import Settings
from lorafit.report.events import EventLog
from lorafit.report.records import StepRecord
from lorafit.report.run_record import RunRecord

MIB = 1024**2
HOSTILE = '<b>bold</b> </script><script>window.hacked = 1</script> \u202e & "quoted" \x1b[31m'
"""Text that would end a script element, run code, turn reading around or steer a terminal."""


def step_record(step: int, *, scale: float = 1.0) -> StepRecord:
    """Return a step whose loss falls from about 3 * `scale`; every tenth was validated."""
    loss = scale * (0.5 + 2.5 * math.exp(-step / 40) + 0.05 * math.sin(step))
    return StepRecord(
        step=step,
        loss=loss,
        learning_rate=1e-4 * min(1, step / 20),
        grad_norm=1 + 0.3 * math.cos(step),
        epoch=step / 50,
        tokens=1000,
        supervised_tokens=600,
        tokens_per_second=2000 + 10 * step,
        seconds=0.5,
        memory_allocated_bytes=700 * MIB,
        memory_reserved_bytes=800 * MIB + step * 1024,
        validation_loss=loss * 1.1 if step % 10 == 0 else None,
    )


def made_facts(folder: Path, **settings: Any) -> dict[str, Any]:
    """Return the facts of run.json for a tiny run with these settings, all others default."""
    values = Settings(**{"output_dir": str(folder), **settings}).model_dump(mode="json")
    parts = ("weights", "adapter", "gradient", "optimizer", "activation", "logits", "workspace",
             "fragmentation", "context")  # fmt: skip
    source = {
        "name": "rows.jsonl",
        "sha256": "ab" * 32,
        "kind": "prompt-completion",
        "rows_read": 20,
        "empty": 1,
        "counts": {"rows": 19, "truncated": 0, "dropped": 0, "tokens": 900,
                   "supervised_tokens": 400, "duplicates": 0},
        "lengths": {"p50": 40, "p90": 60, "p99": 64, "max": 64, "mean": 45.0},
        "labels": {"counts": [["red", 12], ["blue", 7]], "majority_share": 0.63},
    }  # fmt: skip
    return {
        "preset": None,
        "settings": {
            name: {"value": v, "origin": f"flag --{name}" if name in settings else "default"}
            for name, v in values.items()
        },
        "plan": {
            "device": {"name": "AMD EPYC", "reason": "AMD EPYC, 2 cores", "driver": None},
            "model": {"model_type": "phi", "num_parameters": 2_779_683_840,
                      "num_trainable_parameters": 23_592_960},
            "batch": {"effective_batch_size": 6},
            "schedule": {"total_steps": 200},
            "data": {"training": source, "validation_source": None,
                     "train_counts": {"rows": 17}, "validation_counts": {"rows": 2},
                     "split_reason": "a tenth of the rows validates", "chat_reason": None,
                     "num_overlap": 0, "sha256": "ab" * 32, "train_rows": 17},
            "memory": {"process_bytes": 900 * MIB, "phase": "forward", "capacity_bytes": 2**34,
                       "verdict": "fits", "calibrated": False,
                       "breakdown": {f"{part}_bytes": 100 * MIB for part in parts}},
            "compute_dtype": "float32",
            "reasons": {"memory": "fits: 15.1 GiB stay free"},
            "warnings": [],
        },
        "fingerprint": {},
        "attempts": [],
    }  # fmt: skip


def write_run(
    folder: Path,
    *,
    num_steps: int = 200,
    status: str = "completed",
    scale: float = 1.0,
    samples: tuple[dict[str, Any], ...] = (),
    notes: tuple[str, ...] = ("a new run",),
    **settings: Any,
) -> Path:
    """Write run.json, events.jsonl and samples.jsonl of a run; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(folder, "f" * 32, made_facts(folder, **settings))
    for note in notes:
        record.note(note)
    append_steps(folder, 1, num_steps, scale=scale)
    if samples:
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (folder / "samples.jsonl").write_text(lines, encoding="utf-8")
    if status != "running":
        last = step_record(num_steps, scale=scale)
        record.close(
            status,  # type: ignore[arg-type]  # one of its literals
            {"steps": num_steps, "final_loss": last.loss, "peak_memory_bytes": 801 * MIB,
             "predicted_peak_memory_bytes": 900 * MIB, "checkpoints": [100, num_steps]},
        )  # fmt: skip
    return folder


def append_steps(folder: Path, first: int, last: int, *, scale: float = 1.0) -> None:
    """Append the steps `first` to `last` to events.jsonl, as a run does."""
    events = EventLog(folder)
    for step in range(first, last + 1):
        events.on_step(step_record(step, scale=scale))
