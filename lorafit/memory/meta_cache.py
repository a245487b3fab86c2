"""Answers of `meta` kernels, remembered: layers repeat, and so do the shapes of their calls.

A `meta` kernel only works out the shapes of its outputs, in Python, which is most of the time of
a trace. A call with the same operator, shapes, strides, dtypes and plain arguments has the same
answer.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_aten = torch.ops.aten
_IN_PLACE = frozenset(
    {
        _aten.add_.Tensor,
        _aten.add_.Scalar,
        _aten.addcdiv_.default,
        _aten.addcmul_.default,
        _aten.addmm_.default,
        _aten.copy_.default,
        _aten.exp_.default,
        _aten.fill_.Scalar,
        _aten.index_add_.default,
        _aten.lerp_.Scalar,
        _aten.mul_.Scalar,
        _aten.mul_.Tensor,
        _aten.sub_.Tensor,
        _aten.zero_.default,
    }
)
"""Operators that return their first argument with other numbers in it: on `meta`, as it was."""
_Spec = tuple[torch.Size, tuple[int, ...], torch.dtype]


class MetaCache:
    """Run operators on `meta` tensors, each kind of call once."""

    def __init__(self) -> None:
        self._is_pure: dict[Any, bool] = {}
        self._specs: dict[Any, tuple[bool, list[_Spec | None]]] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what `func(*args, **kwargs)` returns, its outputs on storages of their own."""
        key = self._key(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs)
        known = self._specs.get(key)
        if known is not None:
            if func in _IN_PLACE:
                return args[0]
            is_single, specs = known
            outputs = [None if spec is None else _make(spec) for spec in specs]
            return outputs[0] if is_single else tuple(outputs)
        result = func(*args, **kwargs)
        if func in _IN_PLACE:
            self._specs[key] = (True, [])
        else:
            self._remember(key, result, args)
        return result

    def _key(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_pure = self._is_pure.get(func)
        if is_pure is None:
            is_pure = self._is_pure[func] = func in _IN_PLACE or _makes_new_tensors(func)
        if not is_pure:
            return None
        parts: list[Any] = [func]
        for value in (*args, *kwargs.values()):
            part = _describe(value)
            if part is None:
                return None
            parts.append(part)
        return (*parts, *kwargs)

    def _remember(self, key: Any, result: Any, args: tuple[Any, ...]) -> None:
        is_single = isinstance(result, torch.Tensor)
        outputs = [result] if is_single else result
        if not isinstance(outputs, (tuple, list)):
            return
        # Some operators return an input, or two views of one storage, without saying so.
        storages = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
        specs: list[_Spec | None] = []
        for output in outputs:
            if output is None:
                specs.append(None)
                continue
            if not isinstance(output, torch.Tensor) or output.device.type != "meta":
                return
            storage = output.untyped_storage()
            if storage._cdata in storages or output.storage_offset():
                return
            if storage.nbytes() != _storage_bytes(output):
                return
            storages.add(storage._cdata)
            specs.append((output.shape, output.stride(), output.dtype))
        self._specs[key] = (is_single, specs)


def _makes_new_tensors(func: Any) -> bool:
    schema = func._schema
    returns_plain = all(
        value.alias_info is None and str(value.type) in ("Tensor", "Optional[Tensor]")
        for value in schema.returns
    )
    return bool(schema.returns) and returns_plain and not schema.is_mutable


def _tensors(args: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield the tensors among the arguments and in their lists."""
    for value in args:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _describe(value: Any) -> Any:
    """Return a hashable description of an argument; None for one that has none."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "meta":
            return None
        return (value.shape, value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        parts = [_describe(item) for item in value]
        return None if None in parts else tuple(parts)
    return (type(value), value) if value.__hash__ is not None else None


def _storage_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes of the storage that `empty_strided` would give a tensor of this layout."""
    if tensor.numel() == 0:
        return 0
    span = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (span + 1) * tensor.element_size()


def _make(spec: _Spec) -> torch.Tensor:
    shape, stride, dtype = spec
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
