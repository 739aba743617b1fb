"""What a source of batches keeps from one batch to the next: an epoch that it counts, a random generator of its own.

Each seed has it for itself, and the caller gets it back after every batch. Kept so are numbers and strings among the
attributes of the caller's objects (data sets, samplers, transforms) and in closures, short lists of them that do not
grow, and generators; not what is opened, and what is kept in memory.

Not here: what the loss can reach, too (`windows.py`), and what a `StatefulDataLoader` notes of itself (`waypoints.py`).
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Subset

from vecsweep._engine.caller.places import GONE, Attributes, Cell, Items, Place, Slots, is_plain
from vecsweep._engine.caller.reach import Label, Reach
from vecsweep._engine.caller.wholes import Generator, Sequence
from vecsweep._engine.data.waypoints import is_stateful
from vecsweep.tasks.recut import Recut

_MAX_PLACES = 500  # the nearest; looked at with every batch
_MAX_ITEMS = 1000  # of a list

Kept = dict[str, Items]  # by the name of a place


class OwnState:
    """What a source keeps for itself, as it is for each seed.

    Args:
        source: of the task's batches.
        passed: the ids of what others watch.
    """

    def __init__(self, source: Any, passed: Collection[int] = ()) -> None:
        roots = {Label("the source", str(i)): part for i, part in enumerate(_parts(source))}
        passed = {*passed, *map(id, generators_of(source))}
        found = Reach(roots, passed=passed, has_functions=True, has_numbers=True).places() if roots else iter(())
        own = ((label, place) for label, place in islice(found, _MAX_PLACES) if _is_own(place))
        self._places = {f"{type(place).__name__}: {label}": place for label, place in own}
        self._before = {name: place.items() for name, place in self._places.items()}
        self._of_seeds: dict[int, Kept] = {}

    def of(self, seed: int) -> Kept:
        """What it keeps for a seed."""
        return self._of_seeds.get(seed, {})

    def take_up(self, seed: int, kept: Kept) -> None:
        """Go on for a seed from what was kept."""
        self._of_seeds[seed] = {name: items for name, items in kept.items() if name in self._places}

    @contextmanager
    def reading(self, seed: int) -> Iterator[None]:
        """Read batches of a seed."""
        self._put(self.of(seed))
        try:
            yield
        finally:
            changes = {name: place.changed(self._before[name]) for name, place in self._places.items()}
            kept = {name: self._plain(name, items) for name, items in changes.items() if items}
            self._of_seeds[seed] = {name: items for name, items in kept.items() if items}
            self._put({name: {key: self._before[name][key] for key in items} for name, items in kept.items()})

    def _put(self, kept: Kept) -> None:
        for name, items in kept.items():
            for key, value in items.items():
                self._places[name].put(key, value)

    def _plain(self, name: str, items: Items) -> Items:
        """Those of changed items that are kept: what is plain, and was."""
        if isinstance(self._places[name], Generator):
            return items
        before = {key: self._before[name].get(key, GONE) for key in items}
        if isinstance(self._places[name], Sequence):  # one that grows takes notes
            return {key: value for key, value in items.items() if is_plain(value) and len(value) == len(before[key])}
        return {key: value for key, value in items.items() if is_plain(before[key]) and is_plain(value)}


def generators_of(source: Any) -> list[torch.Generator]:
    """The random generators of a DataLoader and its samplers, which are seeded with the global ones."""
    source = source.source if isinstance(source, Recut) else source
    batch_sampler = getattr(source, "batch_sampler", None)
    owners = (source, getattr(source, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in generators if isinstance(generator, torch.Generator)]


def _parts(source: Any) -> list[Any]:
    """The parts of a source that may be the caller's own; none of a list, nor of an iterator, which is read once."""
    if isinstance(source, Recut):
        return _parts(source.source)
    if isinstance(source, list | tuple | Iterator) or is_stateful(source):
        return []
    if isinstance(source, DataLoader):
        parts = (source, source.dataset, source.sampler, source.batch_sampler, source.collate_fn)
        return [inner for part in parts for inner in _within(part)]
    return [source]


def _within(part: Any) -> list[Any]:
    """A part, or what is in it, where it is one of PyTorch's that hold others."""
    if isinstance(part, Subset):
        return _within(part.dataset)
    if isinstance(part, ConcatDataset):
        return [inner for own in part.datasets for inner in _within(own)]
    return [] if part is None else [part]


def _is_own(place: Place) -> bool:
    if isinstance(place, Sequence):
        return len(place.holder) <= _MAX_ITEMS and not isinstance(place.holder, set)
    return isinstance(place, Attributes | Slots | Cell | Generator)
