"""Which few layers stand for all layers of a model.

A layer is known by its kind and those of its neighbours, and the two layers at each end are apart:
the first saves less, as its input needs no gradient. The commonest sort of layer is kept twice, so
that a trace can show that layers of a sort are alike.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

NUM_ENDS = 2
"""Layers at either end that stand for themselves alone."""


def mark_ends_of_kinds(kinds: Sequence[tuple[Hashable, ...]]) -> list[Hashable]:
    """Return the kinds with a note at the first and the last layer that shares a trait.

    What all layers with a trait read, such as the cosines of one kind of attention, comes with
    the first of them and goes with the last.

    Args:
        kinds: the traits of each layer, in order.
    """
    places: dict[Hashable, list[int]] = {}
    for index, traits in enumerate(kinds):
        for trait in (traits, *enumerate(traits)):
            places.setdefault(trait, []).append(index)
    marked: list[Hashable] = []
    for index, traits in enumerate(kinds):
        mine = [places[trait] for trait in (traits, *enumerate(traits))]
        ends = tuple((index == place[0], index == place[-1]) for place in mine)
        marked.append((traits, ends))
    return marked


def sorts_of_layers(kinds: Sequence[Hashable]) -> list[Hashable]:
    """Return what is known of each layer: its place at an end, or its and its neighbours' kinds."""
    count = len(kinds)
    sorts: list[Hashable] = []
    for index in range(count):
        if index < NUM_ENDS:
            sorts.append(("from start", index))
        elif index >= count - NUM_ENDS:
            sorts.append(("from end", count - index))
        else:
            sorts.append(tuple(kinds[index - 1 : index + 2]))
    return sorts


def choose_layers(kinds: Sequence[Hashable]) -> list[int]:
    """Return the layers to keep, in order: a model of these alone has every sort of layer.

    Args:
        kinds: what tells the layers of the model apart, in order.
    """
    wanted = dict.fromkeys(sorts_of_layers(kinds), 1)
    commonest, number = Counter(sorts_of_layers(kinds)).most_common(1)[0]
    wanted[commonest] = min(number, 2)
    kept = list(range(len(kinds)))
    while True:
        shorter = _cut(kept, kinds, wanted)
        if shorter is None:
            return kept
        kept = shorter


def _cut(
    kept: list[int], kinds: Sequence[Hashable], wanted: Mapping[Hashable, int]
) -> list[int] | None:
    """Return `kept` less the longest stretch that can be left out, or None.

    A cut from i to before j leaves every other layer with neighbours as before if i and j are of
    a kind, and so are the layers before them.
    """
    present = [kinds[index] for index in kept]
    last = len(kept) - NUM_ENDS
    for length in range(last - NUM_ENDS, 0, -1):
        for start in range(NUM_ENDS, last - length + 1):
            end = start + length
            alike = present[start] == present[end] and present[start - 1] == present[end - 1]
            if not alike:
                continue
            shorter = kept[:start] + kept[end:]
            rest = Counter(sorts_of_layers([kinds[index] for index in shorter]))
            if all(rest[sort] >= number for sort, number in wanted.items()):
                return shorter
    return None
