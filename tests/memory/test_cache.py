import dataclasses
from pathlib import Path

from lorafit.config.schema import Settings
from lorafit.hardware.detect import planned_device
from lorafit.memory.cache import cached_estimate, question_hash
from lorafit.memory.estimate import Estimate, Peak

SETTINGS = Settings(model="a", torch_compile=False)
CONFIG = {"model_type": "llama", "hidden_size": 8}
T4 = planned_device("t4")


class Computer:
    """Counts how often it is asked to estimate."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Estimate:
        self.calls += 1
        peak = Peak(10, 20, 30, "backward")
        return Estimate("a", {}, {}, peak, {"weights_bytes": 30}, 100, "fits", ("why",), 1.5)


def test_repeated_question_is_answered_from_disk_with_its_own_settings(tmp_path: Path) -> None:
    compute = Computer()
    first = cached_estimate(SETTINGS, CONFIG, T4, compute, folder=tmp_path)
    elsewhere = SETTINGS.model_copy(update={"output_dir": "elsewhere", "model": "b"})
    second = cached_estimate(elsewhere, CONFIG, T4, compute, folder=tmp_path)
    assert compute.calls == 1
    assert second.cached
    assert not first.cached
    assert (second.model, second.settings["output_dir"]) == ("b", "elsewhere")
    assert (second.peak, second.breakdown) == (first.peak, first.breakdown)


def test_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    compute = Computer()
    cached_estimate(SETTINGS, CONFIG, T4, compute, folder=tmp_path)
    (entry,) = tmp_path.glob("*.json")
    entry.write_text("{")
    assert cached_estimate(SETTINGS, CONFIG, T4, compute, folder=tmp_path).verdict == "fits"
    assert compute.calls == 2


def test_folder_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "below"
    assert cached_estimate(SETTINGS, CONFIG, T4, Computer(), folder=folder).verdict == "fits"


def test_whatever_changes_memory_changes_the_question() -> None:
    asked = question_hash(SETTINGS, CONFIG, T4, "")
    others = [
        question_hash(SETTINGS.model_copy(update={"lora_r": 16}), CONFIG, T4, ""),
        question_hash(SETTINGS.model_copy(update={"max_length": 8}), CONFIG, T4, ""),
        question_hash(SETTINGS.model_copy(update={"optim": "sgd"}), CONFIG, T4, ""),
        question_hash(SETTINGS, {**CONFIG, "hidden_size": 16}, T4, ""),
        question_hash(SETTINGS, CONFIG, dataclasses.replace(T4, usable_bytes=1), ""),
        question_hash(SETTINGS, CONFIG, T4, "plain"),
    ]
    assert len({asked, *others}) == 7
    assert question_hash(SETTINGS.model_copy(update={"seed": 7}), CONFIG, T4, "") == asked
