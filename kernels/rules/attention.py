"""Attention: fold the member axis into the batch.

vmap has no rule for `scaled_dot_product_attention` on the CPU and runs it member by member. Attention has no weights,
so N members of batch B are one call with batch N * B.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._mapped import Mapped, member_first
from .draw import Draw
from .random import dropout_draw


def scaled_dot_product_attention(
    query: Tensor,  # [*batch, length, channel]
    key: Tensor,  # [*batch, source, channel]
    value: Tensor,  # [*batch, source, value_channel]
    attn_mask: Tensor | None = None,  # broadcasts to [*batch, length, source]
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute attention for all members in one call; with dropout, from its equations as `SDPBackend.MATH` does."""
    if dropout_p == 0:
        return _Attention.apply(query, key, value, attn_mask, is_causal, scale, enable_gqa)
    cast_to, exact = _autocast_dtype(query), _weights_dtype(query)
    if cast_to is not None:
        query, key, value = query.to(cast_to), key.to(cast_to), value.to(cast_to)
    dtype = query.dtype
    with nullcontext() if cast_to is None else torch.autocast(query.device.type, enabled=False):
        weights = _weights(query.to(exact), key.to(exact), attn_mask, is_causal, scale, enable_gqa) * next(drawn)
        if enable_gqa:
            value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
        return (weights @ value.to(exact)).to(dtype)


def _weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
) -> Tensor:
    """Compute what each value counts, `[*batch, length, source]`."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    # Where nothing may be attended to, torch's attention is 0.
    is_masked = (scores == -math.inf).all(-1, keepdim=True)
    return scores.masked_fill(is_masked, 0.0).softmax(-1).masked_fill(is_masked, 0.0)


def _autocast_dtype(query: Tensor) -> torch.dtype | None:
    """What autocast makes of the inputs; None where it leaves them alone."""
    device = query.device.type
    is_cast = torch.is_autocast_enabled(device) and query.dtype != torch.float64
    return torch.get_autocast_dtype(device) if is_cast else None


def _weights_dtype(query: Tensor) -> torch.dtype:
    """The dtype in which torch computes the weights: float32 for shorter ones, unless it is told otherwise.

    On a GPU it matters to the draw, too: how random numbers are dealt out to a tensor depends on its dtype.
    """
    dtype = _autocast_dtype(query) or query.dtype
    is_short = dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if is_short and not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() else dtype


def attention_draws(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> list[Draw]:
    """The mask that attention with dropout draws inside, on its weights `[*batch, length, source]`."""
    del value, attn_mask
    if not 0 < dropout_p < 1:
        return []
    weights = query.new_empty((), dtype=_weights_dtype(query)).expand(*query.shape[:-1], key.size(-2))
    return [dropout_draw(F.dropout, weights, dropout_p)]


# Fused kernels have a block for each element of the batch, in a dimension of the grid that CUDA limits to 65,535. For
# some of them PyTorch divides larger batches itself (aten/src/ATen/native/transformers/cuda/attention.cu), not for all.
_MAX_BATCH = 2**16 - 1


class _Attention(Mapped):
    """Attention without dropout, with a rule for vmap. Autograd runs outside vmap and sees the folded call."""

    @staticmethod
    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> tuple[Tensor, int]:
        """Fold `[member, *batch, length, channel]` into `[member * batch, ..., length, channel]`."""
        members = info.batch_size
        query, key, value = (
            member_first(x, dim, members) for x, dim in zip((query, key, value), in_dims[:3], strict=True)
        )
        batch = query.shape[1:-2]
        if not enable_gqa:  # with grouped queries the head axes differ, and torch asks for equal batches itself
            batch = torch.broadcast_shapes(query.shape[1:-2], key.shape[1:-2], value.shape[1:-2])
            query, key, value = (x.expand(members, *batch, *x.shape[-2:]) for x in (query, key, value))
        if attn_mask is not None and (in_dims[3] is not None or attn_mask.dim() > 2):
            attn_mask = member_first(attn_mask, in_dims[3], members)
            missing = len(batch) + 3 - attn_mask.dim()
            attn_mask = attn_mask.reshape(members, *[1] * missing, *attn_mask.shape[1:])
            attn_mask = _fold(attn_mask.expand(members, *batch[:1], *attn_mask.shape[1 + len(batch[:1]) :]))
        query, key, value = _fold(query), _fold(key), _fold(value)
        sizes = [len(query)] if len(batch) == 0 else _sizes(members, batch[0])
        is_of_each = attn_mask is not None and attn_mask.dim() > 2
        masks = _divided(attn_mask, sizes) if is_of_each else [attn_mask] * len(sizes)
        parts = zip(*(_divided(x, sizes) for x in (query, key, value)), masks, strict=True)
        results = [_Attention.forward(q, k, v, mask, is_causal, scale, enable_gqa) for q, k, v, mask in parts]
        result = results[0] if len(results) == 1 else torch.cat(results)
        return result.reshape(members, *batch, *result.shape[-2:]), 0


def _divided(x: Any, sizes: list[int]) -> Sequence[Any]:
    """The parts of a tensor; autograd would copy the gradients of parts, also where there is only one."""
    return [x] if len(sizes) == 1 else x.split(sizes)


def _sizes(num_members: int, batch: int) -> list[int]:
    """How to divide a folded batch so that no part has more than fused kernels have blocks for."""
    size = max(1, _MAX_BATCH // max(1, batch))
    return [min(size, num_members - k) * batch for k in range(0, num_members, size)]


def _fold(x: Tensor) -> Tensor:
    """Make one axis of the member axis and the first axis of the batch, if there is one."""
    return x.flatten(0, 1) if x.dim() > 3 else x
