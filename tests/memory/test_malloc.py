"""What happens to memory that a process on a CPU has freed."""

import subprocess
import sys

import pytest

from lorafit.units import MIB

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")

LIBC = """
import ctypes, resource
from lorafit.memory import malloc
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def block(num_bytes):
    found = libc.malloc(num_bytes)
    libc.memset(found, 1, num_bytes)
    return found
"""


def printed(script: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", LIBC + script], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_freed_blocks_below_the_largest_threshold_go_back() -> None:
    script = """
import psutil
libc.free(libc.malloc(20 << 20))
blocks = [block(8 << 20) for _ in range(16)]
pin = libc.malloc(900 << 10)
[libc.free(found) for found in blocks]
print(psutil.Process().memory_info().rss)
"""
    kept = printed(script)
    assert kept - printed("assert malloc.return_freed_blocks()" + script) > 100 * MIB


@pytest.mark.parametrize(("size", "is_kept"), [(2 * MIB, True), (8 * MIB, True), (24 * MIB, False)])
def test_only_small_blocks_are_had_again_without_new_pages(size: int, is_kept: bool) -> None:
    script = f"""
assert malloc.return_freed_blocks()
assert malloc.reuse_small_blocks()
libc.free(block({size}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    libc.free(block({size}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    new_pages = printed(script)
    # A transparent huge page counts as one fault.
    assert new_pages < 50 if is_kept else new_pages >= 50
