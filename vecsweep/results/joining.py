"""Sweeps of several tasks as one: models of unlike shape, such as adapters of several ranks, in one comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from vecsweep._types import FloatArray
from vecsweep.execution import is_number
from vecsweep.results.going_on import Fork
from vecsweep.results.records import column_names, curve_names
from vecsweep.results.sweep import Sweep


def join(sweeps: Mapping[float, Sweep], name: str) -> Sweep:
    """Put sweeps of several tasks side by side, so that rankings, plots, tables and `select` compare them all.

    Models of unlike shape cannot be stepped together: each task is swept by itself, for as many steps as the others. Of
    one `seed` all see the same batches.

    Args:
        sweeps: by what each task is told apart by, a number, such as the rank of its adapters.
        name: of that number, which every member then has as a hyperparameter.

    Returns:
        All members. It gives models, can be extended and branched as the sweeps themselves, which stay as they are.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: the sweeps differ in their steps, evaluations, folds or in what was varied, or have that name
            already.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> def sweep(width):
        ...     model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        ...     optimizer = torch.optim.SGD(model.parameters())
        ...     task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=optimizer)
        ...     return vs.sweep(task, lrs=[0.01, 0.1], num_steps=5)
        >>> runs = vs.join({width: sweep(width) for width in (4, 8)}, "width")
        >>> runs.select(width=8)
        Sweep(2 members: 2 lrs, 1 schedule, 1 of width, 1 seed; 5 steps; train_loss)
    """
    _check(sweeps, name)
    parts = tuple((float(value), runs) for value, runs in sweeps.items())
    first = parts[0][1]
    marks = {name: np.concatenate([np.full(runs.lr.shape, value) for value, runs in parts], axis=1)}
    places = tuple((value, k) for value, runs in parts for k in range(len(runs.members)))
    doubts = [runs.in_doubt_from for _, runs in parts if runs.in_doubt_from is not None]
    return replace(
        first,
        members=tuple(
            member._replace(hyper={name: value, **member.hyper}) for value, runs in parts for member in runs.members
        ),
        lr=_side_by_side([runs.lr for _, runs in parts]),
        train_loss=_side_by_side([runs.train_loss for _, runs in parts]),
        metrics={key: _side_by_side([runs.metrics[key] for _, runs in parts]) for key in first.metrics},
        hyper=marks | {key: _side_by_side([runs.hyper[key] for _, runs in parts]) for key in first.hyper},
        norms={
            key: _side_by_side([runs.norms[key] for _, runs in parts])
            for key in first.norms
            if all(key in runs.norms for _, runs in parts)
        },
        engine="; ".join(f"{name} {value:g}: {runs.engine}" for value, runs in parts),
        duration_s=sum(runs.duration_s for _, runs in parts),
        is_complete=all(runs.is_complete for _, runs in parts),
        in_doubt_from=min(doubts, default=None),
        _trained=_Joined(name, dict(parts), places),
    )


@dataclass(frozen=True, slots=True)
class _Joined:
    """What the sweeps leave besides their curves; see `Continuation`.

    Attributes:
        name: of what tells them apart.
        sweeps: by that number.
        places: `[member]`, of which sweep it is, and the how manieth there.
    """

    name: str
    sweeps: dict[float, Sweep]
    places: tuple[tuple[float, int], ...]

    def save(self, runs: Sweep, path: Path) -> Path:
        """Refuse to write to a folder, which holds the weights of one task.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"A folder holds the sweep of one task; this one is of {len(self.sweeps)}. Save each of them, or the "
            f"curves of all to a file, {path.with_suffix('.npz').name!r}."
        )

    def model(self, i: int, *, copy_frozen: bool) -> nn.Module:
        """Make a module of member i's weights."""
        value, k = self.places[i]
        return self.sweeps[value].model(k, copy_frozen=copy_frozen)

    def select(self, members: Sequence[int]) -> "_Joined":
        """Take some members."""
        return replace(self, places=tuple(self.places[i] for i in members))

    def extend(self, runs: Sweep, num_steps: int | None, epochs: int | None) -> Sweep:
        """Train all members further, one sweep after another."""
        del runs
        own = {value: [k for other, k in self.places if other == value] for value, _ in self.places}
        longer = {
            value: self.sweeps[value]._take(members).extend(num_steps=num_steps, epochs=epochs)
            for value, members in own.items()
        }
        begins = dict(zip(own, np.cumsum([0, *map(len, own.values())])[:-1].tolist(), strict=True))
        order = []
        for value, _ in self.places:
            order.append(begins[value])
            begins[value] += 1
        return join(longer, self.name)._take(order)

    def branch(self, runs: Sweep, i: int, fork: Fork) -> Sweep:
        """Train copies of member i further."""
        del runs
        value, k = self.places[i]
        return join({value: self.sweeps[value].branch(k, **fork.arguments)}, self.name)


def _side_by_side(columns: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate(columns, axis=1)


def _check(sweeps: Mapping[float, Sweep], name: str) -> None:
    if not isinstance(sweeps, Mapping) or not all(isinstance(runs, Sweep) for runs in sweeps.values()):
        raise TypeError(f"`sweeps` must be a dict from numbers to sweeps, as in {{8: a, 16: b}}; got {sweeps!r:.80}.")
    if not isinstance(name, str) or not name:
        raise TypeError(f"`name` must be what the sweeps are told apart by, such as 'rank'; got {name!r:.80}.")
    if not sweeps:
        raise ValueError("`sweeps` must be at least one; got none.")
    of_first, first = next(iter(sweeps.items()))
    for value, runs in sweeps.items():
        if not is_number(value):
            raise ValueError(f"`sweeps` must be told apart by numbers; got {value!r}. Number them.")
        if name in {*column_names(runs), *curve_names(runs)}:
            raise ValueError(f"`name` must be a new one; the sweeps have {name!r} of their own. Choose another.")
        for what, own, others in (
            ("steps", len(runs.train_loss), len(first.train_loss)),
            ("evaluations", runs.evaluated_at.tolist(), first.evaluated_at.tolist()),
            ("metrics", list(runs.metrics), list(first.metrics)),
            ("hyperparameters", list(runs.hyper), list(first.hyper)),
            ("phases", runs.phases, first.phases),
            ("folds", runs.folds, first.folds),
        ):
            if own != others:
                raise ValueError(
                    f"`sweeps` must have the same {what}; {name} {of_first:g} has {others}, {value:g} has {own}. "
                    "Sweep all tasks with the same arguments."
                )
