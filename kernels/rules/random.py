"""Randomness as an input of the step: what a model draws at random is drawn before the step, once for all members.

One ordinary forward pass is recorded, and every draw noted. Before each step the draws are repeated from the seed's
own random stream, which yields the numbers that a stock loop would have seen; inside the mapped call they are handed
out in the same order. The step itself is then a pure function, and the members of a seed share their dropout masks.

Not here: samples of distributions that numbers in tensors give (`sampling.py`). Generators of the model's own, and
RReLU, are not noted; the caller finds out by comparing the state of the global generator after a pass with that after
the noted draws.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import sampling
from .draw import Draw

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout, torch.feature_dropout)
_LIKE = (torch.rand_like, torch.randn_like, torch.randint_like)
_FACTORIES = (torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal)
_IN_PLACE = (
    Tensor.bernoulli_,
    Tensor.cauchy_,
    Tensor.exponential_,
    Tensor.geometric_,
    Tensor.log_normal_,
    Tensor.normal_,
    Tensor.random_,
    Tensor.uniform_,
)


def find_draw(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Draw | None:
    """Say what a call draws at random; None when it draws nothing, or nothing that can be repeated."""
    if func in _DROPOUTS:
        named = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        p = named.get("p", 0.5)
        is_drawn = named.get("training", named.get("train", True)) and 0 < p < 1
        is_inplace = func.__module__ == F.__name__ and _is_inplace(args, kwargs)
        return dropout_draw(func, named["input"], p, is_inplace=is_inplace) if is_drawn else None
    if (noise := sampling.find_noise(func, args, kwargs)) is not None:
        return noise
    rest = args[1:] if func in _LIKE or func in _IN_PLACE else args
    if any(isinstance(value, Tensor | torch.Generator) for value in (*rest, *kwargs.values())):
        return None
    if func in _LIKE or func in _IN_PLACE:
        return Draw.like(func, args[0], rest, kwargs)
    if func in _FACTORIES:
        return Draw(func, args, kwargs)
    return None


def dropout_draw(func: Callable[..., Tensor], like: Tensor, p: float, *, is_inplace: bool = False) -> Draw:
    """The draw of a dropout's mask, which is what the function makes of ones: 0, or 1 / (1 - p).

    Whether it is in place matters on a GPU, where there is a fused kernel for the one and not for the other, which
    deals the random numbers out otherwise (aten/src/ATen/native/Dropout.cpp).
    """
    return Draw.like(func, like, (p, True), {"inplace": True} if is_inplace else {})


def _is_inplace(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a dropout of torch.nn.functional changes its input."""
    return bool(kwargs.get("inplace", len(args) > 3 and args[3]))


def replay(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], drawn: Tensor
) -> tuple[Any, Tensor | None]:
    """Compute a call of a random function from what was drawn for it.

    Returns:
        what it returns, and whether the numbers that it was given are good; None where it does not ask.
    """
    if func in _DROPOUTS:
        tensor = args[0] if args else kwargs["input"]
        return tensor.mul_(drawn) if _is_inplace(args, kwargs) else tensor * drawn, None
    if (sampled := sampling.sample(func, args, kwargs, drawn)) is not None:
        return sampled
    if func in _IN_PLACE:
        return args[0].copy_(drawn), None
    return drawn.clone(), None
