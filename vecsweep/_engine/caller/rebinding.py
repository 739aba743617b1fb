"""Rebinding: functions that a model keeps, such as lambdas and hooks, refer to its copy where they referred to it.

Python's own copies leave functions as they are: a lambda over a layer would go on calling the layer of the original,
and so would a `forward` that was put around the original's. Weak references, as to a parent, are left alike.
"""

import weakref
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


class Rebinder:
    """What stands in a copy for functions of the original.

    Args:
        memo: as `copy.deepcopy` leaves it: from the ids of what was copied to the copies.
    """

    def __init__(self, memo: Mapping[int, Any]) -> None:
        self._memo = memo
        self._cells: dict[int, CellType] = {}  # what functions have in common, they have in common in the copy
        self._functions: dict[int, FunctionType] = {}

    def rebind_(self, copied: nn.Module) -> None:
        """Exchange the functions among the attributes and the hooks of a copied model's modules."""
        for module in copied.modules():
            attributes = vars(module)
            for items in (attributes, *(value for value in attributes.values() if isinstance(value, dict))):
                for key, value in items.items():
                    if (own := self(value)) is not value:
                        items[key] = own

    def __call__(self, value: Any) -> Any:
        """What stands for a value: another if it is a function or a reference to what was copied, else the value."""
        if type(value) not in _REFERRING or not self._refers(value, set()):
            return value
        if isinstance(value, MethodType):
            return MethodType(self(value.__func__), self._item(value.__self__))
        if isinstance(value, weakref.ref):
            return weakref.ref(self._memo[id(value())])
        if id(value) not in self._functions:
            self._rebind(value)
        return self._functions[id(value)]

    def _refers(self, value: Any, seen: set[int]) -> bool:
        """Whether a value was copied, or refers to something that was."""
        if id(value) in self._memo:
            return True
        if type(value) not in _REFERRING or id(value) in seen:
            return False
        seen.add(id(value))
        return any(self._refers(item, seen) for item in _items(value))

    def _rebind(self, function: FunctionType) -> None:
        old = function.__closure__ or ()
        cells = tuple(self._cell(cell) for cell in old)
        own = FunctionType(function.__code__, function.__globals__, function.__name__, closure=cells)
        self._functions[id(function)] = own  # before what it refers to, which may be itself
        own.__qualname__, own.__module__, own.__doc__ = function.__qualname__, function.__module__, function.__doc__
        vars(own).update({key: self._item(value) for key, value in vars(function).items()})
        if function.__defaults__ is not None:
            own.__defaults__ = tuple(map(self._item, function.__defaults__))
        if function.__kwdefaults__ is not None:
            own.__kwdefaults__ = {key: self._item(value) for key, value in function.__kwdefaults__.items()}
        for cell, new in zip(old, cells, strict=True):
            if new is not cell:
                new.cell_contents = self._item(cell.cell_contents)

    def _cell(self, cell: CellType) -> CellType:
        is_copied = any(self._refers(content, set()) for content in _contents(cell))
        return self._cells.setdefault(id(cell), CellType()) if is_copied else cell

    def _item(self, value: Any) -> Any:
        return self._memo[id(value)] if id(value) in self._memo else self(value)


_REFERRING = (FunctionType, MethodType, weakref.ref)


def _items(value: Any) -> Iterator[Any]:
    """What a function refers to besides globals, or another reference."""
    if isinstance(value, weakref.ref):
        yield value()
        return
    if isinstance(value, MethodType):
        yield value.__func__
        yield value.__self__
        return
    function: FunctionType = value
    for cell in function.__closure__ or ():
        yield from _contents(cell)
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()


def _contents(cell: CellType) -> Iterator[Any]:
    """What a variable of an enclosing function holds; nothing before it is assigned."""
    try:
        yield cell.cell_contents
    except ValueError:
        return
