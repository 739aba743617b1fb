"""What rules that go below vmap have in common."""

from typing import Any

import torch
from torch import Tensor


class Mapped(torch.autograd.Function):
    """A function with a `vmap` method, which computes it for all members at once.

    Autograd runs outside vmap and differentiates what that method calls, so that there is no backward here.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing for a backward."""


def member_first(x: Tensor, dim: int | None, members: int) -> Tensor:
    """Put the member axis first; members share a tensor that has none."""
    return x.expand(members, *x.shape) if dim is None else x.movedim(dim, 0)


def is_mapped(x: Tensor | None) -> bool:
    """Whether members have tensors of their own; asked by a rule, before it goes below vmap."""
    return x is not None and bool(torch._C._functorch.is_batchedtensor(x))


def is_mapped_last() -> bool:
    """Whether the innermost transform is vmap; the code may have put a `torch.func.grad` of its own inside."""
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None and stack.key() == torch._C._functorch.TransformType.Vmap
