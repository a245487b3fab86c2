"""What a process gives to the gathers of sharded weights, counted unit by unit.

Memory that runs out ends a pass of one process in the middle, while the others wait for its share
of the next unit. Every pass of a kind gathers the same units in the same order, so the process can
give the rest without computing anything, and all of them come to the end of the pass.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def can_reset() -> bool:
    """Return whether this torch can take back a pass that failed (2.13 and later)."""
    from torch.distributed.fsdp import FSDPModule

    return hasattr(FSDPModule, "reset_iter_state")


class Gathers:
    """The units that a process has given its share of, in the pass that it is in."""

    def __init__(self, root: "FSDPModule", units: "Sequence[FSDPModule]") -> None:
        """Count what `units` gather, of which `root` is one."""
        self._root = root
        self._units = units
        self._given: list[int] = []
        self._whole: dict[int, list[int]] = {}
        for number, unit in enumerate(units):
            unit.set_custom_all_gather(_counted(self._given, number))

    def begin(self) -> None:
        """Begin a pass, with no unit gathered; after one without gradients the root still is."""
        self._root.reshard()
        self._given.clear()

    def learn(self, kind: int) -> None:
        """Take the pass that has just ended for what every pass of its kind gathers."""
        self._whole[kind] = [*self._given]

    def finish(self, kind: int) -> None:
        """Give the rest of a pass that failed; nothing of it stays gathered.

        Raises:
            RuntimeError: there is no memory for the weights of one unit.
        """
        rest = self._whole[kind][len(self._given) :]
        self._root.reset_iter_state()
        for number in rest:
            self._units[number].unshard()
            self._units[number].reshard()


def _counted(given: list[int], number: int) -> Any:
    """Return torch's own way to gather, which appends `number` to `given` each time."""
    # The public base class leaves the whole gathering to its heirs.
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

    class CountedAllGather(DefaultAllGather):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            work = super().__call__(*arguments, **options)
            given.append(number)
            return work

    return CountedAllGather()
