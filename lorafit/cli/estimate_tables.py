"""Several estimates beside each other: presets in columns, the values of a sweep in rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from lorafit.cli.estimate_view import VERDICT_STYLE, Screen
from lorafit.memory.parts import parts_of
from lorafit.text import excerpt
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.memory.estimate import Estimate

Labelled = Sequence[tuple[str, "Estimate"]]
_BAR_WIDTH = 24
_MIN_BAR_WIDTH = 8
_LABEL_WIDTH = 21
_GAP = 2


def sweep_table(name: str, answers: Labelled, screen: Screen) -> Text:
    """Return a row for each value, with its share and a small bar where there is room."""
    width = max(5, *(len(label) for label, _ in answers))
    has_share = screen.width >= width + 38
    bar_width = min(_BAR_WIDTH, screen.width - width - 40)
    share_title = f"  {'of all':>6}" if has_share else ""
    text = Text(f"{name}\n", style="bold")
    text.append(f"{'':{width}}  {'peak':>8}  {'free':>9}{share_title}\n", style="dim")
    for label, estimate in answers:
        share = estimate.peak.process_bytes / estimate.capacity_bytes
        text.append(f"{label:>{width}}  {format_bytes(estimate.peak.process_bytes):>8}  ", "none")
        text.append(f"{format_bytes(estimate.headroom_bytes):>9}  ", "none")
        text.append(f"{share:>6.0%}  " if has_share else "", "none")
        text.append(f"{estimate.verdict:7}", style=VERDICT_STYLE[estimate.verdict])
        if bar_width >= _MIN_BAR_WIDTH:
            text.append("  ").append_text(small_bar(estimate, screen, bar_width))
        text.append("\n")
    text.right_crop(1)
    return text


def small_bar(estimate: "Estimate", screen: Screen, width: int = _BAR_WIDTH) -> Text:
    """Return the share of the capacity that is taken; more than all of it ends with `>`."""
    share = estimate.peak.process_bytes / estimate.capacity_bytes
    full = "#" if screen.is_ascii else "█"
    cells = min(width, round(share * width))
    bar = Text(full * cells, style=VERDICT_STYLE[estimate.verdict])
    if share > 1:
        bar = Text(full * (width - 1) + ">", style=VERDICT_STYLE[estimate.verdict])
    bar.append(screen.free_cell * (width - len(bar)), style="dim")
    return bar


def comparison_table(answers: Labelled, screen: Screen) -> Text:
    """Return a column for each preset; as many columns beside each other as the screen takes."""
    width = max(10, *(len(label) for label, _ in answers)) + _GAP
    per_block = max(1, (screen.width - _LABEL_WIDTH) // width)
    text = Text()
    for start in range(0, len(answers), per_block):
        _append_block(text, answers[start : start + per_block], width, screen)
    text.right_crop(2)
    return text


def _append_block(text: Text, answers: Labelled, width: int, screen: Screen) -> None:
    def line(label: str, cells: Sequence[str], style: str = "") -> None:
        text.append(f"{label:{_LABEL_WIDTH}}", style=style)
        text.append("".join(f"{cell:>{width}}" for cell in cells) + "\n", style=style)

    estimates = [estimate for _, estimate in answers]
    line("", [label for label, _ in answers], "bold")
    for label, name in (
        ("micro-batch", "per_device_train_batch_size"),
        ("accumulation", "gradient_accumulation_steps"),
        ("max_length", "max_length"),
    ):
        line(label, [excerpt(str(estimate.settings[name])) for estimate in estimates])
    for part in parts_of(*(estimate.breakdown for estimate in estimates)):
        line(
            part.label,
            [format_bytes(estimate.breakdown.get(part.key, 0)) for estimate in estimates],
        )
    line("process at its peak", [format_bytes(e.peak.process_bytes) for e in estimates], "bold")
    line("capacity", [format_bytes(e.capacity_bytes) for e in estimates])
    line("headroom", [format_bytes(e.headroom_bytes) for e in estimates])
    line("", [f"{e.headroom_bytes / e.capacity_bytes:.0%}" for e in estimates])
    text.append(f"{'verdict':{_LABEL_WIDTH}}")
    for estimate in estimates:
        text.append(f"{estimate.verdict:>{width}}", style=VERDICT_STYLE[estimate.verdict])
    text.append("\n" + " " * _LABEL_WIDTH)
    for estimate in estimates:
        text.append(" " * _GAP).append_text(small_bar(estimate, screen, width - _GAP))
    text.append("\n\n")
