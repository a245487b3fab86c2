"""What the base model may know before it is tuned: the words, and nothing of the task."""

from lorafit.demo import nli
from lorafit.demo.corpus import documents, sentences
from lorafit.demo.vocabulary import ALL

DOCUMENTS = list(documents(0, 8000))


def test_the_same_seed_gives_the_same_documents() -> None:
    assert list(documents(3, 200)) == list(documents(3, 200))
    assert list(documents(3, 200)) != list(documents(4, 200))


def test_every_name_and_noun_occurs_so_that_its_embedding_is_trained() -> None:
    text = " ".join(DOCUMENTS)
    assert [word for word in (*ALL.names, *ALL.nouns) if text.count(f" {word}") < 20] == []


def test_no_document_contains_a_premise_or_hypothesis_of_the_test_set() -> None:
    withheld = {
        sentence
        for problem in nli.generate()["test"]
        for text in (problem.premise, problem.hypothesis)
        for sentence in sentences(text)
    }
    assert len(withheld) > 200
    for document in DOCUMENTS:
        assert withheld.isdisjoint(sentences(document)), document


def test_labels_and_layout_occur_only_in_lists_of_random_words() -> None:
    layout = ("Premise:", "Hypothesis:", "Reasoning:", "Answer:", "claim", *nli.LABELS)
    carriers = [doc for doc in DOCUMENTS if any(word in doc for word in layout)]
    assert carriers
    for document in carriers:
        words = document.removesuffix(".").split()
        copies = [n for n in (2, 3) if words == words[: len(words) // n] * n]
        assert copies, f"not a repeated list: {document}"
