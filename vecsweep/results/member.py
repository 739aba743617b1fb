"""MemberRecord: one row of the table of members, in every result."""

from typing import Any, NamedTuple

from vecsweep.results.ranking import Setting


class MemberRecord(NamedTuple):
    """One row of the table of members.

    Attributes:
        lr: its base learning rate; a ramp's is the rate it ends at.
        schedule: the name of what its learning rate follows.
        seed: of its initial weights, batches and random numbers.
        diverged_at: the step at which it diverged; None if it did not.
        stopped_at: the updates it had taken when its metric no longer improved; None if it went on.
        hyper: what else it has of its own, by name.
    """

    lr: float
    schedule: str
    seed: int
    diverged_at: int | None
    stopped_at: int | None = None
    hyper: dict[str, float] = {}  # noqa: RUF012 - never written to

    @property
    def setting(self) -> Setting:
        """All that it has besides its seed."""
        return Setting(self.lr, self.schedule, tuple(self.hyper.items()))

    def as_row(self) -> dict[str, Any]:
        """The record as a flat dict, with a column for each hyperparameter."""
        return {
            "lr": self.lr,
            "schedule": self.schedule,
            **self.hyper,
            "seed": self.seed,
            "diverged_at": self.diverged_at,
            "stopped_at": self.stopped_at,
        }
