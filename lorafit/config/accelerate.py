"""What `accelerate launch` was configured to do, as a layer of settings.

It tells the processes that it starts by environment variables, whether the values come from its
own configuration file, from flags or from a DeepSpeed file. A person chose them as much as any
setting here, so where the two disagree, neither is taken in silence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lorafit.config.deepspeed import DEFAULT_STAGE, STAGE, deepspeed_outcome
from lorafit.config.document import Plain
from lorafit.config.fields import show_value
from lorafit.config.layers import EXPLICIT_KINDS, Given, Layer, validate_values
from lorafit.config.loading import load_document
from lorafit.config.outcomes import Carried, Lost
from lorafit.errors import Problem
from lorafit.text import excerpt

_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_STAGE_VARIABLE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
_DEEPSPEED_VARIABLES = {
    _STAGE_VARIABLE: STAGE,
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "gradient_clipping",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "zero_optimization.offload_optimizer.device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "zero_optimization.offload_param.device",
}
"""The keys of a DeepSpeed configuration that accelerate's own has too."""
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_COMPILER = "ACCELERATE_DYNAMO_BACKEND"
_PRECISIONS: dict[str, Plain] = {"bf16": "bfloat16", "fp16": "float16"}


_FSDP = "ACCELERATE_USE_FSDP"
_FSDP_STRATEGY = "FSDP_SHARDING_STRATEGY"
_FSDP_OFFLOADING = "FSDP_OFFLOAD_PARAMS"
_FSDP_CHECKPOINTING = "FSDP_ACTIVATION_CHECKPOINTING"
_LAUNCH = "accelerate launch's"


class Launched(NamedTuple):
    """What a launcher's configuration is here."""

    layer: Layer
    zero_stage: int | None = None
    """Of DeepSpeed, where several processes were to use it."""


def is_on(environ: Mapping[str, str], variable: str) -> bool:
    """Return whether one of accelerate's switches is set, as accelerate reads it."""
    return environ.get(variable, "").lower() in ("true", "1", "yes")


def accelerate_layer(environ: Mapping[str, str], others: Sequence[Layer]) -> Launched:
    """Return the settings that `accelerate launch` asks for; none where it started nothing.

    Args:
        environ: of this process.
        others: the layers besides; those that a person asked for must not contradict it.

    Raises:
        ConfigError: the DeepSpeed file cannot be read.
    """
    reading = _Reading()
    stage = None
    if is_on(environ, _DEEPSPEED):
        for key, given in _deepspeed_keys(environ).items():
            reading.add(key, given)
        stage = reading.zero_stage
    elif is_on(environ, _FSDP):
        reading.add_fsdp(environ)
    if environ.get("WORLD_SIZE", "1") == "1" and reading.share_nothing():
        stage = None
    reading.add_precision(environ.get(_PRECISION, "no").lower())
    if environ.get(_COMPILER, "no").lower() != "no":
        reading.remarks.append(f"{_LAUNCH} {_COMPILER}: it has no effect: torch_compile compiles")
    layer = Layer("accelerate launch", "env", reading.values, (), tuple(reading.remarks))
    problems = [*reading.problems, *_contradictions(layer, others)]
    return Launched(replace(layer, problems=tuple(problems)), stage)


def _deepspeed_keys(environ: Mapping[str, str]) -> dict[str, Given]:
    """Return DeepSpeed's keys: those of its own file, and over them those of accelerate's."""
    found: dict[str, Given] = {}
    path = environ.get(_DEEPSPEED_FILE, "none")
    if path not in ("", "none"):
        document = load_document(Path(path))
        for key, node in document.flat():
            found[key] = Given(node.plain(), f"{document.where(node)} ({excerpt(key, 60)})")
    for variable, key in _DEEPSPEED_VARIABLES.items():
        if variable in environ:
            where = f"{_LAUNCH} {variable}"
            found[key] = Given(_number_or_text(environ[variable]), where)
    found.setdefault(STAGE, Given(DEFAULT_STAGE, f"{_LAUNCH} default ZeRO stage"))
    return found


def _number_or_text(text: str) -> Plain:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class _Reading:
    """The settings of a launcher as they are read, and what is wrong or without effect."""

    def __init__(self) -> None:
        self.values: dict[str, Given] = {}
        self.problems: list[Problem] = []
        self.remarks: list[str] = []
        self.zero_stage: int | None = None

    def add(self, key: str, given: Given) -> None:
        """Add a key of a DeepSpeed configuration."""
        outcome = deepspeed_outcome(key, _plain(given))
        if isinstance(outcome, Carried):
            if key == STAGE:
                self.zero_stage = int(str(given.value))
            self.values[outcome.setting] = Given(outcome.value, given.where)
        elif isinstance(outcome, Lost) and outcome.stops_run:
            message = f"{excerpt(show_value(_plain(given)), 40)} is not done here: {outcome.reason}"
            hint = "take it out of the configuration that accelerate launch was given"
            self.problems.append(Problem(given.where, message, hint))
        elif isinstance(outcome, Lost):
            self.remarks.append(f"{given.where}: it has no effect: {outcome.reason}")

    def add_fsdp(self, environ: Mapping[str, str]) -> None:
        """Add what accelerate's FSDP is configured for: it shards as lorafit's does."""
        # Accelerate knows the strategies by number too; 3 shards nothing, as DDP.
        whole = environ.get(_FSDP_STRATEGY, "").upper() in ("NO_SHARD", "3")
        where = f"{_LAUNCH} {_FSDP_STRATEGY if whole else _FSDP}"
        self.values["parallelism"] = Given("ddp" if whole else "fsdp", where)
        if is_on(environ, _FSDP_CHECKPOINTING):
            where = f"{_LAUNCH} {_FSDP_CHECKPOINTING}"
            self.values["gradient_checkpointing"] = Given(True, where)
        if is_on(environ, _FSDP_OFFLOADING):
            self.add("zero_optimization.offload_param.device",
                     Given("cpu", f"{_LAUNCH} {_FSDP_OFFLOADING}"))  # fmt: skip

    def share_nothing(self) -> bool:
        """Leave out how several processes share weights; return whether anything asked for it."""
        asked = self.values.pop("parallelism", None)
        if asked is None:
            return False
        self.remarks.append(f"{asked.where}: it has no effect: one process shares nothing")
        return True

    def add_precision(self, name: str) -> None:
        """Add accelerate's mixed precision; `no` is what it says where nobody asked."""
        where = f"{_LAUNCH} {_PRECISION}"
        if name in _PRECISIONS:
            first = self.values.get("compute_dtype")
            if first is not None and first.value != _PRECISIONS[name]:
                message = f"{name} is not the precision of {first.where}"
                self.problems.append(Problem(where, message, "leave one of the two out"))
            self.values["compute_dtype"] = Given(_PRECISIONS[name], where)
        elif name != "no":
            message = f"{excerpt(name, 40)} is no precision that lorafit computes in"
            self.problems.append(Problem(where, message, "use bf16, fp16 or no"))


def _plain(given: Given) -> Plain:
    value: Plain = given.value  # type: ignore[assignment]  # read from JSON or made by this module
    return value


def _contradictions(layer: Layer, others: Sequence[Layer]) -> list[Problem]:
    """Return where a person asked for one thing here and for another of the launcher."""
    own, _ = validate_values(layer)
    problems = []
    for other in others:
        if other.kind not in EXPLICIT_KINDS:
            continue
        theirs, _ = validate_values(other)
        for name in sorted(own.keys() & theirs.keys()):
            one, two = own[name], theirs[name]
            if one.value != two.value:
                where = f"{name} ({two.origin}) and {one.origin}"
                message = f"they are {show_value(two.value)} and {show_value(one.value)}"
                hint = "give one of them; `auto` in a DeepSpeed file leaves the choice to lorafit"
                problems.append(Problem(where, message, hint))
    return problems
