"""A step as a CUDA graph: all its kernels are launched at once, so that small models are not held up by the host."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Captured:
    """A function of tensors that replays the kernels which it launched once.

    Args:
        function: in place on the state; it has run before, so that what it sets up at first is there.
        state: what it writes to; the replay works on this memory.
        inputs: what its other arguments look like; each call copies its own to where these were.
        pool: memory that captured functions share, which never run at the same time.

    Raises:
        RuntimeError: it does what cannot be captured, such as waiting for the device; nothing has happened.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        state: Sequence[Tensor],
        inputs: Sequence[Tensor],
        pool: Any,
    ) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph, pool=pool):
            self._results = function(*state, *self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the function; the next call overwrites the results."""
        if self._inputs:
            torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._results
