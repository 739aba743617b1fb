"""Efficient batching rules: how an operator is computed for all members at once.

`MemberRules` is entered inside the function that vmap maps, and nowhere else, so that nobody else's vmap changes.
A rule has the arguments of the torch function it stands for, and `drawn`, the random tensors still to be used. It
works on what vmap shows it, one member's tensors, or goes below vmap by an `autograd.Function` with a `vmap` method.
A rule returns NotImplemented for a case that it leaves to torch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import attention, linear, loss, normalization, recurrent
from ._mode import CallMode
from .random import Draw, find_draw, replay

__all__ = ["Draw", "MemberRules", "Recorder"]

RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear.linear,
    F.cross_entropy: loss.cross_entropy,
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    torch._weight_norm: normalization.weight_norm,
    torch.lstm: recurrent.lstm,
    torch.gru: recurrent.gru,
    torch.rnn_tanh: recurrent.rnn_tanh,
    torch.rnn_relu: recurrent.rnn_relu,
    torch.lstm_cell: recurrent.lstm_cell,
    torch.gru_cell: recurrent.gru_cell,
    torch.rnn_tanh_cell: recurrent.rnn_tanh_cell,
    torch.rnn_relu_cell: recurrent.rnn_relu_cell,
}

# What these draw inside, where no mode can see it.
_HIDDEN_DRAWS: dict[Callable[..., Any], Callable[..., list[Draw]]] = {
    F.scaled_dot_product_attention: attention.attention_draws,
    torch.lstm: recurrent.recurrent_draws,
    torch.gru: recurrent.recurrent_draws,
    torch.rnn_tanh: recurrent.recurrent_draws,
    torch.rnn_relu: recurrent.recurrent_draws,
}


class Recorder(CallMode):
    """Note what the code under it draws at random, and change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the draws of one call."""
        if (draw := find_draw(func, args, kwargs)) is not None:
            self.draws.append(draw)
            return func(*args, **kwargs)
        if func in _HIDDEN_DRAWS:
            self.draws.extend(_HIDDEN_DRAWS[func](*args, **kwargs))
        return super().handle(func, args, kwargs)


class MemberRules(CallMode):
    """Compute the operators of the code under it by the rules, and its random draws from `drawn`.

    Args:
        drawn: what the `Draw`s of a recorded pass gave, in their order.
    """

    def __init__(self, drawn: Iterator[Tensor]) -> None:
        super().__init__()
        self.drawn = drawn

    def handle(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute one call by its rule, if it has one."""
        if find_draw(func, args, kwargs) is not None:
            return replay(func, args, kwargs, next(self.drawn))
        if (rule := RULES.get(func)) is not None:
            # A rule is made of torch functions, which may have rules themselves.
            with self:
                result = rule(*args, **kwargs, drawn=self.drawn)
            if result is not NotImplemented:
                return result
        return super().handle(func, args, kwargs)
