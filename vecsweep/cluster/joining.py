"""One record of the records of shards, as if one device had trained all members."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vecsweep._arrays import row_blocks
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.keeping.record import End, Record, join
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.run import learners_of
from vecsweep._engine.ways.sequential import Sequential
from vecsweep._types import FloatArray
from vecsweep._words import counted
from vecsweep.cluster.job import Job
from vecsweep.execution import Execution
from vecsweep.plan import Plan

Part = tuple[Sequence[int], Record]  # the positions of members, and what they did


def join_shards(
    job: Job, parts: Sequence[Part], lost: Sequence[int] = (), num_workers: int = 0, num_restarts: int = 0
) -> Record:
    """Join what shards did.

    Args:
        job: of all members.
        parts: of shards that were trained, some perhaps not to their end; one at least.
        lost: members that were given up.
        num_workers: that trained; 0 where all was trained before.
        num_restarts: of shards, whose worker was gone.
    """
    plan = job.plan
    parts = sorted(parts, key=lambda part: not part[1].is_complete)
    is_complete = parts[-1][1].is_complete and sum(len(members) for members, _ in parts) + len(lost) == len(
        plan.members
    )
    records, turns = [record for _, record in parts], [members for members, _ in parts]
    if lost:
        never = replace(
            Record.empty(len(lost)), hyper={}, stopped_at=np.zeros(len(lost), dtype=np.int64), is_complete=True
        )
        at = next((k for k, record in enumerate(records) if not record.is_complete), len(records))
        records, turns = [*records[:at], never, *records[at:]], [*turns[:at], lost, *turns[at:]]
    if not is_complete:
        turns = [*turns, []]  # of those that nobody has begun
    whole = join(records, turns, len(plan.members))
    whole = replace(
        whole,
        hyper={name: _completed(values, plan.hyper[name]) for name, values in whole.hyper.items()},
        ends=_furthest_ends(plan, parts) if whole.ends else {},
        engine=_in_words(plan, parts, lost, num_workers, num_restarts),
        is_batched=all(record.is_batched for _, record in parts),
    )
    return _with_weights(whole, job, parts, lost) if is_complete and job.keeps_states else whole


def _with_weights(record: Record, job: Job, parts: Sequence[Part], lost: Sequence[int]) -> Record:
    """Add what makes models of states, on the CPU; members that were lost have the weights that they began with."""
    learners = learners_here(job)
    states = {i: state for members, own in parts for i, state in zip(members, own.states, strict=True)}
    if lost:
        beginning = Sequential(learners, _execution_here(job), Streams(torch.device("cpu")))
        for i in lost:
            states[i] = beginning.start(job.plan.seeds[i]).copy() if job.start is None else job.start.states[i]
    return replace(record, states=[states[i] for i in range(len(job.plan.members))], learners=learners)


def learners_here(job: Job) -> dict[int, Learner]:
    """What makes models of states, on the CPU of this process."""
    return learners_of(job.task, job.plan.seeds, _execution_here(job), job.dtype)


def _execution_here(job: Job) -> Execution:
    return replace(job.execution, cluster=None, device=torch.device("cpu"))


def _completed(values: FloatArray, planned: FloatArray) -> FloatArray:
    """Put what was planned where nothing was done."""
    for rows in row_blocks(values):
        values[rows] = np.where(np.isnan(values[rows]), planned[rows][: len(values[rows])], values[rows])
    return values


def _furthest_ends(plan: Plan, parts: Sequence[Part]) -> dict[int, End]:
    """Where each seed stands: as in the shard whose members of it were trained for longest, which read most batches."""
    furthest: dict[int, tuple[int, End]] = {}
    for members, record in parts:
        last = np.where(record.diverged_at >= 0, record.diverged_at, plan.num_steps)
        last = np.where(record.stopped_at >= 0, record.stopped_at, last)
        for seed, end in record.ends.items():
            reached = max(int(last[k]) for k, i in enumerate(members) if plan.seeds[i] == seed)
            if seed not in furthest or reached > furthest[seed][0]:
                furthest[seed] = reached, end
    return {seed: end for seed, (_, end) in furthest.items()}


def _in_words(plan: Plan, parts: Sequence[Part], lost: Sequence[int], num_workers: int, num_restarts: int) -> str:
    """Say how the members were trained, and what was lost."""
    first = max(parts, key=lambda part: len(part[0]))[1].engine
    workers = f" on {counted(num_workers, 'worker')}" if num_workers else ""
    text = (
        f"cluster, {counted(len(plan.members), 'member')} in {counted(len(parts), 'shard')}{workers}; the largest: "
        f"{first}"
    )
    if num_restarts:
        text += f"; {counted(num_restarts, 'shard')} dealt out again, because a worker was gone"
    if lost:
        listed = ", ".join(map(str, sorted(lost)))
        text += f"; {counted(len(lost), 'member')} lost with workers that were gone again and again: {listed}"
    return text
