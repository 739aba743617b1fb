"""Footprint: what a run holds in memory, counted before its first step. Sizes alone; nothing is allocated.

Not here: how much memory there is (`caller/room.py`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from vecsweep._engine.caller.lending import is_special, parts_of
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.optimizer import StackedUpdate
from vecsweep._engine.members.sameness import dense_parts
from vecsweep._words import counted, sized


@dataclass(frozen=True, slots=True)
class Footprint:
    """The bytes that members take, and what they have in common.

    Attributes:
        base: parameters and buffers that no member has for itself; frozen ones in the caller's own memory.
        weights: that a member trains; its gradients are as large.
        buffers: that a member's passes change.
        moments: what a member's optimizer keeps; None where only a step of it shows.
        activations: what a member keeps from its forward pass for its backward pass; 0 where no pass was seen.
    """

    base: int
    weights: int
    buffers: int
    moments: int | None
    activations: int

    @classmethod
    def of(
        cls,
        learners: Mapping[int, Learner],
        update: StackedUpdate | None,
        buffers: Collection[str] = (),
        activations: int = 0,
    ) -> "Footprint":
        """Count what the members of some learners take.

        Args:
            learners: by seed.
            update: of all members; None where each is stepped by an optimizer of its own.
            buffers: the names of what a member's passes change.
            activations: of a member, in bytes.
        """
        pattern = next(iter(learners.values()))
        constants = pattern.constants
        return cls(
            base=_size_of(t for learner in learners.values() for t in _shared(learner, buffers)),
            weights=_size_of(pattern.parameters.values()),
            buffers=_size_of(constants[name] for name in buffers),
            moments=None if update is None else update.state_bytes(pattern.parameters),
            activations=activations,
        )

    @property
    def state(self) -> int:
        """What each member holds from the first step to the last; unknown moments are taken to be one."""
        return self.weights + self.buffers + (self.weights if self.moments is None else self.moments)

    @property
    def work(self) -> int:
        """What a member takes besides while it is stepped.

        The state that is worked on and its successor, gradients, what the update is made of, and activations, each of
        which has a gradient for a while.
        """
        return 2 * self.state + 4 * self.weights + 2 * self.activations

    def num_that_fit(self, num_members: int, free: int, *, is_offloaded: bool = False) -> int:
        """How many members may be stepped together, where all of them wait for their turn in the same memory.

        Args:
            num_members: of the run.
            free: bytes of memory.
            is_offloaded: whether they wait in the memory of the host.
        """
        size = num_members
        while size > 1 and self.total(num_members, size, is_offloaded=is_offloaded) > free:
            size = -(-size // 2)
        return size

    def total(self, num_members: int, num_at_once: int, *, is_offloaded: bool = False) -> int:
        """What a run takes besides the base; where it is offloaded, members that wait take none of the GPU."""
        # Chunks that wait on the host may be of two sizes, and train in two places then.
        return (num_at_once if is_offloaded else num_members) * self.state + num_at_once * self.work

    def describe(self, num_members: int, num_at_once: int, free: int | None, *, is_offloaded: bool = False) -> str:
        """Say what a run takes, and what there is.

        Args:
            num_members: of the run.
            num_at_once: that are stepped together.
            free: bytes of memory; None where that is not known.
            is_offloaded: whether the others wait in the memory of the host.
        """
        moments = "moments as its optimizer keeps them" if self.moments is None else f"{sized(self.moments)} of moments"
        own = [f"{sized(self.weights)} of weights", "as much of gradients", moments]
        own += [f"{sized(self.buffers)} of buffers"] * (self.buffers > 0)
        own += [f"{sized(self.activations)} of activations"] * (self.activations > 0)
        total = f"about {sized(self.total(num_members, num_at_once, is_offloaded=is_offloaded))}"
        total += f" beside {sized(self.base)} that is not trained" * (self.base > 0)
        total += "" if free is None else f", of {sized(free)} free"
        fit = 0 if free is None else self.num_that_fit(num_members, free, is_offloaded=is_offloaded)
        could = "" if free is None else f" ({fit} would fit)"
        could += f" while the others wait in {sized(num_members * self.state)} of the host's memory" * is_offloaded
        return f"{total}; {counted(num_members, 'member')}, {num_at_once} at a time{could}, each {', '.join(own)}"


def _size_of(tensors: Iterable[Tensor]) -> int:
    """The bytes of tensors: shared memory counts once, and wrappers, as quantized weights are, as what they wrap."""
    sizes = dict[int, int]()
    for tensor in tensors:
        for part in chain.from_iterable(map(dense_parts, parts_of(tensor))):
            sizes[part.data_ptr() or id(part)] = part.nbytes
    return sum(sizes.values())


def _shared(learner: Learner, buffers: Collection[str]) -> list[Tensor]:
    """What a learner's members have in common."""
    constants = [tensor for name, tensor in learner.constants.items() if name not in buffers]
    return constants + [p for p in learner.model.parameters() if is_special(p)]
