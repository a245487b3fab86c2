"""`lorafit train`: plan, show the plan, train, say what to do next."""

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.launch import (
    Launch,
    MachineRank,
    MainProcessIp,
    MainProcessPort,
    NumMachines,
    NumProcesses,
    device_of,
    devices_of,
    requested_launch,
    verify_launch,
    without_launch_options,
)
from lorafit.cli.log_level import set_log_level, verify_log_level
from lorafit.cli.one_voice import one_voice
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.config.extension import parse_length, with_length
from lorafit.errors import ConfigError, LorafitError, MemoryFitError, Problem, UsageError
from lorafit.hardware.processes import processes_of
from lorafit.hardware.visible import show_only
from lorafit.text import escape_control
from lorafit.units import format_bytes

if TYPE_CHECKING:
    from lorafit.config.extension import ScheduleChange
    from lorafit.training.plan import RunPlan

SCHEMA_VERSION = 1


@with_settings
def command(
    context: typer.Context,
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
    extend: Annotated[
        str | None,
        typer.Option(
            help="Make the run in --output-dir this long in all and continue it; shows first what "
            "that does to the learning rate.",
            metavar="5epochs|900steps",
        ),
    ] = None,
    allow_mismatch: Annotated[
        list[str] | None,
        typer.Option(
            help="Continue although this fact of the run differs now, such as learning_rate; may "
            "be repeated.",
            metavar="NAME",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            help="GPUs to use, counted from 0; several are one process each.", metavar="0,1"
        ),
    ] = None,
    num_processes: NumProcesses = None,
    num_machines: NumMachines = None,
    machine_rank: MachineRank = None,
    main_process_ip: MainProcessIp = None,
    main_process_port: MainProcessPort = None,
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
    log_level: Annotated[
        str,
        typer.Option(
            "--log-level",
            help="How much is told: warning (notes only), info, or debug (every step, and what "
            "the libraries say).",
            metavar="warning|info|debug",
        ),
    ] = "info",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document to stdout at the end.")
    ] = False,
) -> None:
    """Train a LoRA adapter.

    Examples:
      lorafit train --preset balanced --data my.jsonl --dry-run

      lorafit train --preset balanced --data my.jsonl --output-dir outputs/first

      lorafit train --config my.yaml learning_rate=1e-4 --max-steps 100

      lorafit train --preset balanced --data my.jsonl --num-processes 4
    """
    if resume == "":
        raise UsageError("--resume is empty", hint="--resume auto, or a checkpoint folder")
    verify_log_level(log_level)
    if choices.preset == "auto":
        choices, fit = replace(choices, preset=None), True
    here = processes_of(os.environ)
    launch = requested_launch(
        gpus, num_processes, num_machines, machine_rank, main_process_ip, main_process_port, here
    )
    choices = devices_of(choices, gpus, launch)
    if launch is not None and not dry_run:
        verify_launch(launch, *choices.resolve())
        raise typer.Exit(_launch(launch, context.obj))
    num_devices = launch.size if launch is not None else here.size
    with one_voice(here) as voice:
        resolved, device = choices.resolve()
        device = device_of(here, resolved, device)
        if extend is not None:
            resolved = with_length(resolved, parse_length(extend))
        if not device.detected and not dry_run:
            raise UsageError(
                f"--hardware {choices.hardware} plans for a machine that is not here",
                hint="add --dry-run to see the plan for it, or leave --hardware out to train here",
            )
        from lorafit.cli.plan_view import render_change, render_plan
        from lorafit.model.libraries import prepare_libraries
        from lorafit.training.output import check_output_folder, require_checkpoint_folder
        from lorafit.training.plan import plan_run

        if not dry_run:
            check_output_folder(resolved.settings)
            require_checkpoint_folder(resume)
        try:
            prepare_libraries()
            plan = plan_run(
                resolved,
                device,
                fit=fit,
                allow_oom_attempt=allow_oom_attempt,
                num_devices=num_devices,
            )
        except ConfigError as failure:
            raise _with_origins(failure, resolved) from None
        # Imports torch, which plan_run does too, but only after it has found quick mistakes.
        from lorafit.training.folder import ResumeChoice, find_start, schedule_change

        console.say(render_plan(plan))
        for warning in plan.warnings:
            console.warn(warning)
        choice = ResumeChoice(resume, extend is not None, tuple(allow_mismatch or ()))
        change = schedule_change(plan, find_start(plan, choice)) if choice.extends else None
        if change is not None:
            console.say()
            console.say(render_change(change))
        if dry_run:
            _end_dry_run(plan, change, as_json)
            return

        from lorafit.cli.progress import TerminalProgress, gauge_of
        from lorafit.training.distributed import open_world
        from lorafit.training.follower import follow_training
        from lorafit.training.run import run_training

        console.say()
        terminal = console.stderr_console()
        progress = TerminalProgress(
            terminal,
            plan.settings.logging_steps,
            gauge=gauge_of(plan) if terminal.is_terminal else None,
            run_dir=Path(plan.settings.output_dir),
            level=set_log_level(log_level),
        )
        if here.size > 1:
            show_only(plan.device)
        with open_world(here, plan.device.kind, plan.settings.ddp_timeout) as world:
            voice.has_joined = True
            if not world.is_main:
                follow_training(plan, world)
                return
            result = run_training(plan, resume=choice, observers=[progress], world=world)
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


def _launch(launch: Launch, arguments: list[str]) -> int:
    """Start the processes that do what this command line asks; return their exit code."""
    from lorafit.cli.supervise import run_processes

    return run_processes(launch, without_launch_options(arguments))


def _end_dry_run(plan: "RunPlan", change: "ScheduleChange | None", as_json: bool) -> None:
    if as_json:
        document = {"schema_version": SCHEMA_VERSION, "status": "planned", **plan.as_dict()}
        if change is not None:
            document["extension"] = change.as_dict()
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
    elif figures["first_loss"] is None:
        console.say(f"done: all steps were taken before; the adapter is of step "
                    f"{figures['adapter_step']}")  # fmt: skip
    else:
        loss = f"loss {figures['first_loss']:.4f} -> {figures['final_loss']:.4f}"
        if figures["validation_loss"] is not None:
            loss += f", validation {figures['validation_loss']:.4f}"
        if "final_reward" in figures:
            loss += f", reward {figures['first_reward']:.4f} -> {figures['final_reward']:.4f}"
        console.say(f"done: {figures['steps']} steps, {loss}")
        console.say(
            f"{figures['tokens']:,} tokens at {figures['tokens_per_second']:,.0f} a second, "
            f"peak memory {format_bytes(figures['peak_memory_bytes'])} "
            f"(predicted {format_bytes(figures['predicted_peak_memory_bytes'])})"
        )
    _say_best(figures)
    adapter = escape_control(shlex.quote(str(result.adapter)))
    run_dir = escape_control(shlex.quote(str(result.run_dir)))
    console.say(f"adapter: {adapter} (plain PEFT)")
    if (result.run_dir / "report.html").is_file():
        console.say(f"report: {escape_control(shlex.quote(str(result.run_dir / 'report.html')))}")
    console.say("next:")
    console.say(f"  lorafit evaluate --adapter {adapter} --data FILE")
    console.say(f'  lorafit generate --adapter {adapter} --prompt "..."')
    console.say(f"  lorafit chat {run_dir}, lorafit export {run_dir}")


def _say_best(figures: dict[str, Any]) -> None:
    """Name the best checkpoint where it is not the step that the adapter is of."""
    best = figures.get("best_checkpoint")
    if best is None:
        return
    loss = f"validation loss {figures['best_checkpoint_validation_loss']:.4f}"
    if best == f"checkpoint-{figures.get('adapter_step')}":
        console.say(f"best checkpoint: {best} ({loss}), which the adapter is of")
    else:
        console.say(
            f"best checkpoint: {best} ({loss}); it is kept, and --load-best-model-at-end makes the "
            "adapter of it"
        )
