"""The record of a traced run: when each storage is born and dies, how large and of what kind.

A trace knows nothing of any allocator: `replay` turns it into allocated and reserved bytes.
"""

from array import array
from dataclasses import dataclass, field
from enum import IntEnum

EMPTY_CACHE = 0
"""The event of `torch.cuda.empty_cache`: segments that are wholly free go back to the device."""


class Category(IntEnum):
    """What a storage holds; the parts of the answer."""

    WEIGHTS = 0
    """Frozen base weights, scales of quantization, buffers such as rotary frequencies."""
    ADAPTER = 1
    GRADIENT = 2
    """Gradients of trained parameters, kept from backward to the optimizer."""
    OPTIMIZER = 3
    ACTIVATION = 4
    """Tensors of forward and backward, inputs included."""
    LOGITS = 5
    """Tensors with a vocabulary dimension, and the loss."""
    WORKSPACE = 6
    """Memory that only kernels ask for: cuBLAS workspaces, scratch buffers of operators."""
    GATHERED = 7
    """Base weights that several processes hold together, while a layer has them whole."""


class Phase(IntEnum):
    """Where in the run an event happens."""

    LOAD = 0
    FORWARD = 1
    BACKWARD = 2
    CLIP = 3
    OPTIMIZER = 4
    ZERO_GRAD = 5


@dataclass
class Trace:
    """Births and deaths of storages in order.

    An event is a storage's number, positive at its birth and negative at its death; numbers
    start at 1. Storages that are still alive at the end have no death.
    """

    events: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q", [0]))
    """Bytes by storage number; entry 0 is unused."""
    categories: bytearray = field(default_factory=lambda: bytearray(1))
    """`Category` by storage number; entry 0 is unused."""
    gathered: set[int] = field(default_factory=set)
    """Storages that are asked for on the stream that gathers shards, not on the computing one."""
    phases: list[tuple[int, Phase]] = field(default_factory=list)
    """Where a phase starts, as an index into `events`."""

    @property
    def num_storages(self) -> int:
        """The number of storages that were born."""
        return len(self.sizes) - 1

    def birth(self, num_bytes: int, category: Category) -> int:
        """Record a new storage and return its number."""
        number = len(self.sizes)
        self.sizes.append(num_bytes)
        self.categories.append(category)
        self.events.append(number)
        return number

    def gather(self, num_bytes: int) -> int:
        """Record the buffer that the shards of weights are gathered into; return its number."""
        number = self.birth(num_bytes, Category.GATHERED)
        self.gathered.add(number)
        return number

    def death(self, number: int) -> None:
        """Record the end of a storage."""
        self.events.append(-number)

    def empty_cache(self) -> None:
        """Record a call of `torch.cuda.empty_cache`."""
        self.events.append(EMPTY_CACHE)

    def begin(self, phase: Phase) -> None:
        """Record that a phase starts here."""
        self.phases.append((len(self.events), phase))

    def live(self) -> set[int]:
        """Return the storages that are alive at the end."""
        alive: set[int] = set()
        for event in self.events:
            if event > 0:
                alive.add(event)
            else:
                alive.discard(-event)
        return alive
