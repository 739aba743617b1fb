"""A draw: one call of a random function, as it is repeated before each step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ._mapped import is_mapped


class UnforeseenDrawError(RuntimeError):
    """What is computed for all members at once draws random numbers that no ordinary pass was seen to draw."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One call of a random function, to be repeated at each step.

    Attributes:
        function: the random function.
        args: its positional arguments, without the tensor it starts from.
        kwargs: its keyword arguments.
        start: what the tensor it starts from looks like, as a meta tensor; None for a factory. The strides
            matter: random numbers fill a tensor in the order of its memory.
        device: where the draw takes place, if it starts from a tensor.
    """

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    start: Tensor | None = None
    device: torch.device | None = None

    @classmethod
    def like(
        cls, function: Callable[..., Tensor], like: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> "Draw":
        """A draw that starts from a tensor such as this one."""
        return cls(function, args, kwargs, torch.empty_like(like, device="meta"), like.device)

    def kept(self) -> "Draw":
        """The same, whatever becomes of the tensors among its arguments."""
        args = tuple(own.detach().clone() if isinstance(own, Tensor) else own for own in self.args)
        return replace(self, args=args)

    def is_like(self, other: "Draw") -> bool:
        """Whether the other draws from the same distribution into the same shape."""
        return (
            (self.function, self.kwargs, len(self.args)) == (other.function, other.kwargs, len(other.args))
            and all(map(_is_same, self.args, other.args))
            and (self.start is None) == (other.start is None)
            and (self.start is None or other.start is None or self.start.shape == other.start.shape)
        )

    def __call__(self) -> Tensor:
        """Draw anew from the global random generator."""
        if self.start is None:
            return self.function(*self.args, **self.kwargs)
        return self.function(torch.ones_like(self.start, device=self.device), *self.args, **self.kwargs)


def _is_same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same; a tensor of which each member has its own is not."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return not isinstance(a, Tensor) and not isinstance(b, Tensor) and bool(a == b)
    is_alike = (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return is_alike and not (is_mapped(a) or is_mapped(b)) and torch.equal(a, b)
