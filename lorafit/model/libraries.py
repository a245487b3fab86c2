"""How the libraries underneath are kept quiet, local and predictable, and imported quickly."""

import contextlib
import functools
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def prepare_libraries() -> None:
    """Switch off progress bars, advice and telemetry of the libraries; call it before loading.

    What they would say is either said better in the plan, or is advice to developers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # transformers could otherwise fetch compiled kernels from the hub: code from elsewhere.
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    with quick_imports(), _scanning_once():
        import transformers.models  # noqa: F401  # while what was found is remembered
        from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("bitsandbytes", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate)\..*")


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import without Python's garbage collector, which then leaves alone what was imported.

    The modules of a run make a million objects that stay. The collector would look at them again
    and again while they come, a tenth of the start, and at all of them in every full collection
    of the run, half a second each.
    """
    was_enabled, num_modules = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # Later on the living objects are no longer those of imports alone.
        if len(sys.modules) > num_modules:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _scanning_once() -> Iterator[None]:
    """Let transformers look through its files for names once, where it does so twice.

    It opens all 2,000 of them, a quarter of a second, as it is imported, and again for its package
    of models.
    """
    finder = _ScanOnce()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _ScanOnce(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual specification of the module that looks through the files."""
        if name != "transformers.utils.import_utils":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_remember(module: ModuleType) -> None:
                execute(module)
                _remember_scans(module)

            spec.loader.exec_module = execute_and_remember  # type: ignore[method-assign]
        return spec


def _remember_scans(module: Any) -> None:
    scan = getattr(module, "create_import_structure_from_path", None)
    if scan is None:
        return
    found: dict[str, Any] = {}

    def scan_once(path: str | os.PathLike[str]) -> Any:
        folder = os.path.dirname(path) if os.path.isfile(path) else os.fspath(path)
        if folder not in found:
            found[folder] = scan(folder)
        return found[folder]

    module.create_import_structure_from_path = scan_once


def import_peft() -> None:
    """Import PEFT, and bitsandbytes with it; call it before there is a model."""
    with quick_imports():
        import_bitsandbytes()
        import peft  # noqa: F401  # for its side effect on sys.modules


def import_bitsandbytes() -> None:
    """Import bitsandbytes, which PEFT will, without torch's compiler.

    It wraps functions for devices without kernels of its own in `torch.compile` as it is imported,
    which imports the compiler: a sixth of the start of a run, for functions that hardly any run
    calls. Here they are wrapped when they are first called.
    """
    if "bitsandbytes" in sys.modules:
        return
    from unittest import mock

    import torch

    with mock.patch.object(torch, "compile", functools.partial(_compile_later, torch.compile)):
        import bitsandbytes  # noqa: F401  # for its side effect on sys.modules


def _compile_later(compiler: Callable[..., Any], function: Any = None, **options: Any) -> Any:
    """Do what `torch.compile` does at the first call of the function."""
    if function is None:
        return functools.partial(_compile_later, compiler, **options)

    compiled: Any = None

    @functools.wraps(function)
    def run(*arguments: Any, **keywords: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            compiled = compiler(function, **options)
        return compiled(*arguments, **keywords)

    return run


@contextlib.contextmanager
def without_datasets() -> Iterator[None]:
    """Let the Trainer be imported without the package datasets, and run without it.

    It and accelerate import datasets, pandas and pyarrow, a tenth of the start of a run and 90 MiB,
    only to ask whether rows are of their types. Here they never are.
    """
    from unittest import mock

    import accelerate.data_loader
    import transformers.utils

    accelerate.data_loader.is_datasets_available = _never
    with mock.patch.object(transformers.utils, "is_datasets_available", _never):
        yield


def _never() -> bool:
    return False
