"""Sharded base weights, as events: what FSDP2's `fully_shard` holds and gathers in one process.

The units are the decoder layers and, for all the rest, the model. A process holds its share of
each frozen weight. Before a unit computes, forward or backward, the shares of all processes are
gathered into one buffer, and from there copied into the whole weights, which go again when the
unit is through. Adapters are in every process and are not gathered.

What is asked for when is that of torch 2.13 (torch/distributed/fsdp/_fully_shard): the names in
the comments are of its functions. A test holds these events against those of a real run of two
processes.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves, tree_map

from lorafit.memory.events import Category
from lorafit.memory.tracer import StorageTracer

if TYPE_CHECKING:
    from torch import nn

_State = Literal["idle", "forward", "backward", "done"]


def shard_bytes(tensor: torch.Tensor, num_shards: int) -> int:
    """Return the bytes of a process's share: of ceil(rows / processes) rows, padded with zeros."""
    rows = -(-tensor.shape[0] // num_shards)
    return rows * tensor.shape[1:].numel() * tensor.element_size()


def _scales(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of a 4-bit weight's quantization, which every process has whole."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return []
    inner = getattr(state, "state2", None)
    found = [state.absmax, state.code, getattr(state, "offset", None)]
    found += [inner.absmax, inner.code] if inner is not None else []
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


class Unit:
    """Weights that are gathered together, and what there is of them now."""

    def __init__(self, sharding: "Sharding", weights: list[torch.Tensor], *, is_root: bool) -> None:
        self._sharding = sharding
        self._is_root = is_root
        shares = [shard_bytes(weight, sharding.num_shards) for weight in weights]
        self.whole_bytes = [share * sharding.num_shards for share in shares]
        """Of each weight; the padding of its shares included."""
        self.state: _State = "idle"
        self._buffer: int | None = None
        self._whole: list[int] = []
        self._places: list[int] = []
        """Where in the order of the forward pass it computed."""

    # -- FSDPParamGroup.unshard, wait_for_unshard, reshard

    def gather(self) -> None:
        """Ask for the buffer, unless the unit is gathered already."""
        if self._buffer is None and not self._whole and self.whole_bytes:
            self._buffer = self._sharding.trace.gather(sum(self.whole_bytes))

    def copy_out(self) -> None:
        """Make the whole weights of the buffer.

        In forward the buffer stays until the next unit has its weights, so that copying overlaps
        with gathering; in backward it goes at once.
        """
        if self._buffer is None:
            return
        trace, sharding = self._sharding.trace, self._sharding
        self._whole = [trace.birth(size, Category.GATHERED) for size in self.whole_bytes]
        if self.state == "forward":
            sharding.release_last()
            sharding.last_buffer = self._buffer
        else:
            trace.death(self._buffer)
        self._buffer = None

    def free(self) -> None:
        """Let the whole weights go."""
        for number in self._whole:
            self._sharding.trace.death(number)
        self._whole = []

    # -- Hooks of the module, by the order in which they run

    def before_forward(self, module: "nn.Module", args: Any, kwargs: Any) -> Any:
        """Gather the weights; in a checkpointed unit's second forward they are there."""
        if self.state == "backward":
            self.gather()
            self.copy_out()
            return args, kwargs
        self.state = "forward"
        self.gather()
        self.copy_out()
        return _AfterBackward.attach(self, args, kwargs)

    def after_forward(self, module: "nn.Module", args: Any, output: Any) -> None:
        """Free the weights; those of the model itself stay, as backward begins with them."""
        if self.state == "backward":
            return
        if not self._is_root:
            self.free()
        self._places.append(len(self._sharding.order))
        self._sharding.order.append(self)
        self.state = "idle"
        if self._is_root:
            self._sharding.release_last()
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                tensor.register_hook(self.before_backward)  # type: ignore[no-untyped-call]  # torch's

    def before_backward(self, gradient: torch.Tensor) -> None:
        """Gather the weights, and begin with those of the unit that comes next."""
        self._sharding.expect_end()
        if self.state == "backward":
            return
        self.state = "backward"
        self.gather()
        self.copy_out()
        place = self._places.pop() if self._places else 0
        if place > 0:  # _backward_prefetch
            self._sharding.order[place - 1].gather()

    def after_backward(self) -> None:
        """Free the weights: the gradients of the unit's inputs are there."""
        self.state = "done"
        self.free()

    def finish(self) -> None:
        """Be as before the forward pass, whether or not backward came by."""
        if self.state != "done":
            self.after_backward()
        self.state = "idle"
        if self._buffer is not None:
            self._sharding.trace.death(self._buffer)
            self._buffer = None
        self._places.clear()


class Sharding:
    """Makes a traced model one of several processes that hold its weights together.

    Args:
        tracer: the active tracer, which knows the storages of the weights.
        num_shards: processes.
    """

    def __init__(self, tracer: StorageTracer, num_shards: int) -> None:
        self._tracer = tracer
        self.num_shards = num_shards
        self.order: list[Unit] = []
        """Units that have computed forward and not yet backward."""
        self.last_buffer: int | None = None
        self._units: list[Unit] = []
        self._taken: set[int] = set()
        self._expects_end = False

    @property
    def trace(self) -> Any:
        """The events so far."""
        return self._tracer.trace

    def install(self, base: "nn.Module", layers: Iterable["nn.Module"], *, on_host: bool) -> None:
        """Shard the frozen weights as they are loaded, and follow the model through its steps.

        Weights are loaded into the host's memory. From there a unit's weights go to the device
        whole, and then into their shares; where the host trains, all are there whole at first.

        Args:
            base: the model around the layers, on `meta`, of tensors that the tracer has not seen.
            layers: its decoder layers.
            on_host: the host is where it trains.
        """
        names = {id(module): f"{name}." for name, module in base.named_modules()}
        units = [(module, names[id(module)]) for module in (*layers, base)]
        taken = [self._take(module) for module, _ in units]
        loaded = [self._load(name, *some) for (_, name), some in zip(units, taken, strict=True)
                  if on_host]  # fmt: skip
        for index, (module, name) in enumerate(units):
            weights, others = taken[index]
            whole = loaded[index] if on_host else self._load(name, weights, others)
            self._tracer.enter_module(name)
            for weight in weights:
                self._tracer.watch_as(weight, shard_bytes(weight, self.num_shards))
            for number in whole:
                self.trace.death(number)
            self._tracer.enter_module("")
            self._follow(module, Unit(self, weights, is_root=module is base))

    def _take(self, module: "nn.Module") -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return a unit's frozen weights, and what else goes to the device with them."""
        weights: list[torch.Tensor] = []
        others: list[torch.Tensor] = []
        for weight in module.parameters():
            if not weight.requires_grad and id(weight) not in self._taken:
                self._taken.add(id(weight))
                weights.append(weight)
                others += _scales(weight)
        buffers = [buffer for buffer in module.buffers() if id(buffer) not in self._taken]
        self._taken.update(map(id, buffers))
        return weights, [*others, *buffers]

    def _load(
        self, name: str, weights: list[torch.Tensor], others: list[torch.Tensor]
    ) -> list[int]:
        """Bring a unit to the device; return the numbers of the whole weights."""
        self._tracer.enter_module(name)
        whole = [self.trace.birth(weight.nbytes, Category.WEIGHTS) for weight in weights]
        for tensor in others:
            self._tracer.watch_as(tensor, tensor.nbytes)
        self._tracer.enter_module("")
        return whole

    def _follow(self, module: "nn.Module", unit: Unit) -> None:
        module.register_forward_pre_hook(unit.before_forward, prepend=True, with_kwargs=True)
        module.register_forward_hook(unit.after_forward)
        self._units.append(unit)

    def release_last(self) -> None:
        """Let the buffer go that was copied from last in forward."""
        if self.last_buffer is not None:
            self.trace.death(self.last_buffer)
            self.last_buffer = None

    def expect_end(self) -> None:
        """Hear that backward has begun, and ask the engine to say when it is through."""
        if not self._expects_end:
            self._expects_end = True
            Variable._execution_engine.queue_callback(self._end)

    def _end(self) -> None:
        self._expects_end = False
        for unit in (self._units[-1], *self._units[:-1]):  # the model before its layers
            unit.finish()
        self.order.clear()


class _AfterBackward(torch.autograd.Function):
    """Tells a unit that the gradients of its inputs are there."""

    @classmethod
    def attach(cls, unit: Unit, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the inputs of a unit, those with gradients passed through this function."""
        inputs = [value for value in tree_leaves((args, kwargs)) if _wants_gradient(value)]
        if not inputs or not torch.is_grad_enabled():
            return args, kwargs
        outputs = iter(cls.apply(unit, *inputs))  # type: ignore[no-untyped-call]  # torch's
        passed: tuple[Any, Any] = tree_map(
            lambda value: next(outputs) if _wants_gradient(value) else value, (args, kwargs)
        )
        return passed

    @staticmethod
    def forward(ctx: Any, unit: Unit, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pass the inputs on."""
        ctx.unit = unit
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Tell the unit, and pass the gradients on."""
        ctx.unit.after_backward()
        return None, *gradients


def _wants_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad
