"""Shared by all tests: no network, tiny real models built on the spot, and the command line."""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tiny import Outcome, build_model, colour_rows, write_jsonl

pytest_plugins = ["matrix"]

# Property tests draw the same examples everywhere and have no limit of time: a slow machine is no
# fault. `pytest --hypothesis-profile search` draws new ones.
settings.register_profile(
    "search", deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.register_profile("lorafit", settings.get_profile("search"), derandomize=True)
settings.load_profile("lorafit")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background jobs are deaf to Ctrl-C, and so would be the commands that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_LOOPBACK = ("127.", "::1", "localhost")


class NetworkUsedError(Exception):
    """A test reached for the network; not an OSError, which callers would take for bad luck."""


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session: a memory estimate that two tests need is traced once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _closed_world(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if not host.startswith(_LOOPBACK):
                raise NetworkUsedError(f"{host} was to be connected to")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in [name for name in os.environ if name.startswith("LORAFIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(cache_folder))


@pytest.fixture(autouse=True)
def _library_of_products_as_before() -> Iterator[None]:
    """A run in this process chooses what multiplies on the CPU: not for the tests that follow."""
    yield
    products = sys.modules.get("lorafit.model.lean.products")
    if products is not None:
        products.use_onednn(False)


@pytest.fixture
def quiet_libraries() -> None:
    """Silence the libraries' own advice, as every command does before it loads them."""
    from lorafit.model.libraries import prepare_libraries

    prepare_libraries()


# -- Models --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a factory of model folders, each built once; they are shared, so never change one."""
    built: dict[str, Path] = {}

    def make(architecture: str = "phi", *, dtype: str = "float32", **options: Any) -> Path:
        key = json.dumps([architecture, dtype, options], sort_keys=True)
        if key not in built:
            folder = tmp_path_factory.mktemp(f"{architecture}-model")
            built[key] = build_model(folder, architecture, dtype, options)
        return built[key]

    return make


@pytest.fixture
def own_model(tiny_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a factory of private copies of a tiny model, to damage."""

    def copy(architecture: str = "phi", **options: Any) -> Path:
        return Path(shutil.copytree(tiny_model(architecture, **options), tmp_path / "own-model"))

    return copy


# -- Data ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20 rows; a tenth of them is validation by default."""
    return write_jsonl(tmp_path_factory.mktemp("data") / "colours.jsonl", colour_rows(20))


# -- The command line ----------------------------------------------------------------------


@pytest.fixture
def run_lorafit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Return a function that runs a command in this process."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def run(*arguments: object) -> Outcome:
        from lorafit.cli.main import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Outcome(int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def train_arguments(tiny_model: Callable[..., Path], tiny_data: Path) -> Callable[..., list[str]]:
    """Return a factory of `lorafit train` arguments: a run of 6 steps on the CPU in seconds.

    18 training rows make 3 steps an epoch with accumulation 3, so that 6 steps are 2 epochs.
    """
    defaults: dict[str, Any] = {
        "data": tiny_data,
        "device": "cpu",
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_steps": 6,
        "save_steps": 2,
        "eval_steps": 3,
        "lora_dropout": 0.1,
        "learning_rate": 1e-2,
        "warmup_steps": 1,
        "gradient_checkpointing": False,
        "torch_compile": False,
        "sample_prompts": 0,
    }

    def make(output_dir: Path, *more: object, **changes: Any) -> list[str]:
        settings = {"model": changes.pop("model", None) or tiny_model(), **defaults, **changes}
        arguments = ["train", "--output-dir", str(output_dir)]
        for name, value in settings.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                arguments += [f"--{flag}", str(value)]
        return [*arguments, *map(str, more)]

    return make
