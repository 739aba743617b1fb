"""What both engines keep: the vectorized and the sequential one are the same to the training loop."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._types import Batch, FloatArray, Hyper
from vecsweep.execution import Execution

StepBatches = dict[int, tuple[Batch, ...]]  # by seed: the batches of one step, more than one when accumulating
Window = Sequence[StepBatches]  # the steps through which a chunk is carried before the next chunk has its turn


class Curve(NamedTuple):
    """What a chunk did in a window, `[step, member]` on the device.

    Attributes:
        loss: before each update, float64; NaN from the step after a member diverged.
        alive: False from the step on at which a member diverged.
        norms: those that are recorded, float64; NaN where no update was taken.
        failures: with what the passes of members failed that diverged so, in words, by their positions in the chunk.
    """

    loss: Tensor
    alive: Tensor
    norms: Mapping[str, Tensor] = {}
    failures: Mapping[int, str] = {}


class Seen(NamedTuple):
    """A curve that the host has seen, `[step, member]`.

    Attributes:
        loss: as the curve's.
        alive: likewise.
        norms: likewise.
        failures: likewise.
    """

    loss: FloatArray
    alive: NDArray[np.bool_]
    norms: dict[str, FloatArray]
    failures: Mapping[int, str]


def look_at(curves: Sequence[Curve]) -> list[Seen]:
    """Take the curves of a window to the host, all in one transfer, for each waits until the device is done."""
    names, ends = list(curves[0].norms), np.cumsum([curve.loss.size(1) for curve in curves])[:-1]
    rows = [torch.cat([c.loss, c.alive.to(c.loss.dtype), *c.norms.values()]) for c in curves]
    parts = np.split(torch.cat(rows, dim=1).cpu().numpy(), 2 + len(names))  # each [step, member]
    of_curves = zip(*(np.split(part, ends, axis=1) for part in parts), strict=True)
    return [
        Seen(loss, alive > 0, dict(zip(names, norms, strict=True)), curve.failures)
        for (loss, alive, *norms), curve in zip(of_curves, curves, strict=True)
    ]


class Chunk(Protocol):
    """Members that are stepped together."""

    @property
    def is_offloaded(self) -> bool:
        """Whether the members of a GPU are in the host's memory but for their turns, so that these cost two moves."""
        ...

    def __len__(self) -> int: ...

    def run(self, window: Window, hyper: Hyper) -> Curve:
        """Train through a window.

        Args:
            window: the batches of each step; the seeds of all members are among its keys.
            hyper: the hyperparameters of these steps and members, each `[step, member]`.

        Raises:
            SeedsDiffer: the seeds have batches of different kinds; nothing has happened.
            Unmappable: the members cannot be batched; they are as they were before the window.
            OutOfMemory: there is not enough for so many members; likewise.
            Stop: Ctrl-C came while a step was compiled, which is not waited for; likewise.
        """
        ...

    def evaluating(self) -> AbstractContextManager[None]:
        """Put the members where they are evaluated, if their optimizer says so: `measure` is called inside of it."""
        ...

    def measure(self, batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch, in eval mode and without gradients; nothing changes.

        Args:
            batches: by seed, for the seeds of all members; one object where they have it in common.

        Returns:
            `[metric, member]` float64 on the device, the loss first.
        """
        ...

    def members(self, positions: Sequence[int], *, is_last: bool = False) -> list[MemberState]:
        """Take the states of some members.

        Args:
            positions: of the members.
            is_last: whether nobody needs them once the chunk is stepped again; then they are no copies.
        """
        ...

    def copies(self, copy: Callable[[Tensor], Tensor]) -> list[MemberState]:
        """Copy the states of all members to the host; a GPU need not have memory for them twice.

        Args:
            copy: a tensor to the host.
        """
        ...

    def select(self, keep: Sequence[int]) -> "Chunk":
        """Take some members out, by their positions, into a chunk of their own; this one is not stepped again.

        Raises:
            OutOfMemory: there is not enough for that; a range of members needs none.
        """
        ...


class Engine(Protocol):
    """A way to step members.

    Attributes:
        learners: one for each seed; the patterns of its members.
        execution: precision, clipping.
        recorded: the norms that are noted at each step.
    """

    learners: Mapping[int, Learner]
    execution: Execution
    recorded: Sequence[str]

    def start(self, seed: int) -> MemberState:
        """The state of a member of this seed before its first step."""
        ...

    def load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> Chunk:
        """Make a chunk of members.

        Raises:
            OutOfMemory: there is not enough for so many members.
        """
        ...


class SeedsDiffer(Exception):  # noqa: N818 - a signal to the training loop, not a failure
    """The seeds of a chunk have batches that cannot be stacked; each must be a chunk of its own."""


class Unmappable(Exception):  # noqa: N818 - a signal to the training loop, not a failure
    """PyTorch cannot batch the members of a chunk.

    Attributes:
        reason: the operator and the line, as far as they are known.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class OutOfMemory(Exception):  # noqa: N818 - a signal to the training loop, not a failure
    """There is not enough memory to step the members of a chunk together; its cause is the device's own error."""
