"""The bundled data set: reproducible, balanced, held out, and not answerable by a shortcut."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from lorafit.demo import nli
from lorafit.demo.vocabulary import ALL, HELD_OUT, QUALITIES, TRAINING

Row = dict[str, str]


def read(split: str) -> list[Row]:
    text = (nli.DATA_FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words_of(rows: list[Row]) -> set[str]:
    return {word for row in rows for text in row.values() for word in words(text)}


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def test_bundled_files_are_what_the_rules_write(tmp_path: Path) -> None:
    for path in nli.write_data(tmp_path):
        assert path.read_bytes() == (nli.DATA_FOLDER / path.name).read_bytes(), path.name


def test_another_seed_draws_other_problems() -> None:
    assert nli.generate(seed=1)["test"] != nli.generate(seed=2)["test"]


def test_no_problem_occurs_twice_in_any_split() -> None:
    pairs = [(row["premise"], row["hypothesis"]) for split in nli.HYPOTHESES for row in read(split)]
    assert len(pairs) == len(set(pairs))


@pytest.mark.parametrize("split", nli.HYPOTHESES)
def test_each_label_is_a_third_of_each_split(split: str) -> None:
    counts = Counter(row["label"] for row in read(split))
    assert counts == dict.fromkeys(nli.LABELS, nli.HYPOTHESES[split])


def test_word_lists_share_nothing_between_training_and_held_out() -> None:
    training = {*TRAINING.names, *TRAINING.nouns}
    held_out = {*HELD_OUT.names, *HELD_OUT.nouns}
    assert training.isdisjoint(held_out)
    assert len(ALL.names) + len(ALL.nouns) == len(training) + len(held_out)


def test_held_out_names_and_nouns_never_occur_in_training() -> None:
    singular_and_plural = {form for noun in HELD_OUT.nouns for form in (noun, noun + "s")}
    seen = {word.lower() for word in words_of(read("train") + read("validation"))}
    assert seen.isdisjoint(singular_and_plural)
    assert seen.isdisjoint(name.lower() for name in HELD_OUT.names)


def test_names_and_nouns_of_training_never_occur_in_the_test_set() -> None:
    forms = {form for noun in TRAINING.nouns for form in (noun, noun + "s")}
    seen = {word.lower() for word in words_of(read("test"))}
    assert seen.isdisjoint(forms)
    assert seen.isdisjoint(name.lower() for name in TRAINING.names)


def test_every_noun_and_value_takes_the_article_a() -> None:
    values = [value for group in QUALITIES.values() for value in group]
    assert [word for word in (*ALL.nouns, *values) if word[0] in "aeiou"] == []


def test_a_classifier_that_sees_only_the_hypothesis_stays_near_chance() -> None:
    accuracy = naive_bayes_accuracy(lambda row: words(row["hypothesis"].lower()))
    assert accuracy <= 0.40


def test_a_classifier_that_sees_only_lengths_stays_near_chance() -> None:
    def lengths(row: Row) -> list[str]:
        premise, hypothesis = len(words(row["premise"])), len(words(row["hypothesis"]))
        return [f"p{premise}", f"h{hypothesis}", f"d{premise - hypothesis}"]

    assert naive_bayes_accuracy(lengths) <= 0.45


def test_the_classifier_of_these_tests_can_learn_a_label_that_is_given_away() -> None:
    assert naive_bayes_accuracy(lambda row: words(row["reasoning"])) >= 0.9


def naive_bayes_accuracy(features) -> float:  # type: ignore[no-untyped-def]
    """Multinomial naive Bayes with add-one smoothing, fitted on train and scored on test."""
    counts = {label: Counter() for label in nli.LABELS}  # type: ignore[var-annotated]
    for row in read("train"):
        counts[row["label"]].update(features(row))
    vocabulary = set().union(*counts.values())

    def score(label: str, row: Row) -> float:
        total = counts[label].total() + len(vocabulary)
        return sum(
            math.log((counts[label][feature] + 1) / total)
            for feature in features(row)
            if feature in vocabulary
        )

    rows = read("test")
    hits = sum(max(nli.LABELS, key=lambda label: score(label, row)) == row["label"] for row in rows)
    return hits / len(rows)


def test_reasoning_ends_in_a_conclusion_that_fits_the_label() -> None:
    ends = {"entailment": "holds", "neutral": "stays open", "contradiction": "fails"}
    for row in read("train") + read("test"):
        assert row["reasoning"].endswith(f"so the claim {ends[row['label']]}.")
