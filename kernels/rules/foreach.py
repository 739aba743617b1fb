"""Operators on lists of tensors, one tensor after another: vmap has no rules for `torch._foreach_lerp_` and its like.

Averages of weights and norms of gradients are computed by them, as in `torch.nn.utils.get_total_norm`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_PREFIX = "_foreach_"


def is_on_lists(func: Callable[..., Any]) -> bool:
    """Whether a function is one on lists of tensors."""
    return getattr(func, "__name__", "").startswith(_PREFIX)


def one_by_one(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute a call of such a function; NotImplemented where there is none for a single tensor."""
    name = func.__name__.removeprefix(_PREFIX)
    of_one = torch.linalg.vector_norm if name == "norm" else getattr(Tensor, name, None)
    if of_one is None or not args:
        return NotImplemented
    num = len(args[0])
    rows = [[arg[i] if isinstance(arg, list | tuple) else arg for arg in args] for i in range(num)]
    named = [{k: v[i] if isinstance(v, list | tuple) else v for k, v in kwargs.items()} for i in range(num)]
    results = tuple(of_one(*row, **own) for row, own in zip(rows, named, strict=True))
    return args[0] if name.endswith("_") else results
