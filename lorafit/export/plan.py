"""What is to be exported, decided and checked before anything is loaded or written."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafit.errors import StorageError
from lorafit.files import free_bytes
from lorafit.text import excerpt
from lorafit.units import GIB, format_bytes

if TYPE_CHECKING:
    from lorafit.config.schema import Settings
    from lorafit.hardware.info import DeviceInfo
    from lorafit.model.source import ModelSource

DEFAULT_NAMES = ("merged", "export")
"""Folders inside the run's, of merged weights and of the adapter alone."""
_DTYPE_BYTES = {"float32": 4, "float64": 8}
_SPARE_BYTES = GIB // 4
"""What tokenizer, card and the file system's own blocks may take."""


@dataclass(frozen=True)
class ExportPlan:
    """One export: from which adapter and base, to where."""

    settings: "Settings"
    """Model, quantization and templates, those of the run unless the command line says other."""
    device: "DeviceInfo"
    source: "ModelSource"
    adapter: Path
    output: Path
    record: dict[str, Any]
    """run.json of the run that made the adapter; empty where there is none."""

    @property
    def row_kind(self) -> str | None:
        """The kind of rows that the run was trained on, such as `messages`."""
        return row_kind_of(self.record)


def row_kind_of(record: dict[str, Any]) -> str | None:
    """Return the kind of rows that a run was trained on; None where it is not recorded."""
    try:
        kind = record["plan"]["data"]["training"]["kind"]
    except (KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def recorded_run(adapter: Path) -> dict[str, Any]:
    """Return the run.json beside an adapter, or nothing where it is missing or damaged."""
    try:
        record = json.loads((adapter.parent / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("plan"), dict) else {}


def require_new_folder(output: Path) -> None:
    """Refuse to write where something is.

    Raises:
        StorageError: the folder exists and is not empty, or is no folder.
    """
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise StorageError(
            "this is not a folder", where=str(output), hint="choose another --output-dir"
        )
    if output.is_dir() and any(output.iterdir()):
        raise StorageError(
            "the folder is not empty, and nothing in it is replaced",
            where=str(output),
            hint="choose another --output-dir, or delete this one",
        )


def require_space(output: Path, source: "ModelSource", *, with_gguf: bool) -> int:
    """Return the bytes that merged weights take; GGUF takes about as much again.

    Raises:
        StorageError: the disk has less.
    """
    assert source.weights is not None
    width = _DTYPE_BYTES.get(source.weights.stored_dtype, 2)
    needed = source.weights.num_parameters * width * (2 if with_gguf else 1) + _SPARE_BYTES
    free = free_bytes(output)
    if free < needed:
        raise StorageError(
            f"the export takes {format_bytes(needed)}, and {format_bytes(free)} are free",
            where=str(output),
            hint="free space, or choose an --output-dir on another disk",
        )
    return needed


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    """Copy the files that exist, byte for byte, and return their names."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def short_name(name: str) -> str:
    """Return a hub id as it is and a path by its last part, which is all that others may see."""
    is_path = name.startswith(("/", ".", "~")) or Path(name).exists()
    return excerpt(Path(name).name if is_path else name, 120)
