"""From what was typed to a question about memory, and from the question to its answer."""

import gc
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lorafit.cli import console
from lorafit.cli.estimate_model import config_of, verify_model
from lorafit.cli.settings_flags import RunChoices
from lorafit.config.schema import Settings
from lorafit.errors import UsageError

if TYPE_CHECKING:
    from lorafit.config.batch import BatchPlan
    from lorafit.config.layers import Resolved
    from lorafit.hardware.info import DeviceInfo
    from lorafit.memory.data_parallel import Parallel
    from lorafit.memory.estimate import Estimate


@dataclass(frozen=True)
class Options:
    """What the command asks for beside settings."""

    expandable_segments: bool = False
    use_cache: bool = True
    fast: bool = False
    """Answer by the closed form, without tracing and without torch."""
    num_processes: int = 1
    """Processes that train together, each on a device of its own."""
    plans_batch: bool = True
    """Ask the planner for what a preset leaves to it, as training does."""


@dataclass(frozen=True)
class Question:
    """One run whose memory is asked for; its batch is settled."""

    settings: Settings
    config: Mapping[str, Any]
    """config.json of the base model."""
    device: "DeviceInfo"
    is_plain_script: bool
    """Estimate a loop around plain transformers + PEFT: `--kernels stock` was asked for."""
    options: Options
    effective_batch_size: int
    batch_reason: str
    open_batch: "tuple[Resolved, BatchPlan] | None" = field(default=None, compare=False)
    """What the planner still has to split, see `settled`."""
    is_planned: bool = False
    """Micro-batch and checkpointing are the planner's."""
    answers: dict[Settings, "Estimate"] = field(default_factory=dict, compare=False)

    def estimate(self, settings: Settings | None = None) -> "Estimate":
        """Return the exact estimate, of other settings if given; from the cache if it is there.

        Raises:
            LorafitError: the run would be refused for a reason other than its memory.
        """
        asked = settings or self.settings
        if asked not in self.answers:
            self.answers[asked] = self._answer(asked)
        return self.answers[asked]

    def is_plain(self, settings: Settings) -> bool:
        """Return whether these settings are those of a plain script, not of lorafit's training."""
        return self.is_plain_script and settings.kernels == "stock"

    def _answer(self, settings: Settings) -> "Estimate":
        if settings.method == "sft":
            return self._answer_step(settings)
        from lorafit.training.rl.memory import estimate_with_method

        def step_of(rows: int) -> "Estimate":
            wide = {"per_device_train_batch_size": rows}
            return self._answer_step(settings.model_copy(update=wide))

        return estimate_with_method(settings, self.config, self.device, step_of)

    def _answer_step(self, settings: Settings) -> "Estimate":
        from lorafit.hardware.capabilities import verify_supported
        from lorafit.training.planning.parallelism import choose_parallelism

        verify_supported(self.device, settings)
        count = self.options.num_processes
        if count == 1:
            return self._answer_alone(settings, 1)
        whole = self._with_others(settings, "ddp")
        choice, chosen = choose_parallelism(
            settings, count, self.device, whole, lambda: self._with_others(settings, "fsdp")
        )
        *facts, verdict = chosen.reasons
        return replace(chosen, reasons=(*facts, choice.reason, verdict))

    def _with_others(self, settings: Settings, parallelism: "Parallel") -> "Estimate":
        """Return the estimate of one of several processes."""
        from lorafit.memory.data_parallel import with_exchange

        count = self.options.num_processes
        alone = self._answer_alone(settings, count if parallelism == "fsdp" else 1)
        num_trainable = alone.breakdown["adapter_bytes"] // 4
        return with_exchange(
            alone, num_trainable, self.device, num_processes=count, parallelism=parallelism
        )

    def settled(self) -> "Question":
        """Return the question with what the planner of training would choose for full rows.

        Raises:
            LorafitError: the run would be refused for a reason other than its memory.
        """
        if self.open_batch is None:
            return self
        with console.watched("planning the micro-batch ..."):
            return self._planned(*self.open_batch)

    def _planned(self, resolved: "Resolved", batch: "BatchPlan") -> "Question":
        from lorafit.config.batch import resolve_batch
        from lorafit.hardware.capabilities import verify_supported
        from lorafit.training.rl.memory import fit_run

        verify_supported(self.device, self.settings)
        fitted, plan = fit_run(
            resolved,
            batch,
            dict(self.config),
            self.device,
            [self.settings.max_length] * batch.effective_batch_size,
            lambda settings, _config, _device, shards=1: self._answer_alone(settings, shards),
        )
        if plan.settings is None:
            reason = f"{batch.reason}; {plan.reason}"
            return replace(self, batch_reason=reason, open_batch=None, answers={})
        settings = _with_batch(fitted.settings, resolve_batch(fitted, batch.num_devices))
        return replace(
            self,
            settings=settings,
            batch_reason=plan.reason,
            open_batch=None,
            is_planned=True,
            answers={},
        )

    def _answer_alone(self, settings: Settings, num_shards: int) -> "Estimate":
        """Return the estimate of what a process has for itself, its share of the weights if any."""
        from lorafit.memory.cache import cached_estimate

        if self.options.fast:
            return self._answer_fast(settings, num_shards)
        if not self.options.use_cache:
            return self._compute(settings, num_shards)
        return cached_estimate(
            settings,
            dict(self.config),
            self.device,
            lambda: self._compute(settings, num_shards),
            variant=f"{self._variant(settings)} shards={num_shards}",
        )

    def _answer_fast(self, settings: Settings, num_shards: int) -> "Estimate":
        from lorafit.memory.closed_form import estimate_fast

        if self.is_plain(settings):
            raise UsageError(
                "--fast knows lorafit's own training only, not a plain script (--kernels stock)",
                hint="leave --fast out: the plain script is then traced",
            )
        return estimate_fast(settings, self.config, self.device, num_shards)

    def identity(self) -> str:
        """Return a hash of everything that the answer hangs on."""
        from lorafit.memory.cache import question_hash

        variant = f"{self._variant(self.settings)} parallelism={self.settings.parallelism}"
        return question_hash(self.settings, dict(self.config), self.device, variant)

    def _variant(self, settings: Settings) -> str:
        return f"plain={self.is_plain(settings)} expandable={self.options.expandable_segments}"

    def _compute(self, settings: Settings, num_shards: int) -> "Estimate":
        from lorafit.data.tokenize import check_max_length
        from lorafit.memory.estimate import estimate_memory, parse_config

        prepare_tracing()
        verify_model(settings)
        if not self.is_plain(settings):  # a plain script runs past the positions without a word
            check_max_length(settings, parse_config(dict(self.config), settings.model))
        return estimate_memory(
            settings,
            dict(self.config),
            self.device,
            plain_script=self.is_plain(settings),
            expandable_segments=self.options.expandable_segments,
            num_shards=num_shards,
        )

    def assumptions(self) -> tuple[str, ...]:
        """Return what the estimate takes for granted, as sentences."""
        settings = self.settings
        lines = [
            f"every row is as long as max_length, {settings.max_length} tokens: shorter rows take "
            "less",
            f"{settings.per_device_train_batch_size} rows x {settings.gradient_accumulation_steps} "
            f"accumulation on {self._devices()}; {self.batch_reason}",
        ]
        if self.is_planned:
            lines.append(
                "planned for rows of that length: train plans with the lengths of the data's rows"
            )
        if self.is_plain_script:
            lines.append("a loop around plain transformers + PEFT, as --kernels stock asks for")
        if settings.torch_compile and self.device.kind == "cuda" and not self.is_plain_script:
            lines.append("the step as it runs without torch.compile, whose kernels are not traced")
        return tuple(lines)

    def _devices(self) -> str:
        count = self.options.num_processes
        return "one device" if count == 1 else f"each of {count} devices like this one"

    def document(self) -> dict[str, Any]:
        """Return the answer as a JSON document, with what it assumes."""
        return {**self.estimate().document(), "assumptions": list(self.assumptions())}


def prepare_tracing() -> None:
    """Load the libraries that a trace needs, quiet and quickly.

    What is imported stays: looking through it for garbage takes a fifth of the time and finds
    nothing.
    """
    from lorafit.model.libraries import prepare_libraries

    gc.disable()
    try:
        prepare_libraries()
        for name in ("peft", "lorafit.memory.trace_layers"):
            importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()


def ask(choices: RunChoices, options: Options) -> Question:
    """Return the question that the command line asks.

    Raises:
        LorafitError: a setting, the device or the model is not what it should be.
    """
    return ask_each([choices], options)[0]


def ask_each(choices: Sequence[RunChoices], options: Options) -> list[Question]:
    """Return several questions; mistakes in any are found before a plan for one takes its time.

    Raises:
        LorafitError: as `ask`.
    """
    return [question.settled() for question in [_ask(each, options) for each in choices]]


def _ask(choices: RunChoices, options: Options) -> Question:
    from lorafit.config.batch import resolve_batch
    from lorafit.config.parallelism import verify_parallelism
    from lorafit.training.planning.fit import wants_planner

    resolved, device = choices.resolve()
    verify_parallelism(resolved, options.num_processes)
    batch = resolve_batch(resolved, options.num_processes)
    settings = _with_batch(resolved.settings, batch)
    is_plain_script = settings.kernels == "stock" and resolved.is_explicit("kernels")
    is_open = options.plans_batch and not is_plain_script and wants_planner(resolved)
    return Question(
        settings=settings,
        config=config_of(settings.model, settings.revision),
        device=device,
        is_plain_script=is_plain_script,
        options=options,
        effective_batch_size=batch.effective_batch_size,
        batch_reason=batch.reason,
        open_batch=(resolved, batch) if is_open else None,
    )


def _with_batch(settings: Settings, batch: "BatchPlan") -> Settings:
    """Return the settings as training will be batched; the effective batch is the product."""
    return settings.model_copy(
        update={
            "per_device_train_batch_size": batch.per_device_train_batch_size,
            "gradient_accumulation_steps": batch.gradient_accumulation_steps,
            "effective_batch_size": None,
        }
    )


def with_value(choices: RunChoices, name: str, value: str) -> RunChoices:
    """Return the choices with one more flag, or for another device."""
    if name == "hardware":
        return replace(choices, hardware=value)
    flag: str | bool = {"true": True, "false": False}.get(value.lower(), value)
    return replace(choices, flags={**choices.flags, name: flag})
