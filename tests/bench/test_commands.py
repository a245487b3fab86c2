"""The commands of all projects: each asks for the same training."""

import re
from pathlib import Path

import pytest
import yaml
from peers.catalog import PEERS
from peers.commands import Start
from peers.workload import TARGETS, Workload

from lorafit.config.schema import Settings


@pytest.mark.parametrize("key", PEERS)
def test_every_project_is_asked_for_the_same_work(key: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    start = Start(tmp_path / "bin" / "python", Workload(tmp_path, "10m"), folder, tmp_path)
    command = PEERS[key].command(start)
    config = folder / "config.yaml"
    # The scripts of bench/peers/scripts hold the settings themselves.
    script = next((Path(part) for part in command if part.endswith(".py")), None)
    text = script.read_text() if script else " ".join(command)
    text += config.read_text() if config.is_file() else ""
    assert "0.0002" in " ".join(command) + text
    numbers = re.findall(r"(?<![\w.])\d+(?![\w.])", text)
    assert "8" in numbers, "the rank"
    assert "4" in numbers or "16" in numbers, "the rows of a micro-batch or a step"
    # LitGPT names its layers otherwise, and leaves q and v on.
    if key != "litgpt":
        assert all(target in text for target in TARGETS)


@pytest.mark.parametrize("key", ["lorafit", "lorafit-stock", "lorafit-packing"])
def test_lorafit_is_asked_for_settings_that_it_has(key: str, tmp_path: Path) -> None:
    start = Start(Path("python"), Workload(tmp_path, "10m"), tmp_path, tmp_path)
    pairs = [part.partition("=") for part in PEERS[key].command(start) if "=" in part]
    assert {name for name, _, _ in pairs} <= set(Settings.model_fields)
    values = {name: value for name, _, value in pairs}
    assert values["kernels"] == ("stock" if key == "lorafit-stock" else "lorafit")


def test_axolotl_packs_only_where_it_is_said_to(tmp_path: Path) -> None:
    start = Start(Path("python"), Workload(tmp_path, "10m"), tmp_path, tmp_path)
    for key, packs in (("axolotl", False), ("axolotl-packing", True)):
        PEERS[key].command(start)
        settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
        assert settings["sample_packing"] is packs
        assert settings["sequence_len"] == 512
