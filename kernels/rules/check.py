"""Operators that raise where numbers are bad: they say instead of which member the numbers are.

One that raises does so for all members, and asks for a number in a tensor, which no trace can do. These return what it
would return, and of each member whether it would.

Not here: what asks in Python (`assert loss.isfinite()`), which vmap refuses.
"""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import constraints

from .._trace import DataDependentError
from ._mapped import is_mapped

Checked = tuple[Any, Tensor | None]  # what is returned, and whether numbers are good; None where it has raised itself


def is_all_true(valid: Tensor) -> Checked:
    """Compute torch._is_all_true, by which distributions validate.

    What members share is asked as ever, but where a trace would keep the answer.
    """
    if not is_mapped(valid):
        with suppress(DataDependentError):
            return torch.full((), bool(torch._is_all_true(valid)), device="cpu"), None
    return torch.full((), True, device="cpu"), valid.all()


def truth(tensor: Tensor) -> Checked:
    """Compute `if tensor:`, which constraints and losses ask on their way to what they say of the numbers."""
    asks = sys._getframe(3).f_globals.get("__name__")  # past this function and the mode's two
    if is_mapped(tensor) and asks == constraints.__name__:
        return True, tensor.all()
    if is_mapped(tensor) and asks == F.__name__:  # whether to raise, as a Gaussian likelihood does
        return False, tensor.logical_not()
    return bool(tensor), None


def by_info(variant: Callable[..., Any]) -> Callable[..., Checked]:
    """A function of torch.linalg by its variant that says where it fails, and does not raise."""

    def compute(*args: Any, **kwargs: Any) -> Checked:
        result, info = variant(*args, **kwargs)
        return result, (info == 0).all()

    return compute


def solve_in_one_batch(*args: Any, **kwargs: Any) -> Tensor:
    """Compute torch.linalg.solve; of matrices in several batches vmap takes some for vectors (torch 2.13)."""
    named = dict(zip(("A", "B"), args, strict=False)) | kwargs
    a, b = named.pop("A"), named.pop("B")
    has_vectors = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    if has_vectors or a.shape[:-2] == b.shape[:-2]:
        return NotImplemented
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return torch.linalg.solve(a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:]), **named)


def raise_on_host(input: Tensor, *_: Any, **__: Any) -> None:
    """Raise where F.binary_cross_entropy does on a CPU.

    On a GPU its kernel would find that out, and nothing could be computed there any more by the process.
    """
    if not ((input >= 0) & (input <= 1)).all():
        raise RuntimeError("all elements of input should be between 0 and 1")


def of_finite(function: Callable[..., Any], name: str) -> Callable[..., Checked]:
    """A function that raises where its first argument, of this name, is not finite."""

    def compute(*args: Any, **kwargs: Any) -> Checked:
        first, rest = (args[0], args[1:]) if args else (kwargs.pop(name), ())
        # Of a sum, because to ask each number would be a tenth of what the cross entropy of them takes.
        is_finite = first.sum(dtype=torch.promote_types(first.dtype, torch.float32)).isfinite()
        return function(torch.where(is_finite, first, 0.0), *rest, **kwargs), is_finite

    return compute
