"""What differs between a run and the command that would continue it, in words, and the ways out."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafit.config.fields import show_value
from lorafit.config.schema import Settings
from lorafit.text import excerpt

_WIDTH = 40
_MAX_FLAGS = 8

# Facts that have another name than the setting that decides them.
_SETTING_OF = {
    "micro_batch": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "device_kind": "device",
}
_MEANINGS = {
    "micro_batch": "rows that a device takes at once",
    "accumulation": "micro-batches of a step",
    "num_devices": "processes that train together",
    "micro_batch_tokens": "tokens of a micro-batch at most",
    "padding_free": "rows end to end instead of padded",
    "total_steps": "steps of the whole run",
    "num_train_rows": "rows to train on",
    "device_kind": "kind of device",
}
_DATA, _REWARDS, _TOKENIZER = "data_sha256", "reward_file_sha256", "tokenizer_sha256"
_MODEL = {
    "base_config_sha256": "config.json has changed",
    "base_weights": "the weights have changed",
    _TOKENIZER: "the tokenizer has changed",
}
# They follow from other facts, and come back with them.
_DERIVED = frozenset({"micro_batch_tokens", "num_train_rows"})


@dataclass(frozen=True)
class Origins:
    """Where a run got what its fingerprint only has digests of."""

    data: str | None = None
    num_rows: int | None = None
    """Rows that were read of the data, those held out for validation included."""
    model: str | None = None

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Origins":
        """Return what run.json says of them; what it does not say is None."""
        data = _look(record, "plan", "data", "training")
        rows, model = _look(data, "rows_read"), _look(record, "settings", "model", "value")
        name = _look(record, "settings", "data", "value")
        return cls(
            name if isinstance(name, str) else None,
            rows if isinstance(rows, int) else None,
            model if isinstance(model, str) else None,
        )


def _look(document: Any, *names: str) -> Any:
    for name in names:
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


@dataclass(frozen=True)
class Mismatch:
    """Facts of a run that a command does not share, as name to (then, now)."""

    facts: Mapping[str, tuple[Any, Any]]
    then: Origins
    now: Origins

    def subject(self) -> str:
        """Return what is other than it was, such as `other data and settings`."""
        kinds = {
            "data": _DATA in self.facts,
            "base model": any(name in self.facts for name in _MODEL),
            "settings": any(name not in (_DATA, *_MODEL, "num_train_rows") for name in self.facts),
        }
        named = [kind for kind, is_other in kinds.items() if is_other] or ["data"]
        return "other " + ", ".join(named[:-1]) + (" and " if named[1:] else "") + named[-1]

    def table(self) -> str:
        """Return one line a fact: its name, and what it was and is."""
        # The names come from a file as well.
        names = {name: excerpt(name) for name in self.facts}
        width = max(map(len, names.values()))
        return "\n".join(f"  {shown:{width}}  {self.words(name)}" for name, shown in names.items())

    def words(self, name: str) -> str:
        """Return what a fact was and is: both values, or for a digest what has changed."""
        then, now = self.facts[name]
        if name == _DATA:
            return self._data_in_words()
        if name == _REWARDS:
            return "the file of the reward functions has changed"
        if name in _MODEL:
            return self._model_in_words(name)
        values = "  now: ".join(_apart(show_value(then), show_value(now)))
        meaning = f"  ({_MEANINGS[name]})" if name in _MEANINGS else ""
        return f"then: {values}{meaning}"

    def note(self, name: str) -> str:
        """Return the same as a part of a sentence."""
        if name in (_DATA, _REWARDS, *_MODEL):
            return self.words(name)
        then, now = _apart(*map(show_value, self.facts[name]))
        return f"{name} was {then} and is {now}"

    def _data_in_words(self) -> str:
        then, now = self.then, self.now
        if then.data is None or now.data is None:
            return "the data has changed"
        old, new = _counted(then), _counted(now)
        if then.data != now.data:
            return f"the data is {new}, and was {old}"
        if then.num_rows == now.num_rows:
            return f"the data has changed: {new}, of other content than then"
        return f"the data has changed: {old} then, {now.num_rows} now"

    def _model_in_words(self, name: str) -> str:
        then, now = self.then.model, self.now.model
        if then is None or now is None:
            return f"{_MODEL[name]} in the base model"
        if then != now:
            return f"the base model is {excerpt(now, 120)}, and was {excerpt(then, 120)}"
        files = f": {_changed_files(*self.facts[name])}" if name == _TOKENIZER else ""
        return f"{_MODEL[name]} in {excerpt(now, 120)}{files}"

    def hint(self) -> str:
        """Return what to type to continue the run as it was, if that can be said."""
        ways = [*self._files_to_restore(), *self._flags_to_restore()]
        way = " and ".join(ways) or "use the settings of then"
        return f"{way} to continue it as it was, or another --output-dir to start afresh"

    def _files_to_restore(self) -> list[str]:
        found = []
        if _DATA in self.facts:
            found.append(_restore("--data", self.then.data, self.now.data))
        if any(name in self.facts for name in _MODEL):
            found.append(_restore("--model", self.then.model, self.now.model))
        return [way for way in found if way]

    def _flags_to_restore(self) -> list[str]:
        # What follows from the data and from the length cannot be told from what was chosen.
        if _DATA in self.facts or "total_steps" in self.facts:
            return []
        names = [name for name in self.facts if name not in _MODEL and name not in _DERIVED]
        flags = [_flag(_SETTING_OF.get(name, name), self.facts[name][0]) for name in names]
        known = [flag for flag in flags if flag]
        return [" ".join(known)] if known and len(known) == len(flags) <= _MAX_FLAGS else []


def _restore(flag: str, then: str | None, now: str | None) -> str | None:
    if then is None:
        return None
    shown = excerpt(shlex.quote(then), 200)
    return f"{flag} {shown}" if then != now else f"restore {shown}"


def _counted(origins: Origins) -> str:
    rows = "" if origins.num_rows is None else f" with {origins.num_rows} rows"
    return excerpt(str(origins.data), 120) + rows


def _changed_files(then: Any, now: Any) -> str:
    old, new = (files if isinstance(files, Mapping) else {} for files in (then, now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return excerpt(", ".join(map(str, names)), 120)


def _apart(one: str, other: str) -> tuple[str, str]:
    """Return both short enough to show, from where they differ on if their beginnings are equal."""
    if excerpt(one, _WIDTH) == excerpt(other, _WIDTH):
        pairs = enumerate(zip(one, other, strict=False))
        start = max(0, next((i for i, (a, b) in pairs if a != b), 0) - _WIDTH // 4)
        one, other = f"…{one[start:]}", f"…{other[start:]}"
    return excerpt(one, _WIDTH), excerpt(other, _WIDTH)


def _flag(setting: str, value: Any) -> str | None:
    """Return the flag that gives a setting a value; None where there is no such flag."""
    if setting not in Settings.model_fields or value is None or value == []:
        return None
    flag = f"--{setting.replace('_', '-')}"
    if isinstance(value, bool) and Settings.model_fields[setting].annotation is bool:
        return flag if value else f"--no-{flag[2:]}"
    text = ",".join(map(str, value)) if isinstance(value, list) else show_value(value)
    quoted = excerpt(shlex.quote(text), 120)
    return None if quoted.endswith("…") else f"{flag} {quoted}"


def short_value(value: Any) -> str:
    """Return a fact of a fingerprint for a cell of a table: digests by their beginning."""
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, Mapping):
        return excerpt(", ".join(f"{k} {short_value(v)}" for k, v in value.items()), _WIDTH)
    if isinstance(value, list):
        return excerpt(", ".join(short_value(item) for item in value), _WIDTH)
    return excerpt(show_value(value), _WIDTH)
