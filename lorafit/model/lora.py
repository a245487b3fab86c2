"""Which modules get an adapter, and the PEFT configuration for it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.text import nearest

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import nn

_GATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# model_type -> every Linear of a decoder layer. Adapting all of them does better at the same
# number of parameters than a higher rank on attention alone (QLoRA, arXiv 2305.14314, figure 2).
DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    "llama": _GATED,
    "mistral": _GATED,
    "gemma3_text": _GATED,
    "gemma3": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
}

# Names of earlier Phi-2 code, which PEFT would silently match to nothing.
_RENAMED = {"Wqkv": "q_proj,k_proj,v_proj", "out_proj": "dense"}


@dataclass(frozen=True)
class Targets:
    """The modules that get an adapter, and why these."""

    names: tuple[str, ...]
    reason: str


def choose_targets(model: "nn.Module", model_type: str, requested: Iterable[str] | None) -> Targets:
    """Return the target modules, checked against the real Linear names of the model.

    Raises:
        ConfigError: a requested name matches no Linear module.
    """
    linear = linear_names(model)
    if requested is None:
        known = DEFAULT_TARGETS.get(model_type)
        if known:
            return Targets(known, f"all Linear modules of a {model_type} layer")
        return Targets(linear, f"every Linear module found: {model_type} has no entry of its own")
    names = tuple(requested)
    output = _output_name(model)
    problems = [
        _unknown(name, linear, model_type) for name in names if name not in (*linear, output)
    ]
    if output in names and _is_tied(model):
        problems.append(_tied(str(output)))
    if problems:
        raise ConfigError(problems)
    return Targets(names, "as set by target_modules")


def _unknown(name: str, linear: tuple[str, ...], model_type: str) -> Problem:
    suggestion = _RENAMED.get(name) if model_type == "phi" else None
    suggestion = suggestion or nearest(name, linear)
    return Problem(
        "target_modules",
        f"{name!r} matches no Linear module of this {model_type} model, so it would train nothing; "
        f"there are: {', '.join(linear)}",
        hint=f"write {suggestion} instead of {name}" if suggestion else None,
    )


def _tied(name: str) -> Problem:
    return Problem(
        "target_modules",
        f"{name!r} has its weights from the input embedding (tie_word_embeddings), so that an "
        "adapter on it could never be merged: the embedding would change with it",
        hint=f"leave {name} out",
    )


def _output_name(model: "nn.Module") -> str | None:
    """Return the last name of the output layer, if it is a Linear module."""
    from torch import nn

    output = _output_layer(model)
    names = (name for name, module in model.named_modules() if module is output)
    return next(names).rpartition(".")[2] if isinstance(output, nn.Linear) else None


def _output_layer(model: "nn.Module") -> Any:
    find = getattr(model, "get_output_embeddings", None)
    return find() if find is not None else None


def _is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def linear_names(model: "nn.Module") -> tuple[str, ...]:
    """Return the last names of all Linear modules that text goes through, in model order.

    Without the output layer, and without the encoders of images that some models have.
    """
    output = _output_layer(model)
    names = dict.fromkeys(
        name.rpartition(".")[2]
        for name, module in _linears(_decoder(model))
        if module is not output
    )
    return tuple(names)


def encoder_linears(model: "nn.Module", names: Iterable[str]) -> list[str]:
    """Return the full names of Linear modules called so that text does not go through.

    Encoders of images have a `q_proj` too: an adapter there would never learn from text.
    """
    reached = {id(module) for _, module in _linears(_decoder(model))} | {id(_output_layer(model))}
    wanted = set(names)
    return [
        name
        for name, module in _linears(model)
        if id(module) not in reached and name.rpartition(".")[2] in wanted
    ]


def _linears(model: "nn.Module") -> "Iterator[tuple[str, nn.Module]]":
    from torch import nn

    return ((name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear))


def _decoder(model: "nn.Module") -> "nn.Module":
    find: Callable[[], nn.Module | None] | None = getattr(model, "get_decoder", None)
    return (find() if find is not None else None) or model


def lora_config(settings: Settings, targets: Targets, excluded: Sequence[str] = ()) -> "LoraConfig":
    """Return the PEFT configuration of the adapter.

    Args:
        settings: rank, scale, dropout.
        targets: last names of the modules that get an adapter.
        excluded: full names of modules that get none though they are called so.
    """
    from peft import LoraConfig

    alpha = settings.lora_alpha
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        # PEFT's file format has an integer here in nearly every adapter there is.
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(targets.names),
        exclude_modules=list(excluded) or None,
        modules_to_save=list(settings.modules_to_save) or None,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        bias="none",
    )


def trainable_by_module(model: "nn.Module") -> dict[str, int]:
    """Return the number of trainable parameters by target module name, such as `q_proj`."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            module = name.split(".lora_")[0].split(".modules_to_save")[0].rpartition(".")[2]
            counts[module] = counts.get(module, 0) + parameter.numel()
    return counts
