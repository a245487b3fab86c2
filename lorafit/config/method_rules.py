"""What the training method says about the other settings: contradictions, and what it turns off."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lorafit.config.fields import show_value
from lorafit.config.schema import Settings, recommended_range
from lorafit.config.settings.declare import Recommended

GRPO_ONLY = ("reward_functions", "num_generations", "max_completion_length", "temperature")
_NEVER_USED = (
    "packing", "train_on_prompt", "prompt_template", "completion_template",
    "label_smoothing_factor", "validation_data", "validation_split", "eval_steps",
    "early_stopping_patience", "load_best_model_at_end", "sample_prompts",
)  # fmt: skip
DEFAULT_BETA = {"grpo": 0.0, "dpo": 0.1}
"""What `beta` none means: that of the DPO paper, and no pull where rewards are computed."""
RL_RATES = Recommended(
    low=1e-6,
    high=5e-5,
    below="learning is slow: the run may end underfitted",
    above="the model may leave what it has learnt before",
)
"""Learning rates of an adapter under grpo and dpo: from TRL's default, one for whole models, to
where the range of sft begins."""


class Turned(NamedTuple):
    """A value that the method sets where nobody asked for another, and why."""

    value: Any
    reason: str


def method_conflicts(
    settings: Settings, is_explicit: Callable[[str], bool]
) -> Iterator[tuple[tuple[str, ...], str, str | None]]:
    """Yield what cannot be with this method: settings, message, hint."""
    method = settings.method
    alien = {"sft": (*GRPO_ONLY, "beta"), "dpo": GRPO_ONLY, "grpo": ()}[method]
    for name in alien:
        if is_explicit(name):
            other = "grpo or dpo" if name == "beta" and method == "sft" else "grpo"
            yield (
                (name,),
                f"only method {other} has it, and the method is {method}: it would have no effect",
                f"add --method {other.split()[0]}, or leave {name} out",
            )
    if method == "sft":
        return
    for name in _NEVER_USED:
        default = Settings.model_fields[name].default
        if is_explicit(name) and getattr(settings, name) not in (default, 0):
            yield (
                (name,),
                f"method {method} does not use it: it would have no effect",
                f"leave {name} out",
            )
    if method == "grpo" and settings.max_completion_length >= settings.max_length:
        yield (
            ("max_completion_length", "max_length"),
            f"answers of up to {settings.max_completion_length} tokens leave no room for a prompt "
            f"in max_length {settings.max_length}",
            "raise max_length, or lower max_completion_length",
        )


def method_advice(
    settings: Settings, is_explicit: Callable[[str], bool]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what is allowed with this method and yet worth a word: settings, message."""
    # A preset's rate is one for sft too.
    if settings.method != "sft" and not is_explicit("learning_rate"):
        yield (
            ("learning_rate", "method"),
            f"{show_value(settings.learning_rate)} is a rate for sft; method "
            f"{settings.method} takes less: begin with 1e-05",
        )


def advised_range(settings: Settings, name: str) -> Recommended | None:
    """Return the recommended range of a setting under the method of the run, if it has one."""
    if name == "learning_rate" and settings.method != "sft":
        return RL_RATES
    return recommended_range(name)


def turned_by_method(settings: Settings) -> dict[str, Turned]:
    """Return what a method other than sft sets where nobody asked for another value."""
    if settings.method == "sft":
        return {}
    no_validation = "its reward is measured on the training prompts themselves"
    return {
        "validation_split": Turned(0.0, no_validation),
        "sample_prompts": Turned(0, no_validation),
        "load_best_model_at_end": Turned(False, no_validation),
        "early_stopping_patience": Turned(None, no_validation),
        "packing": Turned(False, "rows are compared one by one"),
        "lora_dropout": Turned(
            0.0, "log-probabilities must be those of the model that writes the answers"
        ),
    }
