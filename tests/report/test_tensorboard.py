from pathlib import Path

import pytest

from lorafit.report.events import read_events
from lorafit.report.tensorboard import TensorBoardLog

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def curves(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(folder))
    log.Reload()
    names = log.Tags()["scalars"]
    return {name: {e.step: e.value for e in log.Scalars(name)} for name in names}


def test_the_curves_hold_the_numbers_of_the_events(run_lorafit, train_arguments, tmp_path):
    run_dir = tmp_path / "run"
    outcome = run_lorafit(*train_arguments(run_dir))
    assert outcome.code == 0, outcome.err
    drawn, events = curves(run_dir / "tensorboard"), read_events(run_dir)
    assert drawn["train/loss"] == pytest.approx({e["step"]: e["loss"] for e in events})
    expected = {e["step"]: e["validation_loss"] for e in events if "validation_loss" in e}
    assert drawn["validation/loss"] == pytest.approx(expected)
    assert expected


def test_nothing_is_written_where_no_tracker_is_wanted(run_lorafit, train_arguments, tmp_path):
    assert run_lorafit(*train_arguments(tmp_path / "run", report_to="none")).code == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_log_that_cannot_be_written_costs_the_curves_only(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    log = TensorBoardLog(tmp_path, "an id", {})
    log.on_start(10, 0)
    assert log.failure
    log.on_end()
