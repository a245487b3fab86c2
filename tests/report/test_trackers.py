"""Trackers against the real libraries, offline; a library that is not installed is skipped."""

import contextlib
import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from lorafit.config.schema import Settings
from lorafit.report.tensorboard import TensorBoardLog
from lorafit.report.tracker import Tracker, curves_of, tracked_config
from lorafit.report.trackers import TRACKERS, make_trackers, missing_trackers
from lorafit.report.wandb import _mode
from report.followed import (
    PYTHON,
    RUN_ID,
    environment_of,
    follow,
    follow_alone,
    is_installed,
    read_alone,
    record,
    wait_until_gone,
)

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


def needs(*names):
    missing = [name for name in names if not is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs("wandb")
def test_wandb_keeps_curves_and_settings_of_an_offline_run_and_no_more(tmp_path):
    follow_alone("wandb", tmp_path / "run", 1, 2, 3)
    (log,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    steps, config, others = read_alone("wandb", log)
    assert [row["train/loss"] for row in steps] == [2.0, 1.0, 0.0]
    assert steps[-1]["validation/loss"] == 1.5
    assert config["lora_r"] == 4
    assert not {"files", "environment"} & set(others)


@pytest.mark.parametrize(
    ("variables", "login", "mode"),
    [
        ({}, None, "offline"),
        ({}, "api.wandb.ai", "online"),
        ({}, "api.forge.coreweave.com", "online"),
        ({}, "example.org", "offline"),
        ({"WANDB_BASE_URL": "https://wandb.example.org/api"}, "wandb.example.org", "online"),
        ({"WANDB_BASE_URL": "https://wandb.example.org/api"}, "api.wandb.ai", "offline"),
        ({"WANDB_API_KEY": "0" * 40}, None, "online"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "0" * 40}, None, "disabled"),
    ],
)
def test_wandb_is_online_only_where_somebody_is_logged_in(
    monkeypatch, tmp_path, variables, login, mode
):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(f"machine {login} login user password x\n" if login else "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert _mode() == mode


@needs("mlflow")
def test_mlflow_keeps_curves_and_settings_and_a_resumed_run_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    follow_alone("mlflow", run_dir, 1, 2)
    follow_alone("mlflow", run_dir, 3, first_step=2)
    (folder,) = (path.parent for path in run_dir.glob("mlflow/*/*/params"))
    parameters = {path.name: path.read_text() for path in (folder / "params").iterdir()}
    assert parameters["lora_r"] == "4"
    assert parameters.keys() == Settings.model_fields.keys()
    # A line a value: time, value, step.
    lines = (folder / "metrics" / "train" / "loss").read_text().splitlines()
    assert [line.split()[1:] for line in lines] == [["2.0", "1"], ["1.0", "2"], ["0.0", "3"]]
    assert (folder / "metrics" / "validation" / "loss").read_text().split()[1:] == ["1.5", "3"]
    assert "status: 3" in (folder / "meta.yaml").read_text()


@needs("trackio")
def test_trackio_keeps_curves_and_settings_in_a_local_file(tmp_path):
    follow_alone("trackio", tmp_path / "run", 1, 2, 3)
    (path,) = tmp_path.glob("run/trackio/*.db")
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("select metrics from metrics order by step").fetchall()
        ((config,),) = database.execute("select config from configs")
    logs = [json.loads(row) for (row,) in rows]
    assert [row["train/loss"] for row in logs] == [2.0, 1.0, 0.0]
    assert json.loads(config)["lora_r"] == 4


@needs("wandb", "mlflow", "trackio")
def test_a_run_is_told_to_all_trackers_at_once_and_its_json_stays_clean(train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    arguments = train_arguments(run_dir, "--json", report_to="tensorboard,wandb,mlflow,trackio")
    done = subprocess.run(
        [PYTHON, "-m", "lorafit", *arguments],
        env=environment_of(run_dir),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "completed"
    assert "is incomplete" not in done.stderr
    assert {"tensorboard", "wandb", "mlflow", "trackio"} <= {
        path.name for path in run_dir.iterdir()
    }
    wait_until_gone(run_dir)


def test_a_tracker_that_is_not_installed_is_said_before_the_run(monkeypatch):
    settings = Settings(report_to=("tensorboard", "wandb"))
    found = {"tensorboard": object(), "wandb": None}
    monkeypatch.setattr("lorafit.report.trackers.find_spec", found.__getitem__)
    (sentence,) = missing_trackers(settings)
    assert sentence.startswith("wandb is not installed, so its curves will be missing")
    assert 'pip install "lorafit[wandb]"' in sentence
    assert missing_trackers(Settings(report_to=("none",))) == []
