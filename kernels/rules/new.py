"""New tensors of each member's own: what a loss makes to write into, such as zeros that it fills row by row.

What is made of sizes alone, or of the batch, is shared to vmap: into it no member may write what is its own. It is only
copied for each member once a pass has turned out to write so, because masks and the like had better stay shared.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._mapped import is_mapped

MAKERS = frozenset[Callable[..., Any]](
    {
        torch.clone,
        torch.empty,
        torch.empty_like,
        torch.full,
        torch.full_like,
        torch.ones,
        torch.ones_like,
        torch.zeros,
        torch.zeros_like,
        Tensor.clone,
        Tensor.new_empty,
        Tensor.new_full,
        Tensor.new_ones,
        Tensor.new_zeros,
    }
)

_WORDS = ("there exists a Tensor `other` in extra_args", "doesn't match the broadcast shape")


def is_shared_write(error: BaseException | None) -> bool:
    """Whether this is vmap's error where what is a member's own is written into what all share."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def of_each(tensor: Tensor) -> Tensor:
    """Copy a tensor that members share for each of them; masks stay shared, as rows are selected by them."""
    if is_mapped(tensor) or tensor.requires_grad or tensor.dtype == torch.bool:
        return tensor
    functorch = torch._C._functorch
    interpreter = functorch.peek_interpreter_stack()  # has to outlive what is made of it
    num_members = functorch.CVmapInterpreterPtr(interpreter).batchSize()
    copies = tensor.expand(num_members, *tensor.shape).clone()
    own: Tensor = functorch._add_batch_dim(copies, 0, interpreter.level())
    return own
