"""From predicted and measured bytes to errors, and from errors to tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memory_estimators.estimators import Estimator, Figure
from memory_estimators.runs import GIB, Figures, Run

GROUPS = {"unquantized": "none", "nf4": "nf4"}


@dataclass(frozen=True)
class Answer:
    """What an estimator said of the runs, or the reason why it said nothing."""

    estimator: Estimator
    versions: dict[str, str]
    figures: dict[str, Figures]  # by the run's id
    failure: str | None = None

    def error(self, figure: Figure, run: Run) -> float | None:
        """Return predicted / measured - 1, or None where there is no prediction."""
        predicted = self.figures.get(run.id, {}).get(figure.name)
        if predicted is None:
            return None
        measured: int = getattr(run, figure.against)
        return predicted / measured - 1

    def errors(self, figure: Figure, runs: Sequence[Run]) -> list[float]:
        """Return the errors of the runs that the figure exists for."""
        return [error for run in runs if (error := self.error(figure, run)) is not None]


def summary(errors: Sequence[float]) -> dict[str, float | int] | None:
    """Return mean and median of the absolute errors and the worst with its sign."""
    if not errors:
        return None
    absolute = [abs(error) for error in errors]
    return {
        "runs": len(errors),
        "mean": statistics.fmean(absolute),
        "median": statistics.median(absolute),
        "worst": max(errors, key=abs),
        "runs_predicted_too_low": sum(error < 0 for error in errors),
    }


def document(answers: Sequence[Answer], runs: Sequence[Run], date: str) -> dict[str, Any]:
    """Return everything as one JSON document; errors are fractions of the measured bytes."""
    return {
        "schema_version": 1,
        "date": date,
        "estimators": [_estimator_record(answer, runs) for answer in answers],
        "runs": [_run_record(run, answers) for run in runs],
    }


def _estimator_record(answer: Answer, runs: Sequence[Run]) -> dict[str, Any]:
    estimator = answer.estimator
    return {
        "name": estimator.name,
        "requirements": list(estimator.requirements),
        "versions": answer.versions,
        "asked": estimator.asked,
        "notes": estimator.notes,
        "failure": answer.failure,
        "figures": [
            {
                "name": figure.name,
                "against": figure.against,
                "meaning": figure.meaning,
                **{
                    group: summary(answer.errors(figure, _of(runs, quantization)))
                    for group, quantization in GROUPS.items()
                },
            }
            for figure in estimator.figures
        ],
    }


def _run_record(run: Run, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "id": run.id,
        "model": run.model,
        "quantization": run.quantization,
        "allocated_bytes": run.allocated_bytes,
        "process_bytes": run.process_bytes,
        "estimates": {
            answer.estimator.name: {
                figure.name: {
                    "bytes": answer.figures.get(run.id, {}).get(figure.name),
                    "error": answer.error(figure, run),
                }
                for figure in answer.estimator.figures
            }
            for answer in answers
        },
    }


def _of(runs: Sequence[Run], quantization: str) -> list[Run]:
    return [run for run in runs if run.quantization == quantization]


def markdown(answers: Sequence[Answer], runs: Sequence[Run], date: str) -> str:
    """Return the same as tables to read."""
    sections = [
        "# Memory estimators on measured T4 runs",
        f"Written by `bench/memory_peers.py` on {date}: {len(runs)} LoRA fine-tuning runs "
        "on a Tesla T4 (bench/data/measured_peaks.csv), each estimator asked with every fact of "
        "the run that it takes. Error = predicted / measured - 1; mean and median are of absolute "
        "errors; worst keeps its sign, negative being the direction that ends in out of memory.",
        "## Summary",
        _summary_table(answers, runs),
        "## How each was asked, and what it cannot express",
        _notes_table(answers),
    ]
    for against, title in (("process_bytes", "Process"), ("allocated_bytes", "Allocated")):
        sections += [
            f"## {title} memory, run by run",
            _runs_table(answers, runs, against),
        ]
    return "\n\n".join(sections) + "\n"


def _summary_table(answers: Sequence[Answer], runs: Sequence[Run]) -> str:
    columns = [
        f"{group}: {column}"
        for group in ("unquantized", "NF4")
        for column in ("mean", "median", "worst", "too low")
    ]
    rows = []
    for answer in answers:
        for figure in answer.estimator.figures:
            cells = [answer.estimator.name, figure.meaning, figure.against.split("_")[0]]
            for quantization in GROUPS.values():
                cells += _summary_cells(summary(answer.errors(figure, _of(runs, quantization))))
            rows.append(cells)
    return table(["estimator", "figure", "against", *columns], rows)


def _summary_cells(numbers: dict[str, float | int] | None) -> list[str]:
    if numbers is None:
        return ["none"] * 4
    return [
        f"{numbers['mean']:.1%}",
        f"{numbers['median']:.1%}",
        f"{numbers['worst']:+.1%}",
        f"{numbers['runs_predicted_too_low']} of {numbers['runs']}",
    ]


def _notes_table(answers: Sequence[Answer]) -> str:
    rows = [
        [
            answer.estimator.name,
            ", ".join(answer.estimator.requirements),
            answer.estimator.asked,
            answer.estimator.notes + (f" **Failed: {answer.failure}**" if answer.failure else ""),
        ]
        for answer in answers
    ]
    return table(["estimator", "pin", "asked through", "notes"], rows)


def _runs_table(answers: Sequence[Answer], runs: Sequence[Run], against: str) -> str:
    shown = [
        (answer, figure)
        for answer in answers
        for figure in answer.estimator.figures
        if figure.against == against
    ]
    header = ["run", "model", "quantization", "rows x tokens", "attention", "measured GiB"]
    header += [f"{answer.estimator.name}: {figure.name}" for answer, figure in shown]
    rows = []
    for run in runs:
        size = f"{run.batch_size} x {run.seq_len}"
        measured: int = getattr(run, against)
        cells = [run.id, run.model, run.quantization, size, run.attention, f"{measured / GIB:.3f}"]
        rows.append(cells + [_prediction(answer, figure, run) for answer, figure in shown])
    return table(header, rows)


def _prediction(answer: Answer, figure: Figure, run: Run) -> str:
    error = answer.error(figure, run)
    if error is None:
        return "none"
    predicted = (1 + error) * getattr(run, figure.against)
    return f"{predicted / GIB:.3f} ({error:+.1%})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in cells] for cells in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)
