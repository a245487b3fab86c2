"""Making the C library give freed memory back, so that a process on a CPU takes what it uses."""

import ctypes
import sys

from lorafit.units import MIB

_M_MMAP_THRESHOLD = -3
"""malloc.h: the size from which a block gets pages of its own, which go back when it is freed."""


def return_freed_blocks(threshold_bytes: int = MIB) -> bool:
    """Let every block of at least `threshold_bytes` go back to the system when it is freed.

    glibc starts that way at 128 KiB, but raises the threshold to the size of each block that it
    gives back, up to 32 MiB. Tensors below it then lie on the heap, where one small object above
    them keeps their pages with the process: a fifth of the peak of a training step. A threshold
    that is set stays.

    Returns:
        Whether it is set; False with another C library than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, threshold_bytes))
    except (OSError, AttributeError):
        return False
