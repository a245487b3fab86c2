"""Write the tables of docs/RELIABILITY.md from what the tests found.

pytest -m row --matrix-json build/matrix.json
python docs/make_reliability_tables.py build/matrix.json [MORE.json ...]

Several files are several machines: what one had to skip, for want of a GPU for example, another
may have run. A row counts as passed only if something ran for it and nothing failed; what was
skipped is shown with its reason.
"""

import argparse
import json
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).with_name("RELIABILITY.md")
ROWS_FILE = Path(__file__).parents[1] / "tests" / "matrix_rows.toml"
BENCH_FILE = Path(__file__).parents[1] / "bench" / "results" / "kill_and_resume.md"
MATRICES = {"faults": "Faults", "bad_input": "Bad input"}
_ORDER = ("failed", "passed", "skipped", "not run")
_MAX_STORIES = 12


class Case(NamedTuple):
    """One test for one row, and what came of it."""

    row: str
    test: str
    outcome: str
    reason: str
    story: str


def read_rows() -> dict[str, dict[str, str]]:
    """Return the titles of the rows of each matrix."""
    return tomllib.loads(ROWS_FILE.read_text(encoding="utf-8"))


def merge_results(documents: Iterable[Mapping[str, Any]]) -> dict[str, list[Case]]:
    """Return the cases of each row; of a test that several machines report, what says the most."""
    best: dict[tuple[str, str], Case] = {}
    for document in documents:
        for result in document["results"]:
            case = Case(**{name: str(result[name]) for name in Case._fields})
            known = best.get((case.row, case.test))
            if known is None or _ORDER.index(case.outcome) < _ORDER.index(known.outcome):
                best[case.row, case.test] = case
    rows: dict[str, list[Case]] = defaultdict(list)
    for case in best.values():
        rows[case.row].append(case)
    return rows


def state_of(cases: Sequence[Case]) -> str:
    """Return what a row is: no test, failed, passed, passed in part, skipped, or not run."""
    outcomes = {case.outcome for case in cases}
    if not outcomes:
        return "no test"
    if "failed" in outcomes:
        return "failed"
    if outcomes == {"passed"}:
        return "passed"
    if "passed" in outcomes:
        return "passed in part"
    return "skipped" if "skipped" in outcomes else "not run"


def counts_table(titles: Mapping[str, Mapping[str, str]], rows: Mapping[str, list[Case]]) -> str:
    """Return how many rows of each matrix came to what."""
    states = ("passed", "passed in part", "skipped", "not run", "failed", "no test")
    lines = [_line(["matrix", "rows", *states, "cases"]), _line(["---"] * (len(states) + 3))]
    for key, name in MATRICES.items():
        found = Counter(state_of(rows.get(row, [])) for row in titles[key])
        ran = sum(case.outcome == "passed" for row in titles[key] for case in rows.get(row, []))
        cells = [name, len(titles[key]), *(found[state] for state in states), ran]
        lines.append(_line(map(str, cells)))
    return "\n".join(lines) + "\n"


def rows_table(titles: Mapping[str, str], rows: Mapping[str, list[Case]]) -> str:
    """Return one line a row: what is wrong, what was done about it in tests, and the outcome."""
    lines = [_line(["row", "what goes wrong", "outcome", "cases", "what the tests saw"])]
    lines.append(_line(["---"] * 5))
    for row, title in titles.items():
        cases = rows.get(row, [])
        passed = sum(case.outcome == "passed" for case in cases)
        count = f"{passed} of {len(cases)}" if passed < len(cases) else str(passed)
        lines.append(_line([row, title, state_of(cases), count, _stories(cases)]))
    return "\n".join(lines) + "\n"


def _stories(cases: Sequence[Case]) -> str:
    told: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for case in cases:
        if case.outcome == "passed":
            told[case.story] += 1
        else:
            reason = f": {case.reason}" if case.reason else ""
            skipped[f"{case.outcome}: {case.story}{reason}"] += 1
    shown = [f"{story} ({count})" if count > 1 else story for story, count in told.items()]
    if len(shown) > _MAX_STORIES:
        shown = [*shown[:_MAX_STORIES], f"and {len(shown) - _MAX_STORIES} more"]
    shown += [f"*{story}*" for story in skipped]
    return "; ".join(shown) or "*nothing yet*"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def machines_list(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return on what the tests ran, each kind of machine once."""
    lines = []
    for document in documents:
        machine = document["machine"]
        packages = ", ".join(f"{k} {v}" for k, v in machine.items() if k != "system")
        lines.append(f"- {machine['system']}: {packages}\n")
    return "".join(dict.fromkeys(lines))


def render(page: str, documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with its generated parts written anew."""
    titles, rows = read_rows(), merge_results(documents)
    parts = {"counts": counts_table(titles, rows), "machines": machines_list(documents)}
    parts |= {key: rows_table(titles[key], rows) for key in MATRICES}
    if BENCH_FILE.is_file():
        # Without its title: here it stands under one of the page's own.
        parts["kill_and_resume"] = BENCH_FILE.read_text("utf-8").partition("\n\n")[2]
    for name, text in parts.items():
        begin, end = f"<!-- {name}: generated -->\n", f"<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{PAGE} has no part {name!r}")
        page = before + begin + text + end + after
    return page


def main() -> int:
    """Write the page; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="files of --matrix-json")
    documents = [json.loads(path.read_text("utf-8")) for path in parser.parse_args().results]
    PAGE.write_text(render(PAGE.read_text("utf-8"), documents), "utf-8")
    failed = [c for cases in merge_results(documents).values() for c in cases]
    failed = [case for case in failed if case.outcome == "failed"]
    for case in failed:
        sys.stderr.write(f"failed: {case.row}: {case.test}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
