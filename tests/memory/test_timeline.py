"""The timeline has the estimate's peak, and its drawing says so."""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from lorafit.config.schema import Settings
from lorafit.errors import StorageError, UsageError
from lorafit.hardware.detect import planned_device
from lorafit.memory.allocator import CachingAllocator
from lorafit.memory.estimate import Estimate, estimate_memory, trace_run
from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.parts import parts_of
from lorafit.memory.timeline import Timeline, build_timeline
from lorafit.memory.timeline_chart import require_chart_file, write_chart
from lorafit.units import format_bytes

pytestmark = pytest.mark.usefixtures("quiet_libraries")

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SETTINGS = Settings(
    model="tiny <b>&model",
    max_length=128,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    torch_compile=False,
)


@pytest.fixture
def drawn(quiet_libraries: None) -> tuple[Timeline, Estimate]:
    return _answers()


@functools.cache
def _answers() -> tuple[Timeline, Estimate]:
    device = planned_device("t4")
    trace = trace_run(SETTINGS, CONFIG, device)
    return build_timeline(trace, CachingAllocator()), estimate_memory(SETTINGS, CONFIG, device)


def test_peak_and_its_parts_are_those_of_the_estimate(drawn: tuple[Timeline, Estimate]) -> None:
    timeline, estimate = drawn
    assert timeline.peak_bytes == estimate.peak.allocated_bytes
    assert max(timeline.reserved_bytes) == estimate.peak.reserved_bytes
    for part in parts_of(estimate.breakdown):
        if part.category is not None:
            at_peak = timeline.allocated_bytes[part.category][timeline.peak]
            assert at_peak == estimate.breakdown[part.key]


@pytest.mark.parametrize("hardware", ["a10g", "m3-18gb", "cpu"])
@pytest.mark.parametrize("plain", [False, True])
def test_trace_is_that_of_the_estimate_on_every_device(hardware: str, plain: bool) -> None:
    device = planned_device(hardware)
    kernels = SETTINGS.model_copy(update={"kernels": "stock" if plain else "lorafit"})
    trace = trace_run(kernels, CONFIG, device, plain_script=plain)
    estimate = estimate_memory(kernels, CONFIG, device, plain_script=plain)
    timeline = build_timeline(trace, CachingAllocator())
    assert timeline.peak_bytes == estimate.peak.allocated_bytes


def test_phases_follow_each_other_without_a_gap(drawn: tuple[Timeline, Estimate]) -> None:
    spans = drawn[0].spans
    names = [(span.name, span.step) for span in spans]
    passes = ("forward", 2), ("backward", 2)
    first = ("load", 0), ("forward", 1), ("backward", 1), ("update", 1)
    assert names == [*first, *passes, *passes, ("update", 2)]
    assert spans[0].start == 0
    assert spans[-1].end == drawn[0].num_events
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))


def test_samples_keep_the_fullest_moment_of_each_share() -> None:
    trace = Trace()
    trace.begin(Phase.LOAD)
    trace.birth(1024, Category.WEIGHTS)
    trace.begin(Phase.FORWARD)
    for size in (512, 8192, 512, 512):
        trace.death(trace.birth(size, Category.ACTIVATION))
    timeline = build_timeline(trace, CachingAllocator(), num_samples=3)
    assert timeline.positions == (1, 3, 7)
    assert timeline.allocated_bytes[Category.ACTIVATION] == (512, 8192, 512)
    assert timeline.peak == 1
    assert timeline.name_of_peak() == (
        "in the forward pass of step 1, 8.00 KiB of it activations"
    )  # fmt: skip


def test_page_needs_nothing_beside_itself_and_names_the_peak(
    drawn: tuple[Timeline, Estimate], tmp_path: Path
) -> None:
    timeline, estimate = drawn
    file = tmp_path / "memory.html"
    write_chart(file, timeline, estimate, ("rows of <max_length>",))
    page = file.read_text("utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    assert f"peak: {format_bytes(timeline.peak_bytes)} allocated" in text
    for words in ("forward", "backward", "base weights", "reserved by PyTorch", "kernels"):
        assert words in text
    assert "rows of &lt;max_length&gt;" in page
    assert "<b>&model" not in page
    assert not re.search(r"(src|href)=\"(https?:)?//", page)
    assert "<script" not in page
    assert format_bytes(estimate.peak.process_bytes) in page


def test_same_question_draws_the_same_bytes(
    drawn: tuple[Timeline, Estimate], tmp_path: Path
) -> None:
    for name in ("a.svg", "b.svg"):
        write_chart(tmp_path / name, *drawn)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_png_is_a_picture_of_readable_size(
    drawn: tuple[Timeline, Estimate], tmp_path: Path
) -> None:
    file = tmp_path / "memory.png"
    write_chart(file, *drawn)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (1800, 930)


def test_refuses_a_file_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ends with none of"):
        require_chart_file(tmp_path / "memory.pdf")
    with pytest.raises(StorageError, match="there is no folder"):
        require_chart_file(tmp_path / "missing" / "memory.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        require_chart_file(tmp_path / "folder.png")
    require_chart_file(tmp_path / "memory.PNG")
