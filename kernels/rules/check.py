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
    asks = sys._getframe(4).f_globals.get("__name__")  # past this function and the mode's three
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


def in_one_batch(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments for what solves systems of equations, the matrices and their right-hand sides in one batch.

    Where they are in several, vmap's rules take some matrices for vectors, or for those of other members (torch 2.13).

    Raises:
        RuntimeError: they are in several, and one would not help.
    """
    num = _NUM_OF_SYSTEM.get(func, 0)
    if num == 0 or len(args) < num:
        return args
    matrices, sides = args[0], args[num - 1]
    has_vectors = num == 2 and (sides.dim() == 1 or sides.shape == matrices.shape[:-1])
    is_of_one = matrices.shape[:-2] == sides.shape[: sides.dim() - (1 if has_vectors else 2)]
    if func in (torch.linalg.solve, torch.linalg.solve_ex):
        if has_vectors or is_of_one:
            return args
        batch = torch.broadcast_shapes(matrices.shape[:-2], sides.shape[:-2])
        return (*(x.expand(*batch, *x.shape[-2:]) for x in (matrices, sides)), *args[2:])
    if not is_of_one or (has_vectors and sides.dim() > 1):
        raise RuntimeError(f"`{func.__name__}` is given matrices and right-hand sides in several batches")
    return args


_NUM_OF_SYSTEM: dict[Callable[..., Any], int] = {
    torch.linalg.lstsq: 2,
    torch.linalg.lu_solve: 3,
    torch.linalg.solve: 2,
    torch.linalg.solve_ex: 2,
}  # how many of the first arguments are matrices and sides


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
