"""A sweep in longer steps: each stands for several updates, so that runs at unlike batch sizes have steps alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from vecsweep._types import FloatArray
from vecsweep.results.going_on import Fork
from vecsweep.results.member import MemberRecord
from vecsweep.results.sweep import Sweep


def by_samples(runs: Sweep, num_updates: int) -> Sweep:
    """Return a sweep each of whose steps stands for several updates.

    Losses and norms are means over the updates of a step, hyperparameters those of the first of them.

    Args:
        runs: of a multiple of so many updates, and evaluated after multiples of it alone.
        num_updates: that make a step.
    """
    if num_updates == 1:
        return runs

    def mean(values: FloatArray) -> FloatArray:
        return values.reshape(-1, num_updates, values.shape[1]).mean(axis=1)

    return replace(
        runs,
        members=tuple(_in_steps(member, num_updates) for member in runs.members),
        lr=runs.lr[::num_updates],
        train_loss=mean(runs.train_loss),
        evaluated_at=runs.evaluated_at // num_updates,
        hyper={name: values[::num_updates] for name, values in runs.hyper.items()},
        norms={name: mean(values) for name, values in runs.norms.items()},
        phases=tuple(begin // num_updates for begin in runs.phases),
        steps_per_epoch=None if runs.steps_per_epoch is None else runs.steps_per_epoch / num_updates,
        in_doubt_from=None if runs.in_doubt_from is None else runs.in_doubt_from // num_updates,
        _trained=_BySamples(runs, num_updates),
    )


def _in_steps(member: MemberRecord, num_updates: int) -> MemberRecord:
    ends = [None if at is None else at // num_updates for at in (member.diverged_at, member.stopped_at)]
    return member._replace(diverged_at=ends[0], stopped_at=ends[1])


@dataclass(frozen=True, slots=True)
class _BySamples:
    """What the sweep leaves besides its curves; see `Continuation`.

    Attributes:
        runs: update by update.
        num_updates: that make a step.
    """

    runs: Sweep
    num_updates: int

    def save(self, runs: Sweep, path: Path) -> Path:
        """Refuse to write to a folder, which holds updates."""
        raise ValueError(
            "A folder holds the sweep of one batch size; this one is in steps of several updates. Save its curves to a "
            f"file, {path.with_suffix('.npz').name!r}."
        )

    def model(self, i: int, *, copy_frozen: bool) -> nn.Module:
        """Make a module of member i's weights."""
        return self.runs.model(i, copy_frozen=copy_frozen)

    def select(self, members: Sequence[int]) -> "_BySamples":
        """Take some members."""
        return replace(self, runs=self.runs._take(members))

    def extend(self, runs: Sweep, num_steps: int | None, epochs: int | None) -> Sweep:
        """Train all members further."""
        del runs
        return by_samples(self.runs.extend(num_steps=self._updates(num_steps), epochs=epochs), self.num_updates)

    def branch(self, runs: Sweep, i: int, fork: Fork) -> Sweep:
        """Train copies of member i further."""
        del runs
        own = replace(fork, num_steps=self._updates(fork.num_steps))
        return by_samples(self.runs.branch(i, **own.arguments), self.num_updates)

    def _updates(self, num_steps: int | None) -> int | None:
        return None if num_steps is None else num_steps * self.num_updates
