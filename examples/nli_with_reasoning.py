"""Natural-language inference with reasoning before the label, from rows with fields of their own.

python examples/nli_with_reasoning.py
"""

from common import lorafit, nli_rows, read_choices, write_rows


def main() -> None:
    choices = read_choices(__doc__, steps=500)
    train = write_rows(choices.folder / "train.jsonl", nli_rows("train", choices.at_most(3000)))
    test = write_rows(choices.folder / "test.jsonl", nli_rows("test", 45))
    run = choices.folder / "nli"

    lorafit(
        "train",
        *choices.short_run,
        "--data",
        train,
        "--output-dir",
        run,
        "--prompt-template",
        "Premise: {premise}\nHypothesis: {hypothesis}\nReasoning:",
        # The label is the last word of an answer: that is where `evaluate` reads it.
        "--completion-template",
        " {reasoning}\nAnswer: {label}",
    )
    answers = choices.folder / "answers.jsonl"
    # The templates come from the run.
    lorafit(
        "evaluate",
        "--adapter",
        run / "adapter",
        "--data",
        test,
        "--max-new-tokens",
        72,
        "--answers",
        answers,
    )


if __name__ == "__main__":
    main()
