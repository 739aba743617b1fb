"""The compile policy, in one place: how a traced step is compiled.

Inductor is handed the graph itself. `torch.compile` would look at the graph's Python again, and check its assumptions
about every tensor at each call, which takes a tenth of a small step.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule


class _Compiled(nn.Module):
    """A graph, compiled at its first call for tensors like those of that call."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self._graph = graph
        self._code: Callable[..., Any] | None = None

    def forward(self, *tensors: Tensor) -> Any:
        """Compute what the graph computes."""
        if self._code is None:
            import torch._inductor  # takes longer to import than torch itself

            self._code = torch._inductor.compile(self._graph, list(tensors))
        return self._code(*tensors)


def compile_graph(graph: GraphModule) -> Callable[..., list[Tensor]]:
    """Hand a graph to Inductor, or each of the graphs it is made of; it is compiled at the first call."""
    parts = list(graph.named_children())
    if not parts:
        return _Compiled(graph)
    for name, part in parts:
        assert isinstance(part, GraphModule)
        setattr(graph, name, _Compiled(part))
    return graph.forward
