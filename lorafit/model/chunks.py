"""How many positions' logits the chunked loss holds at once; read by the loss and by formulas."""

from lorafit.units import MIB

_CHUNK_BYTES = 256 * MIB
"""fp32 logits held at once: large enough for full-speed products, small beside a model."""
_CPU_CHUNK_BYTES = 16 * MIB
"""On a CPU chunks of 16 MiB were as fast as larger ones, and take less memory."""
_MIN_CHUNK, _MAX_CHUNK = 128, 8192
_MIN_CPU_CHUNK = 256
"""The whole output layer is read for every chunk."""


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Return how many positions' logits are held at once, a power of two."""
    on_cpu = device_type == "cpu"
    fitting = (_CPU_CHUNK_BYTES if on_cpu else _CHUNK_BYTES) // (4 * vocab_size)
    least = _MIN_CPU_CHUNK if on_cpu else _MIN_CHUNK
    return max(least, min(_MAX_CHUNK, 1 << max(0, fitting.bit_length() - 1)))
