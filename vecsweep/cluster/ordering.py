"""Orders: what a worker is told of a run, so that it can train a shard of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from vecsweep.cluster.job import Job
from vecsweep.cluster.keeping import Place
from vecsweep.cluster.news import Order
from vecsweep.cluster.sending import pack
from vecsweep.evaluation import SoFar


def order_of(job: Job, members: Sequence[int], kept: Mapping[int, Collection[int]], place: Place | None) -> Order:
    """Make the order to train a shard.

    Args:
        job: the run.
        members: of the shard.
        kept: who of all members goes on after the rungs that are decided, by steps.
        place: where the shard is kept; None for nowhere.
    """
    evaluation = job.evaluation
    if evaluation is not None and evaluation.pruning is not None:  # whose function stays here
        evaluation = replace(evaluation, pruning=replace(evaluation.pruning, keep=_nobody))
    start, states = None, None
    if job.start is not None:
        own = job.start.select(members)
        start, states = replace(own, states=[], learners={}), pack(own.states)
    return Order(
        plan=job.plan.select(members),
        keeps_states=job.keeps_states,
        evaluation=evaluation,
        states=states,
        start=start,
        is_watched=job.observer is not None,
        kept={step: places_of(own, members) for step, own in kept.items()},
        place=place,
    )


def places_of(kept: Collection[int], members: Sequence[int]) -> list[int]:
    """Of the members that go on, those of a shard, by their places in it."""
    return [place for place, i in enumerate(members) if i in kept]


def _nobody(so_far: SoFar) -> Sequence[int]:
    """Stands for who decides."""
    raise AssertionError("a worker asks the driver")
