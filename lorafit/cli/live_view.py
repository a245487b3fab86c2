"""The panel that a terminal shows while a run goes on: progress, loss, speed and memory."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.bar import Bar
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lorafit.report.flops import StepFlops
from lorafit.report.pace import Pace
from lorafit.report.records import StepRecord
from lorafit.text import excerpt
from lorafit.units import format_bytes, format_duration

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_COLUMNS = 32
_SMOOTHED = 0.2
"""Weight of the newest step in the tokens a second that are shown."""


@dataclass(frozen=True)
class Gauge:
    """What figures are held against; None where it is not known."""

    predicted_bytes: int | None = None
    capacity_bytes: int | None = None
    peak_flops: float | None = None
    """Operations a second that the device does at best."""
    step_flops: StepFlops | None = None
    eval_steps: int | None = None
    """Steps between validations; None: there are none."""
    save_steps: int | None = None
    validation_seconds: float | None = None
    """What a validation is expected to take, until one was measured."""

    def pace(self) -> Pace:
        """Return what times the run, its clock started."""
        return Pace(
            eval_steps=self.eval_steps,
            save_steps=self.save_steps,
            validation_seconds=self.validation_seconds,
        )


def sparkline(values: Sequence[float], columns: int = _SPARK_COLUMNS) -> str:
    """Return values as a line of blocks, the newest last; many values are averaged in groups."""
    if not values:
        return ""
    count = min(columns, len(values))
    bounds = [round(i * len(values) / count) for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)


@dataclass
class LiveState:
    """What the panel knows, from the steps that passed."""

    gauge: Gauge
    num_steps: int
    first_step: int
    pace: Pace = field(init=False)
    last: StepRecord | None = None
    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    peak_bytes: int = 0
    tokens_per_second: float = 0.0
    share_of_peak: float | None = None
    activity: str = "training"
    sample: str = ""
    """What the model wrote last, and to what."""

    def __post_init__(self) -> None:
        self.pace = self.gauge.pace()
        self.pace.on_start(self.num_steps, self.first_step)

    def add(self, record: StepRecord) -> None:
        """Take up a step."""
        self.last = record
        self.pace.on_step(record)
        self.losses.append(record.loss)
        if record.validation_loss is not None:
            self.validation.append((record.step, record.validation_loss))
        self.peak_bytes = max(self.peak_bytes, record.memory_reserved_bytes)
        before = self.tokens_per_second or record.tokens_per_second
        self.tokens_per_second = before + _SMOOTHED * (record.tokens_per_second - before)
        gauge = self.gauge
        if gauge.peak_flops and gauge.step_flops is not None and record.seconds > 0:
            done = gauge.step_flops.of(record.tokens, record.supervised_tokens) / record.seconds
            share = done / gauge.peak_flops
            earlier = share if self.share_of_peak is None else self.share_of_peak
            self.share_of_peak = earlier + _SMOOTHED * (share - earlier)


def render_state(state: LiveState, width: int) -> RenderableType:
    """Return the panel, `width` columns wide."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_row("step", _progress(state, width))
    if state.last is not None:
        table.add_row("loss", _loss(state, width))
        if state.validation:
            table.add_row("validation", _validation(state))
        table.add_row("speed", _speed(state, state.last))
        table.add_row("memory", _memory(state, state.last))
    if state.sample:
        table.add_row("wrote", Text(state.sample, overflow="ellipsis", no_wrap=True))
    return Panel(table, title=state.activity, title_align="left", border_style="cyan", width=width)


def _progress(state: LiveState, width: int) -> RenderableType:
    step = state.last.step if state.last is not None else state.first_step
    line = Table.grid(padding=(0, 1))
    bar = Bar(state.num_steps, 0, step, width=max(8, min(30, width - 62)), color="cyan")
    left = state.pace.seconds_left()
    times = f"{format_duration(state.pace.elapsed_seconds)} so far"
    if left is not None:
        times += f", {format_duration(left)} left"
    share = step / state.num_steps if state.num_steps else 0.0
    line.add_row(Text(f"{step:,}/{state.num_steps:,}"), bar, Text(f"{share:.0%}"), Text(times))
    return line


def _loss(state: LiveState, width: int) -> Text:
    assert state.last is not None
    columns = max(8, min(_SPARK_COLUMNS, width - 52))
    return Text.assemble(
        (f"{state.last.loss:.4f} ", "bold"),
        (sparkline(state.losses, columns), "cyan"),
        f"  lr {state.last.learning_rate:.2e}  grad {state.last.grad_norm:.2f}",
    )


def _validation(state: LiveState) -> Text:
    step, loss = state.validation[-1]
    text = Text.assemble((f"{loss:.4f}", "bold"), f" at step {step:,}")
    if len(state.validation) > 1:
        change = loss - state.validation[-2][1]
        arrow, style = ("↓", "green") if change < 0 else ("↑", "yellow")
        text.append(f"  {arrow} {abs(change):.4f}", style)
        best_step, best = min(state.validation, key=lambda pair: pair[1])
        text.append(f"  best {best:.4f} at step {best_step:,}")
    return text


def _speed(state: LiveState, last: StepRecord) -> Text:
    text = Text(f"{state.tokens_per_second:,.0f} tokens/s  {last.seconds:.2g} s a step")
    if state.share_of_peak is not None:
        text.append(f"  {state.share_of_peak:.0%} of the device's peak FLOPs")
    return text


def _memory(state: LiveState, last: StepRecord) -> Text:
    text = Text(
        f"{format_bytes(last.memory_reserved_bytes)} now  {format_bytes(state.peak_bytes)} peak"
    )
    gauge = state.gauge
    if gauge.predicted_bytes:
        text.append(f"  {format_bytes(gauge.predicted_bytes)} predicted")
    if gauge.capacity_bytes:
        share = state.peak_bytes / gauge.capacity_bytes
        style = "yellow" if share > 0.9 else "dim"
        text.append(f"  {share:.0%} of {format_bytes(gauge.capacity_bytes)}", style)
    return text


def describe_sample(prompt: str, completion: str) -> str:
    """Return a sample on one line: what it was asked, and what it wrote."""
    return f"{excerpt(prompt[-60:], 44)} → {excerpt(completion.strip() or '(nothing)', 60)}"
