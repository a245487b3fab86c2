"""Whether the rows of a file can be held in memory at all, asked before it is read."""

from lorafit.data.sources import FileSource, readable
from lorafit.errors import MemoryFitError
from lorafit.hardware.cpu import cpu_device_info, read_cpu
from lorafit.units import format_bytes

MIN_BYTES_A_BYTE = 2
"""Text and token ids of a row take at least twice its bytes; 10 times is usual for short rows."""


def require_memory(source: FileSource, free_bytes: int | None = None) -> None:
    """Refuse a file whose rows cannot fit in the free memory, which `free_bytes` may give.

    Only what is certain to fail is refused: better now than after an hour of reading.

    Raises:
        MemoryFitError: the file is too large.
    """
    with readable(source.name):
        size = source.path.stat().st_size
    if free_bytes is None:
        free_bytes = cpu_device_info(read_cpu()).free_bytes
    if free_bytes is None or size * MIN_BYTES_A_BYTE <= free_bytes:
        return
    raise MemoryFitError(
        f"the file has {format_bytes(size)}; its rows are held in memory, which takes at least "
        f"{format_bytes(size * MIN_BYTES_A_BYTE)}, and {format_bytes(free_bytes)} are free",
        where=source.name,
        hint=f"train on a part of it: head -n 100000 FILE > part{source.path.suffix}",
    )
