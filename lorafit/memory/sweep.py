"""One question asked many times: the values of a sweep, and the largest micro-batch that fits."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorafit.config.names import canonical_name, unknown_name
from lorafit.errors import UsageError
from lorafit.memory.estimate import Estimate
from lorafit.text import excerpt

HARDWARE = "hardware"
"""Not a setting, and may be swept all the same: which device is large enough?"""
MAX_POINTS = 64
MAX_MICRO_BATCH = 4096
"""The largest micro-batch that the settings allow."""
_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})(?::(\d{1,9}))?")
_EXAMPLE = "such as --sweep per_device_train_batch_size=1..16 or --sweep max_length=512,1024,2048"


@dataclass(frozen=True)
class Sweep:
    """A setting, or `hardware`, and the values to ask about, as a person would write them."""

    name: str
    values: tuple[str, ...]


def parse_sweep(text: str) -> Sweep:
    """Return the sweep that `name=values` asks for.

    `1..16` doubles from 1 to 16, `4..16:4` takes steps of 4; both ends are always among the
    values. `512,1024` lists them. Aliases of settings are accepted.

    Raises:
        UsageError: no such setting, no values, or more than 64 of them.
    """
    name, equals, listed = text.partition("=")
    name, listed = name.strip().lower().replace("-", "_"), listed.strip()
    if not equals or not listed:
        raise _wrong(f"{excerpt(text)!r} has no values", _EXAMPLE)
    setting = HARDWARE if name == HARDWARE else canonical_name(name)
    if setting is None:
        raise _wrong(f"{excerpt(name)!r}: {unknown_name(name)[0]}", unknown_name(name)[1])
    found = _RANGE.fullmatch(listed)
    if found is not None:
        values = _expand(text, int(found[1]), int(found[2]), int(found[3]) if found[3] else None)
    else:
        values = list(dict.fromkeys(value.strip() for value in listed.split(",")))
        if "" in values:
            raise _wrong(f"{excerpt(text)!r} has an empty value", _EXAMPLE)
    if len(values) > MAX_POINTS:
        raise _wrong(f"{len(values)} values are more than {MAX_POINTS}", "take a larger step")
    return Sweep(setting, tuple(values))


def _expand(text: str, first: int, last: int, step: int | None) -> list[str]:
    if first > last or first == 0 or step == 0:
        hint = "a range runs from 1 or more up: 1..16 doubles, 4..16:4 takes steps of 4"
        raise _wrong(f"{excerpt(text)!r} is an empty range", hint)
    if step is not None:
        # No more than it takes to see that there are too many.
        numbers = list(range(first, last, step)[: MAX_POINTS + 1])
    else:
        numbers = [first]
        while numbers[-1] * 2 < last:
            numbers.append(numbers[-1] * 2)
    return [str(number) for number in dict.fromkeys((*numbers, last))]


def _wrong(message: str, hint: str) -> UsageError:
    return UsageError(message, where="--sweep", hint=hint)


@dataclass(frozen=True)
class LargestBatch:
    """What `largest_micro_batch` found."""

    rows: int
    """The largest micro-batch that fits; 0: not even one row does."""
    estimates: Mapping[int, Estimate]
    """Every micro-batch that was estimated, by rows: `rows` and, unless it is the largest that
    was allowed, `rows + 1` among them."""


def largest_micro_batch(
    estimate: Callable[[int], Estimate], limit: int = MAX_MICRO_BATCH
) -> LargestBatch:
    """Return the largest micro-batch of at most `limit` rows that fits, tight ones included.

    A bisection in which every bound is an exact estimate. Since memory grows by almost the same
    bytes with each row, every other probe is where a line through two estimates meets the
    capacity; the rest halve the interval, so that a bad line costs little.

    Args:
        estimate: exact estimate for a number of rows; memory must not fall with more rows.
        limit: the most rows to consider.
    """
    known: dict[int, Estimate] = {}
    fits, exceeds, stride, by_line = 0, limit + 1, 1, True
    while exceeds - fits > 1:
        guess = _where_line_ends(known)
        if exceeds > limit and len(known) < limit:
            # Nothing exceeds yet: go up at least as fast as doubling would.
            probe = min(limit, max(fits + stride, guess))
            stride *= 2
        elif by_line:
            probe = min(max(guess, fits + 1), exceeds - 1)
        else:
            probe = (fits + exceeds) // 2
        by_line = not by_line
        known[probe] = estimate(probe)
        if known[probe].verdict == "exceeds":
            exceeds = probe
        else:
            fits = probe
    return LargestBatch(fits, dict(sorted(known.items())))


def _where_line_ends(known: Mapping[int, Estimate]) -> int:
    """Return the rows at which a line through the two largest estimates meets the capacity."""
    if len(known) < 2:
        return 0
    low, high = sorted(known)[-2:]
    below, above = known[low].peak.process_bytes, known[high].peak.process_bytes
    if above <= below:
        return 0
    room = known[high].capacity_bytes - below
    return low + room * (high - low) // (above - below)
