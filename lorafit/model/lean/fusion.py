"""Compiling what lies between the products: each elementwise function becomes one kernel.

Compiling a whole model means a new compilation for every new shape and every break in its graph.
The lean layers have little left to gain from it: products and attention call libraries, and only
short functions of plain tensors are in between. These are compiled one by one, once for all layers
and with dynamic shapes.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from lorafit.text import excerpt

_Function = TypeVar("_Function", bound=Callable[..., Any])

_enabled = False
_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
_failures: list[str] = []


def fuse(enabled: bool) -> None:
    """Let the functions marked `fusible` run compiled from now on, or no longer."""
    global _enabled
    _enabled = enabled
    _failures.clear()


def fusion_failure() -> str | None:
    """Return why compiling was given up, if it was."""
    return _failures[0] if _failures else None


def fusible(function: _Function) -> _Function:
    """Mark a function of tensors and numbers as one that may run compiled.

    If the compiler fails, this and all other functions run as they are written: the same numbers,
    only slower.
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        if not _enabled or _failures or arguments[0].device.type == "meta":
            return function(*arguments)
        if function not in _compiled:
            _compiled[function] = torch.compile(function, dynamic=True, fullgraph=True)
        try:
            return _compiled[function](*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as problem:  # a compiler has many ways to fail
            _failures.append(f"torch.compile failed on {function.__name__}: {_first_line(problem)}")
            return function(*arguments)

    return cast(_Function, run)


def _first_line(problem: Exception) -> str:
    lines = [line for line in str(problem).splitlines() if line.strip()]
    return excerpt(lines[0] if lines else type(problem).__name__, 200)
