"""LSTM, GRU and RNN, layer by layer: vmap has no rule for torch's fused ones (pytorch #105982).

Not here: packed sequences. They are left to torch, and so train member by member.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._mapped import Mapped, is_mapped, member_first
from ._scan import GRU, LSTM, RNN_RELU, RNN_TANH, Cell, Scan
from .draw import Draw
from .random import dropout_draw

State = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of the others


def lstm(
    input: Tensor,  # [time, batch, channel], or [batch, time, channel]
    hx: Any,  # (h_0 [layer * direction, batch, projected], c_0 [layer * direction, batch, hidden])
    *rest: Any,
    drawn: Iterator[Tensor],
) -> Any:
    """Compute torch.lstm."""
    if isinstance(hx, Tensor):
        return NotImplemented  # a packed sequence
    return _recurrent(LSTM, input, tuple(hx), *rest, drawn=drawn)


def _single_state(cell: Cell) -> Callable[..., Any]:
    """Make a rule for the functions with one hidden state: torch.gru, rnn_tanh and rnn_relu."""

    def rule(input: Tensor, hx: Tensor, *rest: Any, drawn: Iterator[Tensor]) -> Any:
        if isinstance(rest[0], Tensor):
            return NotImplemented  # a packed sequence
        return _recurrent(cell, input, (hx,), *rest, drawn=drawn)

    return rule


gru = _single_state(GRU)
rnn_tanh = _single_state(RNN_TANH)
rnn_relu = _single_state(RNN_RELU)


def _recurrent(
    cell: Cell,
    inputs: Tensor,  # [time, batch, channel]
    initial: State,  # each [layer * direction, batch, hidden]
    params: Sequence[Tensor],  # w_ih, w_hh(, b_ih, b_hh)(, w_hr) of each layer and direction
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    *,
    drawn: Iterator[Tensor],
) -> Any:
    """Run the layers one after another, each direction of a layer for itself."""
    has_dropout = train and 0 < dropout < 1 and num_layers > 1
    if not has_dropout and not any(map(is_mapped, (inputs, *initial, *params))):
        return NotImplemented  # members share all of it, and torch's own is faster for one
    if batch_first:
        inputs = inputs.transpose(0, 1)
    num_directions = 2 if bidirectional else 1
    size = len(params) // (num_layers * num_directions)
    finals: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(num_directions):
            index = layer * num_directions + direction
            w_ih, w_hh, *others = params[index * size : (index + 1) * size]
            biases = tuple(others[:2]) if has_biases else ()
            w_hr = others[-1] if len(others) % 2 else None
            state = tuple(states[index] for states in initial)
            output, *final = _layer(cell, direction == 1, inputs, w_ih, w_hh, biases, w_hr, state)
            outputs.append(output)
            finals.append(tuple(final))
        inputs = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if has_dropout and layer < num_layers - 1:
            inputs = inputs * next(drawn)
    last = (torch.stack(states) for states in zip(*finals, strict=True))
    return inputs.transpose(0, 1) if batch_first else inputs, *last


def _layer(
    cell: Cell,
    is_reversed: bool,
    inputs: Tensor,  # [time, batch, channel]
    w_ih: Tensor,  # [gate * hidden, channel]
    w_hh: Tensor,  # [gate * hidden, projected]
    biases: tuple[Tensor, ...],  # b_ih and b_hh [gate * hidden], if there are any
    w_hr: Tensor | None,  # [projected, hidden]
    state: State,  # each [batch, hidden]
) -> tuple[Tensor, ...]:
    """Run one direction of one layer; under autocast all of it in autocast's dtype, as torch does on a GPU."""
    biases = biases or (w_ih.new_zeros(w_ih.size(0)),) * 2
    tensors: tuple[Tensor | None, ...] = (inputs.flatten(0, 1), w_ih, w_hh, *biases, w_hr, *state)
    if torch.is_autocast_enabled(inputs.device.type) and inputs.dtype != torch.float64:
        # Here rather than inside, so that autograd casts the gradients back.
        dtype = torch.get_autocast_dtype(inputs.device.type)
        tensors = tuple(None if x is None else x.to(dtype) for x in tensors)
    results: tuple[Tensor, ...] = _Layer.apply(cell, is_reversed, *tensors)
    return results


class _Layer(Mapped):
    """One direction of one layer, with a rule for vmap."""

    @staticmethod
    def forward(cell: Cell, is_reversed: bool, *tensors: Tensor | None) -> State:
        one = (None if x is None else x[None] for x in tensors)
        return tuple(x.squeeze(0) for x in Scan.apply(cell, is_reversed, *one))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], cell: Cell, is_reversed: bool, *tensors: Tensor | None
    ) -> tuple[State, tuple[int, ...]]:
        """Put the member axis first."""
        stacked = (
            None if x is None else member_first(x, dim, info.batch_size)
            for x, dim in zip(tensors, in_dims[2:], strict=True)
        )
        results = Scan.apply(cell, is_reversed, *stacked)
        return results, (0,) * len(results)


def recurrent_draws(input: Tensor, hx: Any, *rest: Any) -> list[Draw]:
    """The dropout masks between the layers, each `[time, batch, hidden * direction]`."""
    if isinstance(rest[0], Tensor) or (isinstance(hx, Tensor) and isinstance(rest[0], tuple)):
        return []  # a packed sequence
    _, _, num_layers, dropout, train, bidirectional, batch_first = rest
    if not train or not 0 < dropout < 1:
        return []
    h = hx if isinstance(hx, Tensor) else hx[0]
    batch, time = input.shape[:2] if batch_first else input.shape[1::-1]
    # On a GPU it matters to a draw in which dtype the layers compute.
    is_cast = torch.is_autocast_enabled(input.device.type) and input.dtype != torch.float64
    dtype = torch.get_autocast_dtype(input.device.type) if is_cast else input.dtype
    mask = input.new_empty((), dtype=dtype).expand(time, batch, h.size(-1) * (2 if bidirectional else 1))
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
        biases = () if b_ih is None or b_hh is None else (b_ih, b_hh)
        state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        _, *new = _layer(cell, False, input[None], w_ih, w_hh, biases, None, state)
        return tuple(new) if len(new) > 1 else new[0]

    return rule


lstm_cell = _cell(LSTM)
gru_cell = _cell(GRU)
rnn_tanh_cell = _cell(RNN_TANH)
rnn_relu_cell = _cell(RNN_RELU)
