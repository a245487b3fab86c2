"""The model that is trained: base weights, quantization, adapter, checkpointing.

There is one description of it. Training builds it with weights; planning builds the same thing on
the `meta` device, where it takes no memory, to count and to trace.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorafit.config.padding import wants_block_attention
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, ModelError, Problem
from lorafit.hardware.info import Choice
from lorafit.model.attention import ATTENTION_NAME
from lorafit.model.lean.install import choose_lean_layers, install_lean_layers
from lorafit.model.libraries import import_peft
from lorafit.model.lora import (
    Targets,
    choose_targets,
    encoder_linears,
    lora_config,
    trainable_by_module,
)
from lorafit.model.loss import install_chunked_loss, why_not_chunked
from lorafit.model.source import read_config
from lorafit.text import excerpt

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_layers import GradientCheckpointingLayer

    from lorafit.model.source import ModelSource


@dataclass(frozen=True)
class ModelSummary:
    """What the plan says about the model, counted on the `meta` device."""

    num_parameters: int
    num_trainable_parameters: int
    trainable_by_module: dict[str, int]
    targets: Targets
    chunked_loss: Choice[bool]
    lean_layers: Choice[bool]


def attention_name(settings: Settings) -> str:
    """Return the transformers name of the attention implementation."""
    if wants_block_attention(settings):
        return ATTENTION_NAME
    if settings.attn_implementation in ("auto", "sdpa-efficient"):
        return "sdpa"
    return settings.attn_implementation


@contextlib.contextmanager
def attention_context(settings: Settings) -> Iterator[None]:
    """Restrict PyTorch's attention to the memory-efficient operator where the settings ask so."""
    if settings.attn_implementation != "sdpa-efficient":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers.integrations import sdpa_attention

    # The operator knows no grouped heads: key and value heads are repeated for it.
    grouped = sdpa_attention.use_gqa_in_sdpa
    sdpa_attention.use_gqa_in_sdpa = lambda *_: False
    try:
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            yield
    finally:
        sdpa_attention.use_gqa_in_sdpa = grouped


def quantization_config(settings: Settings, dtype: torch.dtype) -> Any:
    """Return transformers' bitsandbytes configuration, or None for unquantized weights."""
    if settings.quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )


def load_base(
    settings: Settings, source: "ModelSource", dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """Load the base model with its weights on `device`, quantized if the settings ask for it.

    Raises:
        ModelError: the weights do not belong to the configuration beside them.
    """
    from transformers import AutoModelForCausalLM

    import_peft()
    options: dict[str, Any] = {}
    quantization = quantization_config(settings, dtype)
    if quantization is not None:
        options["quantization_config"] = quantization
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=dtype,
            attn_implementation=attention_name(settings),
            device_map={"": device},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Reported below with the names, instead of an error that has none.
            ignore_mismatched_sizes=True,
            **options,
        )
    except (ValueError, RuntimeError, OSError, KeyError) as problem:
        if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in str(problem):
            raise
        raise ModelError(
            f"the model cannot be loaded: {excerpt(str(problem), 300)}", where=str(source.path)
        ) from problem
    _require_complete(report, source)
    _keep_differentiable(model)
    loaded: PreTrainedModel = model
    return loaded


def _keep_differentiable(model: torch.nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for CPUs with AVX512-BF16.

    Its first forward in evaluation mode would do so for good, in a layout whose product has no
    gradient: training after a validation would go on without the layers below, silently.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a plain bool


def _require_complete(report: dict[str, Any], source: "ModelSource") -> None:
    mismatched = [str(entry[0]) for entry in report.get("mismatched_keys", ())]
    missing = sorted(str(key) for key in report.get("missing_keys", ()))
    for what, keys in (("are missing", missing), ("have another shape", mismatched)):
        if keys:
            raise ModelError(
                f"{len(keys)} tensors of this architecture {what} in the weights, "
                f"first {excerpt(keys[0])}; they would be random numbers",
                where=str(source.path),
                hint="weights and config.json belong to different models: download both again",
            )


def build_on_meta(
    settings: Settings, config: "PretrainedConfig", dtype: torch.dtype
) -> "PreTrainedModel":
    """Build the base model on the `meta` device: all shapes, no memory."""
    from transformers import AutoModelForCausalLM

    import_peft()
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention_name(settings)
        )
    return model


def add_adapter(base: "PreTrainedModel", settings: Settings) -> "tuple[PeftModel, Targets]":
    """Wrap the base in PEFT and put it into the form that is trained.

    The adapter is drawn from `settings.seed`; base weights are frozen; adapters are fp32 masters
    whatever the base's dtype.

    Raises:
        ConfigError: target_modules or modules_to_save name what the model does not have.
    """
    from peft import get_peft_model

    targets = choose_targets(base, base.config.model_type, settings.target_modules)
    _require_modules(base, settings.modules_to_save)
    torch.manual_seed(settings.seed)
    # With accelerate's own logging there is nothing to gain from PEFT's dtype notices.
    logging.getLogger("peft").setLevel(logging.ERROR)
    excluded = encoder_linears(base, targets.names)
    model: PeftModel = get_peft_model(base, lora_config(settings, targets, excluded))
    # A path of this machine would be of no use to whoever loads the adapter elsewhere, but the
    # name that was asked for is what PEFT expects there.
    model.peft_config["default"].base_model_name_or_path = settings.model
    base.config.use_cache = False
    if settings.gradient_checkpointing:
        # Without re-entrance a checkpoint needs no gradient on its input, which a frozen
        # embedding cannot give.
        _enable_checkpointing(base)({"use_reentrant": False})
        if settings.checkpointed_layers is not None:
            _checkpoint_first(base, settings.checkpointed_layers)
    install_lean_layers(base, settings)
    if choose_loss(base, settings).value:
        install_chunked_loss(base)
    model.train()
    return model, targets


def _enable_checkpointing(base: "PreTrainedModel") -> Callable[[dict[str, bool]], None]:
    # transformers 5.23 renamed it, and warns at the old name that earlier ones have alone.
    name = "activation_checkpointing_enable"
    enable: Callable[[dict[str, bool]], None] = (
        getattr(base, name) if hasattr(base, name) else base.gradient_checkpointing_enable
    )
    return enable


def checkpointable_layers(model: torch.nn.Module) -> "list[GradientCheckpointingLayer]":
    """Return all repeated layers, those that encode images included."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def decoder_layers(model: torch.nn.Module) -> "list[GradientCheckpointingLayer]":
    """Return the repeated layers that text goes through, in the order of the forward pass.

    Encoders of images, which text does not reach, come first in a model's modules.
    """
    find: Callable[[], torch.nn.Module] | None = getattr(model, "get_decoder", None)
    return checkpointable_layers(model if find is None else find())


def checkpoint_layers(base: "PreTrainedModel", count: int) -> None:
    """Checkpoint the first `count` layers of a model that is built, and no other."""
    _enable_checkpointing(base)({"use_reentrant": False})
    _checkpoint_first(base, count)


def _checkpoint_first(base: "PreTrainedModel", count: int) -> None:
    """Checkpoint only the first `count` layers.

    Backward reaches them last, when the activations that the other layers kept are free again:
    what is computed anew then takes no memory beyond the peak.
    """
    layers = decoder_layers(base)
    if count > len(layers):
        message = f"{count} is more than the {len(layers)} layers of this model"
        raise ConfigError([Problem("checkpointed_layers", message)])
    for layer in layers[count:]:
        layer.gradient_checkpointing = False


def _require_modules(base: torch.nn.Module, names: tuple[str, ...]) -> None:
    present = {name.rpartition(".")[2] for name, _ in base.named_modules()}
    absent = [name for name in names if name not in present]
    if absent:
        raise ConfigError(
            [
                Problem("modules_to_save", f"the model has no module named {name!r}")
                for name in absent
            ]
        )


def summarize_model(settings: Settings, source: "ModelSource") -> ModelSummary:
    """Count parameters, total and trainable, without reading a weight.

    Raises:
        ConfigError: as `add_adapter`.
        ModelError: the configuration does not describe a model that can be built.
    """
    config = read_config(source)
    try:
        base = build_on_meta(settings, config, torch.float32)
    except Exception as problem:  # a value of a wrong kind fails wherever the model first uses it
        raise ModelError(
            f"no model can be built from it: {type(problem).__name__}: "
            f"{excerpt(str(problem), 200)}",
            where=str(source.path / "config.json"),
            hint="download the model again; its config.json is damaged",
        ) from problem
    num_parameters = base.num_parameters()
    model, targets = add_adapter(base, settings)
    by_module = trainable_by_module(model)
    return ModelSummary(
        num_parameters,
        sum(by_module.values()),
        by_module,
        targets,
        choose_loss(base, settings),
        choose_lean_layers(base, settings),
    )


def choose_loss(base: "PreTrainedModel", settings: Settings) -> Choice[bool]:
    """Return whether the model takes the chunked loss, and why."""
    if settings.kernels == "stock":
        return Choice(False, "kernels stock: transformers' own loss, which holds all logits")
    obstacle = why_not_chunked(base)
    if obstacle is not None:
        return Choice(False, f"transformers' own loss, which holds all logits: {obstacle}")
    return Choice(True, "the loss takes logits where there are targets only, a chunk at a time")
