"""Random streams that take turns at the global generators, which the caller gets back as they were."""

import random
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

State = tuple[Any, ...]


class Streams:
    """Independent random streams: one for the batches of each seed, one for what the models of that seed draw.

    A stream is the state of all global generators (Python, NumPy, torch on the CPU and on the device) and of the
    generators that belong to the caller's data loader. Only one stream is in place at a time, so that a run with a
    single stream swaps nothing.

    Args:
        device: the device whose generator takes part besides the CPU's.
        generators: the caller's own generators, which are seeded and put back with the global ones.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator] = ()) -> None:
        self._device = device
        self._generators = tuple(generators)
        self._states: dict[Hashable, State] = {}
        self._current: Hashable = None

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Give the caller's generators back at the end, also after an exception."""
        callers = self._capture()
        try:
            yield
        finally:
            self._restore(callers)
            self._current = None

    def use(self, name: str, seed: int) -> None:
        """Put a stream in place; one that was never used begins as after `torch.manual_seed(seed)`."""
        stream = (name, seed)
        if stream == self._current:
            return
        if self._current is not None:
            self._states[self._current] = self._capture()
        self._current = stream
        if stream in self._states:
            self._restore(self._states[stream])
        else:
            self._seed(seed)

    def mark(self, name: str, seed: int) -> State:
        """Note where a stream stands."""
        self.use(name, seed)
        return self._capture()

    def rewind(self, name: str, seed: int, mark: State) -> None:
        """Set a stream back to where it was marked."""
        self._states[name, seed] = mark
        if self._current == (name, seed):
            self._restore(mark)

    def _seed(self, seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the legacy global state is what users' transforms draw from
        torch.manual_seed(seed)
        for generator in self._generators:
            generator.manual_seed(seed)

    def _capture(self) -> State:
        return (
            random.getstate(),
            np.random.get_state(),  # noqa: NPY002
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
            tuple(generator.get_state() for generator in self._generators),
        )

    def _restore(self, state: State) -> None:
        python, legacy_numpy, cpu, cuda, generators = state
        random.setstate(python)
        np.random.set_state(legacy_numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._device)
        for generator, own in zip(self._generators, generators, strict=True):
            generator.set_state(own)


def is_same_state(a: State, b: State) -> bool:
    """Whether two marks are equal, bit for bit."""
    (python_a, numpy_a, cpu_a, cuda_a, _), (python_b, numpy_b, cpu_b, cuda_b, _) = a, b
    return (
        python_a == python_b
        and all(np.array_equal(x, y) for x, y in zip(numpy_a, numpy_b, strict=True))
        and torch.equal(cpu_a, cpu_b)
        and (cuda_a is None or torch.equal(cuda_a, cuda_b))
    )
