"""How fast a machine steps a task, by a plain loop and by each engine: what `vecsweep bench` measures.

Not here: the comparison with other tools, which is in the repository's folder bench.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice
from typing import Unpack

import numpy as np
import torch

from vecsweep._engine.run import time_ways
from vecsweep._engine.ways.choices import Timing, choose
from vecsweep.cli.plain_loop import time_step
from vecsweep.execution import Execution, ExecutionOptions, check_count
from vecsweep.plan import Plan
from vecsweep.task import Task

_NUM_BATCHES = 3  # loaded before steps are timed


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one way of stepping is.

    Attributes:
        engine: "plain loop", what people write without vecsweep; "vectorized" or "sequential".
        chunk_size: members that are stepped together.
        is_compiled: whether the step is compiled.
        start_s: seconds before the way runs at its speed: to trace, and to compile.
        step_s: seconds for one step of all members.
        ratio: how many times longer the plain loop takes; above 1 is faster.
        from_steps: the length of a run from which on this way is faster than the best one that is not compiled; None
            if it never is. 0 where nothing has to be compiled first.
    """

    engine: str
    chunk_size: int
    is_compiled: bool
    start_s: float
    step_s: float
    ratio: float
    from_steps: int | None


def measure_speeds(task: Task, num_members: int, **execution: Unpack[ExecutionOptions]) -> tuple[list[Speed], Speed]:
    """Time a few steps of each way; nothing of the task is changed.

    Args:
        task: what is trained.
        num_members: how many copies.
        **execution: `device`, `precision` and the like; see `Execution`. Engine and chunk size are varied whatever they
            say; with `compile=False` nothing is compiled.

    Returns:
        All ways, the plain loop first, and the one to use in a long run. No batch is loaded while steps are timed: an
        engine loads one for all members, a plain loop one for each.

    Raises:
        ValueError: an argument is out of range, or the task cannot be trained.
    """
    check_count("num_members", num_members)
    plan = Plan.constant(np.geomspace(1e-4, 1e-3, num_members), [0], 64)
    options = Execution.of(execution)
    with torch.random.fork_rng():
        task = replace(task, batches=list(islice(task.iterate(0), _NUM_BATCHES)))
    timings = time_ways(task, plan, options, is_compiling=options.compile is not False)
    plain_s = num_members * time_step(task, device=options.place, precision=options.precision)
    uncompiled = choose([timing for timing in timings if not timing.way.is_compiled], timings[0].way).way
    best = next(timing for timing in timings if timing.way == uncompiled)
    speeds = [_speed(timing, plain_s, best) for timing in timings]
    chosen = choose(timings, timings[0].way).way
    plain = Speed("plain loop", 1, False, 0.0, plain_s, 1.0, 0)
    return [plain, *speeds], speeds[[timing.way for timing in timings].index(chosen)]


def _speed(timing: Timing, plain_s: float, best: Timing) -> Speed:
    from_steps: int | None = 0
    if timing.way.is_compiled:
        gain_s = best.step_s - timing.step_s
        from_steps = math.ceil((timing.start_s - best.start_s) / gain_s) if gain_s > 0 else None
    way = timing.way
    return Speed(
        way.engine,
        way.chunk_size,
        way.is_compiled,
        timing.start_s,
        timing.step_s,
        plain_s / timing.step_s,
        from_steps,
    )
