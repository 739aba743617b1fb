"""What a seed's weights lose before they are trained: the scale on which its members are judged."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
