"""The demo: a model made on the spot, trained by the very code path of `train`, then compared."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafit.demo.pretrain import ensure_demo_model, single_threaded
from lorafit.demo.problem import LABELS
from lorafit.demo.recipe import ANSWER_TOKENS, TEST_DATA, demo_settings
from lorafit.hardware.detect import detect_device

if TYPE_CHECKING:
    from lorafit.config.layers import Resolved
    from lorafit.evaluation.classification import ClassificationReport
    from lorafit.evaluation.evaluate import Answer
    from lorafit.report.records import RunObserver

Stage = Callable[[str, int, int], None]

_ANSWER_BATCH = 64


@dataclass(frozen=True)
class Examination:
    """The held-out problems, answered by one model."""

    report: "ClassificationReport"
    """Of the labels; where an answer has none, of the label that the model finds likeliest."""
    answers: "tuple[Answer, ...]"

    @property
    def answered(self) -> float:
        """Share of the answers that end in a label by themselves."""
        return sum(answer.predicted is not None for answer in self.answers) / len(self.answers)


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows: before, after, and where the adapter lies."""

    before: Examination
    after: Examination
    model: Path
    adapter: Path
    num_problems: int
    was_complete: bool
    elapsed_seconds: float


def run_demo(
    output_dir: Path, observers: "Sequence[RunObserver]" = (), stage: Stage | None = None
) -> DemoResult:
    """Make the model if it is not cached, examine it, train an adapter, examine it again.

    Args:
        output_dir: the run folder of the training.
        observers: who watches the training.
        stage: called with a stage's name, what is done of it and how much there is.

    Raises:
        LorafitError: as `train`.
    """
    started = time.monotonic()

    def report(name: str) -> Callable[[int, int], None]:
        return lambda done, total: stage(name, done, total) if stage is not None else None

    building = report("making a tiny Phi model")
    model = ensure_demo_model(lambda done, total, loss: building(done, total))
    resolved = resolve_demo(model, output_dir)
    device = detect_device("cpu")

    from lorafit.training.planning.plan import plan_run
    from lorafit.training.run import run_training

    # Matrices this small gain little from a second thread, and on a shared machine threads that
    # wait for each other make it many times slower.
    with single_threaded():
        before = examine(resolved, None, report("before: answering held-out problems"))
        result = run_training(plan_run(resolved, device), observers=observers)
        after = examine(resolved, result.adapter, report("after: answering the same problems"))
    return DemoResult(
        before=before,
        after=after,
        model=model,
        adapter=result.adapter,
        num_problems=len(after.answers),
        was_complete=result.was_complete,
        elapsed_seconds=time.monotonic() - started,
    )


def resolve_demo(model: Path, output_dir: Path) -> "Resolved":
    """Return the demo's settings as a run has them, each with its origin."""
    from lorafit.config.layers import Given, Layer, resolve_layers

    values = {**demo_settings(model), "output_dir": str(output_dir)}
    given = {name: Given(value, "lorafit/demo/recipe.py") for name, value in values.items()}
    return resolve_layers([Layer("lorafit demo", "file", given)])


def examine(
    resolved: "Resolved", adapter: Path | None, progress: Callable[[int, int], None]
) -> Examination:
    """Let the demo's model, with or without the adapter, answer the held-out problems.

    A base model that does not know the layout writes no label. Counting that as wrong would
    compare layouts, so it is asked for the label that it finds likeliest: about chance.
    """
    from lorafit.data.records import read_records
    from lorafit.data.sources import resolve_source
    from lorafit.evaluation.choice import choose_continuations
    from lorafit.evaluation.classification import classification_report
    from lorafit.evaluation.evaluate import answer_records
    from lorafit.evaluation.loading import load_for_inference

    settings = resolved.settings
    loaded = load_for_inference(settings, detect_device("cpu"), adapter)
    records = read_records(resolve_source(str(TEST_DATA)), settings).records
    answers = answer_records(loaded, records, settings, _ANSWER_BATCH, ANSWER_TOKENS, progress)
    unlabelled = [answer for answer in answers if answer.predicted is None]
    contexts = [f"{answer.prompt} {answer.text}\nAnswer:" for answer in unlabelled]
    options = [f" {label}" for label in LABELS]
    chosen = iter(choose_continuations(loaded, contexts, options))
    predicted = [answer.predicted or next(chosen).strip() for answer in answers]
    truth = [answer.label for answer in answers]
    return Examination(classification_report(truth, predicted), answers)
