"""Batches as the engine takes them: endless, on the device, one stream for each seed."""

import copy
import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree  # torch.func has no public way to map over nested containers
from torch.utils.data import DataLoader

from vecsweep._engine.rng import State, Streams
from vecsweep._types import Batch
from vecsweep.task import Task

# Leaves of a batch that are values: a traced step may keep them as constants, as long as they are part of its key.
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Key:
    """What must be equal in two batches for the same traced step to serve both."""

    structure: pytree.TreeSpec
    leaves: tuple[Hashable, ...]
    is_plain: bool  # whether every leaf is a tensor or a value; other objects cannot be kept in a trace

    def __hash__(self) -> int:
        return hash(self.leaves)


class BatchStream:
    """The batches of one seed, in the order in which an ordinary training loop would see them.

    Args:
        task: whose batches.
        seed: of the random stream from which the loader shuffles and augments.
        streams: the random streams of the run.
        device: where batches go.
        dtype: what floating-point tensors are cast to; None leaves them alone.
        start: where another stream stood, to go on from there; None for the beginning.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        streams: Streams,
        device: torch.device,
        dtype: torch.dtype | None = None,
        start: "Position | None" = None,
    ) -> None:
        self._task = replace(task, batches=own_loader(task.batches))
        self._seed = seed
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._peeked: list[Batch] = []
        self._iterator: Iterator[Batch] | None = None
        self._is_fresh = True  # nothing came from the iterator yet
        self._epoch: State | None = None  # the random stream as it was when the iterator was made
        self._num_loaded = 0  # from the iterator
        if start is not None:
            streams.rewind("batches", seed, start.epoch)
            self._skip(start.num_taken)

    @property
    def position(self) -> "Position":
        """Where the stream stands, so that another can go on from there."""
        if self._epoch is None:  # nothing was read yet
            return Position(self._streams.mark("batches", self._seed), 0)
        return Position(self._epoch, self._num_loaded - len(self._peeked))

    def peek(self) -> Batch:
        """Look at the next batch without taking it."""
        if not self._peeked:
            self._peeked.append(self._load())
        return self._peeked[0]

    def take(self) -> Batch:
        """Take the next batch; start over when they run out."""
        return self._peeked.pop(0) if self._peeked else self._load()

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Take back what was taken last, to be taken again."""
        self._peeked[:0] = batches

    def _load(self) -> Batch:
        self._streams.use("batches", self._seed)
        while True:
            if self._iterator is None:
                self._begin()
                assert self._iterator is not None
            try:
                batch = next(self._iterator)
            except StopIteration:
                if self._is_fresh:
                    raise ValueError(
                        "`batches` must yield at least one batch; got none. Look at the length of the data set, "
                        "and at `drop_last` when a batch is larger than it."
                    ) from None
                if self._task.is_one_pass:
                    raise ValueError(
                        "`batches` ran out, and an iterator cannot start over. Pass a list, a DataLoader, or the "
                        "generator function itself in place of what it returns."
                    ) from None
                self._iterator = None
            else:
                self._is_fresh = False
                self._num_loaded += 1
                return move(batch, self._device, self._dtype)

    def _begin(self) -> None:
        """Start over on the batches."""
        self._epoch = self._streams.mark("batches", self._seed)
        self._iterator = self._task.iterate(self._seed)
        self._is_fresh = True
        self._num_loaded = 0

    def _skip(self, num_batches: int) -> None:
        """Read over what another stream had taken of this epoch."""
        self._streams.use("batches", self._seed)
        self._begin()
        assert self._iterator is not None
        for _ in range(num_batches):
            if next(self._iterator, None) is None:
                raise ValueError(
                    "`batches` must be the same when training is taken up again; they ran out earlier than the first "
                    "time. Look for a source that changes from epoch to epoch."
                )
            self._is_fresh = False
            self._num_loaded += 1


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream of batches stands.

    Attributes:
        epoch: the random stream as it was when the epoch began.
        num_taken: batches taken since.
    """

    epoch: State
    num_taken: int


def move(batch: Batch, device: torch.device, dtype: torch.dtype | None) -> Batch:
    """Take a batch to a device, and its floating-point tensors to a dtype, None for their own."""

    def move_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            leaf = _to_gpu(leaf, device) if device.type == "cuda" else leaf.to(device)
            return leaf.to(dtype) if dtype and leaf.is_floating_point() else leaf
        return leaf.to(device) if hasattr(leaf, "to") else leaf

    return pytree.tree_map(move_leaf, batch)


def own_loader(batches: Any) -> Any:
    """A copy of a loader whose workers persist: it has one iterator, which other seeds and the caller use too."""
    if not isinstance(batches, DataLoader) or not batches.persistent_workers:
        return batches
    loader = copy.copy(batches)
    loader._iterator = None
    return loader


def batch_size(batch: Batch) -> int:
    """How many samples a batch holds: the length of its first tensor."""
    sizes = [len(leaf) for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]
    return sizes[0] if sizes else 1


def _to_gpu(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy on a stream of its own, so that the copy does not wait for the steps that are queued."""
    if tensor.device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    steps, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    steps.wait_stream(copies)  # what is queued from now on finds the copy done
    moved.record_stream(steps)
    return moved


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def key_of(batch: Batch) -> Key:
    """Say what a traced step depends on in a batch besides the numbers in its tensors."""
    leaves, structure = pytree.tree_flatten(batch)
    return Key(
        structure,
        tuple(
            (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)
            if isinstance(leaf, Tensor)
            else (type(leaf), leaf if isinstance(leaf, _VALUES) else id(leaf))
            for leaf in leaves
        ),
        is_plain=all(isinstance(leaf, (Tensor, *_VALUES)) for leaf in leaves),
    )


def stack(batches: Sequence[Batch]) -> Batch:
    """Stack batches of equal key: every tensor gets the member axis first."""

    def stack_leaves(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return pytree.tree_map(stack_leaves, *batches)


def copy_batch(batch: Batch) -> Batch:
    """Copy the containers and tensors of a batch, so that what a loss writes into it stays there."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, batch)


def member_dims(batch: Batch) -> Batch:
    """The `in_dims` of a stacked batch: 0 for tensors, None for all else."""
    return pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch)


def size_bytes(batch: Batch) -> int:
    """The memory that a batch's tensors take, in bytes."""
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor))
