"""Unloading: tensors of a GPU copied to the host by two small pinned buffers, on a stream of their own.

Pinned memory is what a GPU copies into by itself, at full speed. All of a run's states in it would take twice their
size, because PyTorch rounds it up to powers of two, and keeps it; so each buffer is emptied while the other is filled.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_BUFFER_BYTES = 16 * 2**20


class _Underway(NamedTuple):
    """What a buffer holds as soon as an event is over, and where it goes."""

    event: torch.cuda.Event
    content: Tensor
    target: Tensor


class Stage:
    """Copies tensors, which must not change until it is left; what `copy` returned is whole from then on.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers = [_pinned(_BUFFER_BYTES) for _ in range(2)]
        self._underway: list[_Underway | None] = [None, None]
        self._next = 0

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *_: object) -> None:
        for k in range(2):
            self._empty(k)

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a copy in the host's memory."""
        if tensor.device != self._device:
            return tensor.to("cpu", copy=True)
        copied = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        tensor.record_stream(self._stream)  # its memory is not given to another before it is copied
        with torch.cuda.stream(self._stream):
            source = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            target = copied.reshape(-1).view(torch.uint8)
            for own, part in zip(source.split(_BUFFER_BYTES), target.split(_BUFFER_BYTES), strict=True):
                k, self._next = self._next, 1 - self._next
                self._empty(k)
                content = self._buffers[k][: own.numel()]
                content.copy_(own, non_blocking=True)
                event = torch.cuda.Event()
                event.record(self._stream)
                self._underway[k] = _Underway(event, content, part)
        return copied

    def _empty(self, k: int) -> None:
        """Wait for what a buffer is to hold, and put it where it goes."""
        own, self._underway[k] = self._underway[k], None
        if own is not None:
            own.event.synchronize()
            own.target.copy_(own.content)


def together(copy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Copy what was stacked as a whole where one of its members comes, and give each its part of that.

    Args:
        copy: of one tensor.
    """
    wholes: dict[int, Tensor] = {}

    def copy_part(tensor: Tensor) -> Tensor:
        whole = tensor if tensor._base is None else tensor._base
        if whole.dtype != tensor.dtype or whole.storage_offset() != 0 or not whole.is_contiguous():
            return copy(tensor)
        if id(whole) not in wholes:
            wholes[id(whole)] = copy(whole)
        return wholes[id(whole)].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    return copy_part


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
