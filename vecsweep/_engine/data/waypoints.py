"""Waypoints: places in an epoch to which a loader goes by itself, so that what came before need not be read again.

That is what torchdata's `StatefulDataLoader` is for. Its `state_dict` has what its samplers and data sets keep, and not
what was drawn from the random generators of this process, which a waypoint adds, nor from those of its workers.
"""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from vecsweep._engine.caller.rng import State, Streams
from vecsweep._types import Batch

_EVERY = 16  # batches
_NUM_KEPT = 4  # more than there are in the batches that are read ahead


@dataclass(frozen=True, slots=True)
class Waypoint:
    """A place in an epoch.

    Attributes:
        stream: the random stream there.
        loader: the loader's `state_dict`.
        num_loaded: batches of the epoch before it.
    """

    stream: State
    loader: Any
    num_loaded: int


def is_stateful(source: Any) -> bool:
    """Whether a source is a loader that goes to a place by itself."""
    return isinstance(source, DataLoader) and hasattr(source, "state_dict") and hasattr(source, "load_state_dict")


class Waypoints:
    """Those of the epoch under way, of one seed's batches.

    Args:
        source: a loader, if there are to be any.
        streams: the random streams of the run.
        seed: of the batches.
    """

    def __init__(self, source: Any, streams: Streams, seed: int) -> None:
        self._source = source if is_stateful(source) else None
        self._streams = streams
        self._seed = seed
        self._noted = deque[Waypoint](maxlen=_NUM_KEPT)

    def begin(self) -> None:
        """Note that an epoch begins."""
        self._noted.clear()

    def note(self, num_loaded: int) -> None:
        """Note the place after so many batches, now and then."""
        if self._source is not None and num_loaded % _EVERY == 0:
            stream = self._streams.mark("batches", self._seed)
            self._noted.append(Waypoint(stream, copy.deepcopy(self._source.state_dict()), num_loaded))

    def before(self, num_taken: int) -> Waypoint | None:
        """The last one that has a batch between it and a place, by which that place can be told."""
        return next((own for own in reversed(self._noted) if own.num_loaded < num_taken), None)

    def go_to(self, waypoint: Waypoint) -> Iterator[Batch] | None:
        """Have the loader go there; None if this one cannot."""
        if self._source is None:
            return None
        self._streams.use("batches", self._seed)
        self._source.load_state_dict(copy.deepcopy(waypoint.loader))
        iterator: Iterator[Batch] = iter(self._source)
        self._streams.rewind("batches", self._seed, waypoint.stream)  # which making the iterator has drawn from
        return iterator
