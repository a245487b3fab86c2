import json

import pytest

from lorafit.report.events import EventLog, read_events
from lorafit.report.records import StepRecord
from lorafit.report.run_record import RunRecord, installed_versions
from lorafit.report.tally import Tally


def record(step, **changes):
    values = {
        "step": step, "loss": 3.0 - step, "learning_rate": 1e-4, "grad_norm": 1.0, "epoch": 0.5,
        "tokens": 100, "supervised_tokens": 40, "tokens_per_second": 50.0, "seconds": 2.0,
        "memory_allocated_bytes": 10, "memory_reserved_bytes": 20 + step,
    }  # fmt: skip
    return StepRecord(**{**values, **changes})


def test_a_step_is_one_json_line_at_once(tmp_path):
    log = EventLog(tmp_path)
    log.on_step(record(1))
    assert json.loads((tmp_path / "events.jsonl").read_text())["step"] == 1
    log.on_step(record(2, validation_loss=1.5))
    first, second = read_events(tmp_path)
    assert "validation_loss" not in first
    assert second["validation_loss"] == 1.5


def test_lines_after_a_checkpoint_and_half_lines_are_dropped(tmp_path):
    log = EventLog(tmp_path)
    for step in (1, 2, 3):
        log.on_step(record(step))
    with log.path.open("a") as stream:
        stream.write('{"step": 1, "lo')
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2, 3]
    log.keep_until(2)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_log_that_cannot_be_written_remembers_the_first_reason(tmp_path):
    log = EventLog(tmp_path)
    log.path.mkdir()
    log.on_step(record(1))
    log.on_step(record(2))
    assert log.failure is not None
    assert "Is a directory" in log.failure


def test_a_run_without_a_log_has_no_events(tmp_path):
    EventLog(tmp_path).keep_until(3)
    assert read_events(tmp_path) == []


def test_the_tally_is_that_of_the_steps():
    tally = Tally()
    for step, validation in ((1, None), (2, 1.5), (3, 1.8)):
        tally.on_step(record(step, validation_loss=validation))
    tally.on_checkpoint(2, None)
    assert tally.results() == {
        "steps": 3, "first_loss": 2.0, "final_loss": 0.0, "validation_loss": 1.8,
        "best_validation_loss": 1.5, "best_validation_step": 2, "tokens": 300,
        "tokens_per_second": pytest.approx(50.0), "peak_memory_bytes": 23, "checkpoints": [2],
    }  # fmt: skip


def test_a_tally_of_nothing_is_empty_and_not_an_error():
    results = Tally().results()
    assert results["steps"] is None
    assert results["tokens_per_second"] is None
    json.dumps(results, allow_nan=False)


def test_the_record_is_true_at_every_moment(tmp_path):
    def read():
        return json.loads((tmp_path / "run.json").read_text())

    run = RunRecord(tmp_path, "an id", {"settings": {"a": 1}})
    assert (read()["status"], read()["run_id"], read()["settings"]) == (
        "running",
        "an id",
        {"a": 1},
    )
    run.note("something happened")
    assert read()["notes"] == ["something happened"]
    run.close("completed", {"steps": 3})
    assert read()["status"] == "completed"
    assert read()["results"] == {"steps": 3}
    assert read()["elapsed_seconds"] >= 0
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_versions_are_those_that_decide_numbers():
    assert {"lorafit", "python", "torch", "transformers", "peft"} <= installed_versions().keys()
