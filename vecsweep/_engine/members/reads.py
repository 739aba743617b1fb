"""Reads: whether a pass reads tensors in whose place it was given others, or those of the caller's own model."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vecsweep._engine.caller.lending import memory_of
from vecsweep._engine.data.layouts import has_strides
from vecsweep._engine.members.learner import Learner
from vecsweep._errors import warn_of_stumble


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
        for tensor in _tensors_in((args, kwargs)):
            if has_strides(tensor) and (name := self._names.get(memory_of(tensor))):
                self.names.setdefault(name)
        return func(*args, **kwargs)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors among an operator's arguments; pytrees take several times as long to go through them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def reads_of_callers(learner: Learner) -> Reads:
    """Reads of the parameters of the caller's own model, of which members are copies.

    Args:
        learner: whose pass it is.
    """
    model = learner.task.model
    own = dict(model.named_parameters()) if isinstance(model, nn.Module) and model is not learner.model else {}
    return Reads({name: own[name] for name in learner.parameters if name in own})


def tell_of_callers(reads: Reads) -> None:
    """Warn where a pass has read the parameters of the caller's own model.

    Args:
        reads: from `reads_of_callers`.
    """
    if reads.names:
        warn_of_stumble(
            f"The loss or a metric reads {next(iter(reads.names))!r} of the model that the task was given, which no "
            "member trains: members are copies of it. Let it reach the weights through its `model` argument, as a "
            "`training_step` and the metrics beside one have."
        )
