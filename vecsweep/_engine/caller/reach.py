"""Reach: the places that a pass can write to, found by following everything from some named roots.

Followed are attributes, containers, closures, default arguments, the globals that functions name, plain objects and
their classes, and functions of the caller's that are called. What belongs to Python's and PyTorch's own libraries is
left alone, and so is what is very large.
"""

import argparse
import dis
import functools
import queue
import random
import sys
import threading
import types
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.sharedctypes import SynchronizedBase
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vecsweep._engine.caller.places import (
    Attributes,
    Cell,
    ClassAttributes,
    Defaults,
    Globals,
    Place,
    Registered,
    Slots,
    is_plain,
)
from vecsweep._engine.caller.wholes import Differentiated, Generator, Numbers, Progress, place_of

_MAX_PLACES = 20_000
_MAX_ITEMS = 10_000  # of a container that is looked into
_MAX_BYTES = 256 * 2**20  # of all tensors and arrays together
_NEVER_FOLLOWED = sys.stdlib_module_names - {"__main__"} | {"torch", "functorch", "numpy", "vecsweep"}
_GLOBAL_CODES = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_KEEPING = (
    types.SimpleNamespace,
    argparse.Namespace,
    ChainMap,
    UserDict,
    UserList,
    queue.Queue,
    threading.local,
    SynchronizedBase,  # multiprocessing's `Value` and `Array`
    Optimizer,
    LRScheduler,
    torch.amp.GradScaler,
)
_GLOBAL_GENERATOR = random.uniform.__self__  # type: ignore[attr-defined]  # which each seed has a stream of
KEPT = "the module's function"  # the kind of those that modules have as attributes and hooks
_LIBRARIES = {"site-packages", "dist-packages"}  # the folders of what is installed


@dataclass(frozen=True, slots=True)
class Label:
    """How something is named to people.

    Attributes:
        kind: what it is: "the global", "the closure variable".
        path: the expression that reaches it.
        owner: the function it belongs to; empty for none.
    """

    kind: str
    path: str
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.kind} `{self.path.removeprefix('.')}`" + (f" of `{self.owner}`" if self.owner else "")

    def then(self, suffix: str) -> "Label":
        """The label of something inside."""
        return Label(self.kind, self.path + suffix, self.owner)


Roots = Mapping[Label, object]


class Reach:
    """What can be reached from some roots.

    Args:
        roots: where to begin.
        passed: the ids of what is not followed.
        trained: the ids of the modules whose parameters and buffers are no places.
        has_functions: whether functions and classes are followed; not where only one of several copies is meant.
        has_numbers: whether tensors and arrays are places.
    """

    def __init__(
        self,
        roots: Roots,
        *,
        passed: Collection[int] = (),
        trained: Collection[int] = (),
        has_functions: bool,
        has_numbers: bool,
    ) -> None:
        self._pending: deque[tuple[Label, object]] = deque(roots.items())
        self._roots = {id(root) for root in roots.values()}
        # Not those of a model's own functions: a hook of a large library would lead through all of it.
        functions = (r for label, r in roots.items() if label.kind != KEPT and not isinstance(r, nn.Module | type))
        self._packages = {_package_of(function) for function in functions} - _NEVER_FOLLOWED
        self._passed = passed
        self._trained = trained
        self._has_functions = has_functions
        self._has_numbers = has_numbers
        self._num_bytes = 0
        # Holds what was seen, so that no id comes twice.
        self._seen: dict[int, object] = {id(_GLOBAL_GENERATOR): _GLOBAL_GENERATOR}

    def places(self) -> Iterator[tuple[Label, Place]]:
        """Find the places, the nearest first."""
        num_places = 0
        while self._pending and num_places < _MAX_PLACES:
            label, value = self._pending.popleft()
            if is_plain(value) or id(value) in self._seen or id(value) in self._passed:
                continue
            self._seen[id(value)] = value
            for own, place in self._open(label, value):
                num_places += 1
                yield own, place
                self._pending.extend((own.then(suffix), child) for suffix, child in place.children())

    def _open(self, label: Label, value: Any) -> Iterator[tuple[Label, Place]]:
        """The places that a value is; what it refers to besides them waits for its turn."""
        place = place_of(value)
        if isinstance(place, Generator):
            if self._has_numbers:
                yield label, place
        elif isinstance(place, Numbers):
            if self._has_numbers and self._num_bytes + value.nbytes <= _MAX_BYTES:
                self._num_bytes += value.nbytes
                yield label, place
            if isinstance(value, nn.Parameter):
                yield label, Differentiated(value)
        elif place is not None:
            if isinstance(place, Progress) or not hasattr(value, "__len__") or len(value) <= _MAX_ITEMS:
                yield label, place
        elif isinstance(value, types.FunctionType):
            if self._has_functions and (id(value) in self._roots or self._is_callers(value)):
                yield from self._open_function(value)
        elif isinstance(value, type):
            if self._has_functions and self._is_callers(value):
                yield Label("the class attribute", value.__qualname__), ClassAttributes(value)
                self._wait(label, vars(value).values())
        elif isinstance(value, types.CellType):
            yield label, Cell(value)
        elif isinstance(value, tuple | frozenset):
            self._pending.extend((label.then(f"[{i}]"), item) for i, item in enumerate(value))
        elif isinstance(value, types.MethodType):
            self._wait(label, [value.__func__])
            owner = getattr(value.__func__, "__qualname__", "")  # which a `functools.partial` has not
            self._pending.append((Label("the attribute", "self", owner), value.__self__))
        elif isinstance(value, functools.partial):
            self._wait(label, [value.func])
            self._wait(Label("the bound argument", ""), [value.args, value.keywords])
        elif isinstance(value, staticmethod | classmethod | property):
            self._wait(label, [value.fget if isinstance(value, property) else value.__func__])
        elif isinstance(value, nn.Module) or self._is_object(value):
            yield from self._open_object(label, value)

    def _open_function(self, function: types.FunctionType) -> Iterator[tuple[Label, Place]]:
        owner = function.__qualname__.replace("<locals>.", "")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._pending.append((Label("the closure variable", name, owner), cell))
        yield Label("the default", "", owner), Defaults(function)
        yield Label("the attribute", function.__qualname__), Attributes(function)
        of_globals, of_modules, imported = _names_in(function.__code__)
        named = Globals(function.__globals__, of_globals)
        yield Label("the global", ""), named
        within = {key: sys.modules[key] for key in imported if key in sys.modules}
        for key, value in (within | named.items()).items():
            if isinstance(value, types.ModuleType) and self._is_callers_module(value):
                yield Label("the global", f"{key}."), Globals(vars(value), of_modules)

    def _open_object(self, label: Label, value: Any) -> Iterator[tuple[Label, Place]]:
        if hasattr(value, "__dict__"):
            yield label, Attributes(value)
        if any("__slots__" in vars(kind) for kind in type(value).__mro__):
            yield label, Slots(value)
        if isinstance(value, nn.Module):
            yield label, Registered(value, has_tensors=id(value) not in self._trained)
        self._wait(label, type(value).__mro__)

    def _wait(self, label: Label, values: Collection[object]) -> None:
        self._pending.extend((label, value) for value in values)

    def _is_object(self, value: object) -> bool:
        """Whether this is an object of a class that is not Python's own, or one of those that keep count."""
        return _package_of(type(value)) not in _NEVER_FOLLOWED or isinstance(value, _KEEPING)

    def _is_callers(self, value: Any) -> bool:
        """Whether a function or a class is the caller's, or of the same package as a function among the roots."""
        package = _package_of(value)
        return package in self._packages or (
            package not in _NEVER_FOLLOWED and self._is_callers_module(sys.modules.get(value.__module__))
        )

    @staticmethod
    def _is_callers_module(module: types.ModuleType | None) -> bool:
        """Whether a module is not installed as a library; one without a file was typed in."""
        return _LIBRARIES.isdisjoint(Path(getattr(module, "__file__", None) or "").parts)


def _package_of(value: object) -> str:
    """The top-level package in which a function or a class was written, or the class of an object."""
    module = getattr(value, "__module__", None) or type(value).__module__
    return str(module).partition(".")[0]


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of those inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)


@functools.lru_cache(1024)
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """The names that a function looks up or writes outside, those with the names of attributes among them, and imports.

    The last are the modules that it imports itself.
    """
    codes = list(_codes_in(code))
    instructions = [i for own in codes for i in dis.get_instructions(own)]
    outside = frozenset(i.argval for i in instructions if i.opname in _GLOBAL_CODES)
    imported = frozenset(i.argval for i in instructions if i.opname == "IMPORT_NAME")
    return outside, frozenset(name for own in codes for name in own.co_names), imported
