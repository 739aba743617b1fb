"""Batches as the engine takes them: endless, on the device, one stream for each seed."""

import copy
import functools
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree  # torch.func has no public way to map over nested containers

from vecsweep._engine.caller.casting import cast
from vecsweep._engine.caller.rng import State, Streams
from vecsweep._engine.data.fingerprint import Fingerprint, fingerprint
from vecsweep._engine.data.layouts import has_strides, parts_of, side_by_side
from vecsweep._engine.data.loaders import END, next_batch, opened
from vecsweep._engine.data.own_state import Kept, OwnState
from vecsweep._engine.data.packing import VALUES, Packed, pack, tree_flatten, tree_map
from vecsweep._engine.data.sources import is_fresh, is_quiet, length_of, own_loader, read_over
from vecsweep._engine.data.waypoints import Waypoint, Waypoints
from vecsweep._errors import warn_of_trouble
from vecsweep._types import Batch
from vecsweep.task import Task


@dataclass(frozen=True, slots=True)
class Key:
    """What must be equal in two batches for the same traced step to serve both.

    Attributes:
        structure: of containers and objects.
        leaves: what they hold, the numbers in tensors aside.
        form: what they hold, values aside, too.
        is_plain: whether every leaf is a tensor or a value; others cannot be kept in a trace.
    """

    structure: Hashable
    leaves: tuple[Hashable, ...]
    form: tuple[Hashable, ...]
    is_plain: bool

    def __hash__(self) -> int:
        return hash(self.leaves)


class BatchStream:
    """The batches of one seed, in the order in which an ordinary training loop would see them.

    Batches are held until their turn comes, later than an ordinary loop holds them; they are copies, unless their
    source is known to leave them alone.

    Args:
        task: whose batches.
        seed: of the random stream from which the loader shuffles and augments.
        streams: the random streams of the run.
        device: where batches go.
        dtype: what floating-point tensors are cast to; None leaves them alone.
        start: where another stream stood, to go on from there; None for the beginning.
        last: what is known of the batch before `start`; None if nothing is.
        has_new_workers: whether each epoch has worker processes of its own, whose random numbers another stream can
            then draw again.
        hides_progress: of going on from a place to which many batches lead, as tqdm has it.
        own: what the source keeps for itself, in common with other seeds' streams; None for nothing.

    Attributes:
        is_quiet: whether reading neither draws random numbers nor changes anything.
    """

    def __init__(
        self,
        task: Task,
        seed: int,
        streams: Streams,
        device: torch.device,
        dtype: torch.dtype | None = None,
        start: "Position | None" = None,
        last: Fingerprint | None = None,
        *,
        has_new_workers: bool = False,
        hides_progress: bool | None = True,
        own: OwnState | None = None,
    ) -> None:
        self._task = task
        self._own = OwnState([]) if own is None else own
        self._own_at_epoch: Kept = {}
        self._source = own_loader(task.batches, has_new_workers=has_new_workers)
        self.is_quiet = is_quiet(self._source)
        self._seed = seed
        self._streams = streams
        self._device = device
        self._dtype = dtype
        self._ahead = deque[Batch]()  # loaded, and not taken
        self._iterator: Iterator[Batch] | None = None
        self._is_over = False  # the iterator has ended
        self._epoch: State | None = None  # the random stream as it was when the iterator was made
        self._num_loaded = 0  # from the iterator
        self._waypoints = Waypoints(self._source if has_new_workers else None, streams, seed)
        if start is None:
            return
        self._own.take_up(seed, start.own)
        if not self._is_led_to(start, last):
            streams.rewind("batches", seed, start.epoch)
            self._skip(start.num_taken, last, hides_progress)

    @property
    def position(self) -> "Position":
        """Where the stream stands, so that another can go on from there."""
        if self._epoch is None:  # nothing was read yet
            return Position(self._streams.mark("batches", self._seed), 0, own=self._own.of(self._seed))
        num_taken = self._num_loaded - len(self._ahead)
        return Position(self._epoch, num_taken, self._waypoints.before(num_taken), self._own_at_epoch)

    def take(self) -> Batch:
        """Take the next batch; start over when they run out."""
        self._load()
        return self._ahead.popleft()

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Take back what was taken last, to be taken again."""
        self._ahead.extendleft(reversed(batches))

    def peek(self) -> Batch:
        """Look at the next batch without taking it."""
        self._load()
        return self._ahead[0]

    def peek_at(self, num: int) -> list[Batch]:
        """Look at the next batches, at least one, and no further than to the end of the epoch."""
        self._load()
        while len(self._ahead) < num and self._load_more():
            pass
        return list(islice(self._ahead, num))

    def _load(self) -> None:
        """See that there is a next batch."""
        if self._ahead or (self._iterator is not None and self._load_more()):
            return
        has_begun = self._iterator is not None and self._num_loaded > 0
        self._begin()
        is_empty = not self._load_more()
        if is_empty and has_begun and self._task.is_one_pass:  # others, such as a loader that is its own, start over
            raise ValueError(
                "`batches` ran out, and an iterator cannot start over. Pass a list, a DataLoader, or the "
                "generator function itself in place of what it returns."
            )
        if is_empty:
            raise ValueError(
                "`batches` must yield at least one batch; got none. Look at the length of the data set, "
                "and at `drop_last` when a batch is larger than it."
            )

    def _load_more(self) -> bool:
        """Load one more batch of this epoch; False where it has ended."""
        assert self._iterator is not None
        if self._is_over:
            return False
        if self.is_quiet:
            batch = next(self._iterator, END)
        else:
            self._streams.use("batches", self._seed)
            with self._own.reading(self._seed):
                batch = next_batch(self._iterator)
        self._is_over = batch is END
        if self._is_over:
            self._check_length()
        else:
            self._num_loaded += 1
            self._waypoints.note(self._num_loaded)
            self._ahead.append(move(batch, self._device, self._dtype, is_fresh=is_fresh(self._source)))
        return not self._is_over

    def _check_length(self) -> None:
        """Warn of a source that has not yielded what its length says, by which epochs are counted."""
        length = length_of(self._source)
        if length is not None and length != self._num_loaded and self._num_loaded:
            warn_of_trouble(
                f"`batches` says that it has {length} batches, but a pass over it yielded {self._num_loaded}. Lengths "
                "that are given in epochs go by what `len(batches)` says."
            )

    def _begin(self) -> None:
        """Start over on the batches."""
        if self._epoch is None or not self.is_quiet:
            self._epoch, self._own_at_epoch = self._streams.mark("batches", self._seed), self._own.of(self._seed)
        with self._own.reading(self._seed):
            self._iterator = opened(self._task.iterate(self._seed, self._source))
        self._is_over = False
        self._num_loaded = 0
        self._waypoints.begin()

    def _is_led_to(self, start: "Position", last: Fingerprint | None) -> bool:
        """Go to a place by a waypoint; False if there is none, or if it leads elsewhere, as where workers draw."""
        if start.waypoint is None or last is None or last.digest is None:
            return False
        iterator = self._waypoints.go_to(start.waypoint)
        if iterator is None:
            return False
        self._iterator, self._epoch = opened(iterator), start.epoch
        num_read, batch = read_over(self._iterator, start.num_taken - start.waypoint.num_loaded, hides_progress=True)
        self._num_loaded = start.waypoint.num_loaded + num_read
        if self._num_loaded < start.num_taken:
            return False
        return fingerprint(move(batch, self._device, self._dtype, is_fresh=True)) == last

    def _skip(self, num_batches: int, last: Fingerprint | None, hides_progress: bool | None) -> None:
        """Read over what another stream had taken of this epoch."""
        self._begin()
        assert self._iterator is not None
        with self._own.reading(self._seed):
            num_read, batch = read_over(self._iterator, num_batches, hides_progress)
        self._num_loaded += num_read
        if num_read < num_batches:
            raise ValueError(
                "`batches` must be the same when training is taken up again; they ran out earlier than the first "
                "time. Look for a source that changes from epoch to epoch."
            )
        if num_batches and last is not None:
            _check_same(fingerprint(move(batch, self._device, self._dtype, is_fresh=True)), last)


def _check_same(now: Fingerprint, before: Fingerprint) -> None:
    """Raise ValueError unless a batch is the one that was there before."""
    if now.form != before.form or before.digest not in (None, now.digest):
        what = "hold other numbers" if now.form == before.form else f"were {before.form} and are {now.form}"
        raise ValueError(
            f"`batches` must be the same when training is taken up again; they {what}. Take the same data, and draw "
            "random numbers from the global generators, which a sweep seeds, or from one with a seed of its own."
        )


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream of batches stands.

    Attributes:
        epoch: the random stream as it was when the epoch began.
        num_taken: batches taken since.
        waypoint: a place on the way, if the loader goes to such by itself.
        own: what the source kept for itself as the epoch began.
    """

    epoch: State
    num_taken: int
    waypoint: Waypoint | None = None
    own: Kept = field(default_factory=dict)


def move(batch: Batch, device: torch.device, dtype: torch.dtype | None, *, is_fresh: bool) -> Batch:
    """Take a batch to a device, and its floating-point tensors to a dtype; objects are taken apart.

    Args:
        batch: as its source yielded it.
        device: where to.
        dtype: None for their own.
        is_fresh: whether the source leaves what it yielded alone; where not, nothing of the result is in its memory.
    """
    moved_itself: dict[int, Any] = {}  # parts of objects that know what of theirs goes to a device

    def open_object(leaf: Any) -> Any:
        if isinstance(leaf, (Tensor, np.ndarray, *VALUES)):
            return leaf
        knows_how, is_tuple = hasattr(leaf, "to"), isinstance(leaf, PackedSequence)  # part of which stays on the host
        opened = leaf.to(device) if is_tuple else pack(copy.copy(leaf).to(device) if knows_how else leaf)
        if knows_how and isinstance(opened, Packed | PackedSequence):
            moved_itself.update((id(part), part) for part in pytree.tree_leaves(opened))
        return opened

    def move_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf.copy() if isinstance(leaf, np.ndarray) and not is_fresh else leaf
        moved = there.get(id(leaf))
        if moved is None:
            moved = leaf.to(device, non_blocking=device.type == "cuda")
        moved = cast(moved, dtype)
        return moved.detach().clone().requires_grad_(moved.requires_grad) if moved is leaf and not is_fresh else moved

    opened = tree_map(open_object, batch, is_leaf=lambda node: isinstance(node, PackedSequence))
    there = dict(moved_itself)
    if device.type == "cuda":
        tensors = (leaf for leaf in tree_flatten(opened)[0] if isinstance(leaf, Tensor) and id(leaf) not in there)
        on_host = [tensor for tensor in tensors if tensor.device.type == "cpu" and has_strides(tensor)]
        there |= zip(map(id, on_host), _to_gpu(on_host, device, is_fresh=is_fresh), strict=True)
    return tree_map(move_leaf, opened)


def _to_gpu(tensors: Sequence[Tensor], device: torch.device, *, is_fresh: bool) -> list[Tensor]:
    """Copy on a stream of its own, so that the copies do not wait for the steps that are queued.

    All tensors go by one piece of pinned memory, in one copy, but for those that are pinned already.
    """
    if not tensors:
        return []
    steps, copies = torch.cuda.current_stream(device), _copy_stream(device)
    is_ready = [is_fresh and tensor.is_pinned() for tensor in tensors]
    loose = [tensor.detach() for tensor, is_pinned in zip(tensors, is_ready, strict=True) if not is_pinned]
    outlines = [torch.empty_like(tensor, device="meta") for tensor in loose]
    sources = [tensor.detach() for tensor, is_pinned in zip(tensors, is_ready, strict=True) if is_pinned]
    if loose:
        whole, parts = side_by_side(outlines, torch.device("cpu"), is_pinned=True)
        torch._foreach_copy_(parts, loose)
        sources.append(whole)
    with torch.cuda.stream(copies):  # whose memory it is, which must not be taken from the steps that are queued
        there = [source.to(device, non_blocking=True) for source in sources]
    steps.wait_stream(copies)  # what is queued from now on finds the copies done
    for own in there:
        own.record_stream(steps)  # nor is it taken for later copies before the steps are through with it
    from_whole = iter(parts_of(there.pop(), outlines) if loose else [])
    by_themselves = iter(there)
    moved = [next(by_themselves if is_pinned else from_whole) for is_pinned in is_ready]
    return [own.requires_grad_(tensor.requires_grad) for own, tensor in zip(moved, tensors, strict=True)]


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def key_of(batch: Batch) -> Key:
    """Say what a traced step depends on in a batch besides the numbers in its tensors."""
    leaves, structure = tree_flatten(batch)
    kinds = [_kind_of(leaf) for leaf in leaves]
    are_values = [isinstance(leaf, VALUES) for leaf in leaves]
    return Key(
        structure,
        tuple(
            (kind, leaf) if is_value else kind for kind, leaf, is_value in zip(kinds, leaves, are_values, strict=True)
        ),
        form=tuple(kinds),
        is_plain=all(is_value or isinstance(leaf, Tensor) for leaf, is_value in zip(leaves, are_values, strict=True)),
    )


def _kind_of(leaf: Any) -> Hashable:
    """Say what a leaf is, but for the numbers in it."""
    if isinstance(leaf, Tensor):
        if leaf.is_nested:
            return leaf.layout, leaf.dtype, leaf.device  # of which nothing is traced
        form = leaf.stride() if has_strides(leaf) else leaf.layout
        return leaf.shape, form, leaf.dtype, leaf.device
    return (type(leaf), leaf.shape, leaf.dtype) if isinstance(leaf, np.ndarray) else (type(leaf),)


def stack(batches: Sequence[Batch]) -> Batch:
    """Stack batches of equal key, one of each seed: every tensor gets a seed axis first."""

    def stack_leaves(*leaves: Any) -> Any:
        return torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0]

    return pytree.tree_map(stack_leaves, *batches)


def hand_out(batch: Batch, seed_index: Tensor) -> Batch:
    """Give each member a copy of its seed's batch.

    Args:
        batch: stacked; every tensor has the seed axis first, and is returned with the member axis in its place.
        seed_index: `[member]`, the place of a member's seed on the seed axis.
    """
    return pytree.tree_map(lambda leaf: leaf.index_select(0, seed_index) if isinstance(leaf, Tensor) else leaf, batch)


def for_each(batch: Batch, parameters: Mapping[str, Tensor]) -> tuple[Batch, Tensor]:
    """Stack a batch that all members have in common, and index it for `hand_out`, so that each gets a copy.

    Args:
        batch: one batch.
        parameters: the members', `[member, *shape]`.
    """
    of_first = next(iter(parameters.values()))
    return stack([batch]), torch.zeros(len(of_first), dtype=torch.int64, device=of_first.device)


def copy_batch(batch: Batch) -> Batch:
    """Copy the containers, tensors and arrays of a batch, so that what a loss writes into it stays there."""

    def copy_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.clone()
        return leaf.copy() if isinstance(leaf, np.ndarray) else leaf

    return tree_map(copy_leaf, batch)


def member_dims(batch: Batch) -> Batch:
    """The `in_dims` of a batch with the member axis: 0 for tensors, None for all else."""
    return pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, batch)


def size_bytes(batch: Batch) -> int:
    """The memory that a batch's tensors take, in bytes; sparse ones do not say."""
    tensors = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, Tensor)]
    return sum(tensor.nbytes for tensor in tensors if has_strides(tensor))
