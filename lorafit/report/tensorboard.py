"""TensorBoard: the curves of a run beside its other files."""

from typing import TYPE_CHECKING

from lorafit.report.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardLog(Tracker):
    """Writes `RUN/tensorboard`, which `lorafit tensorboard RUN` opens."""

    NAME = "tensorboard"
    _writer: "SummaryWriter"

    def _open(self, first_step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        # What an interrupted run wrote after its checkpoint is purged.
        self._writer = SummaryWriter(str(self.run_dir / FOLDER), purge_step=first_step + 1)

    def _log(self, step: int, curves: dict[str, float]) -> None:
        for name, value in curves.items():
            self._writer.add_scalar(name, value, step)

    def _close(self) -> None:
        self._writer.close()
