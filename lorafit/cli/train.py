"""`lorafit train`: plan, show the plan, train, say what to do next."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lorafit.cli import console
from lorafit.cli.data_progress import shown_data_progress
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
from lorafit.cli.one_voice import Voice, one_voice
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.cli.train_options import (
    AllowMismatch,
    AllowOomAttempt,
    DryRun,
    Extend,
    Fit,
    Gpus,
    ImportHfCheckpoint,
    JsonAtEnd,
    LogLevel,
    Resume,
)
from lorafit.cli.train_view import end_dry_run, say_import, say_result
from lorafit.config.extension import parse_length, with_length
from lorafit.errors import ConfigError, LorafitError, Problem, UsageError
from lorafit.hardware.processes import Processes, processes_of
from lorafit.hardware.visible import show_only

if TYPE_CHECKING:
    from lorafit.config.extension import ScheduleChange
    from lorafit.config.layers import Resolved
    from lorafit.hardware.info import DeviceInfo
    from lorafit.training.planning.run_plan import RunPlan
    from lorafit.training.run import RunResult
    from lorafit.training.run_folder.folder import ResumeChoice


@with_settings
def command(
    context: typer.Context,
    choices: RunChoices,
    dry_run: DryRun = False,
    resume: Resume = None,
    extend: Extend = None,
    import_hf_checkpoint: ImportHfCheckpoint = None,
    allow_mismatch: AllowMismatch = None,
    gpus: Gpus = None,
    num_processes: NumProcesses = None,
    num_machines: NumMachines = None,
    machine_rank: MachineRank = None,
    main_process_ip: MainProcessIp = None,
    main_process_port: MainProcessPort = None,
    fit: Fit = False,
    allow_oom_attempt: AllowOomAttempt = False,
    log_level: LogLevel = "info",
    as_json: JsonAtEnd = False,
) -> None:
    """Train a LoRA adapter.

    Examples:
      lorafit train --preset balanced --data my.jsonl --dry-run

      lorafit train --preset balanced --data my.jsonl --output-dir outputs/first

      lorafit train --config my.yaml learning_rate=1e-4 --max-steps 100

      lorafit train --preset balanced --data my.jsonl --num-processes 4
    """
    _refuse_contradictions(resume, extend, import_hf_checkpoint)
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
    with one_voice(here) as voice:
        resolved, device = _resolve(choices, here, extend, dry_run=dry_run)
        if not dry_run:
            _check_folders(resolved, resume)
        plan = _plan(
            resolved,
            device,
            fit=fit,
            allow_oom_attempt=allow_oom_attempt,
            num_devices=here.size if launch is None else launch.size,
        )
        # Imports torch, which planning does too, but only after it has found quick mistakes.
        from lorafit.training.run_folder.folder import ResumeChoice

        choice = ResumeChoice(
            resume, extend is not None, tuple(allow_mismatch or ()), import_hf_checkpoint
        )
        change = _show(plan, choice)
        if dry_run:
            end_dry_run(plan, change, as_json=as_json)
            return
        result = _train(plan, choice, here, voice, log_level)
        if result is not None:
            say_result(result, plan.settings.method, as_json=as_json)


def _refuse_contradictions(
    resume: str | None, extend: str | None, import_hf_checkpoint: Path | None
) -> None:
    if resume == "":
        raise UsageError("--resume is empty", hint="--resume auto, or a checkpoint folder")
    if import_hf_checkpoint is not None and (resume or extend):
        raise UsageError(
            "--import-hf-checkpoint begins a new run, and --resume and --extend continue one",
            hint="leave one of them out; the same command goes on after an interruption",
        )


def _launch(launch: Launch, arguments: list[str]) -> int:
    """Start the processes that do what this command line asks; return their exit code."""
    from lorafit.cli.supervise import run_processes

    return run_processes(launch, without_launch_options(arguments))


def _resolve(
    choices: RunChoices, here: Processes, extend: str | None, *, dry_run: bool
) -> "tuple[Resolved, DeviceInfo]":
    """Return the settings of the run and the device of this process."""
    resolved, device = choices.resolve()
    device = device_of(here, resolved, device)
    if extend is not None:
        resolved = with_length(resolved, parse_length(extend))
    if not device.detected and not dry_run:
        raise UsageError(
            f"--hardware {choices.hardware} plans for a machine that is not here",
            hint="add --dry-run to see the plan for it, or leave --hardware out to train here",
        )
    return resolved, device


def _check_folders(resolved: "Resolved", resume: str | None) -> None:
    """Refuse folders that cannot be used before planning takes its seconds."""
    from lorafit.training.run_folder.output import check_output_folder, require_checkpoint_folder

    check_output_folder(resolved.settings)
    require_checkpoint_folder(resume)


def _plan(
    resolved: "Resolved",
    device: "DeviceInfo",
    *,
    fit: bool,
    allow_oom_attempt: bool,
    num_devices: int,
) -> "RunPlan":
    """Return the plan; what is wrong with a setting is told with the setting's origin."""
    from lorafit.model.libraries import prepare_libraries, quick_imports

    with quick_imports():
        from lorafit.training.planning.plan import plan_run

    try:
        prepare_libraries()
        with shown_data_progress() as tell:
            return plan_run(
                resolved,
                device,
                fit=fit,
                allow_oom_attempt=allow_oom_attempt,
                num_devices=num_devices,
                tell=tell,
            )
    except ConfigError as failure:
        raise _with_origins(failure, resolved) from None


def _with_origins(failure: ConfigError, resolved: Any) -> LorafitError:
    """Put the origin of each setting before problems that were found only against the model."""
    problems = [
        Problem(f"{p.where} ({resolved.origins[p.where]})", p.message, p.hint)
        if p.where in resolved.origins
        else p
        for p in failure.problems
    ]
    return ConfigError(problems, exit_code=failure.exit_code)


def _show(plan: "RunPlan", choice: "ResumeChoice") -> "ScheduleChange | None":
    """Show the plan and what becomes of an earlier run; return how a longer run changes it."""
    from lorafit.cli.plan_view import render_change, render_plan
    from lorafit.report.trackers import missing_trackers
    from lorafit.training.run_folder.folder import find_start, schedule_change

    console.say(render_plan(plan))
    for warning in (*plan.warnings, *missing_trackers(plan.settings)):
        console.warn(warning)
    change = schedule_change(plan, find_start(plan, choice)) if choice.extends else None
    if change is not None:
        console.say()
        console.say(render_change(change))
    if choice.imports is not None:
        say_import(plan, choice)
    return change


def _train(
    plan: "RunPlan", choice: "ResumeChoice", here: Processes, voice: Voice, log_level: str
) -> "RunResult | None":
    """Train as one of the run's processes; return the result in the first of them."""
    from lorafit.cli.progress import TerminalProgress, gauge_of
    from lorafit.training.follower import follow_training
    from lorafit.training.processes.distributed import open_world
    from lorafit.training.run import run_training

    console.say()
    terminal = console.stderr_console()
    progress = TerminalProgress(
        terminal,
        plan.settings.logging_steps,
        gauge=gauge_of(plan, with_peak=terminal.is_terminal),
        run_dir=Path(plan.settings.output_dir),
        level=set_log_level(log_level),
    )
    if here.size > 1:
        show_only(plan.device)
    with open_world(here, plan.device.kind, plan.settings.ddp_timeout) as world:
        voice.has_joined = True
        if not world.is_main:
            follow_training(plan, world)
            return None
        return run_training(plan, resume=choice, observers=[progress], world=world)
