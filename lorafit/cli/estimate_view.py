"""How an estimate looks to people: a bar of the capacity, its parts, the verdict, the way out."""

import os
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lorafit.memory.parts import parts_of
from lorafit.text import escape_control, excerpt
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.memory.advice import Advice, Saving
    from lorafit.memory.estimate import Estimate

VERDICT_STYLE = {"fits": "green", "tight": "yellow", "exceeds": "red"}
_WIDEST = 100
_LABEL_WIDTH = 21
_SIZE_WIDTH = 9


@dataclass(frozen=True)
class Screen:
    """What the output can show."""

    width: int
    has_colours: bool = False
    is_ascii: bool = True

    @property
    def free_cell(self) -> str:
        """The cell of a bar for memory that stays free."""
        return "." if self.is_ascii else "░"

    def cell(self, letter: str) -> str:
        """Return the cell of a bar for a part that `letter` stands for."""
        return "█" if self.has_colours and not self.is_ascii else letter

    def wrap(self, text: str, indent: int = 2, hanging: int = 0) -> str:
        """Return a sentence in lines, each indented, without anything that steers a terminal."""
        clean = escape_control(text)
        if self.is_ascii:
            clean = clean.replace("…", "...").encode("ascii", "replace").decode()
        return "\n".join(
            textwrap.wrap(
                clean,
                max(20, min(self.width, _WIDEST)),
                initial_indent=" " * indent,
                subsequent_indent=" " * (indent + hanging),
                break_long_words=False,
                break_on_hyphens=False,
            )
        )


def screen_of(console: Console) -> Screen:
    """Return what the console's terminal, or the file behind it, can show."""
    locale = next(
        (os.environ[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(key)), ""
    )
    try:
        "█░".encode(console.encoding)
        is_ascii = locale in ("C", "POSIX")
    except (UnicodeEncodeError, LookupError):
        is_ascii = True
    # 16 colours are too few to tell nine parts apart.
    has_colours = console.color_system in ("256", "truecolor")
    return Screen(console.width, has_colours, is_ascii)


def render(
    estimate: "Estimate",
    screen: Screen,
    assumptions: tuple[str, ...] = (),
    advice: "Advice | None" = None,
) -> Text:
    """Return the answer for people."""
    text = Text()
    text.append(screen.wrap(excerpt(estimate.model), 0), style="bold")
    count = estimate.processes["count"]
    number = "" if count == 1 else f"each of {count} x "
    text.append(f" on {number}{escape_control(excerpt(str(estimate.hardware['name'])))}\n\n")
    text.append_text(capacity_bar(estimate, screen))
    text.append("\n\n")
    _append_parts(text, estimate, screen)
    *facts, verdict = estimate.reasons
    text.append(screen.wrap(verdict, 0) + "\n", style=f"bold {VERDICT_STYLE[estimate.verdict]}")
    for fact in (*assumptions, *facts):
        text.append(screen.wrap(fact, 2, 2) + "\n", style="dim")
    if advice is not None and estimate.verdict != "fits":
        _append_advice(text, advice, screen)
    text.right_crop(1)
    return text


def capacity_bar(estimate: "Estimate", screen: Screen) -> Text:
    """Return a bar in which each part has its share of the capacity, or of the larger peak."""
    process, capacity = estimate.peak.process_bytes, estimate.capacity_bytes
    scale = max(capacity, process)
    percent = f" {process / capacity:.0%}"
    width = max(10, min(screen.width, _WIDEST) - 2 - len(percent))
    bar, filled, total = Text("  "), 0, 0
    for part in parts_of(estimate.breakdown):
        total += estimate.breakdown[part.key]
        cells = round(total / scale * width) - filled
        bar.append(screen.cell(part.letter) * cells, style=part.colour)
        filled += cells
    bar.append(screen.free_cell * (width - filled), style="dim")
    bar.append(percent)
    if process > capacity:
        _append_capacity_mark(bar, round(capacity / scale * width), capacity)
    return bar


def _append_capacity_mark(bar: Text, cell: int, capacity: int) -> None:
    words = f"capacity {format_bytes(capacity)}"
    if cell > len(words):
        mark = f"{words} ^".rjust(2 + cell)
    else:
        mark = " " * (1 + cell) + f"^ {words}"
    bar.append("\n" + mark, style="bold red")


def _append_parts(text: Text, estimate: "Estimate", screen: Screen) -> None:
    peak = estimate.peak
    for part in parts_of(estimate.breakdown):
        text.append(f"  {screen.cell(part.letter)} ", style=part.colour)
        size = format_bytes(estimate.breakdown[part.key])
        text.append(f"{part.label:{_LABEL_WIDTH}}{size:>{_SIZE_WIDTH}}\n")
    share = f"{estimate.headroom_bytes / estimate.capacity_bytes:.0%}"
    lines = (
        (
            _process_label(estimate),
            peak.process_bytes,
            f"in the {peak.phase.replace('_', ' ')} phase",
        ),
        ("  of it, allocated", peak.allocated_bytes, ""),
        ("capacity", estimate.capacity_bytes, ""),
        ("headroom", estimate.headroom_bytes, share),
    )
    for label, num_bytes, note in lines:
        text.append(f"    {label:{_LABEL_WIDTH}}{format_bytes(num_bytes):>{_SIZE_WIDTH}}")
        if note and 6 + _LABEL_WIDTH + _SIZE_WIDTH + len(note) <= screen.width:
            text.append(f"  {note}", style="dim")
        text.append("\n")
    text.append("\n")


def _process_label(estimate: "Estimate") -> str:
    return "process at its peak" if estimate.processes["count"] == 1 else "peak per device"


def _append_advice(text: Text, advice: "Advice", screen: Screen) -> None:
    if not advice.savings:
        text.append(screen.wrap("no change of settings saves enough to matter", 0) + "\n")
        return
    text.append("\nwhat to change first\n", style="bold")
    for saving in advice.savings:
        _append_saving(text, saving, saving.changes[0].what, saving.changes[0].cost, screen)
    if advice.together is not None:
        cost = "none of these alone is enough" if advice.reached else "and still not enough"
        _append_saving(text, advice.together, "all that is needed, together", cost, screen)


def _append_saving(text: Text, saving: "Saving", what: str, cost: str, screen: Screen) -> None:
    verdict = saving.estimate.verdict
    text.append(f"  -{format_bytes(saving.saved_bytes)}", style="bold")
    text.append(f"  {verdict} with {format_bytes(saving.estimate.peak.process_bytes)}\n",
                style=VERDICT_STYLE[verdict])  # fmt: skip
    text.append(screen.wrap(f"{what}: {cost}", 4, 2) + "\n", style="dim")
    # Never wrapped: it is there to be copied.
    text.append(f"    {saving.flags}\n", style="cyan")
