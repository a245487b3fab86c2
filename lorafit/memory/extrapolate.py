"""A trace of few layers, made into the trace of all: every birth and death, in order.

The small model's events are cut into blocks, one for each stretch of events of one layer. Blocks
of neighbouring layers in a row are a sweep: up through the layers in forward, down in backward,
once for each operator on lists in the optimizer. In the large model every sweep goes over all
layers; each layer takes the block of the small model's layer of its sort, and its deaths name
storages by sweep, layer and place in the block, so that they find the large model's own.

What is not so regular raises `NotRepeatingError`; nothing is guessed.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lorafit.memory.events import EMPTY_CACHE, Category, Trace
from lorafit.memory.layer_choice import NUM_ENDS, sorts_of_layers
from lorafit.memory.layer_tracer import NO_LAYER, LayeredTrace


class NotRepeatingError(Exception):
    """The layers of a trace are not alike enough to stand for others."""


class _Birth(NamedTuple):
    size: int
    category: int
    shares: tuple[tuple[int, int], ...]
    """(layer, bytes) of a storage whose size grows with the layers; else empty."""
    is_gathered: bool
    """On the stream that gathers shards."""


class _Death(NamedTuple):
    sweep: int
    origin: Literal["none", "here", "start", "end"]
    """From where the layer of the birth is counted; `none` of a storage of no layer."""
    distance: int
    """Layers from there to the layer of the birth."""
    place: int
    """Among the births of its block."""
    size: int


class _EmptyCache(NamedTuple):
    """A call of `torch.cuda.empty_cache`."""


_Token = _Birth | _Death | _EmptyCache


@dataclass
class _Sweep:
    """Consecutive blocks of neighbouring layers, or one block of no layer."""

    segment: int
    """The phase, as an index into the phases of the trace."""
    layers: list[int]
    blocks: list[range] = field(default_factory=list)
    """Events of each layer, as indices."""

    def takes(self, segment: int, layer: int) -> bool:
        """Return whether a block of this layer goes on with the sweep."""
        if segment != self.segment or NO_LAYER in (layer, self.layers[-1]):
            return False
        step = layer - self.layers[-1]
        if len(self.layers) > 1:
            return step == self.layers[-1] - self.layers[-2]
        return abs(step) == 1


def extrapolate(
    traced: LayeredTrace, small_kinds: Sequence[Hashable], kinds: Sequence[Hashable]
) -> Trace:
    """Return the trace of a model with layers of `kinds` from that of one with `small_kinds`.

    Args:
        traced: the run of the small model.
        small_kinds: what tells its layers apart, in order.
        kinds: the same of the large model; `layer_choice.choose_layers` says which to keep.

    Raises:
        NotRepeatingError: layers of one sort differ, or something is not told layer by layer.
    """
    sweeps = _find_sweeps(traced)
    tokens = _describe(traced, sweeps, len(small_kinds))
    representatives = _representatives(small_kinds, kinds)
    _verify_alike(sweeps, tokens, sorts_of_layers(small_kinds))
    return _Writer(sweeps, tokens, representatives, len(small_kinds)).write(traced)


def _find_sweeps(traced: LayeredTrace) -> list[_Sweep]:
    """Cut the events into blocks, and join blocks of neighbouring layers."""
    starts = [start for start, _ in traced.phases]
    ends = [*starts[1:], len(traced.events)]
    sweeps: list[_Sweep] = []
    layers = traced.event_layers
    for segment, (first, end) in enumerate(zip(starts, ends, strict=True)):
        stop = first
        while stop < end:
            begin, layer = stop, layers[stop]
            while stop < end and layers[stop] == layer:
                stop += 1
            if sweeps and sweeps[-1].takes(segment, layer):
                sweeps[-1].layers.append(layer)
            else:
                sweeps.append(_Sweep(segment, [layer]))
            sweeps[-1].blocks.append(range(begin, stop))
    return sweeps


def _describe(
    traced: LayeredTrace, sweeps: list[_Sweep], num_layers: int
) -> dict[tuple[int, int], list[_Token]]:
    """Return the events of each (sweep, layer) so that they can be told of another layer."""
    born: dict[int, tuple[int, int, int]] = {}
    described = {}
    for index, sweep in enumerate(sweeps):
        for layer, block in zip(sweep.layers, sweep.blocks, strict=True):
            tokens: list[_Token] = []
            num_births = 0
            for event in traced.events[block.start : block.stop]:
                if event > 0:
                    born[event] = index, layer, num_births
                    num_births += 1
                    shares = tuple(sorted(traced.shares.get(event, {}).items()))
                    is_gathered = event in traced.gathered
                    size, category = traced.sizes[event], traced.categories[event]
                    tokens.append(_Birth(size, category, shares, is_gathered))
                elif event == EMPTY_CACHE:
                    tokens.append(_EmptyCache())
                else:
                    place = born[-event]
                    tokens.append(_death(layer, place, traced.sizes[-event], num_layers))
            described[index, layer] = tokens
    return described


def _death(layer: int, born: tuple[int, int, int], size: int, num_layers: int) -> _Death:
    sweep, birth_layer, place = born
    if birth_layer == NO_LAYER:
        return _Death(sweep, "none", 0, place, size)
    if layer != NO_LAYER and abs(birth_layer - layer) <= NUM_ENDS:
        return _Death(sweep, "here", birth_layer - layer, place, size)
    if birth_layer < NUM_ENDS:
        return _Death(sweep, "start", birth_layer, place, size)
    if birth_layer >= num_layers - NUM_ENDS:
        return _Death(sweep, "end", birth_layer - num_layers, place, size)
    raise NotRepeatingError(f"a storage of layer {birth_layer} ends outside of it")


def _representatives(small_kinds: Sequence[Hashable], kinds: Sequence[Hashable]) -> list[int]:
    """Return for each layer of the large model the small model's layer of its sort."""
    known: dict[Hashable, int] = {}
    for index, sort in enumerate(sorts_of_layers(small_kinds)):
        known.setdefault(sort, index)
    sorts = sorts_of_layers(kinds)
    missing = [sort for sort in sorts if sort not in known]
    if missing:
        raise NotRepeatingError(f"no layer stands for {missing[0]}")
    return [known[sort] for sort in sorts]


def _verify_alike(
    sweeps: list[_Sweep],
    tokens: dict[tuple[int, int], list[_Token]],
    sorts: Sequence[Hashable],
) -> None:
    """Require that layers of one sort have the same events in every sweep.

    Raises:
        NotRepeatingError: two of them differ.
    """
    for index, sweep in enumerate(sweeps):
        first: dict[Hashable, int] = {}
        for layer in sorted(sweep.layers):
            if layer == NO_LAYER:
                continue
            model = first.setdefault(sorts[layer], layer)
            if tokens[index, layer] != tokens[index, model]:
                raise NotRepeatingError(f"layers {model} and {layer} differ, though of one sort")


class _Writer:
    """Writes the large model's trace, sweep by sweep."""

    def __init__(
        self,
        sweeps: list[_Sweep],
        tokens: dict[tuple[int, int], list[_Token]],
        representatives: list[int],
        num_small: int,
    ) -> None:
        self._sweeps = sweeps
        self._tokens = tokens
        self._representatives = representatives
        self._num_small = num_small
        self._trace = Trace()
        self._born: dict[tuple[int, int], list[int]] = {}
        self._alive: set[int] = set()
        self._growing: set[int] = set()

    def write(self, small: LayeredTrace) -> Trace:
        """Return the large model's trace."""
        begun = 0
        for index, sweep in enumerate(self._sweeps):
            for _, phase in small.phases[begun : sweep.segment + 1]:
                self._trace.begin(phase)
            begun = max(begun, sweep.segment + 1)
            for layer in self._extended(sweep):
                model = NO_LAYER if layer == NO_LAYER else self._representatives[layer]
                tokens = self._tokens.get((index, model))
                if tokens is None:
                    raise NotRepeatingError(f"layer {model} has no part in a sweep over all")
                self._write_block(index, layer, tokens)
        for _, phase in small.phases[begun:]:
            self._trace.begin(phase)
        return self._trace

    def _extended(self, sweep: _Sweep) -> list[int]:
        """Return the large model's layers of a sweep, in order."""
        low, high = min(sweep.layers), max(sweep.layers)
        more = len(self._representatives) - self._num_small
        starts_low, ends_high = low < NUM_ENDS, high >= self._num_small - NUM_ENDS
        if low == NO_LAYER or (starts_low and high < NUM_ENDS):
            return sweep.layers
        if low >= self._num_small - NUM_ENDS:
            return [layer + more for layer in sweep.layers]
        if not (starts_low and ends_high):
            raise NotRepeatingError(f"a sweep covers layers {low} to {high} only")
        upwards = sweep.layers[0] == low
        layers = range(low, high + more + 1)
        return list(layers if upwards else reversed(layers))

    def _write_block(self, sweep: int, layer: int, tokens: list[_Token]) -> None:
        births = self._born[sweep, layer] = []
        for token in tokens:
            if isinstance(token, _Birth):
                number = self._trace.birth(self._size(token), Category(token.category))
                births.append(number)
                if token.is_gathered:
                    self._trace.gathered.add(number)
                if token.shares:
                    self._growing.add(number)
                self._alive.add(number)
            elif isinstance(token, _Death):
                self._end(layer, token)
            else:
                self._trace.empty_cache()

    def _size(self, birth: _Birth) -> int:
        if not birth.shares:
            return birth.size
        shares = dict(birth.shares)
        layers = sum(shares.get(model, 0) for model in self._representatives)
        return shares.get(NO_LAYER, 0) + layers

    def _end(self, layer: int, death: _Death) -> None:
        from_here = {"none": NO_LAYER, "here": layer, "start": 0, "end": len(self._representatives)}
        birth_layer = from_here[death.origin] + death.distance
        births = self._born.get((death.sweep, birth_layer), ())
        number = births[death.place] if death.place < len(births) else 0
        grows = number in self._growing
        if number not in self._alive or not (grows or self._trace.sizes[number] == death.size):
            raise NotRepeatingError(f"layer {layer} ends a storage that is not there")
        self._alive.remove(number)
        self._trace.death(number)
