import pytest

from lorafit.evaluation.classification import classification_report, read_answer

LABELS = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("The answer is neutral.", "neutral"),
        ("It may look neutral, but it is a contradiction", "contradiction"),
        ("contradiction? No: entailment", "entailment"),
        ("NEUTRAL", "neutral"),
        ("Answer:entailment", "entailment"),
        ("entailment!", "entailment"),
        ("neutrality and entailments", None),
        ("non_neutral", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_last_whole_word_counts_in_any_case(text, label):
    assert read_answer(text, LABELS).label == label


@pytest.mark.parametrize("labels", [("neutral", "not neutral"), ("not neutral", "neutral")])
def test_of_overlapping_labels_the_longer_is_meant(labels):
    assert read_answer("this is not neutral", labels).label == "not neutral"
    assert read_answer("this is neutral", labels).label == "neutral"
    assert read_answer("not neutral, no: neutral", labels).label == "neutral"


@pytest.mark.parametrize(
    ("text", "ends", "bare"),
    [
        ("Two are more than one.\nAnswer: neutral", True, False),
        ("so it holds: **entailment**.", True, False),
        ("It is neutral, I would say", False, False),
        ("neutral, but some may differ", False, False),
        ("Neutral.", True, True),
        ("Answer: neutral", True, True),
        ("nobody knows", False, False),
        ("", False, False),
    ],
)
def test_reasoning_ends_in_a_label_when_no_word_follows_it(text, ends, bare):
    reading = read_answer(text, LABELS)
    assert (reading.ends_in_label, reading.is_bare) == (ends, bare)
    assert reading.label == read_answer(text, LABELS).label


def test_labels_with_marks_and_of_other_scripts_are_words_too():
    assert read_answer("grade: A+", ("A", "A+")).label == "A+"
    assert read_answer("it is (b).", ("a", "b")).label == "b"
    assert read_answer("答えは「はい」", ("いいえ",)).label is None
    assert read_answer("réponse : élevé", ("élevé", "eleve")).label == "élevé"


def test_accuracy_and_macro_f1_are_those_of_a_hand_calculation():
    #            a    a    a    a    b    b    c
    truth = ["a", "a", "a", "a", "b", "b", "c"]
    said = ["a", "a", "b", None, "b", "a", "b"]
    report = classification_report(truth, said)
    assert report.accuracy == pytest.approx(3 / 7)
    # a: 2 right, 1 false, 2 missed; b: 1 right, 2 false, 1 missed; c: none right.
    assert report.f1_by_label == pytest.approx({"a": 4 / 7, "b": 2 / 5, "c": 0.0})
    assert report.macro_f1 == pytest.approx((4 / 7 + 2 / 5) / 3)
    assert report.answered == pytest.approx(6 / 7)
    assert report.confusion == {
        "a": {"a": 2, "b": 1, "no label": 1}, "b": {"a": 1, "b": 1}, "c": {"b": 1},
    }  # fmt: skip


def test_perfect_answers_score_one():
    report = classification_report(["x", "y"], ["x", "y"])
    assert (report.accuracy, report.macro_f1, report.answered) == (1.0, 1.0, 1.0)


def test_silence_scores_zero():
    report = classification_report(["x", "y"], [None, None])
    assert (report.accuracy, report.macro_f1, report.answered) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("truth", "said"), [([], []), (["a"], []), (["a"], ["a", "a"])])
def test_nothing_to_compare_is_an_error(truth, said):
    with pytest.raises(ValueError, match="true labels against"):
        classification_report(truth, said)
