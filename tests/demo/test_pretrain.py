"""Building, saving and caching the demo's base model."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PhiForCausalLM

from lorafit.demo import pretrain
from lorafit.demo.pretrain import Recipe, ensure_demo_model
from lorafit.errors import StorageError

SHORT = Recipe(num_documents=600, num_steps=4, warmup_steps=2)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LORAFIT_CACHE_DIR", str(folder))
    return folder


def test_builds_a_phi_that_loads_and_has_a_padding_token_of_its_own(cache: Path) -> None:
    steps: list[tuple[int, int]] = []
    folder = ensure_demo_model(lambda done, total, loss: steps.append((done, total)), SHORT)
    assert folder.parent == cache
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, PhiForCausalLM)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.decode(tokenizer("Mira drew a sparrow.")["input_ids"]).strip() == (
        "Mira drew a sparrow."
    )


def test_full_size_model_has_between_one_and_four_million_parameters() -> None:
    tokenizer = pretrain.build_tokenizer(list(pretrain.corpus.documents(0, 2000)), 1536)
    model = pretrain.build_initial_model(Recipe(), tokenizer)
    assert 1_000_000 <= model.num_parameters() <= 4_000_000


def test_second_call_reuses_the_folder_without_a_step(cache: Path) -> None:
    first = ensure_demo_model(recipe=SHORT)
    before = (first / "model.safetensors").stat().st_mtime_ns

    def fail(done: int, total: int, loss: float) -> None:
        raise AssertionError("trained again")

    assert ensure_demo_model(fail, SHORT) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before


def test_same_recipe_gives_the_same_weights_and_leaves_the_random_state_alone(
    tmp_path: Path,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = torch.random.get_rng_state()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            pretrain.build_model(tmp_path / name, SHORT)
        assert torch.equal(state, torch.random.get_rng_state())
    finally:
        torch.set_num_threads(threads)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_an_interrupted_build_leaves_nothing_behind(cache: Path) -> None:
    def interrupt(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(interrupt, SHORT)
    assert list(cache.iterdir()) == []


def test_a_process_that_finishes_second_keeps_the_folder_of_the_first(cache: Path) -> None:
    def other_process_finishes(done: int, total: int, loss: float) -> None:
        target = pretrain.model_folder(SHORT)
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text("{}")

    folder = ensure_demo_model(other_process_finishes, SHORT)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert list(cache.iterdir()) == [folder]


def test_a_cache_folder_that_is_a_file_is_a_storage_error(cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(StorageError, match="demo model cannot be written") as raised:
        ensure_demo_model(recipe=SHORT)
    assert raised.value.hint is not None
    assert "LORAFIT_CACHE_DIR" in raised.value.hint


def test_another_recipe_has_another_folder() -> None:
    assert pretrain.model_folder(SHORT) != pretrain.model_folder(Recipe())


def test_initial_model_copies_from_its_context_better_than_chance() -> None:
    torch.manual_seed(0)
    tokenizer = pretrain.build_tokenizer(list(pretrain.corpus.documents(0, 2000)), 1536)
    model = pretrain.build_initial_model(Recipe(), tokenizer).eval()
    words = torch.stack([300 + torch.randperm(len(tokenizer) - 300)[:6] for _ in range(64)])
    ids = torch.cat([words, words], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, 6:-1]
    rank = (logits > logits.gather(-1, words[:, 1:, None])).sum(-1).float()
    assert rank.median() < len(tokenizer) / 3  # a copy at random is at one half
