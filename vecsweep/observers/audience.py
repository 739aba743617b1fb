"""Audience: all observers of a run, none of which can stop it or change what it computes."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from vecsweep._errors import warn_of_trouble
from vecsweep._types import FloatArray, Hyper
from vecsweep.observers.observer import Observer, Run
from vecsweep.results.curves import Curves


class Audience:
    """Tells every observer what members do. One that fails is left out from there on, with one warning.

    Args:
        observers: who are told.
        failed: the places of those that have failed; parts of the same work share them.
    """

    def __init__(self, observers: Sequence[Observer] = (), failed: set[int] | None = None) -> None:
        self._observers = tuple(observers)
        self._failed = set[int]() if failed is None else failed
        self._begin = 0

    def __bool__(self) -> bool:
        """Whether anybody is left to be told."""
        return len(self._failed) < len(self._observers)

    def part(self, name: str) -> "Audience":
        """Return who is told of a part of the work."""
        parts = list(self._observers)

        def take(i: int, observer: Observer) -> None:
            parts[i] = observer.part(name)

        self._tell(take)
        return Audience(parts, self._failed)

    def start(self, run: Run) -> None:
        """Tell who trains, and for how long."""
        self._begin = run.begin
        self._each(lambda observer: observer.start(run))

    def losses(self, start: int, loss: FloatArray, hyper: Hyper) -> None:
        """Tell of some steps, counted from the begin of the run."""
        told = _read_only(loss)
        with_what = {name: _read_only(values) for name, values in hyper.items()}
        self._each(lambda observer: observer.losses(self._begin + start, told, dict(with_what)))

    def metrics(self, num_done: int, values: dict[str, FloatArray]) -> None:
        """Tell what was measured after some steps of the run."""
        told = {name: _read_only(own) for name, own in values.items()}
        self._each(lambda observer: observer.metrics(self._begin + num_done, dict(told)))

    def ended(self, member: int, step: int, *, has_diverged: bool) -> None:
        """Tell that a member has come to its end."""
        self._each(
            lambda observer: observer.member_ended(
                member, self._begin + step, "diverged" if has_diverged else "stopped"
            )
        )

    def end(self, runs: Curves | None) -> None:
        """Tell what came of it; None where an error broke it off before the first steps."""
        self._each(lambda observer: observer.end(runs))

    def _each(self, tell: Callable[[Observer], object]) -> None:
        self._tell(lambda _, observer: tell(observer))

    def _tell(self, tell: Callable[[int, Observer], object]) -> None:
        for i, observer in enumerate(self._observers):
            if i not in self._failed:
                try:
                    with _same_random_numbers():
                        tell(i, observer)
                except Exception as error:  # whatever somebody's server or disk raises
                    self._failed.add(i)
                    warn_of_trouble(
                        f"The observer {type(observer).__name__} failed, and is told nothing more: "
                        f"{type(error).__name__}: {error}. The run goes on without it."
                    )


def _read_only(values: FloatArray) -> FloatArray:
    view = values.view()
    view.flags.writeable = False
    return view


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leave the global generators as they are found: members draw from them."""
    python, legacy_numpy, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)  # noqa: NPY002
        torch.set_rng_state(torchs)
