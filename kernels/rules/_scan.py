"""One recurrent layer of all members: a loop over time, with a backward pass of its own.

Autograd would compute the gradients of the weights once for each time step, and add them up. Here the loop back over
time yields the gradients of the gates only; those of the weights are one product over all time steps after it.

The equations and the layout of weights are those in the documentation of torch.nn.LSTM, GRU and RNN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Before = tuple[tuple[Tensors, ...], Tensor | None, Tensors]  # the gradients of what came before; see `Cell.backward`

_sigmoid_backward = torch.ops.aten.sigmoid_backward.default  # (grad, y) -> grad * y * (1 - y)
_threshold_backward = torch.ops.aten.threshold_backward.default  # (grad, y, 0) -> grad where y > 0
_tanh_backward = torch.ops.aten.tanh_backward.default  # (grad, y) -> grad * (1 - y^2)


@dataclass(frozen=True, slots=True)
class Cell:
    """The equations of one time step.

    The state is (h, c) of an LSTM, (h,) of the others. The gates come before their activation: as (the sum of what the
    input and h give,) where the equations need no more, else as (what the input gives, what h gives).

    Attributes:
        forward: from gates and state to the new state, and to what the way back needs.
        backward: from that and the gradients of the new state to those of the gates, in the chunks of which they
            consist; of h, but for what reaches it through the gates, None if that is all; and of c, if there is one.
        is_additive: whether the gates come as a sum.
    """

    forward: Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]
    backward: Callable[[Tensors, Tensors], Before]
    is_additive: bool


def _lstm(gates: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """i, f, o = sigmoid(gates); g = tanh(gate); c' = f * c + i * g; h' = o * tanh(c')."""
    i, f, g, o = gates[0].chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), _tanh(g), o.sigmoid()
    _, c = state
    new_c = torch.addcmul(f * c, i, g)
    tanh_c = _tanh(new_c)
    return (o * tanh_c, new_c), (i, f, g, o, c, tanh_c)


def _lstm_backward(kept: Tensors, grads: Tensors) -> Before:
    i, f, g, o, c, tanh_c = kept
    dh, dc = grads
    dc = dc + _tanh_backward(dh * o, tanh_c)
    di, df = _sigmoid_backward(dc * g, i), _sigmoid_backward(dc * c, f)
    dg, do = _tanh_backward(dc * i, g), _sigmoid_backward(dh * tanh_c, o)
    return ((di, df, dg, do),), None, (dc * f,)


def _gru(gates: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """r, z = sigmoid(gates); n = tanh(x_n + r * h_n); h' = (1 - z) * n + z * h."""
    (xr, xz, xn), (hr, hz, hn) = gates[0].chunk(3, -1), gates[1].chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = _tanh(torch.addcmul(xn, r, hn))
    (h,) = state
    return (torch.lerp(n, h, z),), (r, z, n, hn, h)


def _gru_backward(kept: Tensors, grads: Tensors) -> Before:
    r, z, n, hn, h = kept
    (dh,) = grads
    through_h = dh * z
    dn = _tanh_backward(dh - through_h, n)
    dr, dz = _sigmoid_backward(dn * hn, r), _sigmoid_backward(dh * (h - n), z)
    return ((dr, dz, dn), (dr, dz, dn * r)), through_h, ()


def _rnn_tanh(gates: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """H' = tanh(gate)."""
    del state
    h = _tanh(gates[0])
    return (h,), (h,)


def _rnn_tanh_backward(kept: Tensors, grads: Tensors) -> Before:
    return ((_tanh_backward(grads[0], kept[0]),),), None, ()


def _rnn_relu(gates: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """H' = max(gate, 0)."""
    del state
    h = gates[0].relu()
    return (h,), (h,)


def _rnn_relu_backward(kept: Tensors, grads: Tensors) -> Before:
    return ((_threshold_backward(grads[0], kept[0], 0),),), None, ()


def _tanh(x: Tensor) -> Tensor:
    """tanh(x) = 2 sigmoid(2 x) - 1, which a CPU has three times as fast, with an absolute error of 2e-7 in float32."""
    if x.device.type != "cpu" or x.dtype.itemsize < 4:
        return x.tanh()
    return (x + x).sigmoid_().mul_(2).sub_(1)


LSTM = Cell(_lstm, _lstm_backward, is_additive=True)
GRU = Cell(_gru, _gru_backward, is_additive=False)
RNN_TANH = Cell(_rnn_tanh, _rnn_tanh_backward, is_additive=True)
RNN_RELU = Cell(_rnn_relu, _rnn_relu_backward, is_additive=True)


class Scan(torch.autograd.Function):
    """Run one direction of one layer over time. Its gradients cannot be differentiated once more."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: Cell,
        is_reversed: bool,
        inputs: Tensor,  # [member, time * batch, channel]
        w_ih: Tensor,  # [member, gate * hidden, channel]
        w_hh: Tensor,  # [member, gate * hidden, projected]
        b_ih: Tensor,  # [member, gate * hidden]
        b_hh: Tensor,  # [member, gate * hidden]
        w_hr: Tensor | None,  # [member, projected, hidden]; None where h is not projected
        *initial: Tensor,  # h [member, batch, projected], and c [member, batch, hidden] of an LSTM
    ) -> Tensors:
        """Return h of all time steps, `[member, time, batch, projected]`, and the last state."""
        bias = b_ih + b_hh if cell.is_additive else b_ih
        from_inputs = torch.baddbmm(bias[:, None], inputs, w_ih.mT).unflatten(1, (-1, initial[0].size(1)))
        state, outputs, unprojected = initial, [], []
        kept: list[Tensor] = []
        for from_input in _in_order(from_inputs, is_reversed):
            if cell.is_additive:
                gates: Tensors = (torch.baddbmm(from_input, state[0], w_hh.mT),)
            else:
                gates = (from_input, torch.baddbmm(b_hh[:, None], state[0], w_hh.mT))
            state, needed = cell.forward(gates, state)
            if w_hr is not None:
                unprojected.append(state[0])
                state = (state[0].bmm(w_hr.mT), *state[1:])
            outputs.append(state[0])
            kept += needed
        before = _in_time([initial[0], *outputs[:-1]], is_reversed)
        h = _in_time(unprojected, is_reversed) if w_hr is not None else None
        ctx.cell, ctx.is_reversed = cell, is_reversed
        ctx.save_for_backward(inputs, w_ih, w_hh, w_hr, before, h, *kept)
        return _in_time(outputs, is_reversed), *state

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor, *d_state: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all that `forward` was given."""
        if torch.is_grad_enabled():  # autograd's own once_differentiable leaves them out without a word
            raise RuntimeError("the gradients of a recurrent layer have no gradients here: drop `create_graph=True`")
        inputs, w_ih, w_hh, w_hr, before, h, *kept = ctx.saved_tensors
        d_from_input, d_from_hidden, d_projected, d_initial = _back_over_time(
            ctx.cell, ctx.is_reversed, kept, w_hh, w_hr, d_outputs, d_state
        )
        needs = ctx.needs_input_grad
        d_b_ih = d_from_input.sum(1) if needs[5] or needs[6] else None
        return (
            None,
            None,
            d_from_input.bmm(w_ih) if needs[2] else None,
            d_from_input.mT.bmm(inputs) if needs[3] else None,
            d_from_hidden.mT.bmm(before.flatten(1, 2)) if needs[4] else None,
            d_b_ih,
            d_b_ih if d_from_hidden is d_from_input or not needs[6] else d_from_hidden.sum(1),
            None if d_projected is None else d_projected.mT.bmm(h.flatten(1, 2)),
            *d_initial,
        )


def _back_over_time(
    cell: Cell,
    is_reversed: bool,
    kept: Tensors,  # what each step needs, one step after another
    w_hh: Tensor,
    w_hr: Tensor | None,
    d_outputs: Tensor,  # [member, time, batch, projected]
    d_state: Tensors,
) -> tuple[Tensor, Tensor, Tensor | None, Tensors]:
    """Return the gradients of the gates from the input, of those from h, of projected h, and of the first state.

    All but the last are `[member, time * batch, ...]`.
    """
    size = len(kept) // d_outputs.size(1)
    d_gates, d_projected = [], []
    for d_output in _in_order(d_outputs, not is_reversed):
        d_h = d_state[0] + d_output
        if w_hr is not None:
            d_projected.append(d_h)
            d_h = d_h.bmm(w_hr)
        chunks, through_h, d_others = cell.backward(kept[-size:], (d_h, *d_state[1:]))
        kept = kept[:-size]
        d_gates.append([torch.cat(chunk, -1) for chunk in chunks])
        d_from_hidden = d_gates[-1][-1]
        d_h = d_from_hidden.bmm(w_hh) if through_h is None else torch.baddbmm(through_h, d_from_hidden, w_hh)
        d_state = (d_h, *d_others)
    rows = [_in_time(list(steps), not is_reversed).flatten(1, 2) for steps in zip(*d_gates, strict=True)]
    return rows[0], rows[-1], _in_time(d_projected, not is_reversed).flatten(1, 2) if d_projected else None, d_state


def _in_order(sequence: Tensor, is_reversed: bool) -> Tensors:
    """Take `[member, time, *shape]` apart, in the order of a loop."""
    return sequence.unbind(1)[:: -1 if is_reversed else 1]


def _in_time(steps: list[Tensor], is_reversed: bool) -> Tensor:
    """Put the results of a loop, each `[member, *shape]`, in the order of time: `[member, time, *shape]`."""
    return torch.stack(steps[::-1] if is_reversed else steps, 1)
