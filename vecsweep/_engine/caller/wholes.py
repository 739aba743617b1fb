"""Places that are taken as a whole: sequences, numbers, random generators, and what only comes forward."""

import ctypes
import gc
import io
import random
import types
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.data.dataloader import _BaseDataLoaderIter

from vecsweep._engine.caller.places import WHOLE, Items, Mapped, Place, is_plain

_COUNTERS = (ctypes.c_bool, ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_float, ctypes.c_double)


class Whole(Place):
    """A place with one item, which goes by the holder's name."""

    def suffix(self, key: Any) -> str:
        return ""

    def children(self) -> Iterable[tuple[str, Any]]:
        return ()


class Sequence(Whole):
    """A list, a deque, a set or a bytearray, taken as a whole."""

    def items(self) -> Items:
        return {WHOLE: tuple(self.holder)}

    def put(self, key: Any, value: Any) -> None:
        self.holder.clear()
        (self.holder.update if isinstance(self.holder, set) else self.holder.extend)(value)

    def changed(self, before: Items) -> Items:
        if isinstance(self.holder, set):
            return {} if self.holder == set(before[WHOLE]) else self.items()
        return super().changed(before)

    def children(self) -> Iterator[tuple[str, Any]]:
        return ((f"[{i}]", value) for i, value in enumerate(self.holder))


class Numbers(Whole):
    """The numbers of an array or a tensor."""

    is_counting = True

    def items(self) -> Items:
        holder = self.holder
        return {WHOLE: holder.detach().clone() if isinstance(holder, Tensor) else holder.copy()}

    def put(self, key: Any, value: Any) -> None:
        if isinstance(self.holder, Tensor):
            # A tensor of another shape has been given other memory.
            with torch.no_grad():
                same = self.holder.shape == value.shape
                _ = self.holder.copy_(value) if same else self.holder.set_(value.clone())
        else:
            self.holder[...] = value

    def changed(self, before: Items) -> Items:
        return {} if _has_same_numbers(self.holder, before[WHOLE]) else self.items()


class Differentiated(Place):
    """Whether a tensor takes a gradient, and that which has been added up in it."""

    def items(self) -> Items:
        return {key: getattr(self.holder, key) for key in ("requires_grad", "grad")}

    def put(self, key: Any, value: Any) -> None:
        setattr(self.holder, key, value)

    def suffix(self, key: Any) -> str:
        return f".{key}"


class Memory(Whole):
    """The numbers of an `array.array`, or one of ctypes, as multiprocessing's `Value` holds."""

    is_counting = True

    def items(self) -> Items:
        return {WHOLE: bytes(self.holder)}

    def put(self, key: Any, value: Any) -> None:
        if isinstance(self.holder, array):
            self.holder[:] = array(self.holder.typecode, value)
        else:
            ctypes.memmove(ctypes.addressof(self.holder), value, len(value))


class Generator(Whole):
    """A generator of random numbers that is not one of the global ones."""

    is_counting = True

    def items(self) -> Items:
        return {WHOLE: _random_state(self.holder)}

    def put(self, key: Any, value: Any) -> None:
        if isinstance(self.holder, torch.Generator):
            self.holder.set_state(value)
        elif isinstance(self.holder, random.Random):
            self.holder.setstate(value)
        elif isinstance(self.holder, np.random.RandomState):
            self.holder.set_state(value)
        else:
            self.holder.bit_generator.state = value

    def changed(self, before: Items) -> Items:
        now = self.items()
        return {} if repr(_listed(now[WHOLE])) == repr(_listed(before[WHOLE])) else now


class Progress(Whole):
    """How far something has come that cannot be set back: an iterator, a file."""

    is_captured = False
    is_counting = True

    def items(self) -> Items:
        return {WHOLE: _progress(self.holder)}

    def put(self, key: Any, value: Any) -> None:
        """Leave it where it is."""


def is_progress(value: object) -> bool:
    """Whether a value comes forward in a way that cannot be set back."""
    if isinstance(value, io.IOBase | types.GeneratorType | _BaseDataLoaderIter):
        return True
    return hasattr(type(value), "__next__") and type(value).__module__ in ("builtins", "itertools")


def _progress(holder: Any) -> Any:
    """Something plain that differs after each step forward, as far as one can be read off from outside."""
    if isinstance(holder, io.IOBase):
        return holder.tell() if not holder.closed and holder.seekable() else None
    if isinstance(holder, types.GeneratorType):
        frame, within = holder.gi_frame, holder.gi_yieldfrom
        values = () if frame is None else tuple(map(_plain_or_id, frame.f_locals.values()))
        return None if frame is None else (frame.f_lasti, values, _progress(within) if is_progress(within) else None)
    if isinstance(holder, _BaseDataLoaderIter):
        return holder._num_yielded
    if hasattr(holder, "__length_hint__"):
        return holder.__length_hint__()
    return repr(holder), tuple(map(_progress, _iterated(holder)))


def _iterated(holder: Any) -> list[Any]:
    """The iterators that one of Python's own draws on: those of `zip`, `cycle`, `chain`."""
    held = [part for own in gc.get_referents(holder) for part in (own if isinstance(own, tuple) else (own,))]
    return [part for part in held if is_progress(part)]


def _plain_or_id(value: Any) -> Any:
    return value if is_plain(value) else id(value)


def _random_state(holder: Any) -> Any:
    if isinstance(holder, torch.Generator | np.random.RandomState):
        return holder.get_state()
    return holder.getstate() if isinstance(holder, random.Random) else holder.bit_generator.state


def _listed(state: Any) -> Any:
    """A random state with its arrays as lists, because arrays are abbreviated in text."""
    if isinstance(state, Mapping):
        return {key: _listed(value) for key, value in state.items()}
    if isinstance(state, tuple):
        return tuple(map(_listed, state))
    return state.tolist() if isinstance(state, Tensor | np.ndarray) else state


def _has_same_numbers(a: Any, b: Any) -> bool:
    if a.shape != b.shape:
        return False
    if isinstance(a, Tensor):
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return a.dtype == object or bool(np.array_equal(a, b) or ((a == b) | ((a != a) & (b != b))).all())


def place_of(value: object) -> Place | None:
    """The place that a container, a tensor, a random generator or an iterator is; None for anything else."""
    if isinstance(value, Tensor):
        is_of_parts = is_traceable_wrapper_subclass(value)  # which are tensors themselves
        return None if is_of_parts or value.layout != torch.strided or value.is_meta else Numbers(value)
    if is_progress(value):
        return Progress(value)
    return next((place(value) for kinds, place in _KINDS if isinstance(value, kinds)), None)


_KINDS: tuple[tuple[tuple[type, ...], type[Place]], ...] = (
    ((dict,), Mapped),
    ((list, deque, set, bytearray), Sequence),
    ((np.ndarray,), Numbers),
    ((array, *_COUNTERS), Memory),
    ((torch.Generator, random.Random, np.random.Generator, np.random.RandomState), Generator),
)
