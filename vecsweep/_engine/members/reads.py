"""Reads: whether a pass reads tensors in whose place it was given others, or what is not its own; and who is told."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from vecsweep._engine.caller.lending import memory_of
from vecsweep._engine.data.layouts import has_strides
from vecsweep._engine.data.packing import tree_flatten
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.sameness import is_same
from vecsweep._errors import warn_of_fallback, warn_of_stumble
from vecsweep._types import Batch


class Reads(TorchDispatchMode):
    """See which of some tensors operators work on, views of them included.

    Args:
        tensors: by name.

    Attributes:
        names: of those that were read or written, the first one first.
        higher_order: the name of an operator that was called with functions, as `torch.cond` is; empty if none was.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names: dict[str, None] = {}
        self.higher_order = ""
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
        if isinstance(func, HigherOrderOperator):
            self.higher_order = func.__name__
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


def tell_of_shared(learner: Learner, names: Sequence[str]) -> None:
    """Warn, once in a run, of what each pass changes and nobody can set back.

    Args:
        learner: the pattern of members.
        names: of that; none where there is nothing.
    """
    if names and not learner.objective.has_told_of_shared:
        learner.objective.has_told_of_shared = True
        warn_of_fallback(
            f"The members share {names[0]}, which each pass changes and which cannot be set back, neither for the next "
            "member nor after the sweep. Let the batches bring it, or keep a number or a tensor there."
        )


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


def tell_of_written(learner: Learner, batch: Batch, after: Batch) -> None:
    """Warn where a pass writes into its batch, which a list has for the next epoch, too."""
    if not isinstance(learner.task.batches, list | tuple):
        return
    leaves = [[leaf for leaf in tree_flatten(own)[0] if isinstance(leaf, Tensor)] for own in (batch, after)]
    compared = [(a, b) for a, b in zip(*leaves, strict=False) if has_strides(a) and has_strides(b)]
    if any(a.shape == b.shape and not is_same(a, b) for a, b in compared):
        warn_of_stumble(
            "The loss writes into its batch. Members get each batch as the list in `batches` has it, where a plain "
            "loop would find in the next epoch what it had written. Write into a copy, as `inputs.clone()`."
        )
