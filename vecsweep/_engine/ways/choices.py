"""Which way members are stepped - engine, chunk size, level - found by timing a few steps of those that may be best.

Here is the search; how a way is timed is in `trials.py`, what was chosen is kept by `remembered.py`. Timing takes a few
per cent of the run: a way is only timed where the run is long enough to pay for it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

_SHORT_RUN = 1000  # steps of all members together: fewer are not worth a question
_SHORT_RUN_S = 5.0  # one member after another; a run that is shorter is batched, traced and not timed further
_SHARE = 0.04  # of a run, that timing chunk sizes may take
_TRIED_STEPS = 15  # that trying another way takes, of the fastest
_GAIN = 0.03  # by which another way must be faster to be taken
_COMPILE_S = 4.0  # least time to compile, with Inductor's cache on disk; bench/README.md has some
_COMPILE_PER_TRACE = 25
_COMPILE_SHARE = 0.12  # of a run, that compiling may take
_COMPILE_GAIN = 0.6  # what compiling may leave of a step, at best

Engine = Literal["vectorized", "sequential", "parallel"]


@dataclass(frozen=True, slots=True)
class Way:
    """A way of stepping the members of a run.

    Attributes:
        engine: "vectorized", "sequential" or "parallel".
        chunk_size: members that are stepped together.
        is_compiled: whether the traced step is compiled.
    """

    engine: Engine
    chunk_size: int
    is_compiled: bool

    def __str__(self) -> str:
        if self.engine != "vectorized":
            return self.engine
        return f"chunks of {self.chunk_size}, {'compiled' if self.is_compiled else 'traced'}"


class Timing(NamedTuple):
    """What a way costs.

    Attributes:
        way: which.
        start_s: seconds before it runs at its speed, to trace and to compile.
        step_s: seconds for one step of all members.
    """

    way: Way
    start_s: float
    step_s: float

    def run_s(self, num_steps: int) -> float:
        """Seconds for a run whose start is paid for."""
        return num_steps * self.step_s


class Choice(NamedTuple):
    """The way that was chosen.

    Attributes:
        way: which.
        why: in words.
        step_s: seconds that a step of all members took when it was timed; None where none was.
        key: under which the choice is remembered; None where it is not.
    """

    way: Way
    why: str
    step_s: float | None = None
    key: str | None = None


def search(
    time: Callable[[Way], Timing | None],
    batched: Way,
    *,
    varied: Collection[str],
    num_members: int,
    num_steps: int,
    parallel: Way | None = None,
    trace_s: float | None = None,
) -> list[Timing]:
    """Time the ways that may be best.

    Args:
        time: times a way; None where that cannot be had.
        batched: the way to batch members that is known to do without timing others.
        varied: which of "engine", "chunk_size" and "compile" are free.
        num_members: of the run.
        num_steps: of each member.
        parallel: the way to train them in several processes, if that may be best.
        trace_s: what tracing may take, where it is so long that the run must be long to pay for it; None where not.

    Returns:
        The timings, of which the least is to be taken; empty where the run is too short to be timed.
    """
    if num_steps * num_members < _SHORT_RUN:
        return []
    timings: list[Timing] = []

    def note(way: Way) -> Timing | None:
        if (timing := time(way)) is not None:
            timings.append(timing)
        return timing

    sequential = note(Way("sequential", num_members, False)) if "engine" in varied else None
    if sequential is not None and sequential.run_s(num_steps) < _SHORT_RUN_S:
        return []
    if parallel is not None:
        note(parallel)
    tried: Way | None = batched
    if trace_s is not None and timings:
        fastest = min(timings, key=lambda timing: timing.step_s)
        tried = _affordable(batched, fastest, trace_s, num_members, num_steps, is_free="chunk_size" in varied)
    if tried is None:
        return timings
    factors = (0.5, 2.0) if tried == batched else (2.0,)
    best = first = note(tried)
    if best is None or first is None:
        return timings
    if "chunk_size" in varied:
        best = _search_chunk_size(note, best, num_members, num_steps, factors)
    if "compile" in varied:
        compile_s = max(_COMPILE_S, _COMPILE_PER_TRACE * first.start_s)
        unbatched = [timing.step_s for timing in timings if timing.way.engine != "vectorized"]
        is_hopeful = _COMPILE_GAIN * best.step_s < min(unbatched, default=best.step_s)
        # What is compiled takes fewer passes over memory, so that all members at once may do better than they did.
        sizes = [best.way.chunk_size, *([num_members] if "chunk_size" in varied else [])]
        for i, size in enumerate(dict.fromkeys(sizes)):
            if is_hopeful and (i + 1) * compile_s < _COMPILE_SHARE * best.run_s(num_steps):
                note(Way("vectorized", size, True))
    return timings


def _affordable(
    batched: Way, fastest: Timing, trace_s: float, num_members: int, num_steps: int, *, is_free: bool
) -> Way | None:
    """The way to batch members, of fewer if it is free, that the run can pay for to try; None if there is none.

    Some of the members tell as well whether batching gains, and more are tried where it does.
    """
    share = (_SHARE * fastest.run_s(num_steps) - trace_s) / (_TRIED_STEPS * fastest.step_s)
    most = int(share * num_members)
    if most >= batched.chunk_size:
        return batched
    return replace(batched, chunk_size=1 << (most.bit_length() - 1)) if most >= 2 and is_free else None


def _search_chunk_size(
    note: Callable[[Way], Timing | None], best: Timing, num_members: int, num_steps: int, factors: Sequence[float]
) -> Timing:
    """Halve or double the chunk size for as long as that gains."""
    budget_s = _SHARE * best.run_s(num_steps)
    trace_s = best.start_s
    for factor in factors:
        start = best
        while (size := min(num_members, max(1, int(best.way.chunk_size * factor)))) != best.way.chunk_size:
            budget_s -= trace_s + 8 * best.step_s * size / num_members
            if budget_s < 0 or (timing := note(Way("vectorized", size, best.way.is_compiled))) is None:
                return best
            if timing.step_s > (1 - _GAIN) * best.step_s:
                break
            best = timing
        if best is not start:
            break
    return best


def choose(timings: list[Timing], default: Way) -> Choice:
    """Take the fastest; on a draw the one that was timed first."""
    if not timings:
        return Choice(default, "")
    best = timings[0]
    for timing in timings[1:]:
        if timing.step_s < (1 - _GAIN) * best.step_s:
            best = timing
    listed = ", ".join(f"{1e3 * timing.step_s:.3g} ms a step {timing.way}" for timing in timings)
    return Choice(best.way, f"measured {listed}", best.step_s)
