"""The tables of the layer guide and of the tuning page are those that their scripts make."""

from types import ModuleType

import pytest
import torch
from pages import load_script


@pytest.fixture(scope="module")
def phi2() -> ModuleType:
    return load_script("make_phi2_tables")


@pytest.fixture(scope="module")
def tuning() -> ModuleType:
    return load_script("make_tuning_tables")


@pytest.mark.parametrize("script", ["phi2", "tuning"])
def test_the_page_is_the_one_that_the_script_makes(
    script: str, request: pytest.FixtureRequest
) -> None:
    tables = request.getfixturevalue(script)
    page = tables.PAGE.read_text("utf-8")
    quick = tuple(name for name in tables.TABLES if name not in tables.SLOW_TABLES)
    assert quick
    assert tables.render(page, quick) == page
    for name in tables.TABLES:
        assert f"<!-- {name}: generated -->\n| " in page, name


@pytest.mark.slow
@pytest.mark.parametrize("script", ["phi2", "tuning"])
def test_estimates_in_the_tables_are_those_of_today(
    script: str, request: pytest.FixtureRequest, quiet_libraries: None
) -> None:
    tables = request.getfixturevalue(script)
    page = tables.PAGE.read_text("utf-8")
    assert tables.render(page, tables.SLOW_TABLES) == page


def test_flops_are_those_that_torch_counts_for_a_layer(phi2: ModuleType) -> None:
    """A frozen layer of Phi-2's width, 64 tokens, forward: the Linear modules alone."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import PhiConfig, PhiForCausalLM

    tokens = 64
    config = PhiConfig(**phi2._config(num_hidden_layers=1), attn_implementation="eager")
    with torch.device("meta"):
        model = PhiForCausalLM(config)
        ids = torch.zeros(1, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model(ids)
    operations = counter.get_flop_counts()["Global"]
    products = sum(count for name, count in operations.items() if "bmm" not in str(name))
    shown = [
        float(cell.split("|")[2].replace(",", ""))
        for cell in phi2.flops_table()
        if cell.startswith(("| `self_attn", "| `mlp"))
    ]
    assert products / tokens * 32 == pytest.approx(sum(shown) * 1e6, rel=1e-3)


@pytest.mark.parametrize("kernels", ["stock", "lorafit"])
def test_a_real_layer_of_phi_2s_width_keeps_what_the_table_says(
    phi2: ModuleType, kernels: str, quiet_libraries: None
) -> None:
    """Storages that autograd holds after forward, in bfloat16 on the CPU; weights left out."""
    kept = [_saved_bytes(phi2, kernels, layers) for layers in (1, 2)]
    traced = phi2._kept_bytes(kernels, phi2.CHOICES["all six"])
    counted = (kept[1] - kept[0]) / _TOKENS
    if kernels == "stock":
        counted -= _MASKS_ON_CPU
    assert counted == pytest.approx(traced, rel=0.01)


_TOKENS = 32
# A dropout mask has the type of its input on a CPU, and is one byte a number on CUDA: those of the
# six adapters are fp32 (inputs of 2560, and of 10240 for fc2), those of the two branches bfloat16.
_MASKS_ON_CPU = (5 * 2560 + 10240) * (4 - 1) + 2 * 2560 * (2 - 1)


def _saved_bytes(phi2: ModuleType, kernels: str, layers: int) -> int:
    from transformers import PhiConfig, PhiForCausalLM

    from lorafit.config.schema import Settings
    from lorafit.model.build import add_adapter

    config = PhiConfig(**phi2._config(num_hidden_layers=layers, vocab_size=64))
    torch.manual_seed(0)
    base = PhiForCausalLM._from_config(config, dtype=torch.bfloat16)
    settings = Settings(
        kernels=kernels, lora_r=phi2.RANK, lora_dropout=0.05, gradient_checkpointing=False
    )
    model, _ = add_adapter(base, settings)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, tuple[int, object]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    ids = torch.arange(_TOKENS).remainder(64)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model.model.model(ids)
    return sum(size for size, _ in held.values())
