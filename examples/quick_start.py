"""From rows to an adapter that answers: look at the data, plan, train, ask.

python examples/quick_start.py
"""

from common import lorafit, nli_rows, read_choices, write_rows


def main() -> None:
    choices = read_choices(__doc__)
    rows = (
        {"prompt": f"Premise: {row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
        for row in nli_rows("train", choices.at_most(600))
    )
    data = write_rows(choices.folder / "my.jsonl", rows)
    run = choices.folder / "first"
    flags = [*choices.short_run, "--data", data, "--output-dir", run]

    lorafit("data", "inspect", data, "--model", choices.model)
    lorafit("train", *flags, "--dry-run")
    lorafit("train", *flags)
    prompt = "Premise: Tessa owns three kayaks and nothing else.\nReasoning:"
    lorafit("generate", "--adapter", run / "adapter", "--prompt", prompt, "--max-new-tokens", 24)


if __name__ == "__main__":
    main()
