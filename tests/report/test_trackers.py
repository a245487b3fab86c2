"""Trackers against the real libraries, offline; a library that is not installed is skipped."""

import json
from pathlib import Path

import pytest

from lorafit.config.schema import Settings
from lorafit.report.mlflow import MlflowLog
from lorafit.report.records import StepRecord
from lorafit.report.tensorboard import TensorBoardLog
from lorafit.report.tracker import Tracker, curves_of, tracked_config
from lorafit.report.trackers import TRACKERS, make_trackers
from lorafit.report.trackio import TrackioLog
from lorafit.report.wandb import WandbLog

RUN_ID = "0123456789abcdef0123456789abcdef"


def record(step, **changes):
    values = {
        "step": step, "loss": 3.0 - step, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.5,
        "tokens": 100, "supervised_tokens": 40, "tokens_per_second": 50.0, "seconds": 2.0,
        "memory_allocated_bytes": 10, "memory_reserved_bytes": 20 + step,
    }  # fmt: skip
    return StepRecord(**{**values, **changes})


def follow(tracker, steps=(1, 2, 3), first_step=0):
    """Let a tracker follow a short run; the last step is validated."""
    tracker.on_start(3, first_step)
    for step in steps:
        tracker.on_step(record(step, **({"validation_loss": 1.5} if step == 3 else {})))
    tracker.on_end()
    return tracker


@pytest.fixture
def make(tmp_path):
    def build(kind, run_dir=None):
        run_dir = run_dir or tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        return kind(run_dir, RUN_ID, tracked_config(Settings(lora_r=4, data="rows.jsonl")))

    return build


# -- What leaves this machine ------------------------------------------------------------------


def test_only_settings_of_the_schema_are_told_and_secrets_are_taken_out():
    home = str(Path.home())
    config = tracked_config(
        Settings(model=f"{home}/models/phi-2", output_dir="https://bob:pw@host/x", lora_r=4)
    )
    assert config.keys() == Settings.model_fields.keys()
    assert config["lora_r"] == 4
    if home != "/":
        assert config["model"] == "~/models/phi-2"
    assert "pw" not in config["output_dir"]
    json.dumps(config)


def test_every_tracker_shows_the_same_curves():
    curves = curves_of(record(3, validation_loss=1.5))
    assert curves["train/loss"] == 0.0
    assert curves["validation/loss"] == 1.5
    assert "validation/loss" not in curves_of(record(1))
    assert all(isinstance(value, float) for value in curves.values())


# -- Failures ----------------------------------------------------------------------------------


class Broken(Tracker):
    NAME = "broken"

    def __init__(self, run_dir, where, problem):
        super().__init__(run_dir, RUN_ID, {})
        self.where, self.problem, self.calls = where, problem, []

    def _reach(self, where):
        self.calls.append(where)
        if where == self.where:
            raise self.problem

    def _open(self, first_step):
        self._reach("open")

    def _log(self, step, curves):
        self._reach("log")

    def _close(self):
        self._reach("close")


@pytest.mark.parametrize(
    ("where", "calls"),
    [
        ("open", ["open"]),
        ("log", ["open", "log", "close"]),
        ("close", ["open", "log", "log", "log", "close"]),
    ],
)
@pytest.mark.parametrize("problem", [RuntimeError("no luck\nat all"), SystemExit("no luck")])
def test_a_tracker_that_fails_anywhere_stops_nothing_and_says_why(tmp_path, where, calls, problem):
    tracker = follow(Broken(tmp_path, where, problem))
    assert tracker.failure == "no luck"
    assert tracker.calls == calls


def test_a_library_that_is_missing_is_named_with_the_extra(tmp_path):
    problem = ModuleNotFoundError("No module named 'wandb'", name="wandb")
    assert follow(Broken(tmp_path, "open", problem)).failure == (
        "No module named 'wandb': pip install \"lorafit[broken]\""
    )


def test_a_failing_tracker_costs_a_run_a_note_only(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    def refuse(self, step, curves):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardLog, "_log", refuse)
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    notes = json.loads((run_dir / "run.json").read_text())["notes"]
    assert "tensorboard is incomplete: [Errno 28] No space left on device" in notes


def test_report_to_names_its_trackers_and_none_is_none(tmp_path):
    assert set(TRACKERS) == {"tensorboard", "wandb", "mlflow", "trackio"}
    assert [t.NAME for t in make_trackers(Settings(), tmp_path, RUN_ID)] == ["tensorboard"]
    assert make_trackers(Settings(report_to=("none",)), tmp_path, RUN_ID) == []


# -- The real libraries ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_curves_and_settings_of_an_offline_run_and_no_more(make, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = follow(make(WandbLog))
    assert tracker.failure is None
    (log,) = tracker.run_dir.glob("wandb/offline-run-*/*.wandb")
    steps, config, others = read_wandb(log)
    assert [row["train/loss"] for row in steps] == [2.0, 1.0, 0.0]
    assert steps[-1]["validation/loss"] == 1.5
    assert config["lora_r"] == 4
    assert not {"files", "environment"} & set(others)


def read_wandb(log):
    """Return history rows, configuration and the other kinds of records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    rows, config, others = [], {}, []
    for data in leveldb_records(log.read_bytes()):
        entry = wandb_internal_pb2.Record()
        entry.ParseFromString(data)
        kind = entry.WhichOneof("record_type")
        if kind == "history":
            items = entry.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json)
                         for item in items})  # fmt: skip
        elif kind == "run":
            config |= {u.key: json.loads(u.value_json) for u in entry.run.config.update}
        else:
            others.append(kind)
    return rows, config, others


def leveldb_records(data):
    """Yield the records of a LevelDB log with W&B's header of 7 bytes.

    Blocks of 32 KiB hold fragments: checksum (4 bytes), length (2), type (1: whole, 2: first,
    3: middle, 4: last), content.
    """
    position, parts = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_curves_and_settings_and_a_resumed_run_goes_on(make, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    tracker = follow(make(MlflowLog), steps=(1, 2))
    assert tracker.failure is None
    assert follow(make(MlflowLog), steps=(3,), first_step=2).failure is None
    client = mlflow.MlflowClient(tracking_uri=(tracker.run_dir / "mlflow").absolute().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("lorafit").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["lora_r"] == "4"
    assert run.data.params.keys() == Settings.model_fields.keys()
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert {metric.step: metric.value for metric in losses} == {1: 2.0, 2: 1.0, 3: 0.0}
    assert run.data.metrics["validation/loss"] == 1.5


@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_curves_and_settings_in_a_local_file(make, monkeypatch):
    import importlib.util
    import os
    import subprocess
    import sys

    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    # trackio reads its folder once, on import: a process of its own gets a new one.
    script = """
import sys, json
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tests.report.test_trackers import RUN_ID, follow
from lorafit.config.schema import Settings
from lorafit.report.tracker import tracked_config
from lorafit.report.trackio import TrackioLog
tracker = follow(TrackioLog(Path(sys.argv[1]), RUN_ID, tracked_config(Settings(lora_r=4))))
from trackio.sqlite_storage import SQLiteStorage
name = f"{tracker.run_dir.name}-{RUN_ID[:8]}"
print(json.dumps({"failure": tracker.failure, "logs": SQLiteStorage.get_logs("lorafit", name),
                  "config": SQLiteStorage.get_run_config("lorafit", name)}, default=str))
"""
    root = Path(__file__).resolve().parents[2]
    run_dir = make(TrackioLog).run_dir
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRACKIO_")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(run_dir), str(root)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["failure"] is None
    assert [row["train/loss"] for row in found["logs"]] == [2.0, 1.0, 0.0]
    assert found["config"]["lora_r"] == 4
    assert any((run_dir / "trackio").iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_a_run_is_told_to_all_trackers_at_once_and_its_json_stays_clean(
    run_lorafit, train_arguments, tmp_path, monkeypatch
):
    for name in ("wandb", "mlflow", "trackio"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, "--json", report_to="tensorboard,wandb,mlflow,trackio")
    outcome = run_lorafit(*arguments)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["status"] == "completed"
    assert "is incomplete" not in outcome.err
    assert {"tensorboard", "wandb", "mlflow"} <= {path.name for path in run_dir.iterdir()}
