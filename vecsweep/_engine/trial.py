"""Trials: how long a way of stepping takes on the real task, on copies of its members."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from vecsweep._engine.batches import BatchStream, key_of
from vecsweep._engine.contract import Chunk, Engine, OutOfMemory, Unmappable
from vecsweep._engine.learner import Learner
from vecsweep._engine.rng import Streams
from vecsweep._engine.sequential import Sequential
from vecsweep._engine.tuning import Timing, Way
from vecsweep._engine.vectorized import Vectorized
from vecsweep.execution import Execution
from vecsweep.plan import Plan

_TIMED_STEPS = 3
_ROUNDS = 2


class Trials:
    """Time ways of stepping; members, batches and random streams stay as they are.

    Args:
        vectorized: an engine whose traced steps may go on to be used.
        plan: whose members are stepped.
        batches: by seed.
        streams: the random streams of the run.
        divide: divides the members into chunks of a size.
    """

    def __init__(
        self,
        vectorized: Vectorized,
        plan: Plan,
        batches: Mapping[int, BatchStream],
        streams: Streams,
        divide: Callable[[int], list[list[int]]],
    ) -> None:
        self._vectorized = vectorized
        self._plan = plan
        self._batches = batches
        self._streams = streams
        self._divide = divide

    def time(self, way: Way) -> Timing | None:
        """Time the steps of one chunk; None if it cannot be stepped this way."""
        engine: Engine = self._vectorized
        if way.engine == "sequential":
            engine = Sequential(self._vectorized.learners, self._vectorized.execution, self._streams)
            members = [0]
        else:
            members = self._divide(way.chunk_size)[0]
            self._vectorized.is_compiling = way.is_compiled
        seeds = [self._plan.seeds[i] for i in members]
        marks = {seed: self._streams.mark("model", seed) for seed in dict.fromkeys(seeds)}
        try:
            chunk = engine.load([engine.start(seed) for seed in seeds], seeds)
            start_s = self._run(chunk, members, 4 if way.is_compiled else _TIMED_STEPS)
            each_s = min(self._run(chunk, members, _TIMED_STEPS) for _ in range(_ROUNDS)) / _TIMED_STEPS
        except (Unmappable, OutOfMemory):
            return None  # the run itself finds out what to do
        finally:
            for seed, mark in marks.items():
                self._streams.rewind("model", seed, mark)
            self._vectorized.restart()
        if way.is_compiled and self._vectorized.level != "compiled":
            return None
        return Timing(way, max(0.0, start_s - _TIMED_STEPS * each_s), each_s * len(self._plan.members) / len(members))

    def _run(self, chunk: Chunk, members: Sequence[int], num_steps: int) -> float:
        """Take steps on the first batch; return the seconds they took."""
        accumulated = range(self._vectorized.execution.accumulation_steps)
        seeds = dict.fromkeys(self._plan.seeds[i] for i in members)
        window = [{seed: tuple(self._batches[seed].peek() for _ in accumulated) for seed in seeds}] * num_steps
        first = {name: values[:1, members].repeat(num_steps, axis=0) for name, values in self._plan.hyper.items()}
        started = time.perf_counter()
        curve = chunk.run(window, first)
        curve.loss.cpu()  # waits for the device
        return time.perf_counter() - started


def key_of_run(learner: Learner, plan: Plan, batches: BatchStream, execution: Execution) -> str:
    """Name what a choice depends on: the machine, the task, the plan's size, and what was asked for."""
    device = next(iter(learner.parameters.values())).device
    names = (
        torch.__version__,
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        os.cpu_count(),
        torch.get_num_threads(),
        repr(learner.model),
        [(name, p.shape, p.dtype) for name, p in learner.parameters.items()],
        type(learner.optimizer).__qualname__,
        [(group.options, group.lr_ratio) for group in learner.groups],
        key_of(batches.peek()).leaves,
        [plan.seeds.count(seed) for seed in dict.fromkeys(plan.seeds)],
        plan.num_steps,
        [(name, getattr(execution, name)) for name in ("precision", "engine", "compile", "chunk_size")],
        (execution.accumulation_steps, execution.max_grad_norm, execution.divergence_factor),
    )
    return hashlib.blake2b(repr(names).encode(), digest_size=16).hexdigest()
