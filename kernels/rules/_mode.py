"""The mode on which rules stand: it sees every torch function that the code under it calls."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class CallMode(TorchFunctionMode):
    """Hand every call of a torch function to `handle`.

    A TorchFunctionMode is off while it handles a call, so it would not see the attention inside
    `F.multi_head_attention_forward`. The functions of torch.nn.functional that are written in Python are
    therefore run with the mode on again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._running: list[Callable[..., Any]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.handle(func, args, kwargs or {})

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one call; a subclass does what it must and passes the others on to this method."""
        # Those that choose between two variants (max_pool2d) come back here from the variant, under the same name.
        is_python = isinstance(func, types.FunctionType) and func.__module__ == F.__name__
        if not is_python or func in self._running:
            return func(*args, **kwargs)
        self._running.append(func)
        try:
            with self:
                return _body(func)(*args, **kwargs)
        finally:
            self._running.pop()


_VALUE_TAKERS = frozenset(
    {
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.argwhere,
        Tensor.bincount,
        Tensor.masked_select,
        Tensor.nonzero,
        Tensor.numpy,
        Tensor.tolist,
        Tensor.unique,
        Tensor.unique_consecutive,
        torch.argwhere,
        torch.bincount,
        torch.masked_select,
        torch.nonzero,
        torch.unique,
        torch.unique_consecutive,
    }
)
_REPEATS = frozenset({Tensor.repeat_interleave, torch.repeat_interleave})


def takes_values(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call turns numbers in a tensor into Python values or into a shape, unseen by the dispatcher.

    Taking one number out (`.item()`, `if tensor:`) is not among them: tracing refuses it by itself.
    """
    if func in (Tensor.__getitem__, Tensor.__setitem__):
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
    if func in _REPEATS:  # so many times each, or as often as a tensor says
        given = (*args, *kwargs.values())
        return len(given) == 1 or any(isinstance(own, Tensor) for own in given[1:])
    if func in (Tensor.where, torch.where):
        return len(args) + len(kwargs) == 1
    return func in _VALUE_TAKERS


@functools.cache
def _functional_namespace() -> dict[str, Any]:
    """torch.nn.functional, with nobody asking to take its calls over."""
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    return {**vars(F), **dict.fromkeys(asks, lambda *_: False)}


@functools.cache
def _body(func: types.FunctionType) -> types.FunctionType:
    """A function of torch.nn.functional without its first lines, which would send the call to the mode again."""
    body = types.FunctionType(
        func.__code__, _functional_namespace(), func.__name__, func.__defaults__, func.__closure__
    )
    body.__kwdefaults__ = func.__kwdefaults__
    return body
