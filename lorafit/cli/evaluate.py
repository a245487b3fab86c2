"""`lorafit evaluate`: loss and perplexity; accuracy and macro-F1 where rows have labels."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from lorafit.cli import console
from lorafit.cli.data_progress import shown_data_progress
from lorafit.cli.inference import resolve_inference
from lorafit.cli.options import AdapterOrBase, Json, MaxNewTokens
from lorafit.cli.settings_flags import RunChoices, with_settings
from lorafit.cli.tables import plain_table
from lorafit.errors import UsageError
from lorafit.text import excerpt

if TYPE_CHECKING:
    from lorafit.evaluation.classification import ClassificationReport
    from lorafit.evaluation.evaluate import Evaluation

SCHEMA_VERSION = 1


@with_settings
def command(
    choices: RunChoices,
    adapter: AdapterOrBase = None,
    max_new_tokens: MaxNewTokens = 128,
    answers: Annotated[
        str | None, typer.Option(help="Write every answer to this JSONL file.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a base model or an adapter on a data set.

    Rows with a label are answered by the model, and the last label in each answer counts.
    Model and templates come from the run that made the adapter.

    Example: lorafit evaluate --adapter outputs/run/adapter --data test.jsonl
    """
    answer_file = _answer_file(answers)
    resolved, device, folder = resolve_inference(choices, adapter)
    settings = resolved.settings
    if settings.data is None:
        raise UsageError("no data was given", hint="add --data FILE")
    from lorafit.data.load import load_source
    from lorafit.data.sources import resolve_source
    from lorafit.evaluation.evaluate import evaluate_dataset
    from lorafit.evaluation.loading import load_for_inference
    from lorafit.model.source import locate_model
    from lorafit.model.tokenizer import tokenizer_of

    # Data is read first: it is wrong more often than the model, and found out in a second. That
    # it is there at all is asked before the model, which may have to be downloaded.
    resolve_source(settings.data, settings.data_split)
    tokenizer = tokenizer_of(locate_model(settings.model, settings.revision, need_weights=False))
    with shown_data_progress() as tell:
        source = load_source(settings.data, settings, tokenizer, tell)
    loaded = load_for_inference(settings, device, folder)
    with _shown_progress() as progress:
        outcome = evaluate_dataset(
            loaded,
            source.dataset,
            settings=settings,
            labelled=source.is_labelled,
            batch_size=settings.per_device_eval_batch_size or settings.per_device_train_batch_size,
            max_new_tokens=max_new_tokens,
            progress=progress,
        )
    if answer_file is not None:
        _write_answers(answer_file, outcome)
    if as_json:
        console.print_json(_document(outcome, settings.model, folder, settings.data))
    else:
        _show(outcome)


@contextlib.contextmanager
def _shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Context in which a bar shows the stages, what of each is done, and its total."""
    with Progress(console=console.stderr_console(), transient=True) as bar:
        task = bar.add_task("evaluating")
        yield lambda stage, done, total: bar.update(
            task, description=stage, completed=done, total=total
        )


def _show(outcome: "Evaluation") -> None:
    loss = outcome.loss
    console.out(
        f"loss {loss.loss:.4f}  perplexity {loss.perplexity:.4g}  "
        f"({loss.num_targets:,} tokens of {loss.num_rows:,} rows)"
    )
    if outcome.classification is not None:
        _show_classification(outcome, outcome.classification)
    else:
        console.say("rows have no label, so there is no accuracy (see --label-field)")


def _show_classification(outcome: "Evaluation", report: "ClassificationReport") -> None:
    console.out(
        f"accuracy {report.accuracy:.1%}  macro-F1 {report.macro_f1:.3f}  "
        f"answers with a label {report.answered:.1%}, ending in one {outcome.ends_in_label:.1%}, "
        f"without reasoning {outcome.bare_labels:.1%}"
    )
    columns = sorted({guess for row in report.confusion.values() for guess in row})
    rows = [
        (label, f"{report.f1_by_label[label]:.3f}", *(str(row.get(c, 0)) for c in columns))
        for label, row in ((label, report.confusion[label]) for label in report.labels)
    ]
    header = ("true label", "F1", *(f"said {excerpt(c, 20)}" for c in columns))
    console.out(plain_table(None, header, rows))


def _document(
    outcome: "Evaluation", model: str, adapter: Path | None, data: str
) -> dict[str, object]:
    loss, report = outcome.loss, outcome.classification
    document: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "adapter": str(adapter) if adapter else None,
        "data": data,
        "rows": loss.num_rows,
        "tokens": loss.num_targets,
        "loss": loss.loss,
        "perplexity": loss.perplexity if loss.perplexity != float("inf") else None,
    }
    if report is not None:
        document |= {
            "accuracy": report.accuracy,
            "macro_f1": report.macro_f1,
            "answered": report.answered,
            "ends_in_label": outcome.ends_in_label,
            "bare_labels": outcome.bare_labels,
            "f1_by_label": report.f1_by_label,
            "confusion": report.confusion,
        }
    return document


def _answer_file(name: str | None) -> Path | None:
    """Return where the answers go, if anywhere; refused now rather than after the evaluation."""
    from lorafit.errors import StorageError

    if name is None:
        return None
    if not name.strip():
        raise UsageError("--answers is empty", hint="--answers answers.jsonl, or leave it out")
    path = Path(name)
    if path.is_dir():
        raise StorageError("this is a folder, not a file", where=name)
    if not path.absolute().parent.is_dir():
        raise StorageError(
            f"there is no folder {excerpt(str(path.absolute().parent))}",
            where=name,
            hint="make the folder first, or name a file elsewhere",
        )
    return path


def _write_answers(path: Path, outcome: "Evaluation") -> None:
    import json

    from lorafit.errors import StorageError

    try:
        with path.open("w", encoding="utf-8") as stream:
            for answer in outcome.answers:
                stream.write(json.dumps(vars(answer), ensure_ascii=False) + "\n")
    except OSError as problem:
        raise StorageError(f"cannot be written: {problem.strerror}", where=str(path)) from None
