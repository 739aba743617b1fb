"""Whether tensors hold the same values, of whatever layout they are."""

import torch
from torch import Tensor

# What a sparse tensor is made of; it has no storage of its own, and to write it out may take all memory.
_PARTS = {
    torch.sparse_coo: (Tensor._indices, Tensor._values),
    torch.sparse_csr: (Tensor.crow_indices, Tensor.col_indices, Tensor.values),
    torch.sparse_csc: (Tensor.ccol_indices, Tensor.row_indices, Tensor.values),
    torch.sparse_bsr: (Tensor.crow_indices, Tensor.col_indices, Tensor.values),
    torch.sparse_bsc: (Tensor.ccol_indices, Tensor.row_indices, Tensor.values),
}


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """What a sparse tensor is made of; another is made of itself."""
    return [part(tensor) for part in _PARTS[tensor.layout]] if tensor.layout in _PARTS else [tensor]


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to itself."""
    if a.layout != b.layout or a.shape != b.shape:
        return False
    if a.layout in _PARTS:
        return all(map(is_same, dense_parts(a), dense_parts(b)))
    if a.is_set_to(b):  # lent parameters, which are large
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())
