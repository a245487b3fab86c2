"""Weights & Biases: online where this person is logged in, else into `RUN/wandb` to sync later."""

import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafit.report.tracker import Tracker

_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Where `wandb login` logs in: the newer address stands for the same service."""


class WandbLog(Tracker):
    """Logs to the project `WANDB_PROJECT`, or `lorafit`; sends settings and curves only."""

    NAME = "wandb"
    _run: Any

    def _open(self, first_step: int) -> None:
        # Its reports about itself would be sent also by a run that is offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        # Code, command line, host, packages and console output would be sent along by default.
        private = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            silent=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "lorafit",
            name=self.run_dir.name,
            id=self.run_id,
            resume="allow",
            dir=str(self.run_dir),
            config=self.config,
            mode=_mode(),
            settings=private,
        )
        self._run.define_metric("*", step_metric="step")

    def _log(self, step: int, curves: dict[str, float]) -> None:
        self._run.log({**curves, "step": step})

    def _close(self) -> None:
        self._run.finish()


def _mode() -> Any:
    """Return the mode that was asked for; offline where nobody is logged in, as it would ask."""
    asked = os.environ.get("WANDB_MODE")
    if asked:
        return asked
    return "online" if os.environ.get("WANDB_API_KEY") or _has_login() else "offline"


def _has_login() -> bool:
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    own = urlsplit(os.environ.get("WANDB_BASE_URL") or "").netloc
    try:
        known = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(known.authenticators(host) for host in ([own] if own else _HOSTS))
