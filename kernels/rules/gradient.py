"""Gradients that a loss takes itself: penalties on them, forces from energies, residuals of differential equations.

Autograd runs outside vmap, where members are rows of the same tensors. What one row of an output says to another row of
an input is nothing, so that the gradient of all outputs is each member's own; if the members have inputs of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from ._mapped import is_mapped


class SharedInputsError(RuntimeError):
    """A loss takes a gradient with respect to what all members have in common: let each have a copy."""


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    is_grads_batched: bool = False,
    **options: Any,
) -> tuple[Tensor | None, ...]:
    """Compute torch.autograd.grad for all members; NotImplemented where none of it is a member's own.

    Raises:
        SharedInputsError: members share what they take gradients with respect to.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    are_mapped = [is_mapped(x) for x in (*outputs, *inputs)]
    if is_grads_batched or not any(are_mapped):
        return NotImplemented
    if not all(are_mapped):
        raise SharedInputsError(
            "the loss takes a gradient with respect to a tensor that all members have in common; batches could bring it"
        )
    given = [grad_outputs] if grad_outputs is None or isinstance(grad_outputs, Tensor) else list(grad_outputs)
    given = given * len(outputs) if given == [None] else given
    with temporarily_pop_interpreter_stack():
        found = torch.autograd.grad(
            [_all(x) for x in outputs],
            [_all(x) for x in inputs],
            [_given_of_all(own, x) for own, x in zip(given, outputs, strict=True)],
            retain_graph,
            create_graph,
            **options,
        )
    level = _functorch.maybe_get_level(inputs[0])
    return tuple(
        None if own is None else _functorch._add_batch_dim(own, _functorch.maybe_get_bdim(x), level)
        for own, x in zip(found, inputs, strict=True)
    )


def _all(x: Tensor) -> Tensor:
    """The tensor of all members."""
    unwrapped: Tensor = _functorch.get_unwrapped(x)
    return unwrapped


def _given_of_all(own: Tensor | None, output: Tensor) -> Tensor:
    """What a gradient begins with, of all members, its member axis where that of the output is."""
    whole, dim = _all(output), _functorch.maybe_get_bdim(output)
    if own is None:
        if output.numel() != 1:
            raise RuntimeError("grad can be implicitly created only for scalar outputs")
        return torch.ones_like(whole)
    if not is_mapped(own):
        return own.unsqueeze(dim).expand(whole.shape)
    return _all(own).movedim(_functorch.maybe_get_bdim(own), dim)
