"""What a seed's weights do before they are trained: the scale on which its members are judged."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vecsweep._engine.caller.lending import Lent
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.batches import copy_batch
from vecsweep._engine.members.learner import Learner
from vecsweep._types import Batch


def untrained_losses(learner: Learner, batches: Sequence[Batch], seed: int, streams: Streams) -> Tensor:
    """Compute the losses of batches without a step between them; nothing of the learner changes, nor do the streams.

    Autograd stays on, because a loss may take gradients itself.

    Args:
        learner: of the seed, in training mode.
        batches: at least one.
        seed: whose random stream the model draws from.
        streams: the random streams of the run.

    Returns:
        `[batch]` float64.
    """
    learner = learner.copy()  # what a pass does to buffers in place stays there
    start = streams.mark("model", seed)
    watch = Watch.of_pass(learner.task, learner.model, has_numbers=True)
    try:
        with watch.undisturbed(), Lent(learner.objective.lent):
            losses = [learner.objective.compute(copy_batch(batch)).detach().double() for batch in batches]
    finally:
        streams.rewind("model", seed, start)
    return torch.stack(losses)


def is_of_weights(own: Callable[[], object], untrained: Callable[[], object]) -> bool:
    """Whether a pass fails because its weights have diverged: it computes NaN, and with untrained weights none fails.

    So do distributions, which refuse NaN for a parameter, and decompositions of matrices.

    Args:
        own: runs the pass that failed.
        untrained: runs the same with untrained weights.
    """
    seen = _SeesNan()
    with suppress(Exception), seen:
        own()
    if not seen.has_any:
        return False
    try:
        untrained()
    except Exception:  # the data's own fault, or the code's
        return False
    return True


class _SeesNan(TorchDispatchMode):
    """See whether anything that is computed is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.has_any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked for, and look at it; what is empty has not been written to yet."""
        result = func(*args, **(kwargs or {}))
        if not self.has_any and "empty" not in func.__name__:
            leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            self.has_any = any(leaf.is_floating_point() and bool(leaf.isnan().any()) for leaf in leaves)
        return result
