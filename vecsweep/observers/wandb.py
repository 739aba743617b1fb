"""Weights & Biases: a run for each member."""

from collections.abc import Mapping, Sequence
from typing import Any

from vecsweep.observers._tracker import Row, Status, Tracker


class WandB(Tracker):
    """Writes what members do to Weights & Biases: a run for each, in one group; see `Tracker`.

    A member that diverged ends as a failed run.

    Args:
        project: of the runs.
        group: of the runs; None for the time.
        max_points: of a curve; of one with more steps every k-th is written.
        **options: further arguments of `wandb.init`, such as `mode="offline"`, `entity` or `dir`.

    Raises:
        ImportError: Weights & Biases is not installed.

    Example:
        `vs.sweep(task, lrs=[0.03, 0.1], epochs=5, callbacks=[WandB("digits", mode="offline")])`
    """

    def __init__(
        self, project: str = "vecsweep", *, group: str | None = None, max_points: int = 1000, **options: Any
    ) -> None:
        super().__init__(group, max_points)
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Writing runs needs Weights & Biases. Run: pip install 'vecsweep[wandb]'") from error
        self._init = wandb.init
        self._options = {"project": project} | options

    def _open(self, name: str, settings: Mapping[str, float | str], known: str | None) -> tuple[Any, str]:
        run = self._init(
            group=self.group,
            name=name,
            config=dict(settings),
            id=known,
            resume="allow" if known else None,
            reinit="create_new",  # beside the others, and beside one of the caller's own
            **self._options,
        )
        return run, run.id

    def _log(self, opened: Any, rows: Sequence[Row]) -> None:
        for step, values in rows:
            opened.log(values, step=step)

    def _close(self, opened: Any, fields: Mapping[str, float], status: Status) -> None:
        opened.summary.update({**fields, "status": status})
        opened.finish(exit_code=int(status in ("diverged", "failed")))
