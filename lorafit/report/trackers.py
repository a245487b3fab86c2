"""The trackers that `report_to` names."""

from importlib.util import find_spec
from pathlib import Path

from lorafit.config.schema import Settings
from lorafit.report.mlflow import MlflowLog
from lorafit.report.tensorboard import TensorBoardLog
from lorafit.report.tracker import Tracker, tracked_config
from lorafit.report.trackio import TrackioLog
from lorafit.report.wandb import WandbLog

TRACKERS: dict[str, type[Tracker]] = {
    tracker.NAME: tracker for tracker in (TensorBoardLog, WandbLog, MlflowLog, TrackioLog)
}
"""Every tracker by the name that `report_to` has for it."""


def missing_trackers(settings: Settings) -> list[str]:
    """Return a sentence for each tracker of the run whose library is not installed.

    It is worth a word before hours of training: the run itself goes on without.
    """
    return [
        f"{name} is not installed, so its curves will be missing; "
        f'pip install "lorafit[{name}]" before the run brings them'
        for name in settings.report_to
        if name != "none" and find_spec(name) is None
    ]


def make_trackers(settings: Settings, run_dir: Path, run_id: str) -> list[Tracker]:
    """Return the trackers of a run, none of them open yet."""
    config = tracked_config(settings)
    return [
        TRACKERS[name](run_dir, run_id, config) for name in settings.report_to if name != "none"
    ]
