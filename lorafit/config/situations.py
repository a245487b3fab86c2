"""Which of the QLoRA presets is for which situation: the selection guide of that system."""

from typing import NamedTuple

from lorafit.errors import UsageError
from lorafit.text import excerpt, nearest

FAMILY = ("qlora/default", "qlora/high-capacity", "qlora/memory-efficient", "qlora/quick-test")


class Situation(NamedTuple):
    """A situation that a person is in, and the preset that answers it."""

    name: str
    preset: str
    reason: str
    also_called: tuple[str, ...] = ()


SITUATIONS = (
    Situation(
        "standard training", "qlora/default", "rank 32 and 512 tokens are the baseline",
        ("standard", "default", "training"),
    ),
    Situation(
        "first production run", "qlora/default",
        "start from the values that are known to work, and change one at a time",
        ("production", "production run", "first run"),
    ),
    Situation(
        "underfitting", "qlora/high-capacity",
        "rank 64 gives the adapter twice the capacity, when the loss ends too high",
        ("model underfitting", "underfit", "plateau", "loss plateaus"),
    ),
    Situation(
        "out of memory", "qlora/memory-efficient",
        "half the rows in a pass and half the tokens in a row; the effective batch stays 64",
        ("oom", "oom errors", "memory", "out-of-memory", "cuda out of memory"),
    ),
    Situation(
        "testing the pipeline", "qlora/quick-test", "one epoch at rank 16 shows that it all works",
        ("testing pipeline", "testing", "test", "quick test", "debugging"),
    ),
    Situation(
        "long sequences", "qlora/default", "it keeps 512 tokens of a row, twice memory-efficient's",
        ("long", "long rows"),
    ),
    Situation(
        "short sequences", "qlora/memory-efficient",
        "256 tokens are enough then, and the memory of the rest is saved",
        ("short sequences only", "short", "short rows"),
    ),
)  # fmt: skip


def known_situations() -> str:
    """Return the names of all situations, for a hint."""
    return ", ".join(f'"{situation.name}"' for situation in SITUATIONS)


def find_situation(text: str) -> Situation:
    """Return the situation that a person describes, by its name or another word for it.

    Raises:
        UsageError: no situation is called that; the hint lists them.
    """
    asked = " ".join(text.lower().replace("_", " ").split())
    names = {name: s for s in SITUATIONS for name in (s.name, *s.also_called)}
    if asked in names:
        return names[asked]
    known = known_situations()
    guess = nearest(asked, names)
    hint = f'did you mean "{names[guess].name}"? {known}' if guess else known
    raise UsageError(f"{excerpt(text, 60)!r} is no situation", where="--situation", hint=hint)
