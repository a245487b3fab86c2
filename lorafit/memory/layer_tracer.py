"""Watching storages by decoder layer, so that a few layers can stand for many that are alike.

Every event belongs to a layer, or to none. In forward it is the layer whose weights were used
last; in backward the layer in whose forward the node that runs was made, told by autograd's
sequence numbers; elsewhere the layer of the tensors that an operator works on. Nothing here holds
or touches a storage, so that what dies when is the same as without.
"""

import contextlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.scratch import Sizes
from lorafit.memory.tracer import StorageTracer

NO_LAYER = -1


@dataclass
class LayeredTrace(Trace):
    """A trace that knows the decoder layer of each event and storage."""

    event_layers: "array[int]" = field(default_factory=lambda: array("h"))
    storage_layers: "array[int]" = field(default_factory=lambda: array("h", [NO_LAYER]))
    shares: dict[int, dict[int, int]] = field(default_factory=dict)
    """Of storages whose size grows with the number of layers: the bytes for each layer."""
    layer: int = NO_LAYER
    """The layer of what is born now."""
    is_inside: bool = False
    """The layer's own code runs: what dies now belongs to it, whichever layer it was born in."""

    def birth(self, num_bytes: int, category: Category) -> int:
        """Record a new storage of the present layer and return its number."""
        self.event_layers.append(self.layer)
        self.storage_layers.append(self.layer)
        return super().birth(num_bytes, category)

    def death(self, number: int) -> None:
        """Record the end of a storage."""
        self.event_layers.append(self.layer if self.is_inside else self.storage_layers[number])
        super().death(number)

    def empty_cache(self) -> None:
        """Record a call of `torch.cuda.empty_cache`."""
        self.event_layers.append(NO_LAYER)
        super().empty_cache()


class LayerTracer(StorageTracer):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A storage tracer that tells layers apart.

    Args:
        device_type: as for `StorageTracer`.
        gpu: as for `StorageTracer`.
        vocab_size: as for `StorageTracer`.
        layers_name: the name of the decoder's list of layers, such as `model.layers`.
    """

    def __init__(
        self, device_type: str, gpu: GpuTraits | None, vocab_size: int, layers_name: str
    ) -> None:
        super().__init__(device_type, gpu, vocab_size)
        self.layered = LayeredTrace()
        self.trace = self.layered
        self.trace.begin(self.phase)
        self._layers_name = f"{layers_name}."
        self.warm_up_storage: int | None = None
        """What loading asks for at once, before any weight."""
        self._is_in_module = False
        self._elements: list[int] = []
        self._starts: list[int] = []
        self._layers_started: list[int] = []

    def begin(self, phase: Phase, category: Category) -> None:
        """Enter a phase, outside of any layer."""
        super().begin(phase, category)
        self._elements = []
        self._enter(NO_LAYER, is_inside=phase is Phase.BACKWARD)
        if phase is Phase.FORWARD:
            self._starts, self._layers_started = [], []

    def warm_up(self, bytes_by_name: dict[str, int]) -> None:
        """Hear that one storage of the bytes of these weights is about to be asked for."""
        shares: Counter[int] = Counter()
        for name, num_bytes in bytes_by_name.items():
            shares[self._layer_of(name)] += num_bytes
        self.warm_up_storage = self.trace.num_storages + 1
        self.layered.shares[self.warm_up_storage] = dict(shares)

    def enter_module(self, name: str) -> None:
        """Hear to which module or weight loading has come; "" when it is through."""
        self._is_in_module = bool(name)
        self._enter(self._layer_of(name), is_inside=self._is_in_module)

    def _layer_of(self, name: str) -> int:
        if not name.startswith(self._layers_name):
            return NO_LAYER
        return int(name.removeprefix(self._layers_name).split(".", 1)[0])

    @contextlib.contextmanager
    def adding_adapter(self) -> Iterator[None]:
        """Follow PEFT through the modules that it adapts, one after the other."""
        from peft.tuners.lora import LoraModel

        adapt = LoraModel._create_and_replace

        def watched(model: Any, *args: Any, **kwargs: Any) -> None:
            self.enter_module(kwargs["current_key"])
            adapt(model, *args, **kwargs)
            self.enter_module("")

        with mock.patch.object(LoraModel, "_create_and_replace", watched):
            yield

    # -- Where an operator belongs

    def _locate(self, args: tuple[Any, ...]) -> None:
        if self.phase is Phase.FORWARD:
            self._locate_by_weights(args)
        elif self.phase is Phase.BACKWARD:
            self._locate_by_node()
        elif not self._is_in_module:
            self._locate_by_arguments(args)

    def _enter(self, layer: int, *, is_inside: bool) -> None:
        self.layered.layer, self.layered.is_inside = layer, is_inside

    def _locate_by_weights(self, args: tuple[Any, ...]) -> None:
        for value in args:
            number = self._number_of(value)
            layer = self.layered.storage_layers[number]
            is_weight = self.trace.categories[number] in (Category.WEIGHTS, Category.ADAPTER)
            if layer == NO_LAYER or not is_weight or layer == self.layered.layer:
                continue
            self._enter(layer, is_inside=True)
            # The node of the operator, or of the custom function around it, is the newest.
            self._starts.append(torch._C._autograd._get_sequence_nr() - 1)
            self._layers_started.append(layer)
            return

    def _locate_by_node(self) -> None:
        node = torch._C._current_autograd_node()
        if node is None or not self._starts:
            return
        made = node._sequence_nr()
        if made >= 1 << 63:  # a node that accumulates into a parameter has no number of its own
            return
        index = bisect_right(self._starts, made) - 1
        layer = self._layers_started[index] if index >= 0 else NO_LAYER
        self._enter(layer, is_inside=True)

    def _locate_by_arguments(self, args: tuple[Any, ...]) -> None:
        self._elements = []
        if self.phase is Phase.LOAD:
            self._enter(NO_LAYER, is_inside=False)
        for value in args:
            if isinstance(value, torch.Tensor):
                # A loop over parameters: what it drops before the next belongs to this one.
                layer = self.layered.storage_layers[self._number_of(value)]
                self._enter(layer, is_inside=layer != NO_LAYER)
                return
            if _is_tensor_list(value):
                self._elements = [
                    self.layered.storage_layers[self._number_of(item)] for item in value
                ]
                self._enter(NO_LAYER, is_inside=False)
                return

    def _number_of(self, value: Any) -> int:
        """Return the number of a watched tensor's storage; 0, which has no layer, of others."""
        if not isinstance(value, torch.Tensor) or value.device.type != self._device_type:
            return 0
        return self._numbers.get(value.untyped_storage()._cdata, 0)

    # -- Operators on lists of tensors: an output for each, or one whose size grows with them

    def _record(self, result: Any, skipped: frozenset[int] | None) -> None:
        if not self._elements:
            super()._record(result, skipped)
        elif isinstance(result, (list, tuple)) and len(result) == len(self._elements):
            for layer, item in zip(self._elements, result, strict=True):
                self.layered.layer = layer
                super()._record(item, None)
            self.layered.layer = NO_LAYER
        else:
            first = self.trace.num_storages + 1
            super()._record(result, skipped)
            self._share_out(range(first, self.trace.num_storages + 1))

    def _allocate(self, sizes: Sizes) -> list[int]:
        numbers = super()._allocate(sizes)
        if self._elements:
            self._share_out(numbers)
        return numbers

    def _share_out(self, numbers: "list[int] | range") -> None:
        counts = Counter(self._elements)
        for number in numbers:
            each = self.trace.sizes[number] / len(self._elements)
            if each.is_integer():
                shares = {layer: int(each) * count for layer, count in counts.items()}
                self.layered.shares[number] = shares


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(i, torch.Tensor) for i in value)
