"""Layouts of tensors in batches: most have strides, sparse ones only some numbers, nested ones rows of any length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from vecsweep._engine.data.packing import tree_flatten
from vecsweep._types import Batch

_ALIGNED_BYTES = 512  # where PyTorch's allocator for GPUs lets tensors begin


def side_by_side(
    like: Sequence[Tensor], device: torch.device, *, is_pinned: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Make room in one piece of memory for tensors that are dense, so that they move in one copy.

    Args:
        like: what they look like.
        device: where the room is.
        is_pinned: whether it is pinned memory of the host.

    Returns:
        The piece, as bytes, and each tensor.
    """
    num_bytes = sum(_span(tensor) for tensor in like)
    whole = torch.empty(num_bytes, dtype=torch.uint8, device=device, pin_memory=is_pinned)
    return whole, parts_of(whole, like)


def parts_of(whole: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in a piece of memory that `side_by_side` has made, or in a copy of it."""
    parts, start, memory = list[Tensor](), 0, whole.untyped_storage()
    for tensor in like:
        # No view: PyTorch's compiler makes views anew from what they were taken of, and not of another dtype.
        part = torch.empty(0, dtype=tensor.dtype, device=whole.device)
        parts.append(part.set_(memory, start // tensor.itemsize, tensor.shape, tensor.stride()))
        start += _span(tensor)
    return parts


def _span(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES


def has_strides(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor lie in memory by its shape and strides."""
    return tensor.layout == torch.strided and not tensor.is_nested


def ragged_in(batch: Batch) -> str | None:
    """Name what in a batch holds samples of several lengths, which no batched pass takes; None if nothing does."""
    for leaf in pytree.tree_leaves(batch, is_leaf=lambda node: isinstance(node, PackedSequence)):
        if isinstance(leaf, PackedSequence):
            return "a packed sequence"
        if isinstance(leaf, Tensor) and leaf.is_nested:
            return "a nested tensor"
    return None


def values_of(tensor: Tensor) -> Tensor:
    """The numbers that a tensor holds, whatever its layout."""
    if has_strides(tensor):
        return tensor
    return tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()


def is_finite(batch: Batch) -> bool:
    """Whether there are numbers in all of a batch's tensors, and none is NaN or infinite."""
    leaves = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(leaf.numel() > 0 and bool(values_of(leaf).isfinite().all()) for leaf in leaves)
