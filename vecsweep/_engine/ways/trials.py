"""Choosing the way members are stepped, by how long each takes on the real task, on copies of its members."""

import hashlib
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch

from vecsweep import _interrupts as interrupts
from vecsweep._bars import Bar
from vecsweep._engine.caller.memory import allocator_setting
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.room import free_on_gpu
from vecsweep._engine.data.batches import BatchStream, key_of
from vecsweep._engine.members.work import Work
from vecsweep._engine.ways.choices import Choice, Timing, Way, choose, search
from vecsweep._engine.ways.contract import Chunk, Engine, OutOfMemory, Unmappable
from vecsweep._engine.ways.parallel import Parallel, num_processes
from vecsweep._engine.ways.remembered import recall, remember
from vecsweep._engine.ways.sequential import Sequential
from vecsweep._engine.ways.vectorized import Vectorized
from vecsweep._version import __version__
from vecsweep.execution import Execution
from vecsweep.plan import Plan
from vecsweep.several import parts_of

_CHUNK_BYTES = 16 * 2**20  # of parameters, on a CPU: with gradients and optimizer state about the size of its caches
_CHUNK_ACTIVATION_BYTES = 32 * 2**20  # less than glibc gives back to the system, to be faulted in again at each step
_MIXED_FROM = 8  # members of a seed, from which on each seed may have chunks of its own with batches in common
_SEED_BYTES = 2 * 2**20  # of a seed's members, parameters and activations, from which on that pays for another chunk
_TIMED_STEPS = 3
# Threads that share a member's operators are n**exponent times as fast as one. On two: 1.2 to 1.5 times with small
# operators, 1.7 to 2 with convolutions of a millisecond.
_THREADS_EXPONENT = 0.5
_MOST_BY_SIZE = 0.4
_LARGE_OPERATOR_S = 1.1e-3
_FORK_S = 0.1  # that processes take to start
_HANDED_OVER = 8e7  # parameters a second, with their moments
_TRACE_S = 0.001  # for each operator of a forward pass
_CLEARLY_LESS = 0.6  # of an estimate that is within a factor of two
_ROUNDS = 2
_SHARE_S = 0.05  # for which each process has to work on the batches that it is sent, to be timed


class Unbatched(NamedTuple):
    """How to train members that are not worth batching without timing anything.

    Attributes:
        way: the way to take.
        num_processes: that may train them; 0 where none may.
        trace_s: what tracing their step would take, about.
    """

    way: Way
    num_processes: int
    trace_s: float


def without_batching(work: Work, plan: Plan, num: int, *, keeps_states: bool) -> Unbatched | None:
    """Say how members are trained whose step is so much work on a CPU that batching them gains little; None if less.

    As many processes are as many times faster; threads, which the operators of one member share, are that less so.

    Args:
        work: of a member's step.
        plan: whose members.
        num: of processes that may train them; 0 where none may.
        keeps_states: whether what was trained is handed over in the end.
    """
    num_members, num_threads = len(plan.members), torch.get_num_threads()
    if work.is_light and num_members > 1:
        return None
    trace_s, shared_s = _TRACE_S * work.num_operators, work.overhead_s
    operator_s = work.step_s / max(1, work.num_operators)
    exponent = _THREADS_EXPONENT + min(_MOST_BY_SIZE, operator_s / _LARGE_OPERATOR_S)
    sequential_s = plan.num_steps * num_members * work.step_s / num_threads**exponent
    parallel_s = math.inf
    if num > 0:
        parallel_s = _FORK_S + plan.num_steps * -(-num_members // num) * work.step_s
        parallel_s += keeps_states * num_members * work.num_parameters / _HANDED_OVER
    batched_s = trace_s + plan.num_steps * (shared_s + num_members * (work.step_s - shared_s))
    if work.is_mostly_overhead and batched_s < _CLEARLY_LESS * min(sequential_s, parallel_s):
        return None
    way = Way("parallel" if parallel_s < sequential_s else "sequential", num_members, is_compiled=False)
    return Unbatched(way, num, trace_s)


def choose_way(
    engine: Vectorized,
    plan: Plan,
    batches: Mapping[int, BatchStream],
    streams: Streams,
    execution: Execution,
    unbatched: Unbatched | None = None,
) -> Choice:
    """Choose chunk size and level, and whether to batch at all, where that is left open.

    Args:
        engine: that batches the members.
        plan: whose members.
        batches: by seed.
        streams: the random streams of the run.
        execution: what is asked for.
        unbatched: how to train them where they are not worth batching; None where they are.
    """
    size = default_chunk_size(engine, plan) if execution.chunk_size == "auto" else execution.chunk_size
    batched = Way("vectorized", size, is_compiled=execution.compile is True)
    varied = {name for name in ("engine", "chunk_size", "compile") if getattr(execution, name) == "auto"}
    if engine.is_offloaded:  # one after another, all members would be on the GPU
        varied.discard("engine")
    if not varied:
        return Choice(batched, "")
    num = unbatched.num_processes if unbatched else 0
    key = _key(engine, plan, batches[plan.seeds[0]], execution)
    choice = recall(key)
    if choice is None or not _is_open(choice.way, batched, varied, len(plan.members), num):
        with Trials(engine, plan, batches, streams, num) as trials:
            timings = search(
                trials.time,
                batched,
                varied=varied,
                num_members=len(plan.members),
                num_steps=plan.num_steps,
                parallel=Way("parallel", len(plan.members), is_compiled=False) if num else None,
                trace_s=unbatched.trace_s if unbatched else None,
            )
        choice = choose(timings, unbatched.way if unbatched else batched)
        if not timings:
            return choice
        remember(key, choice)
    return choice._replace(key=key)


def _is_open(way: Way, default: Way, varied: set[str], num_members: int, num_processes: int) -> bool:
    """Whether a way may be taken: what is not varied is as it was asked for."""
    if way.engine != "vectorized":
        return "engine" in varied and (way.engine == "sequential" or num_processes > 0)
    return (
        way.chunk_size <= num_members
        and ("chunk_size" in varied or way.chunk_size == default.chunk_size)
        and ("compile" in varied or way.is_compiled == default.is_compiled)
    )


def time_each(
    engine: Engine,
    plan: Plan,
    batches: Mapping[int, BatchStream],
    streams: Streams,
    *,
    is_compiling: bool,
) -> list[Timing]:
    """Time members one after another, in processes, in chunks of several sizes, and the best of those compiled."""
    num_members, seed = len(plan.members), plan.seeds[0]
    device = next(iter(engine.learners[seed].parameters.values())).device
    num = num_processes(num_members, device, batches[seed].peek())
    with Trials(engine, plan, batches, streams, num) as trials:
        sequential = trials.time(Way("sequential", num_members, is_compiled=False))
        assert sequential is not None  # or the error of the task's own code would be on its way
        if not isinstance(engine, Vectorized):
            return [sequential]
        parallel = trials.time(Way("parallel", num_members, is_compiled=False)) if num else None
        default = default_chunk_size(engine, plan)
        tried = (default, num_members, default // 4, 4 * default)
        sizes = dict.fromkeys(min(num_members, max(1, size)) for size in tried)
        batched = [trials.time(Way("vectorized", size, is_compiled=False)) for size in sizes]
        found = list(filter(None, batched))
        if is_compiling and found:
            best = min(found, key=lambda timing: timing.step_s)
            found += filter(None, [trials.time(replace(best.way, is_compiled=True))])
        return [sequential, *filter(None, [parallel]), *found]


def default_chunk_size(engine: Vectorized, plan: Plan) -> int:
    """A chunk that is known to do without timing others: what fits on a GPU, or what fits its caches on a CPU."""
    num_members = len(plan.members)
    parameters = engine.pattern.parameters.values()
    device = next(iter(parameters)).device
    if device.type == "cuda":
        return engine.footprint.num_that_fit(num_members, free_on_gpu(device), is_offloaded=engine.is_offloaded)
    if device.type != "cpu":
        return num_members
    size = min(
        _CHUNK_BYTES // sum(p.nbytes for p in parameters),
        _CHUNK_ACTIVATION_BYTES // max(1, engine.activation_bytes),
    )
    # A power of two, so that chunks come out alike and share a trace.
    return num_members if size >= num_members else 1 << max(0, size.bit_length() - 1)


def divide(plan: Plan, size: int, member_bytes: int = 0) -> list[list[int]]:
    """Divide the members into chunks of at most this size, of one seed each where a seed's members are enough work.

    Members of one seed share their batches; those of several need them stacked, which small models do not notice.

    Args:
        plan: whose members.
        size: of a chunk at most.
        member_bytes: parameters and activations of one member.
    """
    of_seeds: dict[int, list[int]] = {}
    for i, seed in enumerate(plan.seeds):
        of_seeds.setdefault(seed, []).append(i)
    least = min(len(members) for members in of_seeds.values())
    is_by_seed = least >= size or (least >= _MIXED_FROM and least * member_bytes >= _SEED_BYTES)
    pools = list(of_seeds.values()) if is_by_seed else [list(range(len(plan.members)))]
    return [part.tolist() for pool in pools for part in np.array_split(np.array(pool), -(-len(pool) // size))]


class Trials:
    """Time ways of stepping; members, batches and random streams stay as they are.

    Args:
        engine: whose traced steps may go on to be used.
        plan: whose members are stepped.
        batches: by seed.
        streams: the random streams of the run.
        num_processes: that may train members; 0 where none may.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        batches: Mapping[int, BatchStream],
        streams: Streams,
        num_processes: int = 0,
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._batches = batches
        self._streams = streams
        self._num_processes = num_processes
        self._member_s = math.inf  # for which one member takes a step, by itself
        hidden = engine.execution.hides_progress
        self._bar = Bar(desc="timing ways to step", unit=" ways", disable=hidden, delay=1, leave=False)

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def time(self, way: Way) -> Timing | None:
        """Time the steps of one chunk; None if it cannot be stepped this way."""
        interrupts.check()
        self._bar.set_postfix_str(str(way))
        self._bar.update()
        engine, closing = self._engine, ExitStack()
        members = [0]
        if way.engine == "sequential":
            engine = Sequential(self._engine.learners, self._engine.execution, self._streams)
        elif way.engine == "parallel":
            engine = Parallel(self._engine.learners, self._engine.execution, self._streams, self._num_processes)
            closing.callback(engine.close)
            # In the run a process takes the steps of many members on what it is sent once.
            num_each = math.ceil(_SHARE_S / (_TIMED_STEPS * self._member_s))
            members = list(range(min(len(self._plan.members), self._num_processes * max(1, num_each))))
        elif isinstance(engine, Vectorized):
            engine.is_compiling = way.is_compiled
        if isinstance(engine, Vectorized):
            members = divide(self._plan, way.chunk_size, engine.member_bytes)[0]
        seeds = [self._plan.seeds[i] for i in members]
        marks = {seed: self._streams.mark("model", seed) for seed in dict.fromkeys(seeds)}
        try:
            of_seeds = {seed: engine.start(seed) for seed in marks}
            chunk = engine.load([of_seeds[seed] for seed in seeds], seeds)
            start_s = self._run(chunk, members, 4 if way.is_compiled else _TIMED_STEPS)
            each_s = min(self._run(chunk, members, _TIMED_STEPS) for _ in range(_ROUNDS)) / _TIMED_STEPS
        except (Unmappable, OutOfMemory) as hindrance:
            is_mended = isinstance(engine, Vectorized) and engine.give_own_tensors(hindrance.__cause__)
            return self.time(way) if is_mended else None  # the run itself finds out what to do
        finally:
            closing.close()
            for seed, mark in marks.items():
                self._streams.rewind("model", seed, mark)
        if way.engine == "sequential":
            self._member_s = each_s
        if isinstance(engine, Vectorized):
            is_as_asked = engine.level.startswith("compiled") == way.is_compiled
            engine.restart()
            if not is_as_asked:
                return None
        return Timing(way, max(0.0, start_s - _TIMED_STEPS * each_s), each_s * len(self._plan.members) / len(members))

    def _run(self, chunk: Chunk, members: Sequence[int], num_steps: int) -> float:
        """Take steps on the first batches, each its own, as shapes may differ; return the seconds they took."""
        accumulated = self._engine.execution.accumulation_steps
        seeds = dict.fromkeys(self._plan.seeds[i] for i in members)
        ahead = {seed: cycle(self._batches[seed].peek_at(_TIMED_STEPS)) for seed in seeds}
        window = [{seed: (next(own),) * accumulated for seed, own in ahead.items()} for _ in range(num_steps)]
        hyper = {name: values[:1, members].repeat(num_steps, axis=0) for name, values in self._plan.hyper.items()}
        hyper["lr"] *= 1e-3  # a member that diverges would take no time
        started = time.perf_counter()
        curve = chunk.run(window, hyper)
        curve.loss.cpu()  # waits for the device
        return time.perf_counter() - started


def _key(engine: Vectorized, plan: Plan, batches: BatchStream, execution: Execution) -> str:
    """Name what a choice depends on: the machine, the task, the plan's size, and what was asked for."""
    learner = engine.pattern
    device = next(iter(learner.parameters.values())).device
    names = (
        __version__,
        torch.__version__,
        allocator_setting(),
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        os.cpu_count(),
        torch.get_num_threads(),
        repr(learner.model),
        [(name, p.shape, p.dtype) for name, p in learner.parameters.items()],
        [type(part).__qualname__ for part in parts_of(learner.optimizer)],
        [(group.options, group.lr_ratio) for group in learner.groups],
        sorted(plan.hyper),
        key_of(batches.peek()).leaves,
        list(Counter(plan.seeds).values()),
        plan.num_steps,
        [(name, getattr(execution, name)) for name in ("precision", "engine", "compile", "chunk_size")],
        (execution.accumulation_steps, execution.max_grad_norm, execution.divergence_factor),
    )
    return hashlib.blake2b(repr(names).encode(), digest_size=16).hexdigest()
