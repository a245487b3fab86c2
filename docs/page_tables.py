"""Putting generated tables into a page, between the comments that mark their places."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Tables = Mapping[str, Callable[[], list[str]]]
"""Name of a place in the page to what makes the lines of its table."""


def fill(page: str, where: Path, tables: Tables, names: Sequence[str]) -> str:
    """Return the page with the tables of these names made anew.

    Raises:
        SystemExit: the page, which lies at `where`, has no place for one of them.
    """
    for name in names:
        start, end = f"<!-- {name}: generated -->\n", f"<!-- end {name} -->"
        before, found, rest = page.partition(start)
        if not found or end not in rest:
            sys.exit(f"{where} has no place for the table {name}: {start.strip()} ... {end}")
        page = before + start + "\n".join(tables[name]()) + "\n" + end + rest.partition(end)[2]
    return page


def write_or_compare(where: Path, tables: Tables) -> None:
    """Write the page, or with --check compare it: the command line of a script of tables."""
    script = Path(sys.argv[0]).name
    parser = argparse.ArgumentParser(description=f"Write the tables of docs/{where.name}.")
    parser.add_argument("--check", action="store_true", help="compare only; 1 when stale")
    parser.add_argument("--only", choices=tuple(tables), help="one table; default: all")
    arguments = parser.parse_args()
    page = where.read_text(encoding="utf-8")
    made = fill(page, where, tables, (arguments.only,) if arguments.only else tuple(tables))
    if arguments.check:
        sys.exit(0 if page == made else f"{where} is stale: run {script}")
    where.write_text(made, encoding="utf-8")
