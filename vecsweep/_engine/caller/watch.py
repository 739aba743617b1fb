"""Watch: what a pass keeps for the next in Python, in a model and outside it: seen to change, set back, handed on.

Not here: where such state may be (`reach.py`), and how it is read and set (`places.py`).
"""

import copy
import functools
import types
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from vecsweep._engine.caller.places import GONE, Items, Place, is_plain, is_same
from vecsweep._engine.caller.reach import KEPT, Label, Reach, Roots
from vecsweep.task import Task

Changes = dict[str, Items]  # by the name of a place


class Watch:
    """What can be reached from some roots, and how it was when it was last looked at.

    Args:
        roots: where to begin.
        passed: the ids of what is not followed.
        trained: the ids of the modules whose parameters and buffers are handed to each pass, and so are none of this.
        has_functions: whether what functions and classes refer to is watched.
        has_numbers: whether the contents of tensors and arrays are watched, which reads them all.
    """

    def __init__(
        self,
        roots: Roots,
        *,
        passed: Collection[int] = (),
        trained: Collection[int] = (),
        has_functions: bool = True,
        has_numbers: bool = True,
    ) -> None:
        self._roots = roots
        self._how: dict[str, Any] = {
            "passed": passed,
            "trained": trained,
            "has_functions": has_functions,
            "has_numbers": has_numbers,
        }
        self._labels: dict[str, Label] = {}
        self._places: dict[str, Place] = {}
        self._before: dict[str, Items] = {}
        self._find()

    @classmethod
    def of_pass(cls, task: Task, model: nn.Module, *, has_numbers: bool) -> "Watch":
        """All that a pass over this model may keep: in it, and outside it."""
        roots = _parts(task, model) | _functions(task, model) | _metrics(task)
        return cls(roots, passed=_tensors(task, model), trained=_ids(model.modules()), has_numbers=has_numbers)

    @classmethod
    def inside(cls, task: Task, model: nn.Module) -> "Watch":
        """What is copied with the model for each member."""
        passed = _tensors(task, model)
        return cls(_parts(task, model), passed=passed, trained=_ids(model.modules()), has_functions=False)

    @classmethod
    def outside(cls, task: Task, model: nn.Module, *, has_numbers: bool = True) -> "Watch":
        """What all members have in common, because only the model is copied."""
        own = {id(module) for part in _parts(task, model).values() for module in part.modules()}
        return cls(_functions(task, model), passed=own | _tensors(task, model), has_numbers=has_numbers)

    @property
    def holders(self) -> set[int]:
        """The ids of the objects that are watched."""
        return {id(place.holder) for place in self._places.values()}

    def look(self) -> "Watch":
        """Take everything as it is now for how it was."""
        if self.changes():
            self._find()
        return self

    def changes(self) -> Changes:
        """What is other than it was."""
        changed = ((name, place.changed(self._before[name])) for name, place in self._places.items())
        return {name: items for name, items in changed if items}

    def put(self, changes: Changes) -> None:
        """Set what is named in changes; a place that cannot be reached from here is left out."""
        for name, items in changes.items():
            if (place := self._places.get(name)) is not None:
                for key, value in items.items():
                    place.put(key, value)

    def restore(self) -> None:
        """Set everything back; what has not changed is not written to."""
        self.set_back(self.changes())

    def set_back(self, changes: Changes) -> None:
        """Set what is named in changes back to how it was."""
        for name, items in changes.items():
            for key in items:
                self._places[name].put(key, self._before[name].get(key, GONE))

    @contextmanager
    def undisturbed(self) -> Iterator["Watch"]:
        """Look, and set everything back in the end."""
        self.look()
        try:
            yield self
        finally:
            self.restore()

    def grown(self) -> tuple[list[str], list[str]]:
        """Name what is other than it was: what counts, and what only takes notes or is replaced by its like."""
        counting, replaced = list[str](), list[str]()
        for name, items in self.changes().items():
            place, before = self._places[name], self._before[name]
            for key, value in items.items():
                old = before.get(key, GONE)
                is_counting = place.is_counting or _counts(old, value)
                (counting if is_counting else replaced).append(self._name(name, key))
        return counting, replaced

    def plain_changes(self) -> Changes:
        """What is other than it was among plain values."""
        changes = self.changes().items()
        plain = {name: {key: v for key, v in items.items() if is_plain(v)} for name, items in changes}
        return {name: items for name, items in plain.items() if items}

    def names(self, changes: Changes) -> list[str]:
        """Name what is changed, to people."""
        return [self._name(name, key) for name, items in changes.items() for key in items]

    def shared(self, changes: Changes) -> list[str]:
        """Name what is changed and cannot be set back."""
        return self.names({name: items for name, items in changes.items() if not self._places[name].is_captured})

    def of_own(self, changes: Changes) -> Changes:
        """Those changes that are of places here."""
        return {name: items for name, items in changes.items() if name in self._places}

    def translate(self, changes: Changes, other: "Watch") -> Changes:
        """Copy changes for another watch, of alike objects: what refers to a place here refers to its like there."""
        memo: dict[int, Any] = {id(GONE): GONE}
        memo |= {id(value): value for items in self._before.values() for value in items.values()}
        memo |= {id(p.holder): other._places[name].holder for name, p in self._places.items() if name in other._places}
        for leaf in pytree.tree_leaves(changes):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:  # which refuses to be copied
                memo.setdefault(id(leaf), leaf.detach().clone())
        copied: Changes = {}
        for name, items in changes.items():
            try:
                copied[name] = copy.deepcopy(items, memo)
            except Exception:  # a lock, a handle: the same for all
                copied[name] = items
        return copied

    def _name(self, name: str, key: Any) -> str:
        return str(self._labels[name].then(self._places[name].suffix(key)))

    def _find(self) -> None:
        """Follow everything from the roots."""
        self._labels, self._places, self._before = {}, {}, {}
        num_named: Counter[str] = Counter()
        for label, place in Reach(self._roots, **self._how).places():
            name = f"{type(place).__name__}: {label}"
            num_named[name] += 1
            if num_named[name] > 1:  # two functions of one name
                name = f"{name} ({num_named[name]})"
            self._labels[name], self._places[name], self._before[name] = label, place, place.items()


def without(changes: Changes, others: Changes) -> Changes:
    """Those changes that are not the same among others."""
    left = {
        name: {key: v for key, v in items.items() if not is_same(v, others.get(name, {}).get(key, GONE))}
        for name, items in changes.items()
    }
    return {name: items for name, items in left.items() if items}


def _counts(old: Any, new: Any) -> bool:
    """Whether a plain value has taken the place of another, alone or among as many in a list."""
    if isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new):
        return any(map(_counts, old, new))
    return GONE not in (old, new) and (is_plain(old) or is_plain(new)) and not is_same(old, new)


def _parts(task: Task, model: nn.Module) -> dict[Label, nn.Module]:
    """What each member has for itself."""
    parts = {Label("the Python attribute", ""): model}
    if isinstance(task.loss_fn, nn.Module):
        parts[Label("the Python attribute", "loss_fn")] = task.loss_fn
    return parts


def _functions(task: Task, model: nn.Module) -> dict[Label, object]:
    """What computes the loss, besides the model itself: the task's functions, and the classes of modules."""
    functions: dict[Label, object] = {
        Label("the attribute", name): function
        for name, function in (("training_step", task.training_step), ("loss_fn", task.loss_fn))
        if function is not None
    }
    functions |= _kept_functions(model)
    kinds = dict.fromkeys(type(module) for module in model.modules())
    return functions | {Label("the class attribute", kind.__qualname__): kind for kind in kinds}


def _kept_functions(model: nn.Module) -> dict[Label, object]:
    """The functions that modules have as attributes and hooks, which copies of the model have in common."""
    found: dict[Label, object] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            own = value.values() if isinstance(value, dict) and name.endswith("_hooks") else [value]
            kept = (part for part in own if isinstance(part, types.FunctionType | functools.partial))
            found |= {Label(KEPT, f"{path}.{name}[{i}]"): part for i, part in enumerate(kept)}
    return found


def _metrics(task: Task) -> dict[Label, object]:
    return {Label("the attribute", f"metrics[{name!r}]"): metric for name, metric in task.metrics.items()}


def _tensors(task: Task, model: nn.Module) -> set[int]:
    """The parameters and buffers that a pass is given, and the caller's, of which they are copies."""
    models = [model, task.model] if isinstance(task.model, nn.Module) else [model]
    return {id(tensor) for own in models for tensor in (*own.parameters(), *own.buffers())}


def _ids(objects: Iterable[object]) -> set[int]:
    return {id(value) for value in objects}
