"""LSTM, GRU and RNN from their equations: vmap has no rule for torch's fused ones (pytorch #105982).

One product with the inputs of all time steps, then a loop over time in which each product covers all members. The
equations and the layout of weights are those in the documentation of torch.nn.LSTM, GRU and RNN.

Not here: packed sequences. They are left to torch, and so train member by member.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .random import Draw, dropout_draw

Hidden = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of the others; each [batch, hidden]
Cell = Callable[[Tensor, Tensor, Hidden], Hidden]  # (from the input, from the hidden state, hidden) -> hidden


def _lstm_cell(from_input: Tensor, from_hidden: Tensor, hidden: Hidden) -> Hidden:
    """i, f, o = sigmoid(gates); g = tanh(gate); c' = f * c + i * g; h' = o * tanh(c')."""
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = f.sigmoid() * hidden[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(from_input: Tensor, from_hidden: Tensor, hidden: Hidden) -> Hidden:
    """r, z = sigmoid(gates); n = tanh(x_n + r * h_n); h' = (1 - z) * n + z * h."""
    (xr, xz, xn), (hr, hz, hn) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + (xz + hz).sigmoid() * (hidden[0] - n),)


def _tanh_cell(from_input: Tensor, from_hidden: Tensor, hidden: Hidden) -> Hidden:
    """H' = tanh(x + h)."""
    del hidden
    return ((from_input + from_hidden).tanh(),)


def _relu_cell(from_input: Tensor, from_hidden: Tensor, hidden: Hidden) -> Hidden:
    """H' = max(x + h, 0)."""
    del hidden
    return ((from_input + from_hidden).relu(),)


def lstm(
    input: Tensor,  # [time, batch, channel], or [batch, time, channel]
    hx: Any,  # (h_0 [layer * direction, batch, projected], c_0 [layer * direction, batch, hidden])
    *rest: Any,
    drawn: Iterator[Tensor],
) -> Any:
    """Compute torch.lstm."""
    if isinstance(hx, Tensor):
        return NotImplemented  # a packed sequence
    outputs, (h, c) = _recurrent(_lstm_cell, input, tuple(hx), *rest, drawn=drawn)
    return outputs, h, c


def _single_state(cell: Cell) -> Callable[..., Any]:
    """Make a rule for the functions with one hidden state: torch.gru, rnn_tanh and rnn_relu."""

    def rule(input: Tensor, hx: Tensor, *rest: Any, drawn: Iterator[Tensor]) -> Any:
        if isinstance(rest[0], Tensor):
            return NotImplemented  # a packed sequence
        outputs, (h,) = _recurrent(cell, input, (hx,), *rest, drawn=drawn)
        return outputs, h

    return rule


gru = _single_state(_gru_cell)
rnn_tanh = _single_state(_tanh_cell)
rnn_relu = _single_state(_relu_cell)


def _recurrent(
    cell: Cell,
    inputs: Tensor,  # [time, batch, channel]
    initial: Hidden,  # each [layer * direction, batch, hidden]
    params: Sequence[Tensor],  # w_ih, w_hh(, b_ih, b_hh)(, w_hr) of each layer and direction
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    drawn: Iterator[Tensor],
) -> tuple[Tensor, Hidden]:
    """Run the layers one after another, each direction of a layer for itself."""
    if batch_first:
        inputs = inputs.transpose(0, 1)
    num_directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * num_directions)
    finals: list[Hidden] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(num_directions):
            index = layer * num_directions + direction
            w_ih, w_hh, *others = params[index * size : (index + 1) * size]
            b_ih, b_hh = others[:2] if has_biases else (None, None)
            w_hr = others[-1] if len(others) % 2 else None
            from_inputs = F.linear(inputs, w_ih, b_ih).unbind(0)
            hidden = tuple(state[index] for state in initial)
            steps = []
            for from_input in reversed(from_inputs) if direction else from_inputs:
                hidden = cell(from_input, F.linear(hidden[0], w_hh, b_hh), hidden)
                if w_hr is not None:
                    hidden = (F.linear(hidden[0], w_hr), *hidden[1:])
                steps.append(hidden[0])
            finals.append(hidden)
            outputs.append(torch.stack(steps[::-1] if direction else steps))
        inputs = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if train and 0 < dropout < 1 and layer < num_layers - 1:
            inputs = inputs * next(drawn)
    final = tuple(torch.stack(states) for states in zip(*finals, strict=True))
    return inputs.transpose(0, 1) if batch_first else inputs, final


def recurrent_draws(input: Tensor, hx: Any, *rest: Any) -> list[Draw]:
    """The dropout masks between the layers, each `[time, batch, hidden * direction]`."""
    if isinstance(rest[0], Tensor) or (isinstance(hx, Tensor) and isinstance(rest[0], tuple)):
        return []  # a packed sequence
    _, _, num_layers, dropout, train, bidirectional, batch_first = rest
    if not train or not 0 < dropout < 1:
        return []
    h = hx if isinstance(hx, Tensor) else hx[0]
    batch, time = input.shape[:2] if batch_first else input.shape[1::-1]
    mask = input.new_empty(()).expand(time, batch, h.size(-1) * (2 if bidirectional else 1))
    return [dropout_draw(F.dropout, mask, dropout)] * (num_layers - 1)


def _cell(cell: Cell) -> Callable[..., Any]:
    """Make a rule for torch.lstm_cell and its like."""

    def rule(
        input: Tensor,  # [batch, channel]
        hx: Any,  # [batch, hidden], or a pair of them
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
        *,
        drawn: Iterator[Tensor],
    ) -> Any:
        del drawn
        hidden = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        new = cell(F.linear(input, w_ih, b_ih), F.linear(hidden[0], w_hh, b_hh), hidden)
        return new if len(new) > 1 else new[0]

    return rule


lstm_cell = _cell(_lstm_cell)
gru_cell = _cell(_gru_cell)
rnn_tanh_cell = _cell(_tanh_cell)
rnn_relu_cell = _cell(_relu_cell)
