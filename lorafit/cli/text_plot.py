"""Curves drawn with characters: lines for the first, dots for the others, colours where there are.

Each column of the drawing shows one step of the run; neighbours are joined.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

_STYLES = ("bold cyan", "yellow", "magenta")


@dataclass(frozen=True)
class PlotLine:
    """A curve over steps 0 to `num_steps` - 1."""

    label: str
    num_steps: int
    value_at: Callable[[int], float]


@dataclass(frozen=True)
class _Marks:
    """The characters of a curve, by what it does from one column to the next."""

    flat: str
    leaves_down: str
    enters_down: str
    leaves_up: str
    enters_up: str
    upright: str
    dots: tuple[str, ...]


_BOXES = _Marks("─", "╮", "╰", "╯", "╭", "│", ("·", "∙"))
_ASCII = _Marks("-", ".", "'", "'", ".", "|", (".", ":"))
_Cells = dict[tuple[int, int], tuple[str, str]]


def draw_lines(
    lines: Sequence[PlotLine], *, width: int, height: int, ascii_only: bool = False
) -> list[Text]:
    """Return the rows of a drawing, axes and legend included.

    Args:
        lines: the curves; the first is drawn over the others. Values are 0 or more.
        width: columns of the whole drawing.
        height: rows of the curves alone.
        ascii_only: use no character beyond ASCII.
    """
    marks = _ASCII if ascii_only else _BOXES
    top = max(line.value_at(step) for line in lines for step in _samples(line, 200)) or 1.0
    labels = {0: f"{top:.2g}", height - 1: "0"}
    if height % 2:
        labels[height // 2] = f"{top / 2:.2g}"
    margin = max(map(len, labels.values())) + 1
    columns = max(10, width - margin - 1)
    last_step = max(line.num_steps for line in lines)
    cells: _Cells = {}
    for number in reversed(range(len(lines))):
        heights = _heights(lines[number], columns, last_step, height, top)
        style = _STYLES[min(number, len(_STYLES) - 1)]
        if number:
            dot = marks.dots[min(number, len(marks.dots)) - 1]
            cells |= {(row, column): (dot, style) for column, row in enumerate(heights)}
        else:
            cells |= _joined(heights, marks, style)
    rows = [_row(cells, row, labels.get(row, ""), margin, columns, marks) for row in range(height)]
    return [*rows, _axis(last_step, margin, columns, marks), _legend(lines, margin, marks)]


def _samples(line: PlotLine, count: int) -> list[int]:
    stride = max(1, line.num_steps // count)
    return [*range(0, line.num_steps, stride), line.num_steps - 1]


def _heights(line: PlotLine, columns: int, last_step: int, height: int, top: float) -> list[int]:
    """Return the row of the curve in each column that it reaches; row 0 is the top."""
    rows = []
    for column in range(columns):
        step = int(column * (last_step - 1) / max(1, columns - 1) + 0.5)
        if step >= line.num_steps:
            break
        rows.append(round((1 - line.value_at(step) / top) * (height - 1)))
    return rows


def _joined(heights: list[int], marks: _Marks, style: str) -> _Cells:
    cells: _Cells = {}
    previous = heights[0]
    for column, row in enumerate(heights):
        if row == previous:
            cells[row, column] = (marks.flat, style)
        else:
            falls = row > previous
            cells[previous, column] = (marks.leaves_down if falls else marks.leaves_up, style)
            cells[row, column] = (marks.enters_down if falls else marks.enters_up, style)
            for between in range(min(row, previous) + 1, max(row, previous)):
                cells[between, column] = (marks.upright, style)
        previous = row
    return cells


def _row(cells: _Cells, row: int, label: str, margin: int, columns: int, marks: _Marks) -> Text:
    text = Text(f"{label:>{margin - 1}} {marks.upright}", style="dim")
    for column in range(columns):
        character, style = cells.get((row, column), (" ", ""))
        text.append(character, style)
    text.rstrip()
    return text


def _axis(last_step: int, margin: int, columns: int, marks: _Marks) -> Text:
    corner = "+" if marks is _ASCII else "└"
    name = " step 1"
    end = f"{last_step:,} "
    middle = marks.flat * max(0, columns - len(name) - len(end) - 1)
    return Text(f"{'':{margin}}{corner}{name} {middle} {end}".rstrip(), style="dim")


def _legend(lines: Sequence[PlotLine], margin: int, marks: _Marks) -> Text:
    text = Text(" " * (margin + 1))
    for number, line in enumerate(lines):
        mark = marks.dots[min(number, len(marks.dots)) - 1] if number else marks.flat
        text.append(f"{mark}{mark} {line.label}", _STYLES[min(number, len(_STYLES) - 1)])
        text.append("   ")
    text.rstrip()
    return text
