"""The compile policy, in one place: how a traced step is compiled.

When it pays is left to the user for now. Inductor fuses elementwise operators, the update above all, and leaves matrix
products and convolutions as they are: bench/README.md has what that gained and lost.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule


def compile_graph(graph: GraphModule) -> Callable[..., list[Tensor]]:
    """Hand a traced step to Inductor; it is compiled at the first call."""
    compiled: Callable[..., list[Tensor]] = torch.compile(graph.forward, fullgraph=True, dynamic=False)
    return compiled
