"""Presets: settings shipped with lorafit, with a row for each device that they were sized for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import lorafit
from lorafit.config.document import Document, Node
from lorafit.config.fields import SettingValue
from lorafit.config.files import require_version
from lorafit.config.layers import Given, Layer, RowChoice, resolve_layers, validate_values
from lorafit.config.loading import load_document
from lorafit.config.schema import SCHEMA_VERSION
from lorafit.errors import ConfigError, Problem, UsageError
from lorafit.hardware.catalog import CATALOG
from lorafit.hardware.info import DeviceInfo
from lorafit.text import excerpt, nearest
from lorafit.units import format_bytes

DEFAULT_ROW = "default"
_NAME = re.compile(r"[a-z0-9-]{1,64}(/[a-z0-9-]{1,64})?")
_REQUIRED = {
    "schema_version": f"schema_version: {SCHEMA_VERSION}",
    "name": "name: my-preset",
    "description": "description: What it is for",
    "settings": "settings:\n  lora_r: 8",
    "hardware": "hardware:\n  default:\n    effective_batch_size: 32\n    max_length: 1024",
}
_DEFAULT_ROW_REQUIRED = ("effective_batch_size", "max_length")


@dataclass(frozen=True)
class Preset:
    """A named set of settings with rows by device."""

    name: str
    description: str
    path: Path
    layer: Layer
    """The settings for every device, with their lines."""
    rows: Mapping[str, Layer]
    """The settings that each row adds, by catalog name or `default`."""

    @property
    def settings(self) -> dict[str, SettingValue]:
        """The settings that the preset gives on every device, without the schema's defaults."""
        return _plain(self.layer)

    @property
    def hardware(self) -> dict[str, dict[str, SettingValue]]:
        """The settings of each row."""
        return {key: _plain(layer) for key, layer in self.rows.items()}

    def choose_row(self, device: DeviceInfo) -> RowChoice:
        """Return the row for `device`: its own, else `default` with a micro-batch that is safe.

        That micro-batch is the one of the largest device of the same kind that has a row and no
        more usable memory than `device`; 1 where there is none.
        """
        exact = self.rows.get(device.catalog_key or "")
        if exact is not None and device.catalog_key is not None:
            reason = f"{self.name} has a row for this device, {device.catalog_key} ({device.name})"
            return RowChoice(device.catalog_key, _plain(exact), reason, exact)
        default = self.rows[DEFAULT_ROW]
        values = dict(default.values)
        given: Given | None = None
        why = f"{self.name} has no row for {device.name}, so its default row sets " + ", ".join(
            f"{name} {value}" for name, value in _plain(default).items()
        )
        if "per_device_train_batch_size" not in values:
            given, reason = self._safe_micro_batch(device)
            why = f"{why}; {reason}"
            if given is not None:
                values["per_device_train_batch_size"] = given
        layer = Layer(default.origin, "hardware", values)
        return RowChoice(DEFAULT_ROW, _plain(layer), why, layer, given is not None)

    def _safe_micro_batch(self, device: DeviceInfo) -> tuple[Given | None, str]:
        named = [key for key in self.rows if key != DEFAULT_ROW]
        if not named:
            return None, "the micro-batch is the preset's own"
        same_kind = [key for key in named if CATALOG[key].kind == device.kind]
        smaller = [
            key
            for key in same_kind
            if CATALOG[key].usable_bytes <= device.usable_bytes
            and "per_device_train_batch_size" in self.rows[key].values
        ]
        have = format_bytes(device.usable_bytes)
        if not smaller:
            given = Given(1, self.rows[DEFAULT_ROW].values[_DEFAULT_ROW_REQUIRED[0]].where)
            if not same_kind:
                return given, f"no row is for a {device.kind} device, so the micro-batch is 1"
            return given, f"every {device.kind} row is for more than its {have}: micro-batch 1"
        row = max(smaller, key=lambda key: CATALOG[key].usable_bytes)
        given = self.rows[row].values["per_device_train_batch_size"]
        entry = CATALOG[row]
        return given, (
            f"micro-batch {given.value} is that of {row}, the largest {device.kind} row whose "
            f"{format_bytes(entry.usable_bytes)} this device's {have} cover"
        )


def presets_dir() -> Path:
    """Return the folder of the shipped presets: in the package, or beside it in a checkout."""
    package = Path(lorafit.__file__).parent
    shipped = package / "presets"
    return shipped if shipped.is_dir() else package.parent / "presets"


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped presets, sorted: first those of no family, then the rest."""
    folder = presets_dir()
    found = (*folder.glob("*.yaml"), *folder.glob("*/*.yaml"))
    names = (path.relative_to(folder).with_suffix("").as_posix() for path in found)
    return tuple(sorted(names, key=lambda name: ("/" in name, name)))


def list_presets() -> tuple[Preset, ...]:
    """Return the shipped presets in the order of `preset_names`.

    Raises:
        ConfigError: one of them is damaged.
    """
    return tuple(load_preset(name) for name in preset_names())


def load_preset(name: str) -> Preset:
    """Return the shipped preset `name`.

    Raises:
        UsageError: there is no such preset; the hint lists them.
        ConfigError: the preset is damaged.
    """
    known = preset_names()
    if name not in known or not _NAME.fullmatch(name):
        raise _unknown_preset(name, known)
    return load_preset_file(presets_dir() / f"{name}.yaml", name)


def load_preset_file(path: Path, name: str, *, label: str | None = None) -> Preset:
    """Return the preset in a file, which has to call itself `name`; messages call it `label`.

    Raises:
        ConfigError: with every problem of the preset and its rows.
    """
    document = load_document(path, name=label or f"presets/{name}.yaml")
    require_version(document, needed_by="preset")
    problems = _check_header(document, name)
    entries = document.entries
    layer = Layer(f"preset {name}", "preset", _values(document, entries.get("settings"), problems))
    rows = _read_rows(document, problems)
    for part in (layer, *rows.values()):
        problems += validate_values(part)[1]
    if problems:
        raise ConfigError(problems)
    for row in rows.values():
        resolve_layers([layer, row])
    return Preset(name, str(entries["description"].value), path, layer, rows)


def _check_header(document: Document, name: str) -> list[Problem]:
    problems = []
    for key, example in _REQUIRED.items():
        if key not in document.entries:
            message = f"the preset has no {key}, which every preset needs"
            problems.append(Problem(document.source, message, f"add:\n{example}"))
    for key, node in document.entries.items():
        where = f"{document.where(node)}: {excerpt(key, 60)}"
        if key not in _REQUIRED:
            guess = nearest(key, _REQUIRED)
            hint = f"did you mean {guess}?" if guess else "settings stand under `settings:`"
            problems.append(Problem(where, "presets have no such key", hint))
        elif key in ("name", "description") and not isinstance(node.value, str):
            problems.append(Problem(where, "it must be text"))
        elif key == "name" and node.value != name:
            message = f"the preset calls itself {excerpt(str(node.value), 60)!r}, its file {name!r}"
            problems.append(Problem(where, message, f"write `name: {name}`"))
    return problems


def _read_rows(document: Document, problems: list[Problem]) -> dict[str, Layer]:
    table = document.entries.get("hardware")
    if table is None:
        return {}
    if not isinstance(table.value, dict):
        problems.append(Problem(f"{document.where(table)}: hardware", "it must hold rows"))
        return {}
    rows = {}
    for key, node in table.value.items():
        where = f"{document.where(node)}: hardware.{excerpt(key, 60)}"
        if key != DEFAULT_ROW and key not in CATALOG:
            guess = nearest(key, CATALOG)
            hint = f"did you mean {guess}?" if guess else "known devices: " + ", ".join(CATALOG)
            problems.append(Problem(where, "the catalog has no such device", hint))
            continue
        values = _values(document, node, problems)
        rows[key] = Layer(f"hardware row {key}", "hardware", values)
        missing = [name for name in _DEFAULT_ROW_REQUIRED if name not in values]
        if key == DEFAULT_ROW and missing:
            message = f"the default row has no {' and no '.join(missing)}"
            problems.append(Problem(where, message, f"add `{missing[0]}: 32` to it"))
    if DEFAULT_ROW not in table.value:
        message = "there is no `default:` row for the devices that have none of their own"
        problems.append(Problem(f"{document.where(table)}: hardware", message, _example_row()))
    return rows


def _example_row() -> str:
    return f"add:\n{_REQUIRED['hardware']}"


def _values(document: Document, node: Node | None, problems: list[Problem]) -> dict[str, Given]:
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict):
        problems.append(Problem(document.where(node), "settings must be `name: value` lines"))
        return {}
    # Presets are flat: a section in one would be an unknown name, reported by its layer.
    return {key: Given(item.plain(), document.where(item)) for key, item in node.value.items()}


def _unknown_preset(name: str, known: tuple[str, ...]) -> UsageError:
    available = _available(name, known)
    if not name:
        return UsageError("the preset's name is empty", where="--preset", hint=available)
    guess = _meant(name, known)
    hint = f"did you mean {guess}? {available}" if guess else available
    if not _NAME.fullmatch(name):
        message = (
            f"{excerpt(name, 60)!r} is not a preset's name: lower-case letters, digits and -; "
            "a file goes to --config"
        )
        return UsageError(message, where="--preset", hint=hint)
    return UsageError(f"there is no preset {excerpt(name, 60)!r}", where="--preset", hint=hint)


def _meant(name: str, known: tuple[str, ...]) -> str | None:
    """Return the preset that was most likely meant; its family may be missing from the name."""
    spelled = name.lower().replace("_", "-")
    of_a_family = [preset for preset in known if preset.partition("/")[2] == spelled]
    if len(of_a_family) == 1 and spelled not in known:
        return of_a_family[0]
    return nearest(spelled, known)


def _available(name: str, known: tuple[str, ...]) -> str:
    """Return the presets to choose from: those of the family that was named, or of none."""
    own = [preset for preset in known if "/" not in preset]
    families = sorted({preset.partition("/")[0] for preset in known} - set(own))
    family = name.partition("/")[0]
    if family in families:
        return "presets: " + ", ".join(p for p in known if p.startswith(f"{family}/"))
    more = ", ".join(f"{family}/…" for family in families)
    return f"presets: {', '.join(own)}; and {more} (lorafit presets list)"


def _plain(layer: Layer) -> dict[str, SettingValue]:
    return {name: setting.value for name, setting in validate_values(layer)[0].items()}
