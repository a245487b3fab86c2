"""`lorafit train`: plan, show the plan, train, say what to do next."""

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import ConfigError, LorafitError, MemoryFitError, Problem, UsageError
from lorafit.text import escape_control
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.training.plan import RunPlan

SCHEMA_VERSION = 1


@with_settings
def command(
    choices: RunChoices,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan; load no weights, train nothing.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Checkpoint folder to continue from, or auto. An unfinished run in --output-dir "
            "is continued without this.",
            metavar="auto|FOLDER",
        ),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Choose micro-batch and checkpointing: the fastest that fit, same effective "
            "batch. --preset auto is the defaults with --fit.",
        ),
    ] = False,
    allow_oom_attempt: Annotated[
        bool,
        typer.Option(
            "--allow-oom-attempt", help="Train even though the estimate says it will not fit."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document to stdout at the end.")
    ] = False,
) -> None:
    """Train a LoRA adapter.

    Examples:
      lorafit train --preset balanced --data my.jsonl --dry-run

      lorafit train --preset balanced --data my.jsonl --output-dir outputs/first

      lorafit train --config my.yaml learning_rate=1e-4 --max-steps 100
    """
    if resume == "":
        raise UsageError("--resume is empty", hint="--resume auto, or a checkpoint folder")
    if choices.preset == "auto":
        choices, fit = replace(choices, preset=None), True
    resolved, device = choices.resolve()
    if not device.detected and not dry_run:
        raise UsageError(
            f"--hardware {choices.hardware} plans for a machine that is not here",
            hint="add --dry-run to see the plan for it, or leave --hardware out to train here",
        )
    from lorafit.cli.plan_view import render_plan
    from lorafit.model.libraries import prepare_libraries
    from lorafit.training.plan import plan_run

    try:
        prepare_libraries()
        plan = plan_run(resolved, device, fit=fit, allow_oom_attempt=allow_oom_attempt)
    except ConfigError as failure:
        raise _with_origins(failure, resolved) from None
    console.say(render_plan(plan))
    for warning in plan.warnings:
        console.warn(warning)
    if dry_run:
        _end_dry_run(plan, as_json)
        return

    from lorafit.cli.progress import TerminalProgress
    from lorafit.training.run import run_training

    console.say()
    progress = TerminalProgress(console.stderr_console(), plan.settings.logging_steps)
    result = run_training(plan, resume=resume, observers=[progress])
    _say_summary(result)
    if as_json:
        console.print_json(
            {
                "schema_version": SCHEMA_VERSION,
                "status": "completed",
                "run_dir": str(result.run_dir),
                "adapter": str(result.adapter),
                **result.results,
            }
        )


def _end_dry_run(plan: "RunPlan", as_json: bool) -> None:
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, "status": "planned", **plan.as_dict()}
        console.print_json({**document, "settings": plan.settings.model_dump(mode="json")})
    try:
        plan.require_fit()
    except MemoryFitError as refusal:
        console.warn(f"train would refuse: {refusal}")
        console.say(str(refusal.hint))
    console.say("dry run: nothing was trained")


def _with_origins(failure: ConfigError, resolved: Any) -> LorafitError:
    """Put the origin of each setting before problems that were found only against the model."""
    problems = [
        Problem(f"{p.where} ({resolved.origins[p.where]})", p.message, p.hint)
        if p.where in resolved.origins
        else p
        for p in failure.problems
    ]
    return ConfigError(problems, exit_code=failure.exit_code)


def _say_summary(result: Any) -> None:
    figures = result.results
    console.say()
    if result.was_complete:
        console.say(f"already complete at step {figures.get('steps')}: nothing was done")
    else:
        loss = f"loss {figures['first_loss']:.4f} -> {figures['final_loss']:.4f}"
        if figures["validation_loss"] is not None:
            loss += f", validation {figures['validation_loss']:.4f}"
        console.say(f"done: {figures['steps']} steps, {loss}")
        console.say(
            f"{figures['tokens']:,} tokens at {figures['tokens_per_second']:,.0f} a second, "
            f"peak memory {format_bytes(figures['peak_memory_bytes'])} "
            f"(predicted {format_bytes(figures['predicted_peak_memory_bytes'])})"
        )
    adapter = escape_control(shlex.quote(str(result.adapter)))
    console.say(f"adapter: {adapter} (plain PEFT)")
    console.say("next:")
    console.say(f"  lorafit evaluate --adapter {adapter} --data FILE")
    console.say(f'  lorafit generate --adapter {adapter} --prompt "..."')
