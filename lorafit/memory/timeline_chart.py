"""Drawing a timeline: a PNG, or a page of HTML that needs nothing beside itself."""

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.files import require_drawable, storage_errors
from lorafit.memory.estimate import Estimate
from lorafit.memory.parts import parts_of
from lorafit.memory.timeline import Span, Timeline
from lorafit.units import GIB, format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png", ".svg")
_INCHES = (12.0, 6.2)
_CAPACITY_IN_VIEW = 1.6
"""A capacity of more than so many times the peak would flatten the drawing: it is only named."""
_MIN_LABELLED_SHARE = 0.03
_INK, _FAINT = "#222222", "#8a8a8a"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2rem auto;
  padding: 0 1rem; }}
svg {{ width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .15rem .9rem .15rem 0; text-align: left; font-weight: normal; }}
td.bytes {{ text-align: right; }}
i {{ display: inline-block; width: .8em; height: .8em; border-radius: 2px; }}
li {{ color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p><strong>{verdict}</strong></p>
{chart}
<h2>At the peak</h2>
<table>
{rows}
</table>
<h2>What was assumed</h2>
<ul>
{facts}
</ul>
</body>
</html>
"""


def require_chart_file(path: Path) -> None:
    """Refuse a file that a timeline cannot be drawn into, before anything is computed.

    Raises:
        UsageError: its suffix is not .html, .png or .svg, or matplotlib is not installed.
        StorageError: its folder is missing, or it is a folder itself.
    """
    require_drawable(path, SUFFIXES, flag="--timeline", example="memory.html")


def write_chart(
    path: Path, timeline: Timeline, estimate: Estimate, assumptions: tuple[str, ...] = ()
) -> None:
    """Draw `timeline` into a file; its suffix says in which format.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = _draw(timeline, estimate)
    kind = path.suffix.lower()
    if kind == ".png":
        content = _save(figure, "png")
    elif kind == ".svg":
        content = _save(figure, "svg")
    else:
        content = _page(_save(figure, "svg").decode(), estimate, assumptions).encode()
    with storage_errors("cannot be written", path):
        path.write_bytes(content)


def _save(figure: "Figure", kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Letters stay letters in the SVG, and the same question gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lorafit"}):
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _page(svg: str, estimate: Estimate, assumptions: tuple[str, ...]) -> str:
    rows = [
        f'<tr><td><i style="background:{part.colour}"></i> {html.escape(part.label)}</td>'
        f'<td class="bytes">{format_bytes(estimate.breakdown[part.key])}</td></tr>'
        for part in parts_of(estimate.breakdown)
    ]
    rows.append(
        f'<tr><td>the process</td><td class="bytes">{format_bytes(estimate.peak.process_bytes)}'
        "</td></tr>"
    )
    *facts, verdict = estimate.reasons
    return _PAGE.format(
        title=html.escape(_title(estimate)),
        verdict=html.escape(verdict),
        chart=svg[svg.index("<svg") :],
        rows="\n".join(rows),
        facts="\n".join(f"<li>{html.escape(fact)}</li>" for fact in (*assumptions, *facts)),
    )


def _title(estimate: Estimate) -> str:
    return f"Memory of {estimate.model} on {estimate.hardware['name']}"


def _draw(timeline: Timeline, estimate: Estimate) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    context = estimate.breakdown["context_bytes"]
    capacity = estimate.capacity_bytes
    highest = max(timeline.reserved_bytes) + context
    is_capacity_shown = capacity <= highest * _CAPACITY_IN_VIEW
    top = max(highest, capacity if is_capacity_shown else 0) * 1.2
    _stack(axes, timeline, estimate)
    if estimate.hardware["kind"] == "cuda":  # elsewhere memory is given back at once
        axes.plot(
            timeline.positions,
            [(size + context) / GIB for size in timeline.reserved_bytes],
            color=_INK,
            linewidth=1.1,
            drawstyle="steps-post",
            label="reserved by PyTorch",
        )
    if is_capacity_shown:
        axes.axhline(
            capacity / GIB,
            color="#cc3311",
            linestyle=(0, (6, 3)),
            linewidth=1.4,
            label=f"capacity {format_bytes(capacity)}",
        )
    _mark_spans(axes, timeline.spans, timeline.num_events)
    _mark_peak(axes, timeline, context)
    axes.set_xlim(0, timeline.num_events)
    axes.set_ylim(0, top / GIB)
    axes.set_ylabel("GiB")
    axes.set_xlabel("births and deaths of tensors, in order (a trace has no clock)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(_title(estimate), loc="left", fontsize=14, color=_INK, pad=46)
    note = "" if is_capacity_shown else f", capacity {format_bytes(capacity)}"
    _above(axes, 0, 30, _subtitle(estimate) + note, ha="left", fontsize=10, color="#555555")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _subtitle(estimate: Estimate) -> str:
    settings = estimate.settings
    rows, steps = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    parts = [
        f"{rows} x {settings['max_length']} tokens, {steps} micro-batch{'es' * (steps > 1)} a step",
        f"checkpointing {'on' if settings['gradient_checkpointing'] else 'off'}",
        f"{settings['kernels']} kernels",
    ]
    if settings["quantization"] != "none":
        parts.append(str(settings["quantization"]))
    return ", ".join(parts)


def _stack(axes: "Axes", timeline: Timeline, estimate: Estimate) -> None:
    # What is there from the first moment on lies at the bottom.
    parts = parts_of(estimate.breakdown)
    flat = [part for part in parts if part.key == "context_bytes"]
    layers, colours, labels = [], [], []
    for part in (*flat, *(part for part in parts if part.category is not None)):
        if part.category is None:
            values = [estimate.breakdown[part.key] / GIB] * len(timeline.positions)
        else:
            values = [size / GIB for size in timeline.allocated_bytes[part.category]]
        layers.append(values)
        colours.append(part.colour)
        labels.append(part.label)
    axes.stackplot(timeline.positions, layers, colors=colours, labels=labels, step="post")


def _mark_spans(axes: "Axes", spans: tuple[Span, ...], num_events: int) -> None:
    """Shade every other stretch, and name those that are wide enough for it."""
    for number, span in enumerate(spans):
        if number % 2:
            axes.axvspan(span.start, span.end, color="#ececec", linewidth=0, zorder=0)
        if span.end - span.start >= _MIN_LABELLED_SHARE * num_events:
            name = f"{span.name}\nstep {span.step}" if span.step else span.name
            middle = (span.start + span.end) / 2 / num_events
            _above(axes, middle, 3, name, ha="center", fontsize=8, color=_FAINT)


def _above(axes: "Axes", share: float, points: float, text: str, **style: Any) -> None:
    """Write above the drawing: at a share of its width, so many points over its edge."""
    axes.annotate(
        text,
        xy=(share, 1),
        xycoords="axes fraction",
        xytext=(0, points),
        textcoords="offset points",
        va="bottom",
        **style,
    )


def _mark_peak(axes: "Axes", timeline: Timeline, context: int) -> None:
    position = timeline.positions[timeline.peak]
    height = (timeline.peak_bytes + context) / GIB
    is_right = position > timeline.num_events * 0.6
    axes.annotate(
        f"peak: {format_bytes(timeline.peak_bytes)} allocated\n{timeline.name_of_peak()}",
        xy=(position, height),
        xytext=(-30 if is_right else 30, 26),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="bottom",
        fontsize=9,
        color=_INK,
        arrowprops={"arrowstyle": "-|>", "color": _INK, "linewidth": 0.9},
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#cccccc"},
    )
