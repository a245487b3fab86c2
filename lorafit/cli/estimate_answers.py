"""The answers of `lorafit estimate-memory`, one function a question: shown, or as JSON."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.cli import console
from lorafit.cli.settings_flags import RunChoices
from lorafit.errors import UsageError

if TYPE_CHECKING:
    from lorafit.cli.estimate_question import Options, Question
    from lorafit.memory.advice import Advice
    from lorafit.memory.estimate import Estimate


def of_run(
    choices: RunChoices,
    options: "Options",
    *,
    as_json: bool,
    wants_advice: bool,
    timeline: Path | None,
) -> bool:
    """Answer for one run, with advice where memory is narrow; return whether it fits."""
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
    with console.watched(f"{what} ..."):
        return question.estimate()


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

    with console.watched("looking for what to change ..."):
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


def of_presets(choices: RunChoices, presets: str, options: "Options", *, as_json: bool) -> bool:
    """Answer for presets side by side; return whether any of them fits."""
    from lorafit.cli.estimate_question import ask_each

    if choices.preset is not None:
        raise UsageError(
            "--preset and --compare both name presets", hint="name all of them in --compare"
        )
    names = list(dict.fromkeys(name.strip() for name in presets.split(",")))
    asked = ask_each([replace(choices, preset=name) for name in names], options)
    questions = list(zip(names, asked, strict=True))
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


def of_values(choices: RunChoices, text: str, options: "Options", *, as_json: bool) -> bool:
    """Answer for the values of a sweep; return whether the run fits with any of them."""
    from lorafit.cli.estimate_question import ask_each, with_value
    from lorafit.memory.sweep import parse_sweep

    sweep = parse_sweep(text)
    asked = ask_each([with_value(choices, sweep.name, value) for value in sweep.values], options)
    questions = list(zip(sweep.values, asked, strict=True))
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


def of_largest_batch(choices: RunChoices, options: "Options", *, as_json: bool) -> bool:
    """Answer with the largest micro-batch that fits; return whether there is one."""
    from lorafit.cli.estimate_question import ask
    from lorafit.memory.sweep import largest_micro_batch

    # The planner would choose what is asked for.
    question = ask(choices, replace(options, plans_batch=False))
    name = "per_device_train_batch_size"

    def estimate(rows: int) -> "Estimate":
        with console.watched(f"tracing a step of {rows} rows ..."):
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
