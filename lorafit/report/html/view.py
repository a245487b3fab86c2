"""What the page of one run shows, as words and figures; the template only lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lorafit.config.fields import show_value
from lorafit.config.schema import SETTING_GROUPS, Settings, setting_group
from lorafit.errors import ExitCode
from lorafit.report.html.data_view import SourceView, data_notes_of, sources_of
from lorafit.report.html.figures import STATUS_TONES, figures_of
from lorafit.report.html.memory_bars import MemoryView, memory_view
from lorafit.report.html.reproduce import install_command, reproduce_command, shell_lines
from lorafit.report.html.source import RunData, Sample
from lorafit.report.html.words import (
    ABSENT,
    show_loss,
    show_moment,
    show_per_second,
    show_tokens,
    show_whole,
)
from lorafit.units import format_about, format_bytes, format_count, format_duration

_EXIT_CODES = {
    "completed": ExitCode.OK,
    "interrupted": ExitCode.INTERRUPTED_SAVED,
    "diverged": ExitCode.DIVERGED,
    "out_of_memory": ExitCode.DEVICE,
}


class Tile(NamedTuple):
    """A figure of the summary."""

    label: str
    value: str
    note: str = ""


class Row(NamedTuple):
    """A setting, with where its value came from."""

    name: str
    value: str
    origin: str


class SampleGroup(NamedTuple):
    """What one prompt was answered with over the steps."""

    prompt: str
    answers: list[Sample]


class Attempt(NamedTuple):
    """One start of the run: what it noted, and how it ended."""

    title: str
    notes: list[str]


@dataclass(frozen=True)
class RunView:
    """Everything that the page says about one run."""

    name: str
    status: str
    tone: str
    ended: str
    headline: str
    failure: str
    tiles: list[Tile]
    num_steps: int
    memory: MemoryView | None
    sources: list[SourceView]
    data_notes: list[str]
    warnings: list[str]
    samples: list[SampleGroup]
    outcome: list[str]
    """Checkpoints and which of them the adapter is of, as sentences."""
    attempts: list[Attempt]
    """Every start of the run, the latest last."""
    set_here: list[Row]
    defaults: dict[str, list[Row]]
    decisions: list[tuple[str, str]]
    environment: list[tuple[str, str]]
    command: str
    install: str


def view_of(run: RunData) -> RunView:
    """Return the page of a run."""
    status = str(run.record["status"])
    figures = figures_of(run)
    chosen, defaults = _settings(run)
    return RunView(
        name=run.name,
        status=status,
        tone=STATUS_TONES.get(status, "bad"),
        ended=_ended(run, status),
        headline=_headline(run),
        failure=str(run.table("failure").get("error") or ""),
        tiles=_tiles(run, figures),
        num_steps=int(run.table("plan", "schedule").get("total_steps") or 0),
        memory=memory_view(run, figures["peak_memory_bytes"]),
        sources=sources_of(run),
        data_notes=data_notes_of(run),
        warnings=[str(text) for text in run.table("plan").get("warnings") or ()],
        samples=_samples(run.samples),
        outcome=_outcome(figures),
        attempts=_attempts(run),
        set_here=chosen,
        defaults=defaults,
        decisions=[(k.replace("_", " "), str(v)) for k, v in run.table("plan", "reasons").items()],
        environment=_environment(run),
        command=shell_lines(reproduce_command(run.table("settings"))),
        install=install_command(run.table("versions")),
    )


def _ended(run: RunData, status: str) -> str:
    failure = run.table("failure")
    code = failure.get("exit_code", _EXIT_CODES.get(status))
    started = show_moment(run.record.get("started_at"))
    ended = show_moment(run.record.get("ended_at"))
    parts = [f"started {started}"] if started else []
    parts += [f"ended {ended}"] if ended else []
    parts += [f"exit status {int(code)}"] if isinstance(code, int) else []
    return ", ".join(parts)


def _headline(run: RunData) -> str:
    model, device = run.table("plan", "model"), run.table("plan", "device")
    settings = run.settings
    total, trained = model.get("num_parameters"), model.get("num_trainable_parameters")
    parts = [str(settings.get("model", "")).rstrip("/").rpartition("/")[2]]
    if total and trained:
        parts.append(f"{model.get('model_type')}, {format_count(total)} parameters")
        parts.append(
            f"LoRA r={settings.get('lora_r')}, {format_count(trained)} trained "
            f"({trained / total:.2%})"
        )
    parts.append(str(device.get("name") or ""))
    precision = str(run.table("plan").get("compute_dtype") or "")
    quantization = settings.get("quantization")
    parts.append(precision if quantization in (None, "none") else f"{quantization}, {precision}")
    return " · ".join(part for part in parts if part)


def _tiles(run: RunData, figures: dict[str, Any]) -> list[Tile]:
    total = run.table("plan", "schedule").get("total_steps")
    first, tokens = show_loss(figures["first_loss"]), show_tokens(figures["tokens"])
    planned = f"of {show_whole(total)}" if total else ""
    tiles = [
        Tile("Training loss", show_loss(figures["final_loss"]), f"from {first}"),
        _reward_tile(run)
        or Tile("Validation loss", show_loss(figures["validation_loss"]), _best(figures)),
        Tile("Steps", show_whole(figures["steps"]), planned),
        Tile("Throughput", show_per_second(figures["tokens_per_second"]), tokens),
        Tile("Peak memory", *_memory_words(figures)),
    ]
    elapsed = figures.get("duration_seconds", figures["elapsed_seconds"])
    if isinstance(elapsed, int | float):
        tiles.append(Tile("Time", format_duration(elapsed), _duration_words(figures)))
    return tiles


def _reward_tile(run: RunData) -> Tile | None:
    """Return what grpo or dpo rose from and to; None for a run without rewards."""
    for name, title in (("reward", "Reward"), ("reward_margin", "Margin")):
        found = [event[name] for event in run.events if name in event]
        if found:
            return Tile(title, show_loss(found[-1]), f"from {show_loss(found[0])}")
    return None


def _best(figures: dict[str, Any]) -> str:
    best, step = figures["best_validation_loss"], figures["best_validation_step"]
    if best is None:
        return "no validation ran"
    return f"best {show_loss(best)} at step {step}"


def _duration_words(figures: dict[str, Any]) -> str:
    predicted = figures.get("predicted_duration_seconds")
    if not predicted:
        return "with validation and saving"
    low, high = (figures.get(f"predicted_{end}_duration_seconds") for end in ("low", "high"))
    between = f", {format_about(low)} to {format_about(high)}" if low and high else ""
    return f"predicted {format_about(predicted)}{between}"


def _memory_words(figures: dict[str, Any]) -> tuple[str, str]:
    peak = figures["peak_memory_bytes"]
    predicted = figures.get("predicted_peak_memory_bytes")
    if not peak:
        return ABSENT, ""
    return format_bytes(peak), f"predicted {format_bytes(predicted)}" if predicted else ""


def _settings(run: RunData) -> tuple[list[Row], dict[str, list[Row]]]:
    """Return the settings that something set, and the defaults by their group."""
    chosen: list[Row] = []
    defaults: dict[str, list[Row]] = {group: [] for group in SETTING_GROUPS}
    for name, entry in run.table("settings").items():
        origin = str(entry.get("origin"))
        row = Row(name, show_value(entry.get("value")), origin)
        if origin != "default":
            chosen.append(row)
            continue
        group = setting_group(name) if name in Settings.model_fields else SETTING_GROUPS[-1]
        defaults[group].append(row)
    return chosen, {group: rows for group, rows in defaults.items() if rows}


def _samples(samples: Sequence[Sample]) -> list[SampleGroup]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.prompt, []).append(sample)
    return [
        SampleGroup(prompt, sorted(answers, key=lambda sample: sample.step, reverse=True))
        for prompt, answers in groups.items()
    ]


def _outcome(figures: dict[str, Any]) -> list[str]:
    said = []
    if steps := [int(step) for step in figures["checkpoints"] or ()]:
        said.append(f"checkpoints were written after steps {', '.join(map(str, steps))}")
    if best := figures.get("best_checkpoint"):
        loss = show_loss(figures.get("best_checkpoint_validation_loss"))
        said.append(f"the lowest validation loss of a checkpoint is {best}'s, {loss}")
    if early := figures.get("stopped_early"):
        said.append(f"stopped early: {early}")
    if step := figures.get("adapter_step"):
        said.append(f"the adapter is of step {step}")
    return said


def _attempts(run: RunData) -> list[Attempt]:
    earlier = [one for one in run.record.get("attempts") or () if isinstance(one, dict)]
    return [_attempt(number, one) for number, one in enumerate([*earlier, run.record], 1)]


def _attempt(number: int, record: dict[str, Any]) -> Attempt:
    moments = [show_moment(record.get(key)) for key in ("started_at", "ended_at")]
    spent = " to ".join(moment for moment in moments if moment)
    status = str(record.get("status")).replace("_", " ")
    notes = [str(note) for note in record.get("notes") or ()]
    return Attempt(f"Attempt {number}: {status}, {spent}", notes)


def _environment(run: RunData) -> list[tuple[str, str]]:
    device = run.table("plan", "device")
    rows = [("device", str(device.get("reason") or device.get("name") or ""))]
    if device.get("driver"):
        rows.append(("driver", str(device["driver"])))
    rows += [(name, str(version)) for name, version in run.table("versions").items()]
    rows.append(("run", str(run.record.get("run_id") or "")))
    return [(name, text) for name, text in rows if text]
