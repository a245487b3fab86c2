"""trackio: a local SQLite file under `RUN/trackio`, or where TRACKIO_DIR says."""

import os
from typing import Any

from lorafit.report.tracker import Tracker


class TrackioLog(Tracker):
    """Logs to the project `TRACKIO_PROJECT`, or `lorafit`; `trackio show` opens it."""

    NAME = "trackio"
    _run: Any

    def _open(self, first_step: int) -> None:
        # Read when trackio is imported, so that it has to stand before.
        os.environ.setdefault("TRACKIO_DIR", str((self.run_dir / "trackio").absolute()))
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or "lorafit",
            name=f"{self.run_dir.name}-{self.run_id[:8]}",
            config=self.config,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def _log(self, step: int, curves: dict[str, float]) -> None:
        self._run.log(curves, step=step)

    def _close(self) -> None:
        import trackio

        trackio.finish()
