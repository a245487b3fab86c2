"""One adapter, trained once, for every test of what can be done with it."""

import shutil

import pytest


@pytest.fixture(scope="package")
def kept():
    return {}


@pytest.fixture
def trained(kept, run_lorafit, train_arguments, tmp_path_factory):
    """A run folder that no test changes."""
    if "run" not in kept:
        folder = tmp_path_factory.mktemp("kept") / "first"
        outcome = run_lorafit(*train_arguments(folder, max_steps=4, learning_rate=5e-2))
        assert outcome.code == 0, outcome.err
        kept["run"] = folder
    return kept["run"]


@pytest.fixture
def own_run(trained, tmp_path):
    """A copy of the run for one test."""
    return shutil.copytree(trained, tmp_path / "first")
