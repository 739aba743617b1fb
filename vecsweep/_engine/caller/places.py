"""Places: where Python keeps what one pass may leave for the next, each read and set item by item.

A place is an object that can be written to: a dict, the attributes of an object, the cells of a closure, the globals
that a function names. Not here: places that are taken as a whole (`wholes.py`), how places are found (`reach.py`), and
what is made of them (`watch.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

Items = dict[Hashable, Any]

GONE = object()  # the value of an item that is not there
WHOLE = ""  # the key of the one item of a place that is taken as a whole
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_REGISTERED = tuple(key for key, value in vars(nn.Module()).items() if isinstance(value, dict))
_NO_ATTRIBUTES = frozenset(_REGISTERED) | {"_non_persistent_buffers_set"}


def is_plain(value: object) -> bool:
    """Whether a value is compared as such: a number, a string, a tuple of those."""
    return isinstance(value, _PLAIN) or (type(value) is tuple and all(map(is_plain, value)))


def is_same(a: Any, b: Any) -> bool:
    """Whether an item is the same as it was: the same object, or an equal plain value."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return is_plain(a) and bool(a == b or (a != a and b != b))


class Place(ABC):
    """Something that can be written to, as named items.

    Args:
        holder: the object.
    """

    is_captured = True  # whether `put` can set back what `items` gave
    is_counting = False  # whether any change matters, even where an object takes the place of its like

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    @abstractmethod
    def items(self) -> Items:
        """What is there, not copied deeper than the place itself."""

    @abstractmethod
    def put(self, key: Any, value: Any) -> None:
        """Set an item, or take it out where the value is GONE."""

    def changed(self, before: Items) -> Items:
        """The items that are other than before, as they are now."""
        now = self.items()
        changed = {key: value for key, value in now.items() if not is_same(before.get(key, GONE), value)}
        return changed | dict.fromkeys(before.keys() - now.keys(), GONE)

    def suffix(self, key: Any) -> str:
        """What stands behind the holder's name for an item."""
        return f"[{key!r}]"

    def children(self) -> Iterable[tuple[str, Any]]:
        """What the items refer to, each with its suffix."""
        return ((self.suffix(key), value) for key, value in self.items().items())


class Mapped(Place):
    """The items of a dict."""

    def items(self) -> Items:
        return dict(dict.items(self.holder))  # a class of its own may load what is looked up

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            del self.holder[key]
        else:
            self.holder[key] = value


class Attributes(Place):
    """The attributes of an object, but for what a module has registered."""

    def items(self) -> Items:
        if isinstance(self.holder, nn.Module):
            return {key: value for key, value in vars(self.holder).items() if key not in _NO_ATTRIBUTES}
        return dict(vars(self.holder))

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            del vars(self.holder)[key]
        else:
            vars(self.holder)[key] = value

    def suffix(self, key: Any) -> str:
        return f".{key}"


class Registered(Place):
    """What a module has registered: hooks and submodules, and, where asked for, parameters and buffers."""

    def __init__(self, holder: nn.Module, *, has_tensors: bool) -> None:
        super().__init__(holder)
        self._kinds = [kind for kind in _REGISTERED if has_tensors or kind not in ("_parameters", "_buffers")]

    def items(self) -> Items:
        own = vars(self.holder)
        return {(kind, key): value for kind in self._kinds for key, value in (own.get(kind) or {}).items()}

    def put(self, key: Any, value: Any) -> None:
        kind, name = key
        if value is GONE:
            del vars(self.holder)[kind][name]
        else:
            vars(self.holder)[kind][name] = value

    def suffix(self, key: Any) -> str:
        kind, name = key
        return f".{name}" if kind in ("_parameters", "_buffers", "_modules") else f".{kind}"


class Slots(Place):
    """The attributes of an object whose class has slots for them."""

    def items(self) -> Items:
        return {
            name: getattr(self.holder, name)
            for kind in type(self.holder).__mro__
            for name in _names(vars(kind).get("__slots__", ()))
            if name not in ("__dict__", "__weakref__") and hasattr(self.holder, name)
        }

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            object.__delattr__(self.holder, key)
        else:
            object.__setattr__(self.holder, key, value)

    def suffix(self, key: Any) -> str:
        return f".{key}"


class ClassAttributes(Place):
    """The plain attributes of a class; its methods are no state."""

    def items(self) -> Items:
        return {
            key: value
            for key, value in vars(self.holder).items()
            if not key.startswith("__") and not hasattr(value, "__get__") and not key.startswith("_abc_")
        }

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            delattr(self.holder, key)
        else:
            setattr(self.holder, key, value)

    def suffix(self, key: Any) -> str:
        return f".{key}"


class Globals(Place):
    """The globals that are named, of those in a namespace."""

    def __init__(self, holder: dict[str, Any], names: Iterable[str]) -> None:
        super().__init__(holder)
        self._names = tuple(names)

    def items(self) -> Items:
        return {name: self.holder[name] for name in self._names if name in self.holder}

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            del self.holder[key]
        else:
            self.holder[key] = value

    def suffix(self, key: Any) -> str:
        return str(key)


class Cell(Place):
    """A variable of an enclosing function."""

    def items(self) -> Items:
        try:
            return {WHOLE: self.holder.cell_contents}
        except ValueError:  # not assigned yet
            return {}

    def put(self, key: Any, value: Any) -> None:
        if value is GONE:
            del self.holder.cell_contents
        else:
            self.holder.cell_contents = value

    def suffix(self, key: Any) -> str:
        return ""


class Defaults(Place):
    """The default arguments of a function, which may be exchanged."""

    def items(self) -> Items:
        return {key: getattr(self.holder, key) for key in ("__defaults__", "__kwdefaults__")}

    def put(self, key: Any, value: Any) -> None:
        setattr(self.holder, key, value)

    def suffix(self, key: Any) -> str:
        return str(key)

    def children(self) -> Iterator[tuple[str, Any]]:
        code, defaults = self.holder.__code__, self.holder.__defaults__ or ()
        positional = code.co_varnames[: code.co_argcount]
        yield from zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
        yield from (self.holder.__kwdefaults__ or {}).items()


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    return (slots,) if isinstance(slots, str) else slots
