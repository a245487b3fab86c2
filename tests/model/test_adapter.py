"""An adapter is plain PEFT: another program loads it and computes the same."""

import json
import subprocess
import sys

import pytest
import torch
from tiny import child_environment

from lorafit.config.schema import Settings
from lorafit.errors import AdapterError
from lorafit.model.adapter import load_adapter, save_adapter, verify_adapter
from lorafit.model.build import add_adapter, load_base
from lorafit.model.source import locate_model

pytestmark = pytest.mark.usefixtures("quiet_libraries")
CPU = torch.device("cpu")
TOKENS = torch.arange(10, 22)[None]

PLAIN_PEFT = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lorafit":
            raise ImportError("lorafit is not installed here")

sys.meta_path.insert(0, Absent())
try:
    import lorafit
except ImportError:
    pass
else:
    raise SystemExit("lorafit is importable")
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
auto = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
with torch.no_grad():
    tokens = torch.arange(10, 22)[None]
    save_file({"plain": model(input_ids=tokens).logits, "auto": auto(input_ids=tokens).logits}, out)
"""


def base_of(folder):
    return load_base(Settings(), locate_model(str(folder)), torch.float32, CPU)


def trained_model(folder, **settings):
    """A model with an adapter whose B is not zero, without the time of training it."""
    model, _ = add_adapter(base_of(folder), Settings(lora_dropout=0.0, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=TOKENS).logits


def test_a_trained_adapter_loads_where_lorafit_is_not_installed_with_equal_logits(
    run_lorafit, train_arguments, tiny_model, tmp_path
):
    from safetensors.torch import load_file

    assert run_lorafit(*train_arguments(tmp_path / "run")).code == 0
    adapter = tmp_path / "run" / "adapter"
    ours = logits(load_adapter(base_of(tiny_model()), adapter))
    assert not torch.equal(ours, logits(base_of(tiny_model())))
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_PEFT, tiny_model(), adapter, tmp_path / "logits"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=child_environment(),
    )
    assert result.returncode == 0, result.stderr
    theirs = load_file(tmp_path / "logits")
    assert torch.equal(theirs["plain"], ours)
    assert torch.equal(theirs["auto"], ours)


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True, "lora_alpha": 6.5}, {"use_dora": True},
     {"modules_to_save": ("lm_head",)}, {"target_modules": ("fc1",)}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_adapter_comes_back_as_it_was(tiny_model, tmp_path, settings):
    model = trained_model(tiny_model(), **settings)
    save_adapter(model, tmp_path / "adapter")
    again = load_adapter(base_of(tiny_model()), tmp_path / "adapter")
    # What was trained ran in lean layers, what is loaded runs in PEFT's.
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-6)
    assert not again.training


def test_saving_replaces_the_adapter_and_leaves_no_staging(tiny_model, tmp_path):
    adapter = tmp_path / "adapter"
    for name in ("first", "second"):
        save_adapter(trained_model(tiny_model(), model=name), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "second"
    assert config["inference_mode"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_untrained_adapter_is_not_success(tiny_model, tmp_path):
    model, _ = add_adapter(base_of(tiny_model()), Settings())
    with pytest.raises(AdapterError, match="every lora_B is zero, so the adapter has no effect"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_non_finite_adapter_is_not_success(tiny_model, tmp_path):
    model = trained_model(tiny_model())
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_A" in n)[0, 0] = float("inf")
    with pytest.raises(AdapterError, match=r"lora_A\.weight is not finite"):
        save_adapter(model, tmp_path / "adapter")


def test_verifying_returns_the_configuration(tiny_model, tmp_path):
    save_adapter(trained_model(tiny_model(), lora_r=4), tmp_path / "adapter")
    assert verify_adapter(tmp_path / "adapter")["r"] == 4
