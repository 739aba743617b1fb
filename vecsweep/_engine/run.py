"""The way into the engine: a task, a plan and how to carry it out. What the verbs call, and nothing else.

Not here: the training loop itself (`loop.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.optim import Optimizer

from vecsweep._engine.caller.memory import is_out_of_memory, memory_kept
from vecsweep._engine.caller.modes import modes_set_aside
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.loaders import loaders_ended
from vecsweep._engine.data.own_state import generators_of
from vecsweep._engine.data.sources import count_batches as count
from vecsweep._engine.data.sources import num_seeds_at_once
from vecsweep._engine.keeping.record import Observer, Part, Record, Start, join
from vecsweep._engine.keeping.snapshot import Keeper, summarize
from vecsweep._engine.loop import Loop
from vecsweep._engine.members.learner import Learner, check_given
from vecsweep._engine.plain import PlainLoop
from vecsweep._engine.ways.choices import Timing
from vecsweep._engine.ways.trials import time_each
from vecsweep._interrupts import held
from vecsweep.evaluation import Evaluation
from vecsweep.execution import Execution
from vecsweep.plan import Plan
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
    keepers: Callable[[], Keeper] | None = None,
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
        keepers: gives who keeps snapshots of the next members that train at the same time; None where nobody does.
    """
    streams = Streams(_device_of(task, execution), _own_generators(task))
    has_train_metrics = evaluation is not None and evaluation.has_train_metrics
    turns: list[list[int]] = []

    def train_turn(members: Sequence[int]) -> Record:
        """Train some members; what is left of it afterwards holds no loader's workers."""
        try:
            loop = Loop(
                task,
                plan.select(members),
                execution,
                streams,
                dtype,
                keeps_states=keeps_states,
                evaluation=evaluation,
                start=None if start is None else start.select(members),
                observer=observer if observer is None or len(turns) == 1 else Part(observer, members, plan),
                keeper=None if keepers is None else keepers(),
            )
        except KeyboardInterrupt:  # while ways were timed, say: a run without steps
            return Record.empty(len(members))
        except Exception as error:
            if not records:
                raise _in_words(error, task) from error.__cause__
            return replace(Record.empty(len(members)), error=error)
        return loop.train()

    records: list[Record] = []
    with held(), streams.borrowed(), modes_set_aside(), memory_kept(), _watch(task).undisturbed():
        turns += _turns(plan.seeds, num_seeds_at_once(task, plan.seeds, has_train_metrics=has_train_metrics))
        if len(turns) > 1 and evaluation is not None and evaluation.pruning is not None:
            raise ValueError(
                f"`prune` compares all members, but the loader has too many workers for {len(set(plan.seeds))} seeds "
                "at the same time. Take fewer seeds, or a smaller `num_workers`."
            )
        for members in turns:
            with loaders_ended():
                records.append(train_turn(members))
            if not records[-1].is_complete:
                break
    return records[0] if len(turns) == 1 else join(records, turns, len(plan.members))


def _in_words(error: Exception, task: Task) -> Exception:
    """Say how large a member is where there is no memory to begin; any other error is as it was."""
    is_told = isinstance(error, torch.OutOfMemoryError) or not is_out_of_memory(error)
    if is_told or not isinstance(task.model, nn.Module):
        return error
    size = sum(p.nbytes for p in task.model.parameters()) / 2**20
    return torch.OutOfMemoryError(
        f"There is not enough memory to begin. A member has {size:.3g} MiB of parameters. Train fewer members at a "
        f"time, or a smaller model; {error}"
    )


def _turns(seeds: Sequence[int], num_at_once: int | None) -> list[list[int]]:
    """Divide members into those that train at the same time, no more than so many seeds; None for all."""
    distinct = list(dict.fromkeys(seeds))
    size = len(distinct) if num_at_once is None else num_at_once
    turns = [set(distinct[k : k + size]) for k in range(0, len(distinct), size)]
    return [[i for i, seed in enumerate(seeds) if seed in turn] for turn in turns]


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
    with streams.borrowed(), modes_set_aside(), _watch(task).undisturbed():
        loop = Loop(task, plan, execution, streams, None, keeps_states=False)
        return time_each(loop.engine, plan, loop.windows.streams, streams, is_compiling=is_compiling)


def count_batches(task: Task, seed: int, execution: Execution, most: int | None) -> int | None:
    """How many batches an epoch has; see `sources.count_batches`."""
    streams = Streams(_device_of(task, execution), _own_generators(task))
    with modes_set_aside():
        return count(task, seed, execution, streams, most)


def template_of(task: Task, seed: int, execution: Execution) -> Optimizer:
    """The task's optimizer, to be read and not stepped: its own, or what its function makes for a copy of the model."""
    if isinstance(task.model, nn.Module) and isinstance(task.optimizer, Optimizer):
        check_given(task.model, task.optimizer)
        return task.optimizer
    streams = Streams(_device_of(task, execution))
    with streams.borrowed(), modes_set_aside():
        return Learner.build(task, seed, streams, execution).optimizer


def learners_of(
    task: Task, seeds: Sequence[int], execution: Execution, dtype: torch.dtype | None = None
) -> dict[int, Learner]:
    """Make the learners that a run begins with, by seed."""
    streams = Streams(_device_of(task, execution), _own_generators(task))
    with streams.borrowed(), modes_set_aside(), _watch(task).undisturbed():
        return {seed: Learner.build(task, seed, streams, execution, dtype) for seed in dict.fromkeys(seeds)}


def weights_of(task: Task, seeds: Sequence[int], execution: Execution) -> list[list[float]]:
    """What tells the untrained weights of some seeds from others."""
    learners = learners_of(task, seeds, execution).values()
    return [summarize(parameter) for learner in learners for parameter in learner.parameters.values()]


@contextmanager
def plain_loop(task: Task, execution: Execution, dtype: torch.dtype | None) -> Iterator[PlainLoop]:
    """The loop that people write, for as long as the random streams are borrowed.

    Args:
        task: what is trained; nothing of it is changed.
        execution: device, precision, accumulation and clipping.
        dtype: of parameters, buffers and batches; None leaves them as they are.
    """
    streams = Streams(_device_of(task, execution), _own_generators(task))
    with streams.borrowed(), modes_set_aside(), loaders_ended():
        yield PlainLoop(task, execution, streams, dtype)


def _device_of(task: Task, execution: Execution) -> torch.device | None:
    """Where members will train; None if only building the model will tell."""
    if execution.place is not None:
        return execution.place
    if isinstance(task.model, nn.Module):
        return next((p.device for p in task.model.parameters()), None)
    return None


def _watch(task: Task) -> Watch:
    """What the task's functions may change outside the model, which the caller gets back."""
    return Watch.outside(task, task.model if isinstance(task.model, nn.Module) else nn.Module())


def _own_generators(task: Task) -> list[torch.Generator]:
    """The random generators that belong to the task's DataLoaders and their samplers."""
    generators = [*generators_of(task.batches), *generators_of(task.val_batches)]
    return list({id(generator): generator for generator in generators}.values())
