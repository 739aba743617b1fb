"""What a seed's weights do before they are trained: the scale on which its members are judged, also where they fail."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from vecsweep._engine.caller.lending import Lent
from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.batches import copy_batch
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._types import Batch
from vecsweep.kernels.rules import OpenDraws
from vecsweep.stumbles import explained


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
    return _losses(learner, {}, batches, seed, streams)


def outcome_of(
    learner: Learner, state: MemberState, batches: Sequence[Batch], seed: int, streams: Streams
) -> float | Exception:
    """Say what an ordinary pass comes to: its loss, or the error with which it fails for what the weights have become.

    Args:
        learner: of the seed, in training mode.
        state: the member's.
        batches: of a step.
        seed: whose random stream the model draws from.
        streams: the random streams of the run.

    Raises:
        Exception: what the pass raises that is not of the weights.
    """
    weights = {name: p.detach().clone().requires_grad_() for name, p in state.parameters.items()}
    own = partial(_losses, learner, weights | state.buffers, batches, seed, streams)
    try:
        return float(own().mean())
    except Exception as error:
        untrained = partial(untrained_losses, learner, batches, seed, streams)
        if is_out_of_memory(error) or not is_of_weights(error, own, untrained):
            raise
        return error


def _losses(
    learner: Learner, weights: Mapping[str, Tensor], batches: Sequence[Batch], seed: int, streams: Streams
) -> Tensor:
    """As `untrained_losses`, with other parameters and buffers in the place of those that are named."""
    learner = learner.copy()  # what a pass does to buffers in place stays there
    start = streams.mark("model", seed)
    watch = Watch.of_pass(learner.task, learner.model, has_numbers=True)
    try:
        with watch.undisturbed(), Lent(learner.objective.lent):
            losses = list[Tensor]()
            for batch in batches:
                with explained(learner.task, unpack(batch)):
                    losses.append(_loss(learner, weights, copy_batch(batch)).detach().double())
    finally:
        streams.rewind("model", seed, start)
    return torch.stack(losses)


def _loss(learner: Learner, weights: Mapping[str, Tensor], batch: Batch) -> Tensor:
    if not weights:
        return learner.objective.compute(batch)
    copies = {name: value if value.requires_grad else value.clone() for name, value in weights.items()}
    with OpenDraws():
        return learner.objective.evaluate(copies, batch)


def is_of_weights(error: Exception, own: Callable[[], object], untrained: Callable[[], object]) -> bool:
    """Whether a pass fails because its weights have diverged, so that it fails neither for others nor untrained.

    Distributions refuse such parameters, decompositions such matrices. Any other error is taken for one of divergence
    if the pass computes NaN, or infinity where untrained weights compute none.

    Args:
        error: with which it failed.
        own: runs the pass that failed.
        untrained: runs the same with untrained weights.
    """
    seen, before = _SeesNonFinite(), _SeesNonFinite()
    with suppress(Exception), seen:
        own()
    try:
        with before:
            untrained()
    except Exception:  # the data's own fault, or the code's
        return False
    is_known = isinstance(error, torch.linalg.LinAlgError) or _is_of_numbers(error)  # type: ignore[attr-defined]
    return is_known or seen.has_nan or (seen.has_infinity and not before.has_infinity)


def in_short(error: Exception) -> str:
    """An error's class, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _is_of_numbers(error: Exception) -> bool:
    """Whether torch.distributions has raised an error itself, or a loss of PyTorch's."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = str(frames[-1].f_globals.get("__name__")) if frames else ""
    return name == F.__name__ or name.startswith("torch.distributions.")


class _SeesNonFinite(TorchDispatchMode):
    """See whether anything that is computed is NaN, or infinite."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.has_nan = self.has_infinity = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do what is asked for, and look at it; what is empty has not been written to yet."""
        result = func(*args, **(kwargs or {}))
        if "empty" not in func.__name__:
            leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
            numbers = [leaf for leaf in leaves if leaf.is_floating_point()]
            self.has_nan |= any(bool(leaf.isnan().any()) for leaf in numbers)
            self.has_infinity |= any(bool(leaf.isinf().any()) for leaf in numbers)
        return result
