"""MLflow: a run for each member, below one for all."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from vecsweep.observers._tracker import Row, Status, Tracker
from vecsweep.results.curves import Curves

_MOST_AT_ONCE = 1000  # values that a server takes in one request
_STATUS: dict[Status, str] = {
    "finished": "FINISHED",
    "stopped": "FINISHED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


class MLflow(Tracker):
    """Writes what members do to MLflow: a run for each, below a run that has the name of the group; see `Tracker`.

    A member that diverged ends as a failed run. Fields are metrics, where they are numbers, and tags.

    Args:
        experiment: of the runs; made if there is none of that name.
        tracking_uri: of the server or the database, such as "sqlite:///mlflow.db"; None for what MLflow is set to.
        group: of the runs; None for the time.
        max_points: of a curve; of one with more steps every k-th is written.

    Raises:
        ImportError: MLflow is not installed.

    Example:
        `vs.sweep(task, lrs=[0.03, 0.1], epochs=5, callbacks=[MLflow("digits", "sqlite:///mlflow.db")])`
    """

    def __init__(
        self,
        experiment: str = "vecsweep",
        tracking_uri: str | None = None,
        *,
        group: str | None = None,
        max_points: int = 1000,
    ) -> None:
        super().__init__(group, max_points)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise ImportError("Writing runs needs MLflow. Run: pip install 'vecsweep[mlflow]'") from error
        self._experiment = experiment
        self._client = MlflowClient(tracking_uri)
        self._of_group: str | None = None

    def part(self, name: str) -> Self:
        """Return one that writes to a group of its own."""
        other = super().part(name)
        other._of_group = None
        return other

    def _open(self, name: str, settings: Mapping[str, float | str], known: str | None) -> tuple[Any, str]:
        from mlflow.entities import Param

        if known is not None:
            self._client.update_run(known, status="RUNNING")
            return known, known
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        if self._of_group is None:
            self._of_group = self._client.create_run(experiment, run_name=self.group).info.run_id
        tags = {"mlflow.parentRunId": self._of_group, "group": self.group}
        run = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        self._client.log_batch(run, params=[Param(key, str(value)) for key, value in settings.items()])
        return run, run

    def end(self, runs: Curves | None) -> None:
        """Hand on what is left and what came of it, and close the runs, that of the group last."""
        super().end(runs)
        if self._of_group is not None:
            self._client.set_terminated(self._of_group, "FAILED" if runs is None else "FINISHED")

    def _log(self, opened: Any, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(name, value, now, step) for step, values in rows for name, value in values.items()]
        for start in range(0, len(points), _MOST_AT_ONCE):
            self._client.log_batch(opened, metrics=points[start : start + _MOST_AT_ONCE])

    def _close(self, opened: Any, fields: Mapping[str, float], status: Status) -> None:
        from mlflow.entities import RunTag

        self._log(opened, [(self._run.begin + self._run.num_steps, dict(fields))])
        self._client.log_batch(opened, tags=[RunTag("status", status)])
        self._client.set_terminated(opened, _STATUS[status])
