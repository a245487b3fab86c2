"""The page as one self-contained file: template, styles, scripts and figures in a single text."""

import base64
import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from lorafit import __version__
from lorafit.report.html.comparison import RESULT_COLUMNS, compare_runs
from lorafit.report.html.curves import columns_of, table_rows, thin
from lorafit.report.html.source import RunData, record_values
from lorafit.report.html.view import RunView, view_of
from lorafit.text import escape_control, visible_text

if TYPE_CHECKING:
    from jinja2 import Environment

GENERATOR = "lorafit"
LIVE_SECTIONS = ("summary", "memory", "samples", "timeline")
"""What can change while a run goes on; the rest is decided before it starts."""

Payload = dict[str, Any]


def render_page(runs: Sequence[RunData], *, live: bool = False) -> str:
    """Return the page of one run, or the comparison of several.

    A live page holds no curves: it fetches them, and everything that comes later, from the
    server that it came from. Any other page can reach no network at all.

    Raises:
        InputError: a run.json holds values that no run writes.
    """
    with record_values(runs[0].folder):
        return _render(runs, live=live)


def _render(runs: Sequence[RunData], *, live: bool) -> str:
    columns = [thin(columns_of(run.events)) for run in runs]
    view = view_of(runs[0]) if len(runs) == 1 else None
    payload = _payload(runs, [] if live else columns, view, live=live)
    scripts = [_asset("vendor/uplot/uPlot.iife.min.js"), _asset("assets/charts.js")]
    if live:
        scripts.append(_asset("assets/live.js"))
    styles = [_asset("vendor/uplot/uPlot.min.css"), _asset("assets/page.css")]
    page = _environment().get_template("page.html.j2")
    return page.render(
        view=view,
        comparison=compare_runs(runs) if view is None else None,
        result_columns=RESULT_COLUMNS,
        method_charts=_method_charts(runs),
        rows=table_rows(columns[0]) if view is not None and not live else [],
        num_events=len(runs[0].events),
        payload=_script_json(payload),
        scripts=scripts,
        styles=styles,
        licence=_asset("vendor/uplot/LICENSE"),
        policy=_policy(scripts, styles, live=live),
        live=live,
        generator=f"{GENERATOR} {__version__}",
    )


def _method_charts(runs: Sequence[RunData]) -> list[tuple[str, str]]:
    """Return the charts, by key and title, of what only grpo or dpo measures."""
    methods = {run.settings.get("method") for run in runs}
    charts = [("reward", "Reward")] if methods & {"grpo", "dpo"} else []
    if "grpo" in methods:
        charts.append(("completion_length", "Tokens of an answer"))
        if any(run.settings.get("beta") for run in runs):
            charts.append(("kl", "Divergence"))
    return charts


def render_sections(run: RunData) -> dict[str, str]:
    """Return the parts of a run's page that change while it goes on, as HTML by name.

    Raises:
        InputError: run.json holds values that no run writes.
    """
    macros = _environment().get_template("sections.html.j2").module
    with record_values(run.folder):
        view = view_of(run)
        return {name: str(getattr(macros, name)(view)) for name in LIVE_SECTIONS}


def _payload(
    runs: Sequence[RunData], columns: Sequence[Any], view: RunView | None, *, live: bool
) -> Payload:
    predicted = runs[0].table("plan", "memory").get("process_bytes") if view else None
    return {
        "live": live,
        "runs": [
            {"name": escape_control(run.name), "columns": columns[i] if columns else None}
            for i, run in enumerate(runs)
        ],
        "predicted_memory_bytes": predicted if isinstance(predicted, int) else None,
        "total_steps": view.num_steps if view else None,
    }


def _script_json(payload: Payload) -> str:
    """Return JSON that cannot end the script element it stands in, whatever a run is called."""
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _policy(scripts: Sequence[str], styles: Sequence[str], *, live: bool) -> str:
    """Return the Content-Security-Policy: exactly these scripts and styles, and no network."""
    rules = {
        "default-src": ["'none'"],
        "script-src": [_source_hash(text) for text in scripts],
        "style-src": [_source_hash(text) for text in styles],
        "img-src": ["data:"],
        "connect-src": ["'self'" if live else "'none'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    return "; ".join(" ".join((name, *values)) for name, values in rules.items())


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@functools.cache
def _asset(name: str) -> str:
    # An HTML parser would turn CR LF into LF, and the hash of the policy would no longer match.
    text = resources.files("lorafit.report.html").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: _asset(f"assets/{name}")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["compact"] = _compact
    return environment


def _visible(value: Any) -> Any:
    """Show control and direction characters of plain text, which could rearrange what is read."""
    # Markup is a str too, and is finished.
    return visible_text(value) if type(value) is str else value


def _compact(value: float | None) -> str:
    """Return a figure of a curve in a table cell."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
