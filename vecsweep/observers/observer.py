"""Observer: who is told what members do while they train. What to write to, each observer knows for itself."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from vecsweep._types import FloatArray, Hyper
from vecsweep.results.curves import Curves
from vecsweep.results.member import MemberRecord

_SIGNIFICANT, _EXACT = 6, 17  # digits that tell numbers apart for people, and those that tell any two apart


@dataclass(frozen=True, slots=True)
class Run:
    """Members that begin to train, or go on.

    Attributes:
        members: `[member]`, in the order of the columns that come.
        begin: the steps that they have taken before.
        num_steps: how many will come.
        steps_per_epoch: None if nobody counted.

    Example:
        >>> from vecsweep.observers import Run
        >>> from vecsweep.results import MemberRecord
        >>> run = Run((MemberRecord(0.1, "cosine", 0, None), MemberRecord(0.2, "cosine", 0, None)), 0, 100)
        >>> run.names
        ['lr=0.1 schedule=cosine seed=0', 'lr=0.2 schedule=cosine seed=0']
    """

    members: tuple[MemberRecord, ...]
    begin: int
    num_steps: int
    steps_per_epoch: float | None = None

    @property
    def settings(self) -> list[dict[str, float | str]]:
        """What each member has of its own, by name."""
        return [{"lr": m.lr, "schedule": m.schedule, "seed": m.seed, **m.hyper} for m in self.members]

    @property
    def names(self) -> list[str]:
        """A name for each member, such as "lr=0.1 schedule=cosine seed=0"; no two are the same."""
        names = [_name(own, _SIGNIFICANT) for own in self.settings]
        if len(set(names)) < len(names):
            names = [_name(own, _EXACT) for own in self.settings]
        seen, distinct = Counter[str](), []
        for name in names:
            seen[name] += 1
            distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
        return distinct


class Observer:
    """What is told of members while they train: override what you need; each method does nothing by itself.

    `start` and `end` come once for each call that trains, `losses` every few steps, `metrics` after each evaluation.
    Steps are counted from the first of all, also where a sweep goes on. Arrays are read-only.

    An observer that raises is left out from there on, with one warning; the run goes on. Its random numbers disturb
    nobody's.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> from vecsweep.observers import Observer
        >>> class Print(Observer):
        ...     def metrics(self, step, values):
        ...         print(step, sorted(values))
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.ones(4, 1))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()), val_batches=batches)
        >>> runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=2, val_every=1, callbacks=[Print()])
        1 ['val_loss']
        2 ['val_loss']
    """

    def start(self, run: Run) -> None:
        """Take who trains, and for how long."""

    def losses(self, step: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take what some steps did.

        Args:
            step: the first of them.
            loss: `[step, member]`; NaN from where on a member has come to its end.
            hyper: what the updates used, "lr" and others by name, each `[step, member]`.
        """

    def metrics(self, step: int, values: Mapping[str, FloatArray]) -> None:
        """Take what was measured.

        Args:
            step: the updates before it.
            values: by name, each `[member]`; NaN for members that have come to their end.
        """

    def member_ended(self, member: int, step: int, reason: Literal["diverged", "stopped"]) -> None:
        """Take that a member has come to its end before the others.

        Args:
            member: its column.
            step: at which it diverged, or the updates that it had taken when it was stopped.
            reason: which of the two.
        """

    def end(self, runs: Curves | None) -> None:
        """Take what came of it.

        Args:
            runs: of the steps since `start`, also after Ctrl-C or an error, `is_complete` being False then; None where
                one broke the run off before the first.
        """

    def part(self, name: str) -> Self:
        """Return who is told of a part of the work that has members of its own.

        Args:
            name: such as "branch of member 3 at step 40", or "scan" and "race" of `find_lr`.
        """
        return self


def _name(settings: Mapping[str, float | str], num_digits: int) -> str:
    return " ".join(
        f"{key}={value:.{num_digits}g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings.items()
    )
