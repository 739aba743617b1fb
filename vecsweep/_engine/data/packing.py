"""Objects in batches, taken apart into tensors and the rest, so that the engine has plain containers.

A batch may be an object: a dataclass, a graph of torch_geometric, an encoding of transformers. What Python's pickle
makes of it, the tensors left out, says all about it that is not a tensor: two objects that are alike there serve the
same traced step, and an object can be made again around other tensors. The workers of a DataLoader hand objects over in
the same way, so that whoever yields them has seen to it that it works.

Not here: containers that PyTorch's pytrees know (tuples, lists, dicts, named tuples), which need no taking apart.
"""

import io
import pickle
import types
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch.func has no public way to map over nested containers

from vecsweep._types import Batch

# Leaves of a batch that are values: a traced step may keep them as constants, as long as they are part of its key.
VALUES = (bool, int, float, complex, str, bytes, type(None), np.generic, torch.dtype, torch.device)
# Taken as they are: classes and functions are the same for all objects, and need not be importable by name.
_REFERRED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.device)
_MAX_BYTES = 2**16  # of an object besides its tensors; one that holds more refers to something large


@dataclass(frozen=True, slots=True)
class Outline:
    """An object without its tensors.

    Attributes:
        kind: its class.
        content: what pickle makes of it.
        referred: the classes and functions that it refers to, in the order in which it does.
    """

    kind: type
    content: bytes
    referred: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """An object of a batch, as pytrees see it: a node whose children are its tensors and arrays."""

    outline: Outline
    leaves: list[Any]

    def unpack(self) -> Any:
        """Make the object again, around the tensors that are here now."""
        return _Unpickler(self.outline, self.leaves).load()


pytree.register_pytree_node(
    Packed,
    lambda packed: (packed.leaves, packed.outline),
    lambda leaves, outline: Packed(outline, list(leaves)),
    serialized_type_name="vecsweep.Packed",
)


def pack(leaf: Any) -> Any:
    """Take an object apart; what cannot be, or holds no tensors, or much else, is returned as it is."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    try:
        pickler.dump(leaf)
    except Exception:  # whatever an object's own way of being pickled raises
        return leaf
    if not pickler.leaves or buffer.tell() > _MAX_BYTES:
        return leaf
    return Packed(Outline(type(leaf), buffer.getvalue(), tuple(pickler.referred)), pickler.leaves)


def unpack(batch: Batch) -> Batch:
    """Give a batch its objects back, as its loader yielded them."""
    return tree_map(
        lambda leaf: leaf.unpack() if isinstance(leaf, Packed) else leaf,
        batch,
        is_leaf=lambda node: isinstance(node, Packed),
    )


def is_flat(batch: Batch) -> bool:
    """Whether a batch is tensors side by side, as most loaders yield, or one."""
    leaves = batch.values() if type(batch) is dict else batch if type(batch) in (tuple, list) else (batch,)
    return all(type(leaf) is Tensor for leaf in leaves)


def tree_flatten(batch: Batch) -> tuple[list[Any], Hashable]:
    """PyTorch's own, but at once for tensors side by side, as most loaders yield: it takes longer than a small step."""
    kind: Any = type(batch)  # mypy takes no class for hashable
    if kind in (tuple, list) and all(type(leaf) is Tensor for leaf in batch):
        return list(batch), kind
    if kind is dict and all(type(leaf) is Tensor for leaf in batch.values()):
        return list(batch.values()), (kind, *batch)
    return pytree.tree_flatten(batch)


def tree_map(function: Callable[[Any], Any], batch: Batch, is_leaf: Callable[[Any], bool] | None = None) -> Batch:
    """PyTorch's own, but at once where `tree_flatten` is."""
    kind = type(batch)
    if kind in (tuple, list) and all(type(leaf) is Tensor for leaf in batch):
        return kind(function(leaf) for leaf in batch)
    if kind is dict and all(type(leaf) is Tensor for leaf in batch.values()):
        return {name: function(leaf) for name, leaf in batch.items()}
    return pytree.tree_map(function, batch, is_leaf=is_leaf)


class _Pickler(pickle.Pickler):
    """Leave tensors and arrays out, and note them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.leaves: list[Any] = []
        self.referred: list[Any] = []
        self._references: dict[int, tuple[str, int]] = {}  # by the id of what was left out: one that comes twice is one

    def persistent_id(self, obj: Any) -> tuple[str, int] | None:
        """Where something that is left out can be found; None for what is not."""
        if isinstance(obj, Tensor | np.ndarray):
            return self._refer("leaf", self.leaves, obj)
        return self._refer("referred", self.referred, obj) if isinstance(obj, _REFERRED) else None

    def _refer(self, kind: str, kept: list[Any], obj: Any) -> tuple[str, int]:
        if id(obj) not in self._references:
            self._references[id(obj)] = (kind, len(kept))
            kept.append(obj)
        return self._references[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Put tensors and arrays in; what is read was written by this process."""

    def __init__(self, outline: Outline, leaves: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(outline.content))
        self._kept = {"leaf": leaves, "referred": outline.referred}

    def persistent_load(self, pid: tuple[str, int]) -> Any:
        """Find what was left out."""
        kind, place = pid
        return self._kept[kind][place]
