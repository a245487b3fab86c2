"""`lorafit estimate-memory`: what a run takes at its peak, and whether it fits."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from lorafit.cli.estimate_question import Options, Question
    from lorafit.memory.advice import Advice
    from lorafit.memory.estimate import Estimate

_ASK_PANEL = "What to ask"


def _option(name: str, help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(name, help=help_text, metavar=metavar, rich_help_panel=_ASK_PANEL)


@with_settings
def command(
    choices: RunChoices,
    as_json: Annotated[bool, _option("--json", "Print one JSON document to stdout.")] = False,
    compare: Annotated[
        str | None, _option("--compare", "Presets side by side: high,balanced,low.", "A,B,...")
    ] = None,
    sweep: Annotated[
        str | None,
        _option(
            "--sweep",
            "One setting over values: max_length=512,1024; batch_size=1..16 doubles, "
            "batch_size=4..16:4 takes steps of 4; hardware=t4,a10g: which device is enough?",
            "NAME=VALUES",
        ),
    ] = None,
    max_batch: Annotated[
        bool, _option("--max-batch", "Find the largest micro-batch that fits.")
    ] = False,
    timeline: Annotated[
        Path | None,
        _option("--timeline", "Draw memory over the run into a .html, .png or .svg file.", "FILE"),
    ] = None,
    advice: Annotated[
        bool | None,
        _option(
            "--advice/--no-advice",
            "When it is tight or exceeds: what to change first, each change traced. On, but off "
            "with --json.",
        ),
    ] = None,
    num_processes: Annotated[
        int,
        typer.Option(
            "--num-processes",
            help="Estimate each of so many processes, on a device of its own; see --parallelism.",
            min=1,
            rich_help_panel=_ASK_PANEL,
        ),
    ] = 1,
    expandable_segments: Annotated[
        bool,
        _option(
            "--expandable-segments",
            "Estimate with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        ),
    ] = False,
    fast: Annotated[
        bool, _option("--fast", "Answer at once by a closed form, some per cent off.")
    ] = False,
    no_cache: Annotated[
        bool, _option("--no-cache", "Trace again, even if the answer is stored.")
    ] = False,
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
        fits = _compare(choices, compare, options, as_json)
    elif sweep is not None:
        fits = _sweep(choices, sweep, options, as_json)
    elif max_batch:
        fits = _max_batch(choices, options, as_json)
    else:
        wants_advice = not as_json if advice is None else advice
        fits = _single(choices, options, as_json, wants_advice, timeline)
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


def _single(
    choices: RunChoices,
    options: "Options",
    as_json: bool,
    wants_advice: bool,
    timeline: Path | None,
) -> bool:
    from lorafit.cli.estimate_question import ask

    if timeline is not None:
        from lorafit.memory.timeline_chart import require_chart_file

        require_chart_file(timeline)
    question = ask(choices, options)
    estimate = _answer(question)
    if timeline is not None:
        _draw(question, estimate, timeline)
    found = _advise(question, estimate) if wants_advice and estimate.verdict != "fits" else None
    if as_json:
        console.print_json(_document(question, found, timeline))
    else:
        from lorafit.cli.estimate_view import render, screen_of

        screen = screen_of(console.stdout_console())
        console.out(render(estimate, screen, question.assumptions(), found))
    if timeline is not None:
        console.say(f"memory over the run: {timeline}")
    return estimate.verdict != "exceeds"


def _answer(question: "Question", label: str = "") -> "Estimate":
    """Return the estimate, made or remembered."""
    what = f"tracing a training step {label}".rstrip()
    with _watched(f"{what} ..."):
        return question.estimate()


def _watched(what: str) -> AbstractContextManager[object]:
    """Show whoever watches a terminal that something happens; say nothing to a file."""
    return console.stderr_console().status(what) if sys.stderr.isatty() else nullcontext()


def _draw(question: "Question", estimate: "Estimate", file: Path) -> None:
    from lorafit.cli.estimate_question import prepare_tracing
    from lorafit.memory.allocator import CachingAllocator
    from lorafit.memory.data_parallel import num_shards_of
    from lorafit.memory.estimate import trace_run
    from lorafit.memory.timeline import build_timeline
    from lorafit.memory.timeline_chart import write_chart

    prepare_tracing()
    trace = trace_run(
        question.settings,
        dict(question.config),
        question.device,
        plain_script=question.is_plain(question.settings),
        num_shards=num_shards_of(estimate),
    )
    allocator = CachingAllocator(expandable_segments=question.options.expandable_segments)
    write_chart(file, build_timeline(trace, allocator), estimate, question.assumptions())


def _advise(question: "Question", estimate: "Estimate") -> "Advice":
    from lorafit.memory.advice import advise

    with _watched("looking for what to change ..."):
        return advise(question.settings, estimate, question.device.kind, question.estimate)


def _document(
    question: "Question", advice: "Advice | None", timeline: Path | None
) -> dict[str, Any]:
    document = question.document()
    if advice is not None:
        from lorafit.memory.advice import advice_document

        document["advice"] = advice_document(advice)
    if timeline is not None:
        document["timeline"] = str(timeline)
    return document


def _compare(choices: RunChoices, presets: str, options: "Options", as_json: bool) -> bool:
    from lorafit.cli.estimate_question import ask

    if choices.preset is not None:
        raise UsageError(
            "--preset and --compare both name presets", hint="name all of them in --compare"
        )
    names = list(dict.fromkeys(name.strip() for name in presets.split(",")))
    questions = [(name, ask(replace(choices, preset=name), options)) for name in names]
    answers = [(name, _answer(question, f"of {name}")) for name, question in questions]
    if as_json:
        documents = [{"preset": name, **question.document()} for name, question in questions]
        console.print_json(_list_document({"compare": names}, documents))
    else:
        from lorafit.cli.estimate_tables import comparison_table
        from lorafit.cli.estimate_view import screen_of

        _say_subject(questions[0][1])
        console.out(comparison_table(answers, screen_of(console.stdout_console())))
    return any(estimate.verdict != "exceeds" for _, estimate in answers)


def _sweep(choices: RunChoices, text: str, options: "Options", as_json: bool) -> bool:
    from lorafit.cli.estimate_question import ask, with_value
    from lorafit.memory.sweep import parse_sweep

    sweep = parse_sweep(text)
    questions = [
        (value, ask(with_value(choices, sweep.name, value), options)) for value in sweep.values
    ]
    if len(questions) > 1 and len({question.identity() for _, question in questions}) == 1:
        raise UsageError(f"{sweep.name} does not change what a run takes", where="--sweep")
    answers = [
        (value, _answer(question, f"with {sweep.name}={value}")) for value, question in questions
    ]
    if as_json:
        documents = [{sweep.name: value, **question.document()} for value, question in questions]
        console.print_json(
            _list_document({"sweep": {"name": sweep.name, "values": list(sweep.values)}}, documents)
        )
    else:
        from lorafit.cli.estimate_tables import sweep_table
        from lorafit.cli.estimate_view import screen_of

        _say_subject(questions[0][1], sweep.name)
        console.out(sweep_table(sweep.name, answers, screen_of(console.stdout_console())))
    return any(estimate.verdict != "exceeds" for _, estimate in answers)


def _max_batch(choices: RunChoices, options: "Options", as_json: bool) -> bool:
    from lorafit.cli.estimate_question import ask
    from lorafit.memory.sweep import largest_micro_batch

    question = ask(choices, options)
    name = "per_device_train_batch_size"

    def estimate(rows: int) -> "Estimate":
        with _watched(f"tracing a step of {rows} rows ..."):
            return question.estimate(question.settings.model_copy(update={name: rows}))

    found = largest_micro_batch(estimate)
    if as_json:
        documents = [e.document() for e in found.estimates.values()]
        console.print_json(_list_document({f"max_{name}": found.rows}, documents))
        return found.rows > 0
    from lorafit.cli.estimate_tables import sweep_table
    from lorafit.cli.estimate_view import screen_of

    _say_subject(question, name)
    answers = [(str(rows), e) for rows, e in found.estimates.items()]
    console.out(sweep_table(name, answers, screen_of(console.stdout_console())))
    console.out(_largest_sentence(found.rows, question.effective_batch_size))
    return found.rows > 0


def _largest_sentence(rows: int, effective: int) -> str:
    if rows == 0:
        return "not even a micro-batch of 1 fits; without --max-batch you see what to change"
    divisor = next(n for n in range(min(rows, effective), 0, -1) if effective % n == 0)
    return (
        f"the largest micro-batch that fits: {rows}\n"
        f"for an effective batch of {effective}: --per-device-train-batch-size {divisor} "
        f"--gradient-accumulation-steps {effective // divisor}"
    )


def _list_document(asked: dict[str, Any], documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from lorafit.memory.estimate import SCHEMA_VERSION

    return {"schema_version": SCHEMA_VERSION, **asked, "estimates": list(documents)}


def _say_subject(question: "Question", swept: str = "") -> None:
    """Say what the table is about: on stderr, as the table's figures are the data."""
    from lorafit.text import escape_control, excerpt

    model = "" if swept == "model" else escape_control(excerpt(question.settings.model))
    count = question.options.num_processes
    number = "" if count == 1 else f"each of {count} x "
    device = "" if swept == "hardware" else f"on {number}{question.device.name}"
    console.say(f"{model} {device}".strip())
