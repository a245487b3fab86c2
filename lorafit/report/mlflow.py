"""MLflow: to the server that MLFLOW_TRACKING_URI names, else into `RUN/mlflow`."""

import os
import time
from typing import Any

from lorafit.report.tracker import Tracker

_RUN_TAG = "lorafit.run_id"


class MlflowLog(Tracker):
    """Logs to the experiment `MLFLOW_EXPERIMENT_NAME`, or `lorafit`."""

    NAME = "mlflow"
    _client: Any
    _mlflow_id: str

    def _open(self, first_step: int) -> None:
        # The plain file store needs no database driver; MLflow asks to confirm that it is meant.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Its reports about itself are nothing that this person asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or (self.run_dir / "mlflow").absolute().as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "lorafit"
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._mlflow_id = self._find_run(experiment) or self._create_run(experiment)

    def _find_run(self, experiment: str) -> str | None:
        """Return the MLflow run of an earlier attempt at this run, and set it running again."""
        runs = self._client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{self.run_id}'")
        if not runs:
            return None
        found = str(runs[0].info.run_id)
        self._client.update_run(found, status="RUNNING")
        return found

    def _create_run(self, experiment: str) -> str:
        run = self._client.create_run(
            experiment, run_name=self.run_dir.name, tags={_RUN_TAG: self.run_id}
        )
        for name, value in self.config.items():
            self._client.log_param(run.info.run_id, name, str(value)[:500])
        return str(run.info.run_id)

    def _log(self, step: int, curves: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in curves.items()]
        self._client.log_batch(self._mlflow_id, metrics=metrics)

    def _close(self) -> None:
        self._client.set_terminated(self._mlflow_id)
