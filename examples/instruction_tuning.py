"""Instruction, input and output: the rows of most instruction sets, with several tasks in one.

python examples/instruction_tuning.py
"""

from collections.abc import Iterator

from common import lorafit, nli_rows, read_choices, write_rows


def instructions(name: str, count: int) -> Iterator[dict[str, str]]:
    for row in nli_rows(name, count):
        both = f"{row['premise']} {row['hypothesis']}"
        yield {
            "instruction": "Say whether the second sentence follows from the first.",
            "input": both,
            "output": row["label"],
        }
        # A row without input is written without that part of the prompt.
        yield {"instruction": f"Repeat: {row['premise']}", "output": row["premise"]}


def main() -> None:
    choices = read_choices(__doc__)
    data = write_rows(
        choices.folder / "instructions.jsonl", instructions("train", choices.at_most(400))
    )
    held_out = write_rows(choices.folder / "held-out.jsonl", instructions("test", 20))
    run = choices.folder / "instructions"

    # What the prompt around an instruction looks like, and which tokens are learnt:
    lorafit("data", "inspect", data, "--model", choices.model, "--show-mask", 1)
    lorafit("train", *choices.short_run, "--data", data, "--output-dir", run)
    lorafit("evaluate", "--adapter", run / "adapter", "--data", held_out)


if __name__ == "__main__":
    main()
