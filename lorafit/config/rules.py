"""What settings say about each other: contradictions, and values that deserve a warning."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lorafit.config.fields import show_value
from lorafit.config.method_rules import advised_range, method_advice, method_conflicts
from lorafit.config.schema import Settings

POLYNOMIAL_END = 1e-7
"""Where transformers' polynomial schedule ends; the peak must be above it."""


class Finding(NamedTuple):
    """Something to say about one or more settings."""

    settings: tuple[str, ...]
    message: str
    hint: str | None = None


IsExplicit = Callable[[str], bool]


def find_conflicts(settings: Settings, is_explicit: IsExplicit) -> list[Finding]:
    """Return the contradictions between settings, each of which must stop the run."""
    return [
        *_schedule_conflicts(settings),
        *_template_conflicts(settings),
        *_packing_conflicts(settings),
        *(Finding(*conflict) for conflict in method_conflicts(settings, is_explicit)),
    ]


def _packing_conflicts(settings: Settings) -> Iterator[Finding]:
    if settings.packing and settings.padding_free == "false":
        yield Finding(
            ("packing", "padding_free"),
            "packing is on and padding_free is off: the rows of a bin go end to end",
            "leave padding_free out, or set packing to false",
        )
    if settings.packing and settings.kernels == "stock":
        yield Finding(
            ("packing", "kernels"),
            "packing needs attention that keeps rows apart, and kernels stock trains with padding",
            "use kernels lorafit, or set packing to false",
        )


def _schedule_conflicts(settings: Settings) -> Iterator[Finding]:
    warmup, steps = settings.warmup_steps, settings.max_steps
    if warmup is not None and steps is not None and warmup >= steps:
        yield Finding(
            ("warmup_steps", "max_steps"),
            f"a warm-up of {warmup} steps does not end within {steps} steps, "
            "so the learning rate would never reach its peak",
            f"warmup_steps must be below {steps}, or leave it out and use warmup_ratio",
        )
    if settings.lr_scheduler_type == "polynomial" and settings.learning_rate <= POLYNOMIAL_END:
        yield Finding(
            ("learning_rate", "lr_scheduler_type"),
            f"the polynomial schedule falls to {POLYNOMIAL_END:g}, and the peak "
            f"{settings.learning_rate:g} is not above that",
            "raise learning_rate, or use lr_scheduler_type linear",
        )


def _template_conflicts(settings: Settings) -> Iterator[Finding]:
    pair = ("prompt_template", "completion_template")
    for name, other in (pair, pair[::-1]):
        if getattr(settings, name) is not None and getattr(settings, other) is None:
            yield Finding(
                (name,),
                f"it is set and {other} is not: a row needs both to become a prompt and an answer",
                f"set {other} too, with {{field}} placeholders",
            )


def find_warnings(settings: Settings, is_explicit: IsExplicit) -> list[Finding]:
    """Return what is allowed and yet worth a word, for values that a person asked for."""
    found = [
        *_range_warnings(settings, is_explicit),
        *_alpha_warnings(settings, is_explicit),
        *_interval_warnings(settings, is_explicit),
        *_without_effect(settings, is_explicit),
        *(Finding(*advice) for advice in method_advice(settings, is_explicit)),
    ]
    return [finding for finding in found if any(map(is_explicit, finding.settings))]


def _range_warnings(settings: Settings, is_explicit: IsExplicit) -> Iterator[Finding]:
    for name in Settings.model_fields:
        advised = advised_range(settings, name)
        value = getattr(settings, name)
        if advised is None or value is None or not is_explicit(name):
            continue
        if advised.low <= value <= advised.high:
            continue
        consequence = advised.below if value < advised.low else advised.above
        bounds = f"{show_value(advised.low)} to {show_value(advised.high)}"
        message = f"{show_value(value)} is outside the recommended {bounds}: {consequence}"
        yield Finding((name,), message)


def _alpha_warnings(settings: Settings, is_explicit: IsExplicit) -> Iterator[Finding]:
    ratio = settings.lora_alpha / settings.lora_r
    if 2 <= ratio <= 4:
        return
    names = ("lora_alpha", "lora_r") if is_explicit("lora_alpha") else ("lora_r", "lora_alpha")
    effect = "the adapter changes the model little" if ratio < 2 else "updates may be too strong"
    yield Finding(
        names,
        f"lora_alpha {show_value(settings.lora_alpha)} is {ratio:.3g} times lora_r "
        f"{settings.lora_r}, and 2 to 4 times is usual: {effect}",
    )


def _interval_warnings(settings: Settings, is_explicit: IsExplicit) -> Iterator[Finding]:
    steps = settings.max_steps
    if steps is not None and settings.save_steps > steps and is_explicit("save_steps"):
        yield Finding(
            ("save_steps", "max_steps"),
            f"a run of {steps} steps ends before the first checkpoint at {settings.save_steps}: "
            "if it is killed, nothing is kept",
        )
    if steps is not None and settings.eval_steps > steps and is_explicit("eval_steps"):
        yield Finding(
            ("eval_steps", "max_steps"),
            f"a run of {steps} steps ends before step {settings.eval_steps}: "
            "validation runs only at the end",
        )


def _without_effect(settings: Settings, is_explicit: IsExplicit) -> Iterator[Finding]:
    """Yield a finding for each value that was asked for and does nothing."""
    no_validation = settings.validation_split == 0 and settings.validation_data is None
    constant = settings.lr_scheduler_type == "constant"
    cases = (
        (
            "num_train_epochs",
            settings.max_steps is not None,
            "max_steps sets the length of the run",
        ),
        ("warmup_ratio", settings.warmup_steps is not None, "warmup_steps sets the warm-up"),
        ("warmup_ratio", constant, "the constant schedule has no warm-up"),
        ("warmup_steps", constant, "the constant schedule has no warm-up"),
        ("double_quant", settings.quantization != "nf4", "only quantization nf4 has it"),
        ("validation_split", settings.validation_data is not None, "validation_data is given"),
        ("eval_steps", no_validation, "nothing is held out: validation_split is 0"),
        ("early_stopping_patience", no_validation, "validation_split is 0: nothing is held out"),
        ("sample_prompts", no_validation, "validation_split is 0: nothing is held out"),
        ("per_device_eval_batch_size", no_validation, "validation_split is 0: nothing is held out"),
        ("load_best_model_at_end", no_validation, "validation_split is 0: nothing is held out"),
    )
    for name, pointless, why in cases:
        if pointless and is_explicit(name):
            yield Finding((name,), f"it has no effect: {why}")
