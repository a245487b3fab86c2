"""Holds out rows for validation so that no row, and no copy of it, is on both sides."""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Split:
    """Row numbers of both sides, in their original order, and why they are what they are."""

    train: Sequence[int]
    validation: Sequence[int]
    reason: str


def split_rows(keys: Sequence[bytes], fraction: float, seed: int) -> Split:
    """Return a split of rows where rows with equal keys stay together.

    The side of a row follows from its own key and the seed, through a hash, and not from its
    place: rows may be reordered without any change, and adding rows moves few others. About
    `fraction` of the rows are held out; at least one on each side where two rows differ.
    """
    import numpy as np

    everything, nothing = array("q", range(len(keys))), array("q")
    if fraction == 0:
        return Split(everything, nothing, "no validation: validation_split is 0")
    prefix = seed.to_bytes(8, "big")
    # 8 bytes of a hash tell rows apart: the chance that two different ones of 25 million share
    # them, and so stay together, is 1 in 60,000.
    places = np.fromiter(
        (int.from_bytes(hashlib.sha256(prefix + key).digest()[:8], "big") for key in keys),
        np.uint64,
        len(keys),
    )
    groups, sizes = np.unique(places, return_counts=True)
    if len(groups) < 2:
        what = "there is one row" if len(keys) == 1 else "all rows are identical"
        return Split(everything, nothing, f"no validation: {what}")
    chosen = groups[_choose_groups(sizes, round(len(keys) * fraction))]
    is_held_out = np.isin(places, chosen)
    validation, train = (
        array("q", np.flatnonzero(side).astype(np.int64).tobytes())
        for side in (is_held_out, ~is_held_out)
    )
    reason = (
        f"{len(validation)} of {len(keys)} rows are held out for validation "
        f"(validation_split {fraction:g}, seed {seed}; identical rows stay on one side)"
    )
    return Split(train, validation, reason)


def _choose_groups(sizes: "Column", wanted: int) -> "Column":
    """Return which groups, in their order, have together `wanted` rows, or nearly so."""
    import numpy as np

    is_chosen = np.zeros(len(sizes), bool)
    rows = num_chosen = 0
    for index, size in enumerate(sizes.tolist()):
        if rows == wanted or num_chosen == len(sizes) - 1:
            break
        if rows + size <= wanted:
            is_chosen[index] = True
            rows += size
            num_chosen += 1
    if not num_chosen:
        # Every group is larger than the wanted share: the smallest one is the closest to it.
        is_chosen[sizes.argmin()] = True
    return is_chosen


def count_overlap(train_keys: Sequence[bytes], validation_keys: Sequence[bytes]) -> int:
    """Return how many validation rows are also rows of the training data."""
    wanted = set(validation_keys)
    found = {key for key in train_keys if key in wanted}
    return sum(key in found for key in validation_keys)
