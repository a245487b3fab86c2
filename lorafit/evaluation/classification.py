"""Accuracy and F1 of written answers: which label an answer ends in, and how often it is right."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class ClassificationReport:
    """How well labels were predicted."""

    accuracy: float
    """Share of all problems with the right label; an answer without a label is wrong."""
    macro_f1: float
    """Mean over the labels of F1 = 2 TP / (2 TP + FP + FN); rare labels count as common ones."""
    answered: float
    """Share of answers that hold any label at all."""
    labels: tuple[str, ...]
    f1_by_label: dict[str, float]
    confusion: dict[str, dict[str, int]]
    """True label to predicted label (or `no label`) to count."""


NO_LABEL = "no label"


class Reading(NamedTuple):
    """What was read off an answer."""

    label: str | None
    """The label that occurs last; None: there is none."""
    ends_in_label: bool
    """Whether no word follows the label."""
    is_bare: bool
    """Whether the label stands alone, or after one word such as `Answer:`: nothing is reasoned."""


def read_answer(text: str, labels: Sequence[str]) -> Reading:
    """Return the label that occurs last in `text` as a whole word, and where it stands.

    The last one counts, since reasoning may weigh other labels before it answers.
    """
    best: tuple[int, int, str] | None = None
    for label in labels:
        for match in re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE):
            # By end, then length: of "neutral" and "not neutral" the longer one is meant.
            candidate = (match.end(), len(label), label)
            best = candidate if best is None else max(best, candidate)
    if best is None:
        return Reading(None, ends_in_label=False, is_bare=False)
    end, length, label = best
    ends = re.search(r"\w", text[end:]) is None
    words_before = len(re.findall(r"\w+", text[: end - length]))
    return Reading(label, ends_in_label=ends, is_bare=ends and words_before <= 1)


def classification_report(
    truth: Sequence[str], predicted: Sequence[str | None]
) -> ClassificationReport:
    """Compare predicted labels with the true ones, in the same order.

    Raises:
        ValueError: the two differ in length, or there is nothing to compare.
    """
    if len(truth) != len(predicted) or not truth:
        raise ValueError(f"{len(truth)} true labels against {len(predicted)} predictions")
    labels = tuple(sorted(set(truth)))
    pairs = Counter(zip(truth, (p or NO_LABEL for p in predicted), strict=True))
    f1_by_label = {label: _f1(label, pairs) for label in labels}
    columns = (*labels, NO_LABEL)
    return ClassificationReport(
        accuracy=sum(pairs[label, label] for label in labels) / len(truth),
        macro_f1=sum(f1_by_label.values()) / len(labels),
        answered=sum(p is not None for p in predicted) / len(predicted),
        labels=labels,
        f1_by_label=f1_by_label,
        confusion={t: {p: pairs[t, p] for p in columns if pairs[t, p]} for t in labels},
    )


def _f1(label: str, pairs: Counter[tuple[str, str]]) -> float:
    right = pairs[label, label]
    missed = sum(count for (true, _), count in pairs.items() if true == label) - right
    false = sum(count for (_, guess), count in pairs.items() if guess == label) - right
    return 2 * right / (2 * right + missed + false) if right else 0.0
