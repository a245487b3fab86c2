"""`lorafit presets recommend`: the preset for a situation, tried against the memory there is."""

import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices
from lorafit.config.situations import FAMILY, Situation
from lorafit.errors import DeviceError
from lorafit.text import escape_control
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.cli.estimate_question import Options, Question
    from lorafit.memory.estimate import Estimate


@dataclass(frozen=True)
class Tried:
    """A preset against a device: its estimate, or why it cannot run there at all."""

    preset: str
    question: "Question | None"
    estimate: "Estimate | None"
    extra_flags: tuple[str, ...] = ()
    problem: str = ""

    @property
    def fits(self) -> bool:
        """Whether the run fits the device."""
        return self.estimate is not None and self.estimate.verdict != "exceeds"


@dataclass(frozen=True)
class Recommendation:
    """The preset to take, why, and what was tried."""

    situation: Situation
    preset: str
    reason: str
    command: str
    fits: bool
    tried: tuple[Tried, ...]


def recommend(situation: Situation, choices: RunChoices, options: "Options") -> Recommendation:
    """Return the preset of a situation, or what comes closest and fits the device.

    Raises:
        LorafitError: the model or the device is not known.
    """
    tried = tuple(_try(name, choices, options) for name in FAMILY)
    first = next(t for t in tried if t.preset == situation.preset)
    chosen, reason = first, situation.reason
    extra = list(first.extra_flags)
    if not first.fits:
        why = first.problem or f"{first.preset} does not fit: {_needs(first)}"
        flags = _nearest_flags(first)
        smaller = next((t for t in tried if t.fits and t.preset == "qlora/memory-efficient"), None)
        if flags:
            reason = f"{situation.reason}; {why}, so {flags} go with it"
            extra += flags.split()
        elif smaller is not None:
            chosen, reason = smaller, f"{why}; memory-efficient is the one that fits"
            extra = list(smaller.extra_flags)
        else:
            reason = f"{situation.reason}; but {why}"
    command = ["lorafit", "train", "--preset", chosen.preset, *_typed(choices), *extra]
    return Recommendation(
        situation=situation,
        preset=chosen.preset,
        reason=reason,
        command=f"{shlex.join(command)} --data FILE",
        fits=chosen.fits or "--per-device-train-batch-size" in extra,
        tried=tried,
    )


def _try(preset: str, choices: RunChoices, options: "Options") -> Tried:
    from lorafit.cli.estimate_question import ask

    asked = replace(choices, preset=preset)
    attempts: list[tuple[RunChoices, tuple[str, ...]]] = [(asked, ())]
    if "compute_dtype" not in choices.flags:
        flags = {**asked.flags, "compute_dtype": "auto"}
        attempts.append((replace(asked, flags=flags), ("--compute-dtype", "auto")))
    problem = ""
    for attempt, extra in attempts:
        try:
            question = ask(attempt, options)
            with console.stderr_console().status(f"tracing a training step of {preset} ..."):
                return Tried(preset, question, question.estimate(), extra)
        except DeviceError as refusal:  # a device without bfloat16 may have float16
            problem = problem or str(refusal)
    return Tried(preset, None, None, (), problem)


def _nearest_flags(tried: Tried) -> str | None:
    """Return the flags with which a run that does not fit would, at the same effective batch."""
    from lorafit.memory.planner import nearest_fitting

    question = tried.question
    if question is None:
        return None
    return nearest_fitting(
        question.settings,
        dict(question.config),
        question.device,
        question.effective_batch_size,
        estimate=lambda settings, _config, _device: question.estimate(settings),
    )


def _needs(tried: Tried) -> str:
    assert tried.estimate is not None
    peak, capacity = tried.estimate.peak.process_bytes, tried.estimate.capacity_bytes
    return f"it takes {format_bytes(peak)} of {format_bytes(capacity)}"


def _typed(choices: RunChoices) -> list[str]:
    model = choices.flags.get("model")
    return ["--model", str(model)] if model else []


def show_recommendation(found: Recommendation, device: str) -> None:
    """Print the preset and the command on stdout, what was tried and why on stderr."""
    from lorafit.cli.tables import plain_table

    console.say(f"{found.situation.name}, on {escape_control(device)}: {found.reason}")
    rows: list[tuple[object, ...]] = []
    for tried in found.tried:
        if tried.estimate is None or tried.question is None:
            rows.append((tried.preset, "", "", "", "", tried.problem))
            continue
        settings, estimate = tried.question.settings, tried.estimate
        rows.append(
            (
                tried.preset,
                settings.lora_r,
                settings.per_device_train_batch_size,
                settings.max_length,
                format_bytes(estimate.peak.process_bytes),
                f"{estimate.verdict}, {format_bytes(max(0, estimate.headroom_bytes))} left",
            )
        )
    columns = ("preset", "rank", "rows", "tokens", "peak", "of " + device)
    console.say(plain_table(None, columns, rows))
    console.out(found.preset)
    console.say(f"next: {escape_control(found.command)}")


def recommendation_document(found: Recommendation, device: str) -> dict[str, Any]:
    """Return the recommendation as a JSON document."""
    return {
        "schema_version": 1,
        "situation": found.situation.name,
        "preset": found.preset,
        "reason": found.reason,
        "command": found.command,
        "fits": found.fits,
        "device": device,
        "tried": [
            {
                "preset": tried.preset,
                "verdict": tried.estimate.verdict if tried.estimate else "unusable",
                "process_bytes": tried.estimate.peak.process_bytes if tried.estimate else None,
                "headroom_bytes": tried.estimate.headroom_bytes if tried.estimate else None,
                "problem": tried.problem or None,
            }
            for tried in found.tried
        ],
    }
