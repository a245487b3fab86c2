"""Numbers as text: one strict reading for YAML, flags and environment variables.

The grammar is the decimal part of YAML 1.2's core schema: `16`, `-1`, `0.05`, `.5`, `2e-4`, `1E5`.
No octal (`010`), sexagesimal (`1:30`) or grouped (`1_000`) numbers: YAML 1.1 and Python read
those in ways that people do not expect.
"""

import math
import re

# Longer digits than this are no setting of ours, and slow to convert.
_MAX_CHARS = 40
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def read_int(text: str) -> int | None:
    """Return the integer that `text` spells, or None."""
    return int(text) if len(text) <= _MAX_CHARS and _INT.fullmatch(text) else None


def read_float(text: str) -> float | None:
    """Return the finite number that `text` spells, or None; None also where it would round to 0."""
    if len(text) > _MAX_CHARS or not _FLOAT.fullmatch(text):
        return None
    value = float(text)
    vanished = value == 0 and re.search(r"[1-9]", re.split(r"[eE]", text)[0])
    return None if vanished or not math.isfinite(value) else value


def why_not_a_number(text: str) -> str:
    """Return what to say about text where a number is due: its likely meaning and the remedy."""
    lowered = text.lower().lstrip("+-.")
    if lowered in {"nan", "inf", "infinity"}:
        return "it must be finite"
    if len(text) > _MAX_CHARS:
        return f"it has {len(text)} characters"
    if re.fullmatch(r"[-+]?[0-9][0-9_]*_[0-9_]*", text):
        return f"write {text.replace('_', '')} without underscores"
    if re.fullmatch(r"[-+]?0[0-9]+", text):
        return f"write {int(text)} without leading zeros"
    if re.fullmatch(r"[0-9]+(:[0-9]+)+", text):
        return "colons are for times, write a plain number"
    if _FLOAT.fullmatch(text):
        return "it is too large or too small for a number"
    return "write digits, such as 16 or 2e-4"
