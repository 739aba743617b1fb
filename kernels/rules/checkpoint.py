"""Activation checkpointing, which neither vmap nor a trace can record: what is under it runs as if it were not there.

Nothing is computed twice then, and activations are kept: those of as many members as are stepped together. Losses and
gradients are the same, for what a second pass would compute is what the first has.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import checkpoint

__all__ = ["checkpoints_run_through"]

# What `checkpoint` calls, with and without reentry; the second has another name from torch 2.15 on.
_OTHER_NAME = "_checkpoint_without_reentrant_generator_impl"
_EXCHANGED = (
    "CheckpointFunction",
    _OTHER_NAME if hasattr(checkpoint, _OTHER_NAME) else "_checkpoint_without_reentrant_generator",
)


@dataclass
class Checkpoints:
    """What `checkpoints_run_through` has met: whether there was any."""

    has_any: bool = False


class _Reentrant:
    """`checkpoint(use_reentrant=True)`, which trains nothing in a function none of whose inputs requires a gradient."""

    def __init__(self, met: Checkpoints) -> None:
        self._met = met

    def apply(self, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        del preserve_rng_state
        self._met.has_any = True
        has_gradients = any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)
        with torch.set_grad_enabled(torch.is_grad_enabled() and has_gradients):
            return function(*args)


@contextmanager
def checkpoints_run_through() -> Iterator[Checkpoints]:
    """Let `torch.utils.checkpoint.checkpoint`, whoever has imported it, call its function and do nothing else.

    The function itself cannot be exchanged: models keep it. These are the two that it calls (torch 2.11 to 2.15).
    """
    met = Checkpoints()

    def around(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        """What `checkpoint(use_reentrant=False)` goes through before and after it calls the function itself."""
        del function, args, kwargs
        met.has_any = True
        yield

    before = [getattr(checkpoint, name) for name in _EXCHANGED]
    _exchange([_Reentrant(met), around])
    try:
        yield met
    finally:
        _exchange(before)


def _exchange(own: Sequence[Any]) -> None:
    vars(checkpoint).update(zip(_EXCHANGED, own, strict=True))
