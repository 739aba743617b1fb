"""Trackio: a run for each member."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from contextvars import Context
from functools import partial
from typing import Any

from vecsweep.observers._tracker import Row, Status, Tracker


class Trackio(Tracker):
    """Writes what members do to Trackio: a run for each, in one group; see `Tracker`.

    Trackio has curves and a configuration for each run, and no fields: what a member came to is logged after its last
    step, with "diverged" as 0 or 1 in place of the status.

    Args:
        project: of the runs.
        group: of the runs; None for the time.
        max_points: of a curve; of one with more steps every k-th is written.
        **options: further arguments of `trackio.init`, such as `space_id`.

    Raises:
        ImportError: Trackio is not installed.

    Example:
        `vs.sweep(task, lrs=[0.03, 0.1], epochs=5, callbacks=[Trackio("digits")])`
    """

    def __init__(
        self, project: str = "vecsweep", *, group: str | None = None, max_points: int = 1000, **options: Any
    ) -> None:
        super().__init__(group, max_points)
        try:
            import trackio
        except ImportError as error:
            raise ImportError("Writing runs needs Trackio. Run: pip install 'vecsweep[trackio]'") from error
        self._init = trackio.init
        own: dict[str, Any] = {"project": project, "embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self._options = own | options

    def _open(self, name: str, settings: Mapping[str, float | str], known: str | None) -> tuple[Any, str]:
        name = f"{self.group}: {name}" if known is None else known  # runs of one project have different names
        begin = partial(
            self._init,
            name=name,
            group=self.group,
            config=dict(settings),
            resume="must" if known else "never",
            **self._options,
        )
        with redirect_stdout(io.StringIO()):
            return Context().run(begin), name  # in a context of its own: Trackio has one run in each, and ends it

    def _log(self, opened: Any, rows: Sequence[Row]) -> None:
        for step, values in rows:
            opened.log(values, step=step)

    def _close(self, opened: Any, fields: Mapping[str, float], status: Status) -> None:
        end = self._run.begin + self._run.num_steps
        opened.log({**fields, "diverged": float(status == "diverged")}, step=end)
        with redirect_stdout(io.StringIO()):
            opened.finish()
