"""Embeddings: look-ups in all members' tables at once, and gradients in the layout of the tables.

Where members share the indices, vmap's own rule makes one table of the transposed ones, and so transposes gradients,
too; where they do not, it trains the padding of all members but the first. The gradient of torch.embedding first sorts
the indices, which on a CPU costs more than to add row after row.

Not here: gradients that are sparse or scaled by frequency, and shared indices on other devices. vmap has them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ._mapped import Mapped, is_mapped


def embedding(
    weight: Tensor,  # [entry, channel]
    indices: Tensor,  # [*batch]
    padding_idx: int = -1,  # negative for none
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute torch.embedding for all members."""
    del drawn
    if scale_grad_by_freq or sparse or (weight.device.type != "cpu" and not is_mapped(indices)):
        return NotImplemented
    output: Tensor = _Embedding.apply(weight, torch.atleast_1d(indices), padding_idx)
    return output if indices.dim() else output[0]


def one_hot(tensor: Tensor, num_classes: int = -1, *, drawn: Iterator[Tensor]) -> Tensor:
    """Compute `F.one_hot` of so many classes without asking for the least and the largest, which no trace can do."""
    del drawn
    if num_classes <= 0:
        return NotImplemented
    indices = tensor.unsqueeze(-1)  # out of range, `scatter` refuses them, too
    zeros = torch.zeros(*tensor.shape, num_classes, dtype=tensor.dtype, device=tensor.device)
    return zeros.scatter(-1, indices, 1)


class _Embedding(Mapped):
    """torch.embedding with a rule for vmap."""

    @staticmethod
    def forward(weight: Tensor, indices: Tensor, padding_idx: int) -> Tensor:
        return torch.embedding(weight, indices, padding_idx)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], weight: Tensor, indices: Tensor, padding_idx: int
    ) -> tuple[Tensor, int]:
        """Look shared indices up in every table; look own ones up in a table made of all of them."""
        weight_dim, indices_dim, _ = in_dims
        if weight_dim is None:  # a frozen table
            assert indices_dim is not None  # something is mapped, or vmap would not have come here
            return torch.embedding(weight, indices, padding_idx), indices_dim
        tables = weight.movedim(weight_dim, 0)
        members, num_entries, _ = tables.shape
        if indices_dim is None:
            looked_up = _LookUp.apply(tables, indices.flatten(), padding_idx, num_entries)
            return looked_up.unflatten(1, indices.shape), 0
        indices = indices.movedim(indices_dim, 0)
        first = torch.arange(0, members * num_entries, num_entries, device=indices.device)
        own = indices.flatten(1) + first[:, None]
        looked_up = _LookUp.apply(tables.flatten(0, 1), own.flatten(), padding_idx, num_entries)
        return looked_up.unflatten(0, indices.shape), 0


class _LookUp(torch.autograd.Function):
    """y[..., k, :] = tables[..., indices[k], :], without gradient for entry `padding_idx` of every `num_entries`."""

    @staticmethod
    def forward(
        ctx: Any,
        tables: Tensor,  # [*table, entry, channel]
        indices: Tensor,  # [look-up]
        padding_idx: int,
        num_entries: int,
    ) -> Tensor:  # [*table, look-up, channel]
        ctx.save_for_backward(indices)
        ctx.shape, ctx.padding_idx, ctx.num_entries = tables.shape, padding_idx, num_entries
        return tables.index_select(-2, indices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        if indices.device.type == "cpu":
            grad = grads[0].new_zeros(ctx.shape).index_add_(-2, indices, grads[0])
        else:  # which adds in the same order each time
            grad = torch.ops.aten.embedding_dense_backward(grads[0], indices, ctx.shape[0], -1, False)
        if ctx.padding_idx >= 0:
            grad[..., ctx.padding_idx :: ctx.num_entries, :] = 0
        return grad, None, None, None
