"""Kill training at random moments, resume it, and compare with a run that was never killed.

    python bench/kill_and_resume.py [--kills 200] [--work FOLDER]

Both sides train the same tiny model on the same rows for 12 steps with a checkpoint every 2:
`lorafit train`, and a plain transformers Trainer script (plain_trainer.py). Odd trials are killed
(SIGKILL) at a random moment of training, even ones at a random moment within a random save.
Results are kept in FOLDER a trial at a time, so that an interrupted bench goes on where it was; the
tables in bench/results are written at its end, or when Ctrl-C stops it.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "bench")]

from plain_trainer import MAX_STEPS, SAVE_STEPS, STEPS_FILE  # noqa: E402

RESULTS = ROOT / "bench" / "results"
SIDES = ("lorafit", "transformers")
_TRAINER_FILES = (
    "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "trainer_state.json",
)  # fmt: skip
_STATE = ("optimizer.safetensors", "rng.safetensors", "scheduler.json", "optimizer.json",
          "rng.json")  # fmt: skip


class Side:
    """One of the two programs: how it is started and what it leaves."""

    def __init__(self, name: str, work: Path, server: Any) -> None:
        self.name = name
        self.work = work
        self._server = server

    def start(self, run_dir: Path) -> Any:
        """Start training, or go on."""
        model, data = self.work / "model", self.work / "data.jsonl"
        if self.name == "transformers":
            return self._server.start_function("plain_trainer", model, data, run_dir)
        return self._server.start(
            "train", "--output-dir", run_dir, "--model", model, "--data", data, "--device", "cpu",
            "--validation-split", "0", "--max-length", "64", "--per-device-train-batch-size", "2",
            "--gradient-accumulation-steps", "3", "--max-steps", MAX_STEPS, "--save-steps",
            SAVE_STEPS, "--save-total-limit", "3", "--lora-dropout", "0.1", "--learning-rate",
            "1e-2", "--warmup-steps", "1", "--no-gradient-checkpointing", "--no-torch-compile",
        )  # fmt: skip

    def steps(self, run_dir: Path) -> dict[int, float]:
        """Return the loss of every step that was recorded; a repeated step counts once."""
        name = "events.jsonl" if self.name == "lorafit" else STEPS_FILE
        found = {}
        for line in _lines(run_dir / name):
            try:
                event = json.loads(line)
                found[int(event["step"])] = float(event["loss"])
            except (ValueError, KeyError):
                continue  # the line that the kill cut off
        return found

    def bad_checkpoints(self, run_dir: Path) -> list[str]:
        """Return the visible checkpoints that are incomplete."""
        return [f.name for f in sorted(run_dir.glob("checkpoint-*")) if not self._is_whole(f)]

    def _is_whole(self, folder: Path) -> bool:
        if self.name == "transformers":
            sizes = [_size(folder / name) for name in _TRAINER_FILES]
            return all(sizes)
        from lorafit.errors import CheckpointError
        from lorafit.training.checkpoints.checkpoint import verify_checkpoint
        from lorafit.training.checkpoints.layout import STATE_FILES

        try:
            verify_checkpoint(folder, STATE_FILES)
        except CheckpointError:
            return False
        return True

    def is_saving(self, run_dir: Path) -> bool:
        """Return whether a checkpoint is being written now."""
        if self.name == "lorafit":
            return any(run_dir.glob(".staging-checkpoint-*"))
        return any(not _size(f / "trainer_state.json") for f in run_dir.glob("checkpoint-*"))

    def resumed_from(self, run_dir: Path, err: str, before: int) -> int:
        """Return the step that the second attempt continued from.

        Args:
            run_dir: the run's folder.
            err: what the second attempt wrote to stderr.
            before: size of the file of steps, in bytes, when the second attempt began.
        """
        if self.name == "lorafit":
            # Killed between its last step and its exit, it had nothing left to do.
            if complete := re.search(r"already complete at step (\d+)", err):
                return int(complete[1])
            notes = json.loads((run_dir / "run.json").read_text())["notes"]
            text = next((note for note in notes if "continuing from checkpoint-" in note), "")
            return int(text.split("checkpoint-")[1].split(",")[0]) if text else 0
        # The plain script says nothing: the first step that it takes tells.
        added = (run_dir / STEPS_FILE).read_bytes()[before:].splitlines()
        return int(json.loads(added[0])["step"]) - 1 if added else MAX_STEPS

    def final_state(self, run_dir: Path) -> dict[str, Any]:
        """Return what has to be equal at the end."""
        state: dict[str, Any] = {
            "losses": self.steps(run_dir),
            "adapter": (run_dir / "adapter" / "adapter_model.safetensors").read_bytes(),
        }
        if self.name == "lorafit":
            last = run_dir / f"checkpoint-{MAX_STEPS}"
            state |= {name: _content(last / name) for name in _STATE}
        return state


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.exists() else []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _content(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def run_trial(side: Side, number: int, reference: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Kill one run and resume it; return what happened."""
    chance = random.Random(f"{side.name}-{number}")
    run_dir = side.work / side.name / f"trial-{number}"
    while True:
        shutil.rmtree(run_dir, ignore_errors=True)
        command = side.start(run_dir)
        aim = _aim_at_save if number % 2 == 0 else _aim_at_training
        if aim(side, run_dir, command, chance, seconds):
            command.send(signal.SIGKILL)
        killed = command.wait().code == -signal.SIGKILL
        if killed:
            break
    steps, bad = side.steps(run_dir), side.bad_checkpoints(run_dir)
    visible = sorted(int(f.name.split("-")[1]) for f in run_dir.glob("checkpoint-*"))
    size = _size(run_dir / STEPS_FILE)
    outcome = side.start(run_dir).wait()
    trial: dict[str, Any] = {
        "trial": number,
        "aim": "save" if number % 2 == 0 else "training",
        "last_step": max(steps, default=0),
        "visible_checkpoints": visible,
        "bad_checkpoints": bad,
        "exit_code": outcome.code,
    }
    if outcome.code != 0:
        lines = outcome.err.strip().splitlines()
        return {**trial, "result": "resume failed", "error": lines[-1][:200] if lines else ""}
    resumed = side.resumed_from(run_dir, outcome.err, size)
    state = side.final_state(run_dir)
    different = [name for name in reference if state[name] != reference[name]]
    shutil.rmtree(run_dir)
    return {
        **trial,
        "resumed_from": resumed,
        "steps_lost": max(0, trial["last_step"] - resumed),
        "different": different,
        "result": "different" if different else "equal",
    }


def _aim_at_training(
    side: Side, run_dir: Path, command: Any, chance: random.Random, seconds: float
) -> bool:
    """Wait for the first step and then for a random part of the training time."""
    if not _wait_until(lambda: bool(side.steps(run_dir)), command):
        return False
    time.sleep(chance.uniform(0, seconds))
    return True


def _aim_at_save(
    side: Side, run_dir: Path, command: Any, chance: random.Random, seconds: float
) -> bool:
    """Wait for a random save and then for a random part of its few milliseconds."""
    skip = chance.randrange(MAX_STEPS // SAVE_STEPS)
    for _ in range(skip):
        if not _wait_until(lambda: side.is_saving(run_dir), command):
            return False
        if not _wait_until(lambda: not side.is_saving(run_dir), command):
            return False
    if not _wait_until(lambda: side.is_saving(run_dir), command):
        return False
    time.sleep(chance.uniform(0, 0.03))
    return True


def _wait_until(condition: Callable[[], bool], command: Any) -> bool:
    while not condition():
        if not command.is_running():
            return False
        time.sleep(0.001)
    return True


class Series:
    """The trials of one side, kept in a file."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self._folder = side.work / side.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = self._folder / "trials.jsonl"
        kept: list[dict[str, Any]] = [json.loads(line) for line in _lines(self._log)]
        self.trials = sorted(kept, key=lambda trial: int(trial["trial"]))
        self._reference, self._seconds = self._train_reference()

    def _train_reference(self) -> tuple[dict[str, Any], float]:
        """Return the state of an uninterrupted run, and the seconds that its steps took."""
        run_dir = self._folder / "reference"
        if not (run_dir / "adapter").exists():
            shutil.rmtree(run_dir, ignore_errors=True)
            outcome = self.side.start(run_dir).wait(600)
            assert outcome.code == 0, outcome.err
        began, ended = (
            (run_dir / f"checkpoint-{step}").stat().st_mtime
            for step in (MAX_STEPS - 2 * SAVE_STEPS, MAX_STEPS)
        )
        seconds = max(0.2, (ended - began) * MAX_STEPS / (2 * SAVE_STEPS))
        return self.side.final_state(run_dir), seconds

    def run_one(self) -> None:
        """Run the next trial that is missing."""
        done = {trial["trial"] for trial in self.trials}
        number = next(n for n in itertools.count(1) if n not in done)
        trial = run_trial(self.side, number, self._reference, self._seconds)
        self.trials.append(trial)
        self.trials.sort(key=lambda trial: int(trial["trial"]))
        with self._log.open("a") as stream:
            stream.write(json.dumps(trial) + "\n")
        print(f"{self.side.name} {number}: {trial['result']}", flush=True)


def summarize(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the counts of a side."""
    results = Counter(trial["result"] for trial in trials)
    errors = Counter(trial["error"].partition(":")[0] for trial in trials if "error" in trial)
    restarts = [t for t in trials if t.get("resumed_from") == 0 and t["last_step"] > SAVE_STEPS]
    return {
        "kills": len(trials),
        "kills_in_a_save": sum(trial["aim"] == "save" for trial in trials),
        "resumed_equal": results["equal"],
        "resumed_different": results["different"],
        "resume_failed": results["resume failed"],
        "errors": dict(errors),
        "bad_visible_checkpoints": sum(len(trial["bad_checkpoints"]) for trial in trials),
        "most_steps_lost": max((trial.get("steps_lost", 0) for trial in trials), default=0),
        "silent_restarts": len(restarts),
    }


def write_results(sides: dict[str, list[dict[str, Any]]]) -> None:
    """Write the JSON of every trial and the table."""
    from lorafit.report.run_record import installed_versions

    summaries = {name: summarize(trials) for name, trials in sides.items()}
    document = {
        "schema_version": 1,
        "steps": MAX_STEPS,
        "save_steps": SAVE_STEPS,
        "versions": installed_versions(),
        "summary": summaries,
        "trials": sides,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "kill_and_resume.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "kill_and_resume.md").write_text(_table(summaries), encoding="utf-8")


_ROWS = (
    ("kills", "kills (SIGKILL)"),
    ("kills_in_a_save", "of these aimed at a save"),
    ("resumed_equal", "resumed, and equal to the uninterrupted run bit for bit"),
    ("resumed_different", "resumed, and ended differently without a word"),
    ("resume_failed", "could not be resumed"),
    ("bad_visible_checkpoints", "incomplete checkpoints that look like checkpoints"),
    ("silent_restarts", "began again from step 0 without a word although a save was due"),
    ("most_steps_lost", f"most steps lost (a save every {SAVE_STEPS})"),
)


def _table(summaries: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Kill and resume",
        "",
        "Written by `python bench/kill_and_resume.py`: the same tiny model and rows, "
        f"{MAX_STEPS} steps, dropout on, a checkpoint every {SAVE_STEPS} steps.",
        "Equal means: every step's loss and the final adapter, and for lorafit the optimizer, the "
        "schedule and the random state too.",
        "",
        "| | lorafit | plain transformers Trainer |",
        "| --- | --- | --- |",
    ]
    for key, title in _ROWS:
        cells = (str(summaries.get(side, {}).get(key, "not run")) for side in SIDES)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for side, summary in summaries.items():
        for error, count in summary["errors"].items():
            lines += ["", f"{side}: {count} resumes ended with `{error}`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("outputs/kill_and_resume"))
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)

    from processes import ForkServer  # type: ignore[import-not-found]  # in tests/
    from tiny import (  # type: ignore[import-not-found]  # in tests/
        build_model,
        colour_rows,
        write_jsonl,
    )

    if not (work / "data.jsonl").exists():
        build_model(work / "model", "phi", "float32", {})
        write_jsonl(work / "data.jsonl", colour_rows(18))
    commands = work / "commands"
    shutil.rmtree(commands, ignore_errors=True)
    cache = str(work / "cache")
    server = ForkServer(commands / str(os.getpid()), LORAFIT_CACHE_DIR=cache)
    series = [Series(Side(name, work, server)) for name in SIDES]
    # In turns, so that both sides meet the same load of the machine.
    try:
        while any(len(one.trials) < options.kills for one in series):
            for one in series:
                if len(one.trials) < options.kills:
                    one.run_one()
    finally:
        write_results({one.side.name: one.trials for one in series})
    print((RESULTS / "kill_and_resume.md").read_text())


if __name__ == "__main__":
    main()
