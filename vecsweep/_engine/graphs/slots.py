"""Where chunks have their state: in a slot while they train, and where a GPU has no room for all, on the host before.

A captured graph works on the memory that it was captured on. So chunks that look alike take turns at one slot, and a
chunk that waits may as well wait in the host's memory. That is pinned, so that nobody waits as a state comes or goes,
and registered with CUDA rather than taken from PyTorch, which rounds pinned memory up to powers of two, and keeps it.
"""

import weakref
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from vecsweep._engine.data.layouts import side_by_side


class Slot:
    """A place on the device where chunks that look alike train in turn.

    Args:
        like: what a state looks like.
        device: the GPU.

    Attributes:
        tensors: the state, flat; each in memory of its own, as PyTorch's compiler asks of what is written to.
    """

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        self.tensors = [torch.empty_like(tensor, device=device) for tensor in like]
        self._holder: weakref.ref[Any] | None = None

    def is_of(self, holder: object) -> bool:
        """Whether the state is that of a chunk, as it waits for its turn."""
        return self._holder is not None and self._holder() is holder

    def note(self, holder: object | None) -> None:
        """Note whose state it is; None from where it is trained."""
        self._holder = None if holder is None else weakref.ref(holder)


class Offloaded:
    """A state in pinned memory of the host, while other chunks train on the GPU.

    Args:
        tensors: the state, flat; wherever it is.
        device: the GPU.

    Attributes:
        tensors: the state; to be read after `wait`.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        whole, self.tensors = side_by_side(tensors, torch.device("cpu"))
        _move(self.tensors, tensors, non_blocking=False)
        self._device = device
        self._stored: torch.cuda.Event | None = None
        _pin(self, whole, device)

    def load(self, slot: Slot) -> None:
        """Queue copies to the slot."""
        _move(slot.tensors, self.tensors, non_blocking=True)

    def store(self, slot: Slot) -> None:
        """Queue copies of what is in the slot then."""
        _move(self.tensors, slot.tensors, non_blocking=True)
        self._stored = torch.cuda.Event()
        self._stored.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Wait until what was stored is here."""
        if self._stored is not None:
            self._stored.synchronize()
            self._stored = None


class Slots:
    """The slots of a run: one for all chunks that look alike.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._slots: dict[Hashable, Slot] = {}
        self._used: dict[Hashable, int] = {}  # the last window
        self._windows = (-1, -1)  # the one before, and this one

    def of(self, state: Sequence[Tensor], window: int) -> Slot:
        """The slot for a state; what no chunk has used in this window nor in the one before is given up.

        Args:
            state: flat.
            window: a number that grows from window to window.
        """
        if window != self._windows[1]:
            self._windows = (self._windows[1], window)
        kind = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in state)
        if kind not in self._slots:
            for old in [old for old, used in self._used.items() if used < self._windows[0]]:
                del self._slots[old], self._used[old]
            self._slots[kind] = Slot(state, self._device)
        self._used[kind] = window
        return self._slots[kind]

    def clear(self) -> None:
        """Give all up."""
        self._slots.clear()
        self._used.clear()


def _move(places: Sequence[Tensor], tensors: Sequence[Tensor], *, non_blocking: bool) -> None:
    for place, tensor in zip(places, tensors, strict=True):
        place.copy_(tensor, non_blocking=non_blocking)


def _pin(owner: object, memory: Tensor, device: torch.device) -> None:
    """Let a GPU copy to and from memory by itself for as long as an object lives; where it cannot, the host waits."""
    if memory.numel() == 0:
        return
    if int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) == 0:
        weakref.finalize(owner, _unpin, memory, device).atexit = False
    else:
        with suppress(RuntimeError):  # which the next kernel would raise
            torch.zeros(1, device=device)


def _unpin(memory: Tensor, device: torch.device) -> None:
    """Give the memory back to the host alone; what is on its way arrives first."""
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
