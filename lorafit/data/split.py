"""Holds out rows for validation so that no row, and no copy of it, is on both sides."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """Row numbers of both sides, in their original order, and why they are what they are."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    reason: str


def split_rows(keys: Sequence[bytes], fraction: float, seed: int) -> Split:
    """Return a split of rows where rows with equal keys stay together.

    The side of a row follows from its own key and the seed, through a hash, and not from its
    place: rows may be reordered without any change, and adding rows moves few others. About
    `fraction` of the rows are held out; at least one on each side where two rows differ.
    """
    everything = tuple(range(len(keys)))
    if fraction == 0:
        return Split(everything, (), "no validation: validation_split is 0")
    sizes = Counter(keys)
    if len(sizes) < 2:
        what = "there is one row" if len(keys) == 1 else "all rows are identical"
        return Split(everything, (), f"no validation: {what}")
    held_out = _choose_groups(sizes, round(len(keys) * fraction), seed)
    validation = tuple(i for i in everything if keys[i] in held_out)
    train = tuple(i for i in everything if keys[i] not in held_out)
    reason = (
        f"{len(validation)} of {len(keys)} rows are held out for validation "
        f"(validation_split {fraction:g}, seed {seed}; identical rows stay on one side)"
    )
    return Split(train, validation, reason)


def _choose_groups(sizes: Counter[bytes], wanted: int, seed: int) -> set[bytes]:
    prefix = seed.to_bytes(8, "big")
    order = sorted(sizes, key=lambda key: hashlib.sha256(prefix + key).digest())
    chosen: set[bytes] = set()
    rows = 0
    for key in order:
        if rows + sizes[key] <= wanted and len(chosen) < len(sizes) - 1:
            chosen.add(key)
            rows += sizes[key]
    # Where every group is larger than the wanted share, the smallest one is the closest to it.
    return chosen or {min(order, key=lambda key: sizes[key])}


def count_overlap(train_keys: Sequence[bytes], validation_keys: Sequence[bytes]) -> int:
    """Return how many validation rows are also rows of the training data."""
    known = set(train_keys)
    return sum(key in known for key in validation_keys)
