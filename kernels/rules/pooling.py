"""Max pooling after a ReLU: pool first, since max(relu(x)) = relu(max(x)), and there is less left to go through.

Values and gradients are the same to the last bit: in a window with a positive number the largest is at the same place,
and in one without, the ReLU lets no gradient through.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._trace import is_tracing

_relu: Callable[[Tensor], Tensor] = torch.ops.aten.relu.default  # torch.relu would come back here


class _Origin(NamedTuple):
    """What a tensor is the ReLU of, and how often both had been written to then."""

    input: Tensor
    versions: tuple[int, int]


def relu(input: Tensor, *, drawn: Iterator[Tensor]) -> Tensor:
    """Compute torch.relu, and note on the result what it was made from."""
    del drawn
    output = _relu(input)
    output._relu_of = _Origin(input, (input._version, output._version))  # type: ignore[attr-defined]
    return output


def max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    drawn: Iterator[Tensor],
) -> Tensor:
    """Compute F.max_pool2d, after a ReLU before it."""
    del drawn
    origin = getattr(input, "_relu_of", None)
    if origin is None or return_indices or origin.versions != (origin.input._version, input._version):
        return NotImplemented
    if not is_tracing():
        return NotImplemented  # the ReLU has been computed already; a trace drops what nobody uses
    return _relu(torch.max_pool2d(origin.input, kernel_size, stride or (), padding, dilation, ceil_mode))
