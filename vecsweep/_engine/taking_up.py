"""Taking a run up where another process left it: what a loop hands over, and how another makes it its own.

These functions are part of `Loop`, and stand here because who reads how it trains can do without them.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vecsweep._engine.data.fingerprint import fingerprint
from vecsweep._engine.keeping.record import End
from vecsweep._engine.keeping.snapshot import Snapshot, describe_machine
from vecsweep._engine.keeping.unloading import Stage, together
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._errors import ResultFileError

if TYPE_CHECKING:
    from vecsweep._engine.groups import Group
    from vecsweep._engine.loop import Loop


_RTOL = 1e-6  # between what machines make of a schedule


def take_snapshot(loop: "Loop", groups: Sequence["Group"], num_done: int) -> Snapshot:
    """Copy all that it takes to go on from here."""
    states, ended = _states_of(loop, groups)
    done = loop.tally.so_far(num_done)
    places = {seed: loop.windows.place_of(seed) for seed in loop.learners}
    marks = {seed: loop.streams.mark("model", seed) for seed in loop.learners}
    earlier_s = 0.0 if loop.snapshot is None else loop.snapshot.duration_s
    return Snapshot(
        num_done,
        loop.tally.num_evaluated,
        done.loss,
        done.hyper,
        {name: values[:num_done].copy() for name, values in loop.tally.norms.items()},
        done.metrics,
        done.diverged_at,
        done.stopped_at,
        [list(group.members) for group in groups],
        states,
        ended,
        {seed: End(marks[seed], place.position, place.read) for seed, place in places.items()},
        {seed: fingerprint(place.last) for seed, place in places.items() if place.last is not None},
        loop.manner,
        loop.describe(),
        loop.in_doubt_from,
        earlier_s + time.perf_counter() - loop.began_s,
        loop.identity,
        describe_machine(loop.device),
    )


def _states_of(loop: "Loop", groups: Sequence["Group"]) -> tuple[dict[int, MemberState], dict[int, MemberState]]:
    """Copy the states of the members that train, and of those that have come to their end, to the host."""
    ended = {i: state for i, state in enumerate(loop.states) if state is not None}
    if loop.device.type != "cuda":
        return _copies(loop, groups, lambda tensor: tensor.to("cpu", copy=True)), ended
    with Stage(loop.device) as stage:
        copy = together(stage.copy)
        return _copies(loop, groups, stage.copy), {i: state.mapped(copy) for i, state in ended.items()}


def _copies(loop: "Loop", groups: Sequence["Group"], copy: Callable[[Tensor], Tensor]) -> dict[int, MemberState]:
    copies = dict[int, MemberState]()
    for own in groups:
        copies |= zip(own.members, loop.grouping.less_common(own.chunk.copies(copy), own.seeds), strict=True)
    return copies


def take_up(loop: "Loop", snapshot: Snapshot) -> None:
    """Take over what was done so far, and have what follows from it happen again, in its order.

    Raises:
        ValueError: other members are stopped, or other learning rates follow, than the first time.
    """
    num_done, num_evaluated, tally = snapshot.num_done, snapshot.num_evaluated, loop.tally
    if not loop.is_over and snapshot.metrics.keys() != tally.metrics.keys():
        raise ResultFileError(
            f"The checkpoint has metrics of other names ({', '.join(snapshot.metrics) or 'none'}) than the run "
            f"({', '.join(tally.metrics) or 'none'}). Pass `restart=True` to begin anew, or another folder."
        )
    tally.loss[:num_done] = snapshot.loss
    for name, values in snapshot.norms.items():
        tally.norms[name][:num_done] = values
    tally.expect(list(snapshot.metrics))
    for name, values in snapshot.metrics.items():
        tally.metrics[name][:num_evaluated] = values
    for i, state in snapshot.ended.items():
        loop.states[i] = state
    if tally.observer:
        tally.observer.losses(0, snapshot.loss, snapshot.hyper)
    for row, step in enumerate(loop.evaluation.steps[:num_evaluated]):
        tally.num_evaluated = row + 1
        tally.diverged_at = np.where(snapshot.diverged_at < step, snapshot.diverged_at, -1)
        if tally.observer:
            tally.observer.metrics(step, {name: values[row] for name, values in snapshot.metrics.items()})
        loop.judge([], step)
    followed = {name: values[:num_done] for name, values in tally.hyper.items()}
    is_hyper_same = (np.allclose(followed[name], own, rtol=_RTOL, atol=0.0) for name, own in snapshot.hyper.items())
    for what, is_same in (
        ("stops other members", np.array_equal(tally.stopped_at, snapshot.stopped_at)),
        ("sets other learning rates", all(is_hyper_same)),
    ):
        if not is_same:
            raise ValueError(
                f"A checkpoint goes on as it was begun; what follows the metrics {what} than it did. Pass the same "
                "schedules and the same `prune`, `restart=True` to begin anew, or another folder."
            )
    tally.diverged_at = snapshot.diverged_at.copy()
