"""Linear layers: one batched product, or one wide one where members share the input.

On a CPU the wide product is faster for narrow layers alone: it packs all weights anew. vmap's own rule transposes
weights, adds the bias in a pass of its own, and leaves weight gradients transposed, so that the update walks over them
against the grain.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._mapped import Mapped, member_first

_NARROW = 32  # outputs of a member; bench/README.md has what both ways take


def linear(
    input: Tensor,  # [*batch, in]
    weight: Tensor,  # [out, in]
    bias: Tensor | None = None,  # [out]
    *,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute F.linear for all members."""
    del drawn
    if input.dim() < 2 or weight.dim() != 2:
        return NotImplemented  # vectors are left to vmap
    if is_traceable_wrapper_subclass(weight):
        return NotImplemented  # quantized weights have a product of their own, above autograd
    input, weight = _autocast(input, input), _autocast(weight, input)
    output: Tensor = _Linear.apply(input, weight, None if bias is None else _autocast(bias, input))
    return output


def addmm(
    input: Tensor,  # [out]
    mat1: Tensor,  # [row, in]
    mat2: Tensor,  # [in, out]
    *,
    beta: float = 1,
    alpha: float = 1,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute torch.addmm for all members, as the linear layers of GPT-2 use it."""
    del drawn
    if (beta, alpha) != (1, 1) or input.dim() != 1 or is_traceable_wrapper_subclass(mat2):
        return NotImplemented
    output: Tensor = _AddMM.apply(*(_autocast(x, mat1) for x in (input, mat1, mat2)))
    return output


def _autocast(x: Tensor, input: Tensor) -> Tensor:
    """Cast as autocast would: here rather than inside, so that autograd casts the gradients back."""
    if torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(input.device.type))
    return x


class _Linear(Mapped):
    """F.linear with a rule for vmap. Autograd runs outside vmap, and differentiates what the rule calls."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Put the member axis where the product is one call."""
        input_dim, weight_dim, bias_dim = in_dims
        members = info.batch_size
        if weight_dim is None:  # frozen weights: more rows of an ordinary product
            input = member_first(input, input_dim, members)
            if bias is None or bias_dim is None:
                return F.linear(input, weight, bias), 0
            bias = bias.movedim(bias_dim, 0)
            return F.linear(input, weight) + bias.reshape(-1, *[1] * (input.dim() - 2), bias.size(-1)), 0
        weight = weight.movedim(weight_dim, 0)
        if bias is not None:
            bias = member_first(bias, bias_dim, members)
        if input_dim is None and (input.device.type != "cpu" or weight.size(1) < _NARROW):
            wide = F.linear(input, weight.flatten(0, 1), None if bias is None else bias.flatten())
            return wide.unflatten(-1, (members, -1)), wide.dim() - 1
        input = member_first(input, input_dim, members)
        output = _BatchedLinear.apply(input.flatten(1, -2), weight, bias)
        return output.unflatten(1, input.shape[1:-1]), 0


class _AddMM(Mapped):
    """torch.addmm of a vector and matrices, with a rule for vmap; its gradients have the layout of the weights."""

    @staticmethod
    def forward(bias: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        return torch.addmm(bias, rows, weight)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], bias: Tensor, rows: Tensor, weight: Tensor
    ) -> tuple[Tensor, int]:
        """Put the member axis where the product is one call."""
        bias_dim, rows_dim, weight_dim = in_dims
        members = info.batch_size
        rows = member_first(rows, rows_dim, members)
        if weight_dim is None and bias_dim is None:  # frozen weights: more rows of an ordinary product
            return torch.addmm(bias, rows.flatten(0, 1), weight).unflatten(0, (members, -1)), 0
        bias = member_first(bias, bias_dim, members)[:, None]
        if weight_dim is None:
            return (rows.flatten(0, 1) @ weight).unflatten(0, (members, -1)) + bias, 0
        return torch.baddbmm(bias, rows, weight.movedim(weight_dim, 0)), 0


class _BatchedLinear(torch.autograd.Function):
    """y[m] = x[m] w[m]^T + b[m], with gradients in the layout of what they are the gradients of."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,  # [member, row, in]
        weight: Tensor,  # [member, out, in]
        bias: Tensor | None,  # [member, out]
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return input.bmm(weight.transpose(1, 2))
        return torch.baddbmm(bias[:, None], input, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # [member, row, out]
        (grad,) = grads
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            grad.bmm(weight.conj()) if needs_input else None,
            grad.transpose(1, 2).bmm(input.conj()) if needs_weight else None,
            grad.sum(1) if ctx.has_bias and needs_bias else None,
        )
