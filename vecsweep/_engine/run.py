"""The way into the engine: a task, a plan and how to carry it out. What the verbs call, and nothing else.

Not here: the training loop itself (`loop.py`).
"""

from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from vecsweep._engine.batches import own_loader
from vecsweep._engine.choices import Timing
from vecsweep._engine.learner import Learner
from vecsweep._engine.loop import Loop
from vecsweep._engine.record import Observer, Record, Start
from vecsweep._engine.rng import Streams
from vecsweep._engine.trials import time_each
from vecsweep._engine.watch import Watch
from vecsweep.execution import Execution
from vecsweep.plan import Evaluation, Plan
from vecsweep.task import Task


def train(
    task: Task,
    plan: Plan,
    execution: Execution,
    *,
    dtype: torch.dtype | None = None,
    keeps_states: bool = True,
    evaluation: Evaluation | None = None,
    start: Start | None = None,
    observer: Observer | None = None,
) -> Record:
    """Train every member of a plan.

    Args:
        task: what is trained; nothing of it is changed.
        plan: with which hyperparameters.
        execution: how.
        dtype: of parameters, buffers and batches; None leaves them as they are.
        keeps_states: whether to return the members' states.
        evaluation: when members are evaluated; None for never.
        start: where an earlier run ended, to go on from there; None for the beginning.
        observer: who is told of losses and metrics as they come.
    """
    streams = Streams(_device_of(task, execution), _own_generators(task))
    with streams.borrowed(), torch.inference_mode(mode=False), torch.enable_grad(), _watch(task).undisturbed():
        try:
            loop = Loop(
                task,
                plan,
                execution,
                streams,
                dtype,
                keeps_states=keeps_states,
                evaluation=evaluation,
                start=start,
                observer=observer,
            )
        except KeyboardInterrupt:  # while ways were timed, say: a run without steps
            return Record.empty(len(plan.members))
        return loop.train()


def time_ways(task: Task, plan: Plan, execution: Execution, *, is_compiling: bool) -> list[Timing]:
    """Time a few steps of each way to carry out a plan: one member after another first, then batched.

    Args:
        task: what is trained; nothing of it is changed.
        plan: with which hyperparameters.
        execution: how; engine, chunk size and level are varied.
        is_compiling: whether to compile, too.
    """
    execution = replace(execution, engine="vectorized", chunk_size=1, compile=False)
    streams = Streams(_device_of(task, execution), _own_generators(task))
    with streams.borrowed(), torch.inference_mode(mode=False), torch.enable_grad(), _watch(task).undisturbed():
        loop = Loop(task, plan, execution, streams, None, keeps_states=False)
        return time_each(loop.engine, plan, loop.batches, streams, is_compiling=is_compiling)


def count_batches(task: Task, seed: int, execution: Execution) -> int:
    """How many batches an epoch has: the length of the loader, or, where it has none, what one pass yields."""
    try:
        return len(task.batches)  # type: ignore[arg-type]  # whether it has a length is what is asked
    except TypeError:
        streams = Streams(_device_of(task, execution), _own_generators(task))
        with streams.borrowed():
            streams.use("batches", seed)
            return sum(1 for _ in replace(task, batches=own_loader(task.batches)).iterate(seed))


def template_of(task: Task, seed: int, execution: Execution) -> Optimizer:
    """A copy of the task's optimizer, over a copy of its model."""
    streams = Streams(_device_of(task, execution))
    with streams.borrowed():
        return Learner.build(task, seed, streams, execution).optimizer


def _device_of(task: Task, execution: Execution) -> torch.device | None:
    """Where members will train; None if only building the model will tell."""
    if execution.device is not None:
        return torch.device(execution.device)
    if isinstance(task.model, nn.Module):
        return next((p.device for p in task.model.parameters()), None)
    return None


def _watch(task: Task) -> Watch:
    """What the task's functions may change outside the model, which the caller gets back."""
    return Watch.outside(task, task.model if isinstance(task.model, nn.Module) else nn.Module())


def _own_generators(task: Task) -> list[torch.Generator]:
    """The random generators that belong to the task's DataLoaders and their samplers."""
    owners: list[object] = []
    for batches in (task.batches, task.val_batches):
        batch_sampler = getattr(batches, "batch_sampler", None)
        owners += (batches, getattr(batches, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
