"""Base weights that several processes hold together: each its share, gathered while it is needed.

FSDP2 (`torch.distributed.fsdp.fully_shard`) does it, with a unit for each decoder layer and one for
all the rest: a process keeps its share of every frozen weight, and has the whole weights of a layer
only while that layer computes, forward or backward. A frozen weight has no gradient, so nothing is
scattered back.

What is trained is left out (`ignored_params`) and lies whole in every process: an adapter is a
thousandth of the base. Its gradients, optimizer state, checkpoints and files are then those of any
other run, the sum over processes is the one in `distributed`, and a run may go on sharded that was
begun whole.

Gathering is a meeting of all processes at every layer of every pass, and they do not have as many
passes: a share may have a row less, validation a batch less, and the first process alone writes
samples. `Passes` gives those with none left passes of nothing.
"""

import contextlib
import datetime
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from lorafit.errors import MemoryFitError
from lorafit.model.build import checkpointable_layers
from lorafit.model.step import trainable_parameters
from lorafit.text import excerpt
from lorafit.training.guard.oom import is_out_of_memory, release_memory
from lorafit.training.processes.distributed import World
from lorafit.training.processes.gathers import Gathers, can_reset

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.distributed.device_mesh import DeviceMesh

Loaded = TypeVar("Loaded")

_NO_PASS, _FORWARD, _TRAINING = range(3)


def open_mesh(device_kind: str, timeout_seconds: int) -> "DeviceMesh":
    """Return how all processes reach each other to gather weights; all of them have to come here.

    It is a group beside the one of `World`, whose exchanges cannot be taken for weights then.

    Args:
        device_kind: where they train.
        timeout_seconds: how long the library waits for a process, if the watchdog does not end it.
    """
    from torch.distributed.device_mesh import DeviceMesh

    group = distributed.new_group(timeout=datetime.timedelta(seconds=timeout_seconds))
    return DeviceMesh.from_group(group, device_kind)


def shard(model: "PeftModel", mesh: "DeviceMesh", device: torch.device) -> None:
    """Leave this process its share of the frozen weights, on `device`, and all that is trained.

    Nothing is exchanged for it: every process has loaded the same model.

    Args:
        model: with its adapter, on `device` or in host memory; changed in place.
        mesh: the processes.
        device: where this process trains; it holds no more than the shares and a unit at a time.
    """
    from torch.distributed.fsdp import fully_shard

    base: Any = model.get_base_model()
    trained = set(trainable_parameters(model))
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    _keep_quantization(base)
    for unit in _units(base):
        fully_shard(unit, mesh=mesh, ignored_params=trained)
    if hasattr(base, "hf_device_map"):
        base.hf_device_map = {"": device}  # no longer where it was loaded


def _units(base: Any) -> list[Any]:
    """Return the modules whose weights are gathered together, the model itself as the last."""
    return [*checkpointable_layers(base), base]


def _keep_quantization(base: torch.nn.Module) -> None:
    """Keep the scales of 4-bit weights in their modules, as gathered weights are plain tensors.

    bitsandbytes looks for them there, and so do the lean layers. They stay whole: 1/64 to 1/16 byte
    a weight, with and without double quantization, of the half byte that is shared.
    """
    for module in base.modules():
        if type(module).__name__ == "Linear4bit":
            quantized: Any = module
            quantized.quant_state = quantized.weight.quant_state


def in_turn(load: Callable[[], Loaded], world: World) -> Loaded:
    """Return what `load` gives, in one process of each machine after the other.

    A model that no device can hold fills the host's memory too: only one is there at a time.
    """
    loaded = None
    for turn in range(world.largest(world.processes.local_size)):
        if turn == world.processes.local_rank:
            loaded = load()
        world.meet()
    assert loaded is not None
    return loaded


class Passes:
    """Lets every process take part in each pass through a sharded model.

    The processes vote before each pass: as long as one of them has another, the others follow with
    a pass over two tokens whose result nobody sees. It leaves random numbers and gradients as they
    are, so that a sharded run computes what a whole one does.

    A process that runs out of memory in a pass gives its share to the rest of it, and follows the
    others until they have no more; then all of them can do the step again.
    """

    def __init__(self, model: "PeftModel", world: World) -> None:
        """Vote before every pass of `model`, which is sharded; all processes come here.

        Raises:
            PeerError: another process is gone.
        """
        self._model = model
        self._world = world
        self._base: Any = model.get_base_model()
        self._is_following = False
        self._kind = _NO_PASS
        self._is_in_forward = False
        self._gathers: Gathers | None = None
        # In front of FSDP's own hook, which gathers.
        self._base.register_forward_pre_hook(self._before_pass, prepend=True)
        self._base.register_forward_hook(self._after_forward)
        if can_reset():
            self._gathers = Gathers(self._base, _units(self._base))
            self._rehearse(self._gathers)

    @property
    def recovers(self) -> bool:
        """Whether a process that runs out of memory can let the others go on."""
        return self._gathers is not None

    @contextlib.contextmanager
    def shared(self, ends_on: type[BaseException] | tuple[()] = ()) -> Iterator[None]:
        """Context of passes that every process enters, each for as many passes as it has.

        Memory that runs out in this process ends its passes; the error is raised when the others
        have done theirs.

        Args:
            ends_on: an exception that ends the passes of this process only.

        Raises:
            PeerError: another process is gone.
            MemoryFitError: there is not even memory for the weights that the others wait for.
        """
        with self._world.gathering():
            try:
                yield
            except BaseException as failure:
                if self._gathers is not None and is_out_of_memory(failure):
                    # What the pass had computed is held by its frames alone.
                    traceback.clear_frames(failure.__traceback__)
                    self._finish_pass(self._gathers)
                elif not isinstance(failure, ends_on):
                    raise
                self._follow_others()
                raise
            self._follow_others()

    def _rehearse(self, gathers: Gathers) -> None:
        """Learn what a pass of each kind gathers."""
        was_training = self._model.training
        with self._world.gathering():
            for kind in (_FORWARD, _TRAINING):
                self._model.train(kind == _TRAINING)
                self._pass_of_nothing(kind)
                gathers.learn(kind)
        self._model.train(was_training)

    def _follow_others(self) -> None:
        if self._is_in_forward and self._gathers is not None:
            self._finish_pass(self._gathers)  # it failed, and nobody minded
        while (kind := self._world.largest(_NO_PASS)) != _NO_PASS:
            with _last_memory():
                self._pass_of_nothing(kind)
        # After a pass without gradients the root is whole still; and whoever saved a checkpoint
        # in between has given it up, so that not all would gather it in the next pass.
        self._base.reshard()

    def _finish_pass(self, gathers: Gathers) -> None:
        self._is_in_forward = False
        release_memory(trainable_parameters(self._model)[0].device)
        with _last_memory():
            gathers.finish(self._kind)

    def _before_pass(self, *_: Any) -> None:
        if self._is_following:
            return
        if self._is_in_forward and self._gathers is not None:
            self._finish_pass(self._gathers)
        kind = _TRAINING if torch.is_grad_enabled() else _FORWARD
        self._world.largest(kind)
        self._begin(kind)

    def _begin(self, kind: int) -> None:
        self._kind = kind
        self._is_in_forward = True
        if self._gathers is not None:
            self._gathers.begin()

    def _after_forward(self, *_: Any) -> None:
        self._is_in_forward = False

    def _pass_of_nothing(self, kind: int) -> None:
        parameters = trainable_parameters(self._model)
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None  # backward would add to it in place
        device = parameters[0].device
        self._is_following = True
        self._begin(kind)
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), torch.set_grad_enabled(kind == _TRAINING):
                tokens = torch.zeros((1, 2), dtype=torch.int64, device=device)
                logits = self._model(input_ids=tokens).logits
                if kind == _TRAINING:
                    logits.sum().backward()
        finally:
            self._is_following = False
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


@contextlib.contextmanager
def _last_memory() -> Iterator[None]:
    """Context of what cannot be left out: the others wait for this process in it.

    Raises:
        MemoryFitError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        line = (str(failure) or type(failure).__name__).splitlines()[0]
        raise MemoryFitError(
            "ran out of memory again with nothing but the weights of one layer to gather, for "
            f"which the other processes wait: {excerpt(line, 200)}",
            hint="every checkpoint written so far is intact: run the same command again, with a "
            "lower --per-device-train-batch-size if no other program holds the memory",
        ) from None


class OwnPasses:
    """Passes through a model that this process holds whole: nobody has to take part."""

    recovers = True

    @contextlib.contextmanager
    def shared(self, ends_on: type[BaseException] | tuple[()] = ()) -> Iterator[None]:
        """Context that does nothing."""
        yield


def passes_of(model: "PeftModel", world: World, *, is_sharded: bool) -> Passes | OwnPasses:
    """Return how the processes of a run pass through their models."""
    return Passes(model, world) if is_sharded else OwnPasses()
