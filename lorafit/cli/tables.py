"""Tables of text for stdout, the same shape in every command."""

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lorafit.config.fields import show_value
from lorafit.text import escape_control


def plain_table(
    title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> Table:
    """Return a table of values spelled as a settings file would, without any markup in them."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.pad_edge = False
    table.collapse_padding = True
    for number, column in enumerate(columns):
        # Names stay whole and are cut last: they are what a person copies.
        table.add_column(_fold(column), no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(escape_control(show_value(cell))) for cell in row))
    return table


def _fold(name: str, width: int = 13) -> str:
    """Return a long name broken after underscores into lines of at most `width`."""
    lines = [""]
    for part in re.findall(r"[^_]*_|[^_]+", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
