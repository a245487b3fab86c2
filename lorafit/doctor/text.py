"""The report as lines for a terminal; in colour only where the console has colour."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from rich.text import Text

from lorafit.doctor.check import Status
from lorafit.doctor.report import WHY, DoctorReport, Finding
from lorafit.text import escape_control

_SYMBOLS: dict[Status, tuple[str, str, str]] = {
    "ok": ("✓", "ok", "green"),
    "warn": ("!", "!!", "yellow"),
    "error": ("✗", "xx", "bold red"),
    "skip": ("⊘", "--", "dim"),
    "crash": ("✗", "xx", "bold red"),
}
_TITLE_WIDTH = 30


def report_lines(report: DoctorReport, *, width: int, ascii_only: bool) -> Iterator[Text]:
    """Yield the report line by line, wrapped to `width` columns; commands are never wrapped."""
    for group, findings in groupby(report.findings, key=lambda finding: finding.group):
        yield Text(group, style="bold")
        skipped: dict[str, list[str]] = {}
        for finding in findings:
            if finding.status == "skip":
                skipped.setdefault(finding.detail, []).append(finding.title)
            else:
                yield from _finding_lines(finding, width, ascii_only)
        yield from _skipped_lines(skipped, width, ascii_only)
        yield Text("")
    yield _summary_line(report)
    recommended = report.recommended
    if recommended.command:
        yield Text(_plain(f"Start with: {recommended.command}", ascii_only), style="bold")
        yield from _wrapped(f"on {recommended.device}; {recommended.reason}", 2, width, ascii_only)
    else:
        yield Text(_plain(recommended.reason, ascii_only))


def _finding_lines(finding: Finding, width: int, ascii_only: bool) -> Iterator[Text]:
    symbol, ascii_symbol, style = _SYMBOLS[finding.status]
    mark = ascii_symbol if ascii_only else symbol
    head = f"  {mark} {finding.title}".ljust(_TITLE_WIDTH) + "  "
    facts, _, why = finding.detail.partition(WHY)
    body = _plain(facts, ascii_only)
    if len(head) > _TITLE_WIDTH + 2 or width < 60:
        yield Text(head.rstrip(), style=style)
        yield from _wrapped(facts, 6, width, ascii_only)
    else:
        wrapped = textwrap.wrap(body, max(width - len(head), 20), break_on_hyphens=False) or [""]
        yield Text.assemble((head, style), wrapped[0])
        for line in wrapped[1:]:
            yield Text(" " * len(head) + line)
    if finding.status == "ok":
        return
    if why:
        yield from _wrapped(f"why it matters: {why}", 6, width, ascii_only)
    if finding.fix:
        yield from _wrapped(f"fix: {finding.fix.text}", 6, width, ascii_only)
        for command in finding.fix.commands:
            yield Text(f"        {_plain(command, ascii_only)}", style="cyan")
    if finding.docs_url:
        yield Text(f"      more: {finding.docs_url}")


def _skipped_lines(skipped: dict[str, list[str]], width: int, ascii_only: bool) -> Iterator[Text]:
    """Yield what was not checked, one line for each reason: it is said, and takes little room."""
    symbol, ascii_symbol, style = _SYMBOLS["skip"]
    mark = ascii_symbol if ascii_only else symbol
    for reason, titles in skipped.items():
        for line in _wrapped(
            f"{mark} skipped: {', '.join(titles)}: {reason}", 2, width, ascii_only
        ):
            line.stylize(style)
            yield line


def _wrapped(text: str, indent: int, width: int, ascii_only: bool) -> Iterator[Text]:
    body = _plain(text, ascii_only)
    blanks = " " * indent
    for line in textwrap.wrap(
        body,
        max(width, indent + 20),
        initial_indent=blanks,
        subsequent_indent=blanks + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    ):
        yield Text(line)


def _plain(text: str, ascii_only: bool) -> str:
    safe = escape_control(text)
    return safe.replace("…", "...").encode("ascii", "replace").decode() if ascii_only else safe


def _summary_line(report: DoctorReport) -> Text:
    summary = report.summary
    parts = [
        f"{summary.ok} ok",
        _counted(summary.warn, "warning"),
        _counted(summary.error, "error"),
        f"{summary.skip} skipped (not checked)",
    ]
    if summary.crash:
        parts.append(f"{_counted(summary.crash, 'check')} crashed")
    style = "red" if summary.error or summary.crash else "yellow" if summary.warn else "green"
    return Text(", ".join(parts), style=style)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
