"""A step as a CUDA graph: all its kernels are launched at once, so that small models are not held up by the host.

A graph works on the memory that it was captured on; how chunks come to share one is in `slots.py`. What is said here of
PyTorch was read in its 2.13: `torch/cuda/graphs.py`, and `aten/src/ATen/cuda/CUDAGraph.cpp` below it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def is_capturable(tensors: Sequence[Tensor]) -> bool:
    """Whether what is computed on such tensors may be captured: they are on one GPU."""
    devices = {tensor.device for tensor in tensors}
    return len(devices) == 1 and next(iter(devices)).type == "cuda"


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array to a device, where that is a GPU without waiting for what is queued there."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device, copy=True)
    return tensor.pin_memory().to(device, non_blocking=True)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs are captured on; `torch.cuda.graph` has one for all devices, on the first that it met."""
    return torch.cuda.Stream(device)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Queue what is computed inside on the stream of captures, after what is queued now and before what comes later.

    What a kernel sets up for its stream at first, such as the workspace of cuBLAS, is there when it is captured.
    """
    stream = _capture_stream(device)
    with torch.cuda.device(device):
        outside = torch.cuda.current_stream(device)
        stream.wait_stream(outside)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            outside.wait_stream(stream)


class Pool:
    """Memory that captured functions share, which never run at the same time.

    Attributes:
        has_told: whether anybody was told that something cannot be captured.
    """

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self.has_told = False

    def renew(self) -> None:
        """Begin anew where nothing that was captured is left; PyTorch refuses a pool that has been given up."""
        self.handle = torch.cuda.graph_pool_handle()


_FAILED: list[torch.cuda.CUDAGraph] = []  # the allocator of pinned memory goes on asking them whether they capture


class Captured:
    """A function of tensors that replays the kernels which it launched once.

    Args:
        function: in place on the state; it has run before, inside `aside`.
        state: what it writes to; the replay works on this memory.
        inputs: what its other arguments look like; each call copies its own to where these were.
        pool: of memory.

    Raises:
        RuntimeError: it does what cannot be captured, such as waiting for the device; nothing has happened.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        state: Sequence[Tensor],
        inputs: Sequence[Tensor],
        pool: Pool,
    ) -> None:
        device = state[0].device
        # Kernels go to the current stream of the tensors' device, and only what goes to the one that is captured is
        # part of a graph. It is left by `aside`: `torch.cuda.graph` does not where its `capture_end` raises.
        with aside(device), torch.no_grad():
            self._inputs = list(map(place_for, inputs))
            self._copied = list(map(once, self._inputs))
            copy_all_(self._copied, list(map(once, inputs)))
            self._graph, stream = torch.cuda.CUDAGraph(), _capture_stream(device)
            try:
                # By default what other threads do, such as one that pins batches, would break the capture.
                with torch.cuda.graph(self._graph, pool=pool.handle, stream=stream, capture_error_mode="thread_local"):
                    self._results = function(*state, *self._inputs)
            except BaseException:
                _clear_up(self._graph, device, pool.handle)
                pool.renew()
                raise

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute the function; the next call of any function that shares the pool may overwrite the results."""
        copy_all_(self._copied, list(map(once, inputs)))
        self._graph.replay()
        return self._results


def _clear_up(graph: torch.cuda.CUDAGraph, device: torch.device, handle: Any) -> None:
    """Say that a capture is over, where `capture_end` raised before it did.

    Until then the allocator frees no memory that was used on two streams, as that of batches is, and in PyTorch 2.11
    nothing can be drawn on the device: its generator takes part in each capture.
    """
    try:
        torch._C._cuda_endAllocateToPool(device.index, handle)
    except RuntimeError:  # it has been said: the graph goes, and the memory that it has taken
        return
    torch._C._cuda_releasePool(device.index, handle)
    _FAILED.append(graph)
    number = torch.zeros((), device=device)
    number.zero_()
    sound = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=_capture_stream(device), capture_error_mode="thread_local")
    with suppress(RuntimeError), sound:  # a capture that succeeds gives the generator free
        number.zero_()


def place_for(tensor: Tensor) -> Tensor:
    """Memory of the same layout, on which the operators of a trace depend; `clone` would make it dense."""
    reach = 0  # of the dimensions that were looked at, the innermost first
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda of_dim: of_dim[1]):
        if size > 1 and 0 < stride <= reach:
            raise RuntimeError(f"A tensor of strides {tensor.stride()} cannot be written to: it lies over itself.")
        reach += max(0, size - 1) * stride
    memory = torch.empty(reach + 1, dtype=tensor.dtype, device=tensor.device)
    return memory.as_strided(tensor.shape, tensor.stride())


def once(tensor: Tensor) -> Tensor:
    """A tensor without the repetitions of an expanded one."""
    if 0 not in tensor.stride():
        return tensor
    return tensor[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())]


def copy_all_(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy tensors, in one kernel for each dtype."""
    kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for place, value in zip(places, values, strict=True):
        own = kinds.setdefault(place.dtype, ([], []))
        own[0].append(place)
        own[1].append(value)
    with torch.no_grad():
        for own_places, own_values in kinds.values():
            torch._foreach_copy_(own_places, own_values)
