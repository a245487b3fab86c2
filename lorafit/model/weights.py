"""Safetensors files, read by their headers only: what is in them, and whether they are whole."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError, ModelError
from lorafit.text import excerpt

_MAX_HEADER_BYTES = 100 * 1024**2  # the limit of the safetensors format itself
_DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16,
    "BF16": 16, "I16": 16, "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of a model, by their headers."""

    files: tuple[Path, ...]
    num_parameters: int
    num_bytes: int
    """Bytes of tensor data over all files."""
    stored_dtype: str
    """The torch name of the dtype that most parameters are stored in."""


def read_weight_files(folder: Path) -> WeightFiles:
    """Read the headers of a model's safetensors files and check that every file is whole.

    Raises:
        ModelError: there are none, one is missing, or one is not what its name says.
    """
    files = _list_files(folder)
    parameters: dict[str, int] = {}
    num_bytes = 0
    for file in files:
        for tensor in read_tensors(file, ModelError):
            count = 1
            for length in tensor["shape"]:
                count *= length
            parameters[tensor["dtype"]] = parameters.get(tensor["dtype"], 0) + count
            num_bytes += count * _DTYPE_BITS[tensor["dtype"]] // 8
    main = max(parameters, key=lambda dtype: parameters[dtype], default="F32")
    return WeightFiles(
        files=tuple(files),
        num_parameters=sum(parameters.values()),
        num_bytes=num_bytes,
        stored_dtype=_TORCH_NAMES.get(main, main),
    )


def _list_files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(file.name for file in folder.glob("*.bin"))
        if pickles:
            raise ModelError(
                f"has only pickle weights ({excerpt(', '.join(pickles))}), which can run code",
                where=str(folder),
                hint="lorafit reads safetensors only; convert the weights, or get another revision",
            )
        raise ModelError("has no model.safetensors", where=str(folder))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ModelError("is not a safetensors index", where=str(index)) from None
    if not names:
        raise ModelError("names no weights at all", where=str(index))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(
                f"names {excerpt(repr(name))}, which is not a plain file name in this folder",
                where=str(index),
            )
        if not _is_file(folder / name):
            raise ModelError(
                f"names the shard {excerpt(name)}, which is missing",
                where=str(index),
                hint="the download is incomplete: download the model again",
            )
    return [folder / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def read_tensors(file: Path, error: type[LorafitError]) -> Iterator[dict[str, Any]]:
    """Yield `{"name", "dtype", "shape"}` of each tensor of a safetensors file, by its header.

    Raises `error` when the file is not whole. Format: 8 bytes little-endian header length, the
    JSON header, then the tensor data (https://github.com/huggingface/safetensors).
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            stream.seek(0)
            raise error(
                f"is not a safetensors file: {_guess(stream.read(200))}",
                where=str(file),
                hint="download this file again",
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = [
            {"name": name, "dtype": str(spec["dtype"]), "shape": [int(n) for n in spec["shape"]]}
            for name, spec in header.items()
            if name != "__metadata__"
        ]
        spans = [_span(spec) for name, spec in header.items() if name != "__metadata__"]
        end = max((stop for _, stop in spans), default=0)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError, RecursionError):
        raise error("has a damaged safetensors header", where=str(file)) from None
    if size != 8 + length + end:
        raise error(
            f"is {size:,} bytes long, but its header announces {8 + length + end:,}",
            where=str(file),
            hint="the file was cut off: download it again",
        )
    _check_spans(tensors, spans, file, error)
    yield from tensors


def _span(spec: dict[str, Any]) -> tuple[int, int]:
    start, stop = spec["data_offsets"]
    return int(start), int(stop)


def _check_spans(
    tensors: list[dict[str, Any]],
    spans: list[tuple[int, int]],
    file: Path,
    error: type[LorafitError],
) -> None:
    """Check what the library checks too, only to raise an error of its own without a place."""
    expected_start = 0
    for (start, stop), tensor in sorted(zip(spans, tensors, strict=True), key=lambda pair: pair[0]):
        bits = _DTYPE_BITS.get(tensor["dtype"])
        if bits is None:
            raise error(
                f"{excerpt(tensor['name'])} has the unknown type {excerpt(tensor['dtype'])}",
                where=str(file),
            )
        shape = tensor["shape"]
        is_whole = min(shape, default=0) >= 0 and (stop - start) * 8 == bits * math.prod(shape)
        if start != expected_start or not is_whole:
            raise error(
                f"{excerpt(tensor['name'])} does not lie where its header says",
                where=str(file),
                hint="download this file again",
            )
        expected_start = stop


def _guess(start: bytes) -> str:
    """Say what a file that is no safetensors file seems to be."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the real file was never fetched"
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "it is a web page, perhaps a login or error page saved under this name"
    if start.startswith((b"\x80", b"PK\x03\x04")):
        return "it is a PyTorch pickle under another name"
    return "it is cut off or of another format"
