"""The plan of a run as a person reads it: every number, and the reason of every choice."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafit.cli import console
from lorafit.cli.text_plot import PlotLine, draw_lines
from lorafit.config.extension import ScheduleChange
from lorafit.config.schedule_changes import Course, baseline_of, describe_changes, differs
from lorafit.memory.planner import FittedPlan
from lorafit.text import escape_control
from lorafit.training.planning.run_plan import RunPlan
from lorafit.training.timing.duration import NotKnown
from lorafit.units import format_bytes, format_count

_CURVE_COLUMNS, _CURVE_ROWS = 62, 4
_MOST_CHANGES = 4


def render_plan(plan: RunPlan) -> RenderableType:
    """Return the plan as a two-column table, reasons dimmed below what they explain."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for title, lines in _sections(plan):
        for position, (text, is_reason) in enumerate(lines):
            shown = Text(escape_control(text), style="dim" if is_reason else "")
            table.add_row(title if position == 0 else "", shown)
    return Group(Text("Plan", style="bold underline"), table)


def render_change(change: ScheduleChange) -> RenderableType:
    """Return what an extension does to the learning rate."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for position, line in enumerate(change.lines()):
        table.add_row("extension" if position == 0 else "", Text(line))
    return table


Line = tuple[str, bool]


def _sections(plan: RunPlan) -> list[tuple[str, list[Line]]]:
    return [
        ("device", _device(plan)),
        ("preset", _preset(plan)),
        ("model", _model(plan)),
        ("adapter", _adapter(plan)),
        ("data", _data(plan)),
        ("batch", _batch(plan)),
        ("schedule", _schedule(plan)),
        ("memory", _memory(plan)),
        ("speed", _speed(plan)),
        ("time", _time(plan)),
        ("disk", _disk(plan)),
    ]


def _fact(text: str) -> Line:
    return text, False


def _why(text: str) -> Line:
    return text, True


def _device(plan: RunPlan) -> list[Line]:
    device = plan.device
    free = f", {format_bytes(device.free_bytes)} free" if device.free_bytes is not None else ""
    usable = format_bytes(device.usable_bytes)
    return [_fact(f"{device.name}, {usable} usable{free}"), _why(device.reason)]


def _preset(plan: RunPlan) -> list[Line]:
    resolved = plan.resolved
    if resolved.preset is None:
        return [_fact("none: the defaults of the training guide")]
    lines = [_fact(resolved.preset)]
    if resolved.row is not None:
        lines.append(_why(resolved.row.reason))
    if plan.planner is not None:
        lines.append(_why("the planner then chose micro-batch and checkpointing, see memory"))
    return lines


def _model(plan: RunPlan) -> list[Line]:
    weights = plan.source.weights
    stored = f", {format_bytes(weights.num_bytes)} as {weights.stored_dtype}" if weights else ""
    quantized = plan.settings.quantization
    form = f", base in {quantized}" if quantized != "none" else ""
    name = f"{plan.source.name} ({plan.source.model_type}"
    return [
        _fact(f"{name}, {format_count(plan.model.num_parameters)} parameters{stored})"),
        _fact(f"computes in {plan.dtype.value}{form}"),
        _why(plan.dtype.reason),
    ]


def _adapter(plan: RunPlan) -> list[Line]:
    model, settings = plan.model, plan.settings
    share = model.num_trainable_parameters / model.num_parameters
    by_module = ", ".join(f"{n} {format_count(c)}" for n, c in model.trainable_by_module.items())
    return [
        _fact(
            f"LoRA r={settings.lora_r} alpha={settings.lora_alpha:g} "
            f"dropout={settings.lora_dropout:g}: {format_count(model.num_trainable_parameters)} "
            f"trainable parameters ({share:.2%})"
        ),
        _fact(by_module),
        _why(model.targets.reason),
    ]


def _data(plan: RunPlan) -> list[Line]:
    lines = plan.data.report.lines()
    return [_fact(line) for line in lines] + [_why(f"padding: {plan.pad.reason}")]


def _batch(plan: RunPlan) -> list[Line]:
    batch, batching = plan.batch, plan.batching
    unit = "row" if batching.packing is None else "bin"
    lines = [
        _fact(
            f"{batch.per_device_train_batch_size} micro-batch x "
            f"{batch.gradient_accumulation_steps} accumulation x {batch.num_devices} "
            f"device{'s' * (batch.num_devices > 1)} = "
            f"{batch.effective_batch_size} effective batch, up to "
            f"{plan.settings.max_length} tokens a {unit}"
        ),
        _why(batch.reason),
    ]
    if batching.packing is not None:
        lines.append(_fact(batching.packing.describe()))
        lines.append(_why("micro-batch, effective batch and steps count bins"))
    if plan.settings.method != "sft":
        return lines
    return [*lines, _why(batching.attention.reason), _why(batching.limits_reason)]


def _schedule(plan: RunPlan) -> list[Line]:
    schedule, settings = plan.schedule, plan.settings
    tokens = plan.data.report.train_counts.tokens * schedule.num_epochs
    return [
        _fact(
            f"{schedule.total_steps} steps = {schedule.num_epochs:.3g} epochs of "
            f"{schedule.steps_per_epoch}, about {format_count(tokens)} tokens"
        ),
        _why(schedule.total_reason),
        _fact(
            f"peak learning rate {settings.learning_rate:g} after {schedule.warmup_steps} warm-up "
            f"steps ({schedule.warmup_share:.1%}), then {settings.lr_scheduler_type}"
        ),
        _why(schedule.warmup_reason),
        *_rates(plan),
    ]


def _rates(plan: RunPlan) -> list[Line]:
    """Return the curve, and beside the preset's where the two differ, what that does."""
    resolved, batch = plan.resolved, plan.batch
    new = Course("this run", plan.settings, batch, plan.schedule)
    old = baseline_of(resolved, plan.schedule.num_rows, batch.num_devices)
    courses = [new, old] if old is not None and differs(old, new) else [new]
    drawn = draw_lines(
        [PlotLine(c.label, c.schedule.total_steps, c.rate_at) for c in courses],
        width=_CURVE_COLUMNS,
        height=_CURVE_ROWS,
        ascii_only=not console.stderr_console().encoding.startswith("utf"),
    )
    lines = [*drawn[:-1], *(drawn[-1:] if len(courses) > 1 else [])]
    facts = [(line.plain, False) for line in lines]
    if old is not None and len(courses) > 1:
        facts.append(_fact(f"unlike {old.label}:"))
        facts += [_fact(f"- {text}") for text in describe_changes(old, new)[:_MOST_CHANGES]]
        facts.append(_why("lorafit schedule shows the curves in full"))
    return facts


def _speed(plan: RunPlan) -> list[Line]:
    settings = plan.settings
    switches = {
        "gradient checkpointing": settings.gradient_checkpointing,
        "torch.compile": plan.torch_compile.value,
    }
    text = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in switches.items())
    return [
        _fact(f"{text}, {settings.optim}, seed {settings.seed}"),
        _why(plan.torch_compile.reason),
        _fact(f"kernels {settings.kernels}"),
        _why(plan.model.lean_layers.reason),
        _why(plan.model.chunked_loss.reason),
    ]


def _memory(plan: RunPlan) -> list[Line]:
    estimate = plan.estimate
    return [
        _fact(
            f"{format_bytes(estimate.peak.process_bytes)} at the peak of "
            f"{format_bytes(estimate.capacity_bytes)} usable{_on_each(plan)}"
        ),
        _why(estimate.reasons[-1]),
        *([_why(_FIT_HINT)] if _wastes_time_for_memory(plan) else []),
        *([_why(plan.parallelism.reason)] if plan.batch.num_devices > 1 else []),
        *([] if plan.settings.method == "sft" else [_why(plan.reasons()["method"])]),
        *([] if plan.planner is None else _planner(plan.planner)),
    ]


def _time(plan: RunPlan) -> list[Line]:
    duration = plan.duration
    if isinstance(duration, NotKnown):
        return [_fact(duration.line())]
    return [_fact(duration.line()), _why(duration.parts_line()), _why(duration.reason)]


def _on_each(plan: RunPlan) -> str:
    count = plan.batch.num_devices
    return f" on each of {count} devices" if count > 1 else ""


_FIT_HINT = "layers are computed twice to save memory that stays free: --fit finds what is faster"
_MUCH_FREE = 0.4
"""Share of the device's memory from which on a run without checkpointing is worth a look."""


def _wastes_time_for_memory(plan: RunPlan) -> bool:
    estimate, settings = plan.estimate, plan.settings
    is_planned = plan.planner is not None or settings.method != "sft"
    is_free = estimate.peak.process_bytes < (1 - _MUCH_FREE) * estimate.capacity_bytes
    return settings.gradient_checkpointing and is_free and not is_planned


def _planner(fitted: FittedPlan) -> list[Line]:
    rejected = [_why(f"not {line}") for line in fitted.rejections()]
    return [_fact(f"planned: {fitted.reason}"), *rejected]


def _disk(plan: RunPlan) -> list[Line]:
    disk = plan.disk
    return [
        _fact(
            f"{format_bytes(disk.checkpoint_bytes)} a checkpoint x {disk.num_kept} on disk at once "
            f"= {format_bytes(disk.needed_bytes)} with the adapter; "
            f"{format_bytes(disk.free_bytes)} free in {plan.settings.output_dir}"
        ),
        _why(
            f"{disk.num_written} checkpoint{'s' * (disk.num_written != 1)} in all, one every "
            f"{plan.settings.save_steps} steps and at the end; the newest "
            f"{plan.settings.save_total_limit} and the best are kept: "
            f"keeping all would take {format_bytes(disk.unlimited_bytes)}"
        ),
    ]
