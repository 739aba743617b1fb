"""Several optimizers, each over some of a model's parameters, as one: Muon for matrices and AdamW for the rest, say."""

import copy
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from torch.optim import Optimizer


class Several(Optimizer):
    """Optimizers as one, with the parameter groups of all, one after another, and one state.

    Args:
        parts: the optimizers, no two over the same parameter; they stay as they are.

    Attributes:
        parts: copies of them over the same parameters, which share this optimizer's groups and state.

    Raises:
        ValueError: a parameter is in two of them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(map(_alias, parts))
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        for part in parts:
            self.state.update(part.state)
        self._bind()

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let each of them step."""
        assert closure is None, "no part of a sweep gives one"
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and states, as `load_state_dict` makes them."""
        super().__setstate__(state)
        self._bind()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Several":
        """Copy the parts; torch.optim would leave them out."""
        return Several([copy.deepcopy(part, memo) for part in self.parts])

    def _bind(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = list(islice(groups, len(part.param_groups)))


def as_one(optimizer: Any) -> Any:
    """Make one optimizer of a list of them; what is none is as it was."""
    is_several = isinstance(optimizer, list | tuple) and optimizer and all(isinstance(o, Optimizer) for o in optimizer)
    return Several(optimizer) if is_several else optimizer


def parts_of(optimizer: Any) -> list[Any]:
    """The optimizers that one is made of; itself, if it is one."""
    return optimizer.parts if isinstance(optimizer, Several) else [optimizer]


def _alias(optimizer: Optimizer) -> Optimizer:
    """The same with attributes of its own; a scheduler's `step`, which steps the caller's, is left out."""
    alias: Optimizer = object.__new__(type(optimizer))
    own = vars(optimizer)
    vars(alias).update({k: v for k, v in own.items() if k != "step" or not hasattr(v, "_wrapped_by_lr_sched")})
    return alias
