"""What a foreign checkpoint brings along, as a table."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.text import escape_control

if TYPE_CHECKING:
    from lorafit.training.foreign.hf_compare import HfImport

_STYLES = {"taken over": "green", "same": "green", "differs": "yellow"}
_WORDS = {"unknown": "cannot be verified", "left out": "not taken over"}


def render_import(found: "HfImport") -> RenderableType:
    """Return each fact of the checkpoint beside that of this run, and where it stands."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "there", "here", ""):
        table.add_column(title, overflow="fold")
    for fact in found.facts:
        word = _WORDS.get(fact.standing, fact.standing)
        cells = (Text(escape_control(text)) for text in (fact.name, fact.then, fact.now))
        table.add_row(*cells, Text(word, style=_STYLES.get(fact.standing, "dim")))
    folder = escape_control(str(found.checkpoint.folder))
    return Group(Text(f"Checkpoint of transformers' Trainer: {folder}", style="bold"), table)
