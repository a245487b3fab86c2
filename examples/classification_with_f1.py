"""Classification: the completion is a label; base and adapter measured by accuracy and macro-F1.

python examples/classification_with_f1.py
"""

from collections.abc import Iterator

from common import lorafit, nli_rows, read_choices, write_rows


def labelled(name: str, count: int) -> Iterator[dict[str, str]]:
    for row in nli_rows(name, count):
        prompt = f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}\nAnswer:"
        # `label` is read for the measures only; what is learnt is the completion.
        yield {"prompt": prompt, "completion": f" {row['label']}", "label": row["label"]}


def main() -> None:
    choices = read_choices(__doc__)
    train = write_rows(choices.folder / "train.jsonl", labelled("train", choices.at_most(1000)))
    test = write_rows(choices.folder / "test.jsonl", labelled("test", 60))
    run = choices.folder / "classes"

    asked = ["--data", test, "--max-new-tokens", 8]
    lorafit("evaluate", "--model", choices.model, *asked)
    lorafit("train", *choices.short_run, "--data", train, "--output-dir", run)
    lorafit("evaluate", "--adapter", run / "adapter", *asked)


if __name__ == "__main__":
    main()
