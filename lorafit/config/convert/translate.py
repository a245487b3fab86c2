"""From a configuration of another tool to settings of lorafit, key by key."""

import re
from dataclasses import dataclass
from pathlib import Path

from lorafit.config.convert.detect import detect_kind
from lorafit.config.convert.dialects import (
    DIALECTS,
    HF_JSON_IMPLIED,
    IMPLIED,
    NESTED,
    Kind,
    tool_of,
)
from lorafit.config.convert.python_file import read_python
from lorafit.config.document import Document, Plain, Source
from lorafit.config.fields import (
    SettingValue,
    WrongValueError,
    check_value,
    field_rule,
    parse_text,
    show_value,
)
from lorafit.config.foreign import hf_rule, spelling_rule, unknown_outcome
from lorafit.config.layers import Given, Layer, resolve_layers
from lorafit.config.loading import load_document, read_text
from lorafit.config.names import SECRET_NAMES, canonical_name, unknown_name
from lorafit.config.outcomes import Carried, Kept, Lost, Outcome
from lorafit.config.schema import Settings
from lorafit.errors import ConfigError, Problem
from lorafit.hardware.info import Choice

_MICRO, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
_EFFECTIVE = "effective_batch_size"
_PROCESSES = frozenset({"num_processes", "num_gpus", "n_gpus", "num_devices", "world_size"})
# Words of section names that are about a run; of other sections nothing is carried over.
_RUN_SECTIONS = re.compile(
    r"model|lora|peft|adapter|data|train|batch|optim|sched|logg|checkpoint|save|run|quant|bnb|"
    r"bits|config|arg|param|memory|general|common|base|precision|defaults|eval|setting|tuning"
)


@dataclass(frozen=True)
class Setting:
    """A setting of the converted file."""

    name: str
    value: SettingValue
    key: str
    """The key that it comes from; empty for what the tool implies."""
    where: str
    """`file:line` of the key, or why the value is implied."""


@dataclass(frozen=True)
class Remark:
    """A key that did not become a setting of its own, and why."""

    key: str
    where: str
    reason: str
    changes_run: bool = False
    """Whether a run without it is another run."""


@dataclass(frozen=True)
class Conversion:
    """A configuration of another tool as settings of lorafit."""

    kind: Choice[Kind]
    source: str
    settings: tuple[Setting, ...]
    kept: tuple[Remark, ...]
    """Keys that ask for what lorafit does anyway."""
    lost: tuple[Remark, ...]
    """Keys that could not be carried over."""
    warnings: tuple[str, ...]
    """What the settings say about each other."""

    @property
    def values(self) -> dict[str, SettingValue]:
        """The settings by name."""
        return {setting.name: setting.value for setting in self.settings}


def convert_file(path: Path, *, kind: Kind | None = None, num_processes: int = 1) -> Conversion:
    """Return the settings of a file written for another tool.

    Args:
        path: a Python, JSON, YAML or TOML file.
        kind: the tool; None: told by the keys.
        num_processes: processes that the file was run with: above 1, their effective batch
            becomes a setting, so that it stays on any number of devices.

    Raises:
        ConfigError: the file cannot be read, or nothing in it is a setting.
    """
    unread: list[Remark] = []
    if path.suffix.lower() == ".py":
        config = read_python(Source(str(path), read_text(path)))
        document = config.document
        unread = [
            Remark(u.key, f"{document.source}:{u.line}", u.reason + _default_of(u.key))
            for u in config.unread
        ]
    else:
        document = load_document(path)
    choice = Choice(kind, "named with --from") if kind else detect_kind(document, path)
    translator = _Translator(document, choice.value, num_processes)
    translator.run()
    if not translator.settings:
        keys = ", ".join(key for key, _ in document.flat())[:80] or "none"
        message = f"nothing in it is a setting of lorafit; its keys: {keys}"
        hint = "say with --from which tool it was written for"
        raise ConfigError([Problem(document.source, message, hint)])
    translator.settle()
    return Conversion(
        kind=choice,
        source=document.source,
        settings=tuple(translator.settings.values()),
        kept=tuple(translator.kept),
        lost=(*translator.lost, *unread),
        warnings=_warnings_of(translator.settings, document.source),
    )


class _Translator:
    """The settings found so far, and the keys that gave none."""

    def __init__(self, document: Document, kind: Kind, num_processes: int) -> None:
        self.document = document
        self.kind = kind
        self.num_processes = num_processes
        self.settings: dict[str, Setting] = {}
        self.kept: list[Remark] = []
        self.lost: list[Remark] = []

    def run(self) -> None:
        """Translate every key of the document, in its order."""
        for key, node in self.document.flat():
            where, value = self.document.where(node), node.plain()
            outcome: Outcome | None = self._outcome(key, value)
            if isinstance(outcome, Carried):
                outcome = self._carry(outcome, key, where)
            if isinstance(outcome, Kept):
                self.kept.append(Remark(key, where, outcome.reason))
            elif isinstance(outcome, Lost):
                self.lost.append(Remark(key, where, outcome.reason, outcome.stops_run))

    def settle(self) -> None:
        """Add what the tool implies, and the effective batch of several processes."""
        for name, value in self._implied().items():
            if name not in self.settings and not _is_overruled(name, self.settings):
                where = f"not in the file: the default of {tool_of(self.kind)}"
                self.settings[name] = Setting(name, check_value(name, value), "", where)
        if self.settings.get("quantization", _NOTHING).value != "nf4":
            self._drop("double_quant", "only nf4 has it")
        micro, accumulation = (self.settings.get(name) for name in (_MICRO, _ACCUMULATION))
        if self.num_processes > 1 and micro and accumulation and _EFFECTIVE not in self.settings:
            rows = int(str(micro.value)) * int(str(accumulation.value)) * self.num_processes
            sum_of = f"{micro.value} x {accumulation.value} x {self.num_processes} processes"
            self.settings[_EFFECTIVE] = Setting(_EFFECTIVE, rows, accumulation.key, sum_of)
            self._drop(_ACCUMULATION, f"it follows from {sum_of} = {rows} rows a step")

    def _drop(self, name: str, reason: str) -> None:
        setting = self.settings.pop(name, None)
        if setting is not None and setting.key:
            self.kept.append(Remark(setting.key, setting.where, reason))

    def _implied(self) -> dict[str, Plain]:
        implied = dict(IMPLIED[self.kind])
        rank = self.settings.get("lora_r")
        if self.kind in ("hf-json", "trl") and "quantization" in self.settings:
            implied["double_quant"] = False
        if self.kind == "llama-factory":  # its scale is twice the rank
            implied["lora_alpha"] = 2 * int(str(rank.value)) if rank else 16
        if self.kind == "hf-json":
            if {_MICRO, "num_train_epochs", "learning_rate"} & self.settings.keys():
                implied |= HF_JSON_IMPLIED["training"]
            if {"lora_r", "lora_alpha"} & self.settings.keys():
                implied |= HF_JSON_IMPLIED["lora"]
        return implied

    def _outcome(self, key: str, value: Plain) -> Outcome:
        section, _, name = key.rpartition(".")
        name = name.lower()
        if isinstance(value, str) and "${" in value:
            return Lost("it is an interpolation: write the value that it stands for")
        if name in _PROCESSES and isinstance(value, int) and value >= 1:
            self.num_processes = max(self.num_processes, value)
            return Kept("the effective batch of that many processes is kept")
        outermost = key.partition(".")[0].lower()
        if section and outermost in NESTED:
            return Kept(NESTED[outermost])
        own = DIALECTS[self.kind]
        rule = own.get(f"{section.rpartition('.')[2].lower()}.{name}") or own.get(name)
        if rule is not None:
            return rule(value)
        if name in SECRET_NAMES:
            return Lost(unknown_name(name)[0])
        if name == "trust_remote_code" and value:
            # Recipes set it for models that need no code too; one that does is refused by itself.
            return Lost(unknown_name(name)[0])
        if section and not _RUN_SECTIONS.search(section.lower()):
            return Lost(f"the section {section} is not about the settings of a run")
        rule = spelling_rule(name)
        known = canonical_name(name) or canonical_name(key.lower())
        if rule is None and known is not None:
            return Kept("it is not set") if value is None else Carried(known, value)
        rule = rule or hf_rule(name)
        return rule(value) if rule is not None else unknown_outcome(name, value)

    def _carry(self, carried: Carried, key: str, where: str) -> Outcome | None:
        """Add a setting; return why not, where its value cannot be had or another stands there."""
        name = carried.setting
        try:
            value = _setting_value(name, carried.value)
        except WrongValueError as error:
            return Lost(error.message)
        first = self.settings.get(name)
        if first is None:
            self.settings[name] = Setting(name, value, key, where)
            return None
        if first.value == value:
            return Kept(f"{first.key} ({first.where}) says the same")
        return Lost(
            f"it says {show_value(value)}, and {first.key} ({first.where}) says "
            f"{show_value(first.value)} for {name}, which was taken"
        )


_NOTHING = Setting("", None, "", "")


def _default_of(key: str) -> str:
    """Return what holds where a setting could not be read, as the end of a sentence."""
    name = canonical_name(key)
    if name is None:
        return ""
    return f"; {name} stays {show_value(Settings.model_fields[name].default)} unless you set it"


def _is_overruled(name: str, settings: dict[str, Setting]) -> bool:
    """Return whether another setting decides what this implied one would."""
    pairs = {
        "num_train_epochs": "max_steps",
        "warmup_ratio": "warmup_steps",
        "validation_split": "validation_data",
        _ACCUMULATION: _EFFECTIVE,
    }
    return pairs.get(name) in settings


def _setting_value(name: str, value: Plain) -> SettingValue:
    """Return a value as the setting's type; numbers may stand in quotes there, and 3 as 3.0."""
    rule = field_rule(name)
    if isinstance(value, str) and rule.kind in ("integer", "number", "boolean"):
        return parse_text(name, value.lower())
    if rule.kind == "integer" and isinstance(value, float) and value.is_integer():
        return check_value(name, int(value))
    if rule.kind == "list" and isinstance(value, str):
        return parse_text(name, value)
    return check_value(name, value)


def _warnings_of(settings: dict[str, Setting], source: str) -> tuple[str, ...]:
    values = {name: Given(setting.value, setting.where) for name, setting in settings.items()}
    try:
        return resolve_layers([Layer(source, "file", values)]).warnings
    except ConfigError as error:
        return tuple(f"{problem} ({problem.hint})" for problem in error.problems)
