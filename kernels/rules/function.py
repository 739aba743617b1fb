"""Functions of the caller's own with a backward of their own, which say nothing of vmap: applied member by member.

Rounding that gradients pass through, reversed gradients, kernels for weights of four bits: PyTorch refuses to map them.
Below vmap each member is one call, with autograd as it always is, and all else of the model stays batched.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import Function
from torch.utils import _pytree as pytree

from ._mapped import is_mapped, is_mapped_last

_APPLY = vars(Function)["apply"]
_IS_INSIDE = ContextVar("is_inside", default=False)
_LOCK = threading.Lock()
_num_inside = 0  # in all threads


@contextmanager
def functions_for_each() -> Iterator[None]:
    """Let `Function.apply` compute one member after another where PyTorch would refuse to map it, in this thread."""
    global _num_inside
    with _LOCK:
        _num_inside += 1
        Function.apply = classmethod(_apply)  # type: ignore[method-assign, assignment]
    token = _IS_INSIDE.set(True)
    try:
        yield
    finally:
        _IS_INSIDE.reset(token)
        with _LOCK:
            _num_inside -= 1
            if _num_inside == 0:
                Function.apply = _APPLY  # type: ignore[method-assign]


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a function, whether it can be mapped or not."""
    can_be_mapped = cls.generate_vmap_rule or cls.vmap is not Function.vmap
    if can_be_mapped or not (_IS_INSIDE.get() and is_mapped_last()):
        return _APPLY.__get__(None, cls)(*args, **kwargs)
    leaves, structure = pytree.tree_flatten((args, kwargs))
    mapped = [leaf for leaf in leaves if isinstance(leaf, Tensor) and is_mapped(leaf)]
    level = _functorch.maybe_get_level(mapped[0]) if mapped else 0
    num_members = _functorch.get_unwrapped(mapped[0]).size(_functorch.maybe_get_bdim(mapped[0])) if mapped else 1
    results = []
    with temporarily_pop_interpreter_stack():
        for i in range(num_members):
            own_args, own_kwargs = pytree.tree_unflatten([_of_member(leaf, i) for leaf in leaves], structure)
            results.append(cls.apply(*own_args, **own_kwargs))
        if not mapped:
            return results[0]
        together = pytree.tree_map(lambda *own: torch.stack(own) if isinstance(own[0], Tensor) else own[0], *results)
    return pytree.tree_map_only(Tensor, lambda x: _functorch._add_batch_dim(x, 0, level), together)


def _of_member(leaf: Any, i: int) -> Any:
    if not (isinstance(leaf, Tensor) and _functorch.is_batchedtensor(leaf)):
        return leaf
    return _functorch.get_unwrapped(leaf).select(_functorch.maybe_get_bdim(leaf), i)
