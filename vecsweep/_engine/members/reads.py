"""Reads: whether a pass reads tensors in whose place it was given others."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vecsweep._engine.caller.lending import memory_of
from vecsweep._engine.data.layouts import has_strides


class Reads(TorchDispatchMode):
    """See which of some tensors operators work on, views of them included.

    Args:
        tensors: by name.

    Attributes:
        names: of those that were read or written, the first one first.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self._names = {memory_of(tensor): name for name, tensor in tensors.items() if has_strides(tensor)}

    @property
    def obstacle(self) -> str | None:
        """Why members cannot be batched, where a pass has read what is not its own; None where it has not."""
        if not self.names:
            return None
        return (
            f"the forward pass takes {next(iter(self.names))!r} from a list, an object or a function beside the module "
            "that it is registered in; take it from the module, or from an `nn.ParameterList`"
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked for, and look at what it is done to."""
        kwargs = kwargs or {}
        for leaf in pytree.tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and has_strides(leaf) and (name := self._names.get(memory_of(leaf))):
                self.names.setdefault(name)
        return func(*args, **kwargs)
