"""Random streams that take turns at the global generators, which the caller gets back as they were."""

import hashlib
import os
import random
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from vecsweep import _interrupts as interrupts
from vecsweep.kernels.rules import UnforeseenDrawError

State = tuple[Any, ...]

_LOOK_S = 0.5

# The generators are global: sweeps in several threads take turns. By process, because one that is forked while a thread
# sweeps has the lock without the thread that would let it go.
_LOCKS: dict[int, Any] = {}


class Streams:
    """Independent random streams: of the weights and batches of each seed, and of what its models draw.

    A stream is the state of all global generators (Python, NumPy, torch on the CPU and on GPUs) and of the generators
    that belong to the caller's data loader. Only one stream is in place at a time, so that a run with a single stream
    swaps nothing.

    Args:
        device: where members train; None if it is not known yet: then GPUs are set up, for the caller's own function
            that builds the model may draw its weights on one, from a generator that is seeded and given back.
        generators: the caller's own generators, which are seeded and put back with the global ones.
    """

    def __init__(self, device: torch.device | None, generators: Sequence[torch.Generator] = ()) -> None:
        if device is not None and device.type == "cuda":
            torch.cuda.init()
        elif device is None and torch.cuda.is_available():
            with suppress(RuntimeError):  # a model that needs a GPU says it itself
                torch.cuda.init()
        self._own_generators = tuple(generators)
        self._states: dict[Hashable, State] = {}
        self._current: Hashable = None

    @property
    def _generators(self) -> tuple[torch.Generator, ...]:
        """All of them; those of GPUs as soon as they are set up, and not in a process that was forked from there."""
        gpus = torch.cuda.default_generators if torch.cuda.is_initialized() else ()
        return (torch.default_generator, *self._own_generators, *gpus)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Give the caller's generators back at the end, also after an exception; other threads wait meanwhile."""
        lock = _LOCKS.setdefault(os.getpid(), threading.RLock())
        while not lock.acquire(timeout=_LOOK_S):
            interrupts.check()
        try:
            callers = self._capture()
            try:
                yield
            finally:
                self._restore(callers)
                self._current = None
        finally:
            lock.release()

    def use(self, name: str, seed: int) -> None:
        """Put a stream in place. Those of weights and of models begin as after `torch.manual_seed(seed)`."""
        stream = (name, seed)
        if stream == self._current:
            return
        if self._current is not None:
            self._states[self._current] = self._capture()
        self._current = stream
        if stream in self._states:
            self._restore(self._states[stream])
        else:
            self._seed(_seed_of(stream))

    def mark(self, name: str, seed: int) -> State:
        """Note where a stream stands."""
        self.use(name, seed)
        return self._capture()

    def restart(self, name: str, seed: int) -> None:
        """Put a stream in place at its beginning."""
        if self._current == (name, seed):
            self._current = None
        self._states.pop((name, seed), None)
        self.use(name, seed)

    def rewind(self, name: str, seed: int, mark: State) -> None:
        """Set a stream back to where it was marked."""
        self._states[name, seed] = mark
        if self._current == (name, seed):
            self._restore(mark)

    def _seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global state is what users' transforms draw from
        for generator in self._generators:
            generator.manual_seed(seed)  # torch.manual_seed would reach GPUs that nobody gives back

    def _capture(self) -> State:
        return *_numbers(), [generator.get_state() for generator in self._generators]

    def _restore(self, state: State) -> None:
        python, legacy_numpy, generators = state
        _set_numbers(python, legacy_numpy)
        # A mark of an earlier run may lack GPUs that were not in use then.
        for generator, own in zip(self._generators, generators, strict=False):
            generator.set_state(own)


@contextmanager
def no_numbers_drawn() -> Iterator[None]:
    """Set the generators of Python and NumPy back where something draws from them.

    Raises:
        UnforeseenDrawError: in the end, if something has drawn.
    """
    before = _numbers()
    try:
        yield
    finally:
        if is_drawn := not _are_same_numbers(before, _numbers()):
            _set_numbers(*before)
    if is_drawn:
        raise UnforeseenDrawError("it draws from the generators of Python or NumPy, which each seed does for itself")


class Turns:
    """Turns of a seed's members at its random numbers, in which each draws the same as the first.

    Args:
        streams: the random streams of the run.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._starts: dict[int, State] = {}  # of each seed, before the first turn
        self._are_drawn: dict[int, bool] = {}  # whether that drew anything

    @contextmanager
    def take(self, seed: int) -> Iterator[None]:
        """Have a turn."""
        is_first = seed not in self._starts
        if is_first:
            self._starts[seed] = self._streams.mark("model", seed)
        elif self._are_drawn[seed]:
            self._streams.use("model", seed)
            self._streams.rewind("model", seed, self._starts[seed])
        yield
        if is_first:
            self._are_drawn[seed] = not is_same_state(self._starts[seed], self._streams.mark("model", seed))


def _seed_of(stream: tuple[str, int]) -> int:
    """The seed itself, as in an ordinary loop; for batches another, lest noise in data equals noise in the model."""
    name, seed = stream
    if name != "batches":
        return seed
    return int.from_bytes(hashlib.blake2b(f"{name} {seed}".encode(), digest_size=7).digest(), "little")


def is_same_state(a: State, b: State) -> bool:
    """Whether two marks are equal, bit for bit."""
    return _are_same_numbers(a[:2], b[:2]) and is_same_but_for_numbers(a, b)


def is_same_but_for_numbers(a: State, b: State) -> bool:
    """Whether two marks differ at most in the generators of Python and NumPy, which draw numbers and not tensors."""
    return all(torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))


def _numbers() -> tuple[Any, Any]:
    """The generators of Python and NumPy as they stand."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _set_numbers(python: Any, legacy_numpy: Any) -> None:
    random.setstate(python)
    np.random.set_state(legacy_numpy)  # noqa: NPY002


def _are_same_numbers(a: State, b: State) -> bool:
    return a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
