"""Watching storages: a dispatch mode that records every birth and death on one device."""

import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafit.memory.cuda_ops import (
    HOST_OUTPUTS,
    MATRIX_PRODUCTS,
    OUTPUT_ORDER,
    SCRATCH,
)
from lorafit.memory.events import Category, Phase, Trace
from lorafit.memory.gpu import GpuTraits
from lorafit.memory.meta_cache import MetaCache
from lorafit.memory.scratch import Call, Sizes

_aten = torch.ops.aten


class StorageTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Record the storages that operators create on `device_type`, until they are freed.

    Weak references to storages fire when the last tensor on them dies, in the order in which
    Python and autograd let go of them: the same as on the GPU, where they are the same objects.

    Args:
        device_type: `meta` to predict, `cpu` to watch a real run.
        gpu: adds the scratch memory and the operators' outputs of this GPU; None records only
            what PyTorch itself does, as it is on every device.
        vocab_size: tensors with this last dimension are logits.
    """

    def __init__(
        self, device_type: str = "meta", gpu: GpuTraits | None = None, vocab_size: int = 0
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.trace = Trace()
        self._device_type = device_type
        self._gpu = gpu
        self._vocab_size = vocab_size
        self._numbers: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._meta_cache = MetaCache()
        self._excluded: list[torch.Tensor] = []
        self._threads_with_workspace: set[str] = set()
        self.phase = Phase.LOAD
        self.trace.begin(self.phase)
        self.category = Category.WEIGHTS
        self._sole_counts = _count_sole_owners()

    def begin(self, phase: Phase, category: Category) -> None:
        """Enter a phase; storages born in it are of `category` until marked otherwise."""
        self.phase = phase
        self.category = category
        self.trace.begin(phase)

    def finish(self) -> Trace:
        """Stop watching and return the trace; what dies from now on stays alive in it."""
        self._references.clear()
        return self.trace

    def mark(self, tensors: Iterable[torch.Tensor | None], category: Category) -> None:
        """Give the storages of `tensors` their category, after the fact."""
        for tensor in tensors:
            if tensor is not None and tensor.device.type == self._device_type:
                number = self._numbers.get(tensor.untyped_storage()._cdata)
                if number is not None:
                    self.trace.categories[number] = category

    def watch_as(self, tensor: torch.Tensor, num_bytes: int) -> None:
        """Count the storage of `tensor` as a weight of `num_bytes` that is born now."""
        number = self.trace.birth(num_bytes, Category.WEIGHTS)
        self._numbers.setdefault(tensor.untyped_storage()._cdata, number)

    def exclude(self, tensor: torch.Tensor) -> None:
        """Never count the storage of `tensor`: it stands for memory outside of the allocator."""
        self._numbers[tensor.untyped_storage()._cdata] = 0
        self._excluded.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        self._locate(args)
        if name == "aten::_local_scalar_dense" and args[0].device.type == "meta":
            return _answer(args[0])
        if func is _aten.add.Tensor and self._is_engine_sum(args, kwargs):
            return self._add_in_place(*args)
        if func is _aten.index_add.default and self._is_engine_sum(args, kwargs):
            # FunctionsManual.cpp, index_select_backward: in place, unless a mode is active.
            return args[0].index_add_(*args[1:])
        scratch = self._scratch(name, args, kwargs)
        held = self._allocate(scratch[0])
        if name in _STAND_INS and args[0].device.type == "meta":
            result = _STAND_INS[name](*args, **kwargs)
        else:
            result = self._meta_cache.run(func, args, kwargs)
        order = OUTPUT_ORDER.get(name)
        self._record(
            result if order is None else [result[index] for index in order], HOST_OUTPUTS.get(name)
        )
        held += self._allocate(scratch[1]())
        for number in held:
            self.trace.death(number)
        return result

    def warm_up(self, bytes_by_name: dict[str, int]) -> None:
        """Hear that one storage of the bytes of these weights is about to be asked for."""

    def enter_module(self, name: str) -> None:
        """Hear to which module or weight loading has come; "" when it is through."""

    def adding_adapter(self) -> AbstractContextManager[None]:
        """Watch PEFT add an adapter, while entered."""
        return nullcontext()

    def _locate(self, args: tuple[Any, ...]) -> None:
        """Hear that an operator is about to run on `args`."""

    # -- Births and deaths

    def _record(self, result: Any, skipped: frozenset[int] | None) -> None:
        if isinstance(result, torch.Tensor):
            self._watch(result)
        elif isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor) and not (skipped and index in skipped):
                    self._watch(item)

    def _watch(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != self._device_type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._numbers:
            return
        category = self.category
        if self._is_logits(tensor):
            category = Category.LOGITS
        number = self.trace.birth(storage.nbytes(), category)
        self._numbers[key] = number
        self._references[key] = weakref.ref(storage, self._on_death(key, number))

    def _is_logits(self, tensor: torch.Tensor) -> bool:
        return (
            self._vocab_size > 0
            and tensor.ndim > 0
            and tensor.shape[-1] == self._vocab_size
            and self.phase in (Phase.FORWARD, Phase.BACKWARD)
        )

    def _on_death(self, key: int, number: int) -> Callable[[Any], None]:
        def forget(_: Any) -> None:
            self.trace.death(number)
            del self._numbers[key], self._references[key]

        return forget

    # -- What only a GPU does

    def _scratch(self, name: str, args: Any, kwargs: Any) -> tuple[Sizes, Callable[[], Sizes]]:
        if self.phase is Phase.LOAD:
            return [], list
        if self._gpu is not None and name in MATRIX_PRODUCTS:
            self._take_workspace()
        row = SCRATCH.get(name)
        if row is None or (self._gpu is None and not row.on_every_device):
            return [], list
        call = Call(args, kwargs, self._gpu)
        before = row.before(call) if row.before else []
        after = row.after
        return before, (lambda: after(call)) if after else list

    def _allocate(self, sizes: Sizes) -> list[int]:
        return [self.trace.birth(size, Category.WORKSPACE) for size in sizes]

    def _take_workspace(self) -> None:
        # The engine runs backward in a thread of its own, with a cuBLAS handle of its own.
        thread = "backward" if self.phase is Phase.BACKWARD else "main"
        if thread not in self._threads_with_workspace:
            assert self._gpu is not None, "only a GPU has cuBLAS workspaces"
            self._threads_with_workspace.add(thread)
            self._allocate([self._gpu.cublas_workspace_bytes])

    # -- Sums of gradients in the autograd engine

    def _is_engine_sum(self, args: Any, kwargs: Any) -> bool:
        """Return whether the engine itself adds to a gradient.

        Python code (a custom Function, a recomputed forward) has its own frame or gradients on.
        """
        if kwargs or torch.is_grad_enabled() or torch._C._current_autograd_node() is None:
            return False
        caller = sys._getframe(2)
        # torch wraps dispatch in two frames that keep dynamo away from it.
        while caller.f_code.co_name in ("_fn", "inner") and caller.f_back is not None:
            caller = caller.f_back
        return caller.f_code.co_name == "_engine_run_backward"

    def _add_in_place(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Add as torch/csrc/autograd/input_buffer.cpp does without a dispatch mode.

        It reuses a gradient's memory if nothing else holds it, which it declines to do while a
        mode is active.
        """
        first_counts, second_counts = _counts(first), _counts(second)
        if self._is_sole(first, first_counts):
            return first.add_(second)
        if self._is_sole(second, second_counts):
            return second.add_(first)
        result = first + second
        self._watch(result)
        return result

    def _is_sole(self, tensor: torch.Tensor, counts: tuple[int, int]) -> bool:
        return (
            counts[0] <= self._sole_counts[0]
            and counts[1] <= self._sole_counts[1]
            and torch.ops.aten.is_non_overlapping_and_dense(tensor)
        )


def _counts(tensor: torch.Tensor) -> tuple[int, int]:
    """Return how many hold the tensor, and its storage."""
    holders: int = tensor._use_count()  # type: ignore[attr-defined]  # not in torch's stubs
    return holders, torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


class _CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Learn which counts a gradient has that only the engine holds."""

    counts: tuple[int, int] = (0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.add.Tensor:
            self._measure(*args)
        return func(*args, **(kwargs or {}))

    def _measure(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self.counts = _counts(first)


def _count_sole_owners() -> tuple[int, int]:
    mode = _CountingMode()  # type: ignore[no-untyped-call]
    with mode:
        leaf = torch.ones(2, device="meta", requires_grad=True)
        value = leaf * 2
        (value * 3 * value).sum().backward()  # type: ignore[no-untyped-call]
    return mode.counts


def _answer(tensor: torch.Tensor) -> Any:
    """Answer a question that a model asks of a tensor's values.

    Models ask "are all of these ...?" of masks and positions, to drop a mask that hides nothing.
    A batch of full rows, which takes the most memory, answers yes.
    """
    return True if tensor.dtype == torch.bool else 1


def _quantize_rows(
    inputs: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    scales = inputs.new_empty(inputs.shape[:-1].numel(), dtype=torch.float32)
    outliers = inputs.new_empty(0, dtype=torch.int64) if threshold > 0 else None
    return torch.empty_like(inputs, dtype=torch.int8), scales, outliers


def _multiply_int8(
    inputs: torch.Tensor, quantized: torch.Tensor, weight: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, None]:
    return inputs.new_empty((*quantized.shape[:-1], weight.shape[0])), None


_STAND_INS: dict[str, Callable[..., Any]] = {
    "bitsandbytes::int8_vectorwise_quant": _quantize_rows,
    "bitsandbytes::int8_mixed_scaled_mm": _multiply_int8,
}
"""Operators of bitsandbytes without a kernel for `meta`, as the size of an output hangs on the
data: how many columns hold outliers. None is the common case."""
