"""How the libraries underneath are kept quiet, local and predictable."""

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock


def prepare_libraries() -> None:
    """Switch off progress bars, advice and telemetry of the libraries; call it before loading.

    What they would say is either said better in the plan, or is advice to developers.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # transformers could otherwise fetch compiled kernels from the hub: code from elsewhere.
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("bitsandbytes", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|peft|accelerate)\..*")


def import_bitsandbytes() -> None:
    """Import bitsandbytes, which PEFT will, without torch's compiler.

    It wraps functions for devices without kernels of its own in `torch.compile` as it is imported,
    which imports the compiler: a sixth of the start of a run, for functions that hardly any run
    calls. Here they are wrapped when they are first called.
    """
    if "bitsandbytes" in sys.modules:
        return
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
    import accelerate.data_loader
    import transformers.utils

    accelerate.data_loader.is_datasets_available = _never
    with mock.patch.object(transformers.utils, "is_datasets_available", _never):
        yield


def _never() -> bool:
    return False
