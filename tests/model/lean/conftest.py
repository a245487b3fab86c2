"""Tiny models with adapters that have an effect, from either kernels."""

import warnings

import pytest
import torch

from lorafit.config.schema import Settings
from lorafit.model.build import add_adapter
from lorafit.model.libraries import prepare_libraries
from lorafit.model.loss import locate_targets
from lorafit.model.step import micro_batch_loss
from tests.tiny import _config

ROWS, TOKENS = 3, 24


@pytest.fixture(autouse=True)
def _quiet_libraries():
    with warnings.catch_warnings():
        prepare_libraries()
        yield


@pytest.fixture
def adapted():
    """Return a factory of models on a tiny base: the same arguments give the same numbers."""

    def make(architecture="phi", *, kernels="lorafit", dtype=torch.float32, shape=None, **settings):
        from transformers import AutoModelForCausalLM

        options = dict(shape or {})
        if architecture == "phi":
            options.setdefault("resid_pdrop", 0.0)
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(
            _config(architecture, options), attn_implementation="sdpa", dtype=dtype
        )
        for parameter in base.parameters():
            if parameter.ndim == 1:  # norms and biases that do nothing would hide mistakes
                parameter.data += 0.1 * torch.randn_like(parameter)
        plain = {"lora_dropout": 0.0, "lora_r": 4, "gradient_checkpointing": False}
        chosen = Settings(**{**plain, "kernels": kernels, **settings})
        model, _ = add_adapter(base, chosen)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 0.02 if "lora_B" in name else 0.1
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = drawn.mul(size).to(
                    torch.float64 if dtype == torch.float64 else torch.float32
                )
        return model

    return make


@pytest.fixture
def gradients():
    """Return a function that gives a model's loss and adapter gradients on fixed rows.

    The first `prompt` tokens of each row are no targets.
    """

    def run(model, seed=2, prompt=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 300, (ROWS, TOKENS), generator=generator)
        labels = ids.clone()
        labels[1, 18:] = -100
        mask = (labels != -100).long()
        labels[:, :prompt] = -100
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        # A model that has the chunked loss takes its targets by position.
        if "forward" in model.get_base_model().__dict__:
            batch |= locate_targets(labels, -100)
        model.zero_grad()
        loss = micro_batch_loss(model, batch, 60)
        loss.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), found

    return run
