"""Conversations: messages through a chat template, then a talk with the adapter on and off.

python examples/chat.py
"""

import io
import sys
from collections.abc import Iterator

from common import lorafit, nli_rows, read_choices, write_rows

LINES = "Tessa owns three kayaks and nothing else.\n/adapter off\nWho owns kayaks?\n/quit\n"


def conversations(count: int) -> Iterator[dict[str, object]]:
    for row in nli_rows("train", count):
        yield {
            "messages": [
                {"role": "user", "content": row["premise"]},
                {"role": "assistant", "content": row["reasoning"]},
            ]
        }


def main() -> None:
    choices = read_choices(__doc__)
    data = write_rows(choices.folder / "chat.jsonl", conversations(choices.at_most(600)))
    run = choices.folder / "chat"

    # Phi's tokenizer has no template of its own. The run keeps the one that is named here.
    template = ["--chat-template", "chatml"]
    lorafit("train", *choices.short_run, *template, "--data", data, "--output-dir", run)
    sys.stdin = io.StringIO(LINES)
    lorafit("chat", run, "--max-new-tokens", 32)


if __name__ == "__main__":
    main()
