"""Frozen parameters that copies of a model have in common with it, and with the caller's: a base is in memory once.

Nobody may change what is lent. A pass that writes to it all the same, as one does that moves a target network, is found
out when it does: what it wrote becomes the copy's own, and what is lent is put back.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from vecsweep.kernels._compiled import compiled_run_through

_WORTH_LENDING = 2**20  # bytes: watching for writes takes a few microseconds an operator, which small models would feel

_SEALED = 16  # numbers along each axis


def lendable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The frozen parameters of a model that copies share, by name: large ones, and those that nothing can stand for."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    special = {name: p for name, p in frozen.items() if is_special(p)}
    plain = {name: p for name, p in frozen.items() if name not in special and _is_lendable(p)}
    return special | (plain if sum(p.nbytes for p in plain.values()) >= _WORTH_LENDING else {})


def share(parameters: Iterable[nn.Parameter]) -> dict[int, Any]:
    """Make other parameters of the same memory: by the id of each, as a memo for `copy.deepcopy`."""
    return {id(p): _of_same_memory(p) for p in parameters}


class Seal:
    """By which it is seen, later, whether somebody has written to lent parameters: some numbers of each.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._numbers = {name: _some_of(p) for name, p in parameters.items()}

    def check(self) -> None:
        """Raise ValueError where one is no longer what it was."""
        for name, p in self._parameters.items():
            if not all(map(torch.equal, self._numbers[name], _some_of(p))):
                raise ValueError(
                    f"The frozen parameter {name!r} is no longer what the members were trained over: it has been "
                    "written to in the task's model, or in a module that shares it, as by merging an adapter or "
                    "training the base on. Run the sweep again, and take modules that will be changed by "
                    "`runs.model(i, copy_frozen=True)`."
                )


def _some_of(p: Tensor) -> list[Tensor]:
    """Bytes of some numbers, of all over a tensor; of eight bits a kind may have no `equal`."""
    found = list[Tensor]()
    for part in parts_of(p):
        where = tuple(slice(None, None, max(1, -(-n // _SEALED))) for n in part.shape)
        found.append(part.detach()[where].clone().reshape(-1).view(torch.uint8))
    return found


def is_special(p: Tensor) -> bool:
    """Whether a parameter is of a class of its own, as quantized weights are: no other tensor can take its place."""
    return type(p) is not nn.Parameter


def have_same_special(models: Iterable[nn.Module]) -> bool:
    """Whether the special parameters of some models are in the same memory."""
    places = [[part.data_ptr() for p in m.parameters() if is_special(p) for part in parts_of(p)] for m in models]
    return all(own == places[0] for own in places)


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that a tensor wraps; itself if it wraps none."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in parts_of(getattr(tensor, name))]


def _is_lendable(p: nn.Parameter) -> bool:
    return not p.is_inference() and p.layout == torch.strided


def _of_same_memory(p: nn.Parameter) -> Tensor:
    if not is_special(p) or is_traceable_wrapper_subclass(p):
        return nn.Parameter(p.detach(), requires_grad=False)
    shared = copy.deepcopy(p)  # with what it takes to read the numbers, which passes may change
    shared.data = p.detach()
    for name, value in vars(p).items():
        if isinstance(value, Tensor) and memory_of(value) == memory_of(p):
            setattr(shared, name, value)
    return shared


class Lent(TorchDispatchMode):
    """Watch passes for what they write to lent parameters, and put that back as the context is left.

    Args:
        parameters: those that are lent, by name; none to watch nothing.

    Attributes:
        changed: what was written, by name, after the context is left.
    """

    supports_higher_order_operators = True  # such as `torch.cond`, in which nothing is written to

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.changed: dict[str, Tensor] = {}
        self._parameters = {name: p for name, p in parameters.items() if not is_traceable_wrapper_subclass(p)}
        self._data = {name: p.detach() for name, p in self._parameters.items()}
        self._names = defaultdict[int, list[str]](list)
        for name, p in self._parameters.items():
            self._names[memory_of(p)].append(name)
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> "Lent":
        self.changed, self._before = {}, {}
        if self._parameters:
            self._compiled = compiled_run_through()
            self._compiled.__enter__()
            super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._parameters:
            return
        super().__exit__(*error)
        self._compiled.__exit__(None, None, None)
        with torch.no_grad():
            for name, before in self._before.items():
                self.changed[name] = self._data[name].clone()
                self._data[name].copy_(before)
            for name, p in self._parameters.items():
                if memory_of(p) != memory_of(self._data[name]):  # `p.data = ...`, which is no operator
                    self.changed[name] = p.detach().clone()
                    p.data = self._data[name]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Keep aside what is about to be written to."""
        kwargs = kwargs or {}
        if isinstance(func, OpOverload) and func._schema.is_mutable:
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            written = [given.get(a.name) for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
            for leaf in pytree.tree_leaves(written):
                if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                    for name in self._names.get(memory_of(leaf), ()):
                        self._before.setdefault(name, self._data[name].clone())
        return func(*args, **kwargs)


def memory_of(tensor: Tensor) -> int:
    """What tells the memory of a tensor from that of others: views and aliases have it in common."""
    return tensor.untyped_storage()._cdata
