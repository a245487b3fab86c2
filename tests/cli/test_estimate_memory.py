"""`lorafit estimate-memory`: the contract that scripts rely on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import Outcome


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "lorafit.memory.cache.default_folder", lambda: tmp_path / "cache" / "estimates"
    )


def arguments(model: Path, *more: str) -> list[str]:
    common = ("--max-length", "32", "--batch-size", "2", "--gradient-accumulation-steps", "1")
    return ["estimate-memory", "--model", str(model), *common, *more]


def test_prints_one_json_document_that_adds_up(
    run_lorafit: Callable[..., Outcome], tiny_model: Callable[..., Path]
) -> None:
    outcome = run_lorafit(*arguments(tiny_model(), "--hardware", "a10g", "--json"))
    document: dict[str, Any] = json.loads(outcome.out)
    assert outcome.code == 0
    assert document["verdict"] == "fits"
    assert sum(document["breakdown"].values()) == document["peak"]["process_bytes"]
    assert document["settings"]["max_length"] == 32
    assert document["hardware"]["key"] == "a10g"


def test_shows_people_the_parts_and_the_verdict(
    run_lorafit: Callable[..., Outcome], tiny_model: Callable[..., Path]
) -> None:
    outcome = run_lorafit(*arguments(tiny_model(), "--hardware", "t4"))
    assert outcome.code == 0
    for words in ("base weights", "device context", "capacity", "NVIDIA T4", "fits:"):
        assert words in outcome.out


def test_run_that_does_not_fit_ends_with_exit_code_4(
    run_lorafit: Callable[..., Outcome], own_model: Callable[..., Path]
) -> None:
    model = own_model()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": 262_144}))
    arguments = ("--max-length", "64", "--batch-size", "256", "--json")
    outcome = run_lorafit("estimate-memory", "--model", model, "--hardware", "t4", *arguments)
    document = json.loads(outcome.out)
    assert outcome.code == 4
    assert document["verdict"] == "exceeds"
    assert document["headroom_bytes"] < 0
    assert document["headroom_bytes"] == (
        document["capacity_bytes"] - document["peak"]["process_bytes"]
    )


def test_stock_kernels_keep_the_logits_that_training_in_lorafit_frees(
    run_lorafit: Callable[..., Outcome], tiny_model: Callable[..., Path]
) -> None:
    ours = run_lorafit(*arguments(tiny_model(), "--hardware", "t4", "--json"))
    plain = run_lorafit(
        *arguments(tiny_model(), "--hardware", "t4", "--json", "--kernels", "stock")
    )
    peaks = [json.loads(outcome.out)["peak"]["allocated_bytes"] for outcome in (ours, plain)]
    assert peaks[0] < peaks[1]


def test_model_that_is_nowhere_ends_with_exit_code_3(
    run_lorafit: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = run_lorafit(*arguments(tmp_path / "missing", "--hardware", "t4"))
    assert outcome.code == 3
    assert "missing" in outcome.err
