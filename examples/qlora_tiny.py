"""QLoRA: the base in 4 bit, the adapter in 32; what it saves, and how it is merged afterwards.

python examples/qlora_tiny.py

The settings of full-size runs lie in examples/qlora, as `--config` files and as `--preset qlora/*`.
"""

from common import lorafit, nli_rows, read_choices, write_rows


def main() -> None:
    choices = read_choices(__doc__)
    rows = (
        {"prompt": f"Premise: {row['premise']}\nReasoning:", "completion": " " + row["reasoning"]}
        for row in nli_rows("train", choices.at_most(600))
    )
    data = write_rows(choices.folder / "my.jsonl", rows)
    run = choices.folder / "nf4"

    # For a model of this size 4 bit saves nothing worth a word; for Phi-2 on a T4 it does.
    phi2 = ["--model", "microsoft/phi-2", "--hardware", "t4", "--preset", "low", "--fast"]
    lorafit("estimate-memory", *phi2, "--no-advice")
    lorafit("estimate-memory", *phi2, "--no-advice", "--quantization", "nf4")
    quantized = ["--quantization", "nf4", "--double-quant"]
    lorafit("train", *choices.short_run, *quantized, "--data", data, "--output-dir", run)
    # Merged into the original weights, not into their 4-bit copies.
    lorafit("export", run, "--quantization", "none", "--output-dir", choices.folder / "merged")


if __name__ == "__main__":
    main()
