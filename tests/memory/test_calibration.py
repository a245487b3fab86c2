"""Records of measured memory: what is kept, what is believed, and what it changes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.cache import question_hash
from lorafit.memory.calibration import (
    Combination,
    Measurement,
    PeakBytes,
    add_measurement,
    read_record,
)
from lorafit.memory.estimate import Estimate, estimate_memory
from lorafit.units import MIB

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DEVICE = replace(planned_device("a10g"), driver="580.1", detected=True)
SETTINGS = Settings(model="tiny", max_length=32, gradient_accumulation_steps=1, torch_compile=False)
HERE = Combination.of(DEVICE, SETTINGS.kernels)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path))


def measured(process: int | None = 1500, source: Any = "calibration step") -> Measurement:
    """Return 700 bytes reserved as predicted, with a context of 100 predicted."""
    predicted = PeakBytes(600, 700, 800)
    return Measurement(
        "2026-01-02T03:04:05+00:00", source, "tiny", predicted, PeakBytes(600, 700, process)
    )


def estimate(device: Any = DEVICE, **options: Any) -> Estimate:
    return estimate_memory(SETTINGS, CONFIG, device, **options)


def test_residuals_are_told_by_component() -> None:
    peak = PeakBytes(610, 720, 900)
    found = replace(measured(), measured=peak).residuals()
    assert found == {"allocated_bytes": 10, "reserved_bytes": 20, "context_bytes": 80}
    only_process = replace(measured(), measured=PeakBytes(None, None, 900)).residuals()
    assert only_process == {
        "allocated_bytes": None,
        "reserved_bytes": None,
        "context_bytes": 100,
    }


def test_what_was_stored_is_read_back() -> None:
    assert add_measurement(HERE, measured()) is None
    assert add_measurement(HERE, measured(900, "finished run")) is None
    record = read_record(HERE)
    assert record == ((measured(), measured(900, "finished run")), None)
    document = json.loads(HERE.file().read_text())
    assert document["combination"]["device"] == DEVICE.name
    assert document["measurements"][0]["residuals"]["context_bytes"] == 700


@pytest.mark.usefixtures("quiet_libraries")
def test_later_estimates_of_the_combination_add_the_residual_and_say_so() -> None:
    before = estimate()
    residual = 300 * MIB
    add_measurement(HERE, measured(800 + residual))
    after = estimate()
    assert (before.calibrated, after.calibrated) == (False, True)
    assert after.peak.process_bytes == before.peak.process_bytes + residual
    assert after.breakdown["context_bytes"] == before.breakdown["context_bytes"] + residual
    assert after.peak.reserved_bytes == before.peak.reserved_bytes
    reason = next(reason for reason in after.reasons if reason.startswith("calibrated: "))
    assert "300 MiB more beside its tensors on 2026-01-02" in reason
    assert DEVICE.name in reason
    assert after.document()["calibrated"] is True
    others = [replace(DEVICE, driver="570.1"), replace(DEVICE, name="NVIDIA A10G-4Q")]
    assert not any(estimate(device).calibrated for device in others)
    assert not estimate(plain_script=True).calibrated


@pytest.mark.usefixtures("quiet_libraries")
def test_no_calibration_brings_a_process_below_its_tensors() -> None:
    add_measurement(HERE, measured(0))
    impossible = replace(measured(), predicted=PeakBytes(600, 700, 10**12))
    add_measurement(HERE, impossible)
    result = estimate()
    assert result.calibrated
    assert result.peak.process_bytes >= result.peak.reserved_bytes >= result.peak.allocated_bytes
    add_measurement(replace(HERE, device="other"), impossible)
    HERE.file().unlink()
    add_measurement(HERE, impossible)
    lowest = estimate()
    assert lowest.breakdown["context_bytes"] == 0
    assert lowest.peak.process_bytes == lowest.peak.reserved_bytes


def test_the_largest_of_several_residuals_counts() -> None:
    for process in (900, 1200, 1000):
        add_measurement(HERE, measured(process))
    calibration = read_record(HERE).calibration(DEVICE.name)
    assert calibration is not None
    assert calibration.context_residual_bytes == 400


def test_finished_runs_and_unmeasured_processes_correct_nothing() -> None:
    add_measurement(HERE, measured(source="finished run"))
    add_measurement(HERE, measured(None))
    assert read_record(HERE).calibration(DEVICE.name) is None


def test_only_the_latest_measurements_are_kept() -> None:
    for process in range(800, 860):
        add_measurement(HERE, measured(process))
    found = read_record(HERE).measurements
    assert [m.measured.process_bytes for m in found] == list(range(810, 860))


def damage(name: str) -> Any:
    def change(document: dict[str, Any]) -> Any:
        entry = document["measurements"][0]
        if name == "list":
            return [document]
        if name == "schema":
            document["schema_version"] = 2
        if name == "combination":
            document["combination"]["driver"] = "another"
        if name == "negative":
            entry["measured"]["process_bytes"] = -1
        if name == "text for bytes":
            entry["measured"]["process_bytes"] = "1"
        if name == "true for bytes":
            entry["measured"]["process_bytes"] = True
        if name == "extra key":
            entry["measured"]["more"] = 1
        if name == "source":
            entry["source"] = "a guess"
        if name == "date":
            entry["measured_at"] = 5
        return document

    return change


DAMAGES = ("list", "schema", "combination", "negative", "text for bytes", "true for bytes",
           "extra key", "source", "date")  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_record_counts_as_none_and_is_named(name: str) -> None:
    add_measurement(HERE, measured())
    document = json.loads(HERE.file().read_text())
    HERE.file().write_text(json.dumps(damage(name)(document)))
    record = read_record(HERE)
    assert record.measurements == ()
    assert str(HERE.file()) in str(record.problem)
    assert "is damaged and is ignored" in str(record.problem)
    add_measurement(HERE, measured())
    assert read_record(HERE) == ((measured(),), None)


@pytest.mark.usefixtures("quiet_libraries")
@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00"])
def test_torn_record_is_a_reason_of_the_estimate_and_no_failure(text: str) -> None:
    HERE.file().parent.mkdir()
    HERE.file().write_text(text)
    result = estimate()
    assert not result.calibrated
    assert any("is damaged and is ignored" in reason for reason in result.reasons)


def test_folder_that_cannot_be_written_is_named_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(tmp_path / "file"))
    assert "could not be stored" in str(add_measurement(HERE, measured()))
    assert read_record(HERE).measurements == ()


def test_calibration_makes_another_question_of_a_stored_estimate() -> None:
    before = question_hash(SETTINGS, CONFIG, DEVICE, "")
    assert question_hash(SETTINGS, CONFIG, DEVICE, "") == before
    add_measurement(HERE, measured(source="finished run"))
    assert question_hash(SETTINGS, CONFIG, DEVICE, "") == before
    add_measurement(HERE, measured())
    assert question_hash(SETTINGS, CONFIG, DEVICE, "") != before
