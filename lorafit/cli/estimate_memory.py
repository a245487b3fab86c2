"""`lorafit estimate-memory`: what a run takes at its peak, and whether it fits."""

import typer

from lorafit.cli.estimate_options import (
    Compare,
    ExpandableSegments,
    Fast,
    Json,
    MaxBatch,
    NoCache,
    NumProcesses,
    ShowAdvice,
    Sweep,
    Timeline,
)
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import ExitCode, UsageError


@with_settings
def command(
    choices: RunChoices,
    as_json: Json = False,
    compare: Compare = None,
    sweep: Sweep = None,
    max_batch: MaxBatch = False,
    timeline: Timeline = None,
    advice: ShowAdvice = None,
    num_processes: NumProcesses = 1,
    expandable_segments: ExpandableSegments = False,
    fast: Fast = False,
    no_cache: NoCache = False,
) -> None:
    """Say how much memory a run takes at its peak, before it starts. Exit code 4: does not fit.

    `--kernels stock`, given on the command line, estimates a plain script around transformers
    and PEFT instead of lorafit's own training. With `--compare` and `--sweep` the exit code is 4
    only when nothing fits.

    Examples:
      lorafit estimate-memory --preset balanced --hardware a10g

      lorafit estimate-memory --model microsoft/phi-2 --hardware t4 --quantization nf4 --json

      lorafit estimate-memory --compare high,balanced,low --hardware a10g

      lorafit estimate-memory --preset high && lorafit train --preset high --data my.jsonl
    """
    from lorafit.cli import estimate_answers as answers
    from lorafit.cli.estimate_question import Options

    _require_one_question(
        compare=compare, sweep=sweep, max_batch=max_batch or None, timeline=timeline
    )
    if advice and (compare is not None or sweep is not None or max_batch):
        raise UsageError("--advice is about one run", hint="ask about that run on its own")
    options = Options(
        expandable_segments=expandable_segments,
        use_cache=not no_cache,
        fast=fast,
        num_processes=num_processes,
    )
    if compare is not None:
        fits = answers.of_presets(choices, compare, options, as_json=as_json)
    elif sweep is not None:
        fits = answers.of_values(choices, sweep, options, as_json=as_json)
    elif max_batch:
        fits = answers.of_largest_batch(choices, options, as_json=as_json)
    else:
        wants_advice = not as_json if advice is None else advice
        fits = answers.of_run(
            choices, options, as_json=as_json, wants_advice=wants_advice, timeline=timeline
        )
    if not fits:
        raise typer.Exit(int(ExitCode.DEVICE))


def _require_one_question(**given: object) -> None:
    asked = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} ask different questions", hint=f"ask {asked[0]} on its own"
        )
    for name in ("compare", "sweep", "timeline"):
        if given[name] is not None and str(given[name]) in ("", "."):
            raise UsageError(f"--{name} is empty", hint=f"give a value, or leave --{name} out")
