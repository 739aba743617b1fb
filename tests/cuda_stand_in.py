"""What stands in for `torch.cuda` where there is no GPU: streams, captures and pools of memory, on tensors of the CPU.

What is queued is noted in its order, and what PyTorch refuses is refused. `torch.cuda.graph` is PyTorch's own.
"""

import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

HOME = torch.device("cpu")  # where the tensors are
ELSEWHERE = torch.device("cuda", 7)  # the current device of the caller
_ATEN = torch.ops.aten
# Who asks the device for numbers, or for how many there are: the host waits, which no capture allows.
_WAITING = {
    *(_ATEN._local_scalar_dense.default, _ATEN.equal.default, _ATEN.allclose.default, _ATEN.is_nonzero.default),
    *(_ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN.bincount.default, _ATEN._unique2.default),
    *(_ATEN.unique_consecutive.default, _ATEN.unique_dim.default, _ATEN.unique_dim_consecutive.default),
    *(_ATEN.embedding_renorm_.default, _ATEN._ctc_loss.default, _ATEN._ctc_loss.Tensor),
    *(_ATEN._linalg_eigh.default, _ATEN._linalg_svd.default, _ATEN.linalg_eig.default),
}
_INDEXING = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default}


def tensors_in(tree):
    """Those of an operator's arguments or results, in order: PyTorch's own walk over trees takes four times as long."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def is_awaited(func, args, kwargs):
    """Whether the host waits for an operator on a GPU."""
    if func is _ATEN.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if func not in _INDEXING:
        return func in _WAITING
    # How many numbers a mask selects decides on the shape of the result; a single one is filled in by `masked_fill`.
    has_masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    is_filled = func is not _ATEN.index.Tensor and args[2].numel() == 1 and not (args[3:] and args[3])
    return has_masks and not is_filled


class Stream:
    """A queue of kernels on a device: the current one unless another is named."""

    def __init__(self, cuda, device=None):
        self.cuda, self.device = cuda, cuda.device if device is None else torch.device(device)
        self.set_up = set()  # the operators that have run here

    def wait_stream(self, other):
        self.cuda.log.append(("wait", self, other))


class Graph:
    """What `torch.cuda.CUDAGraph` is: operators, which run when they are replayed and not when they are captured."""

    def __init__(self, cuda):
        self.cuda, self.calls, self.is_valid, self.num_replays = cuda, [], True, 0

    def capture_begin(self, pool=None, capture_error_mode="global", **_):
        if pool in self.cuda.allocating:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if pool in self.cuda.given_up:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.pool, self.mode, self.stream = pool, capture_error_mode, self.cuda.current_stream()
        self.old, self.own = {}, {}  # by storage: what was there and is written to; what the graph has made
        self.cuda.allocating.add(pool)
        self.cuda.capturing, self.cuda.is_generator_captured = self, True
        self.cuda.log.append(("capture", self.stream))

    def capture_end(self):
        self.cuda.capturing = None
        with _disable_current_modes():
            for tensor, value in self.old.values():  # nothing has run
                tensor.copy_(value)
            for tensor in self.own.values():
                if tensor.is_floating_point():
                    tensor.fill_(torch.nan)
        if not self.is_valid:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.cuda.allocating.discard(self.pool)
        self.cuda.is_generator_captured = False
        self.cuda.graphs.append(self)

    def note(self, func, args, kwargs):
        """Queue an operator: what it writes to is set back at the end."""
        if is_awaited(func, args, kwargs):
            self.is_valid = False
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if str(func) not in self.stream.set_up:
            raise AssertionError(f"{func} sets itself up inside of a capture")
        tensors = tensors_in((args, kwargs))
        for tensor in tensors:
            place = tensor.untyped_storage().data_ptr()
            if place not in self.own and place not in self.old:
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self.old[place] = (whole, whole.clone())
        results = func(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        made = [x for x in tensors_in(results) if x.untyped_storage().data_ptr() not in given]
        self.own |= {x.untyped_storage().data_ptr(): x for x in made}
        self.calls.append((func, args, kwargs, tensors_in(results), {id(x) for x in made}))
        return results

    def replay(self):
        self.num_replays += 1
        self.cuda.log.append(("replay", self))
        with _disable_current_modes():
            for func, args, kwargs, results, made in self.calls:
                for old, new in zip(results, tensors_in(func(*args, **kwargs)), strict=True):
                    if id(old) in made:
                        old.copy_(new)


class Cuda(TorchDispatchMode):
    """A machine with a GPU: which device and streams are current, and all that was queued."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.home, self.device = HOME, ELSEWHERE
        self.capturing, self.allocating, self.given_up = None, set(), set()
        self.is_generator_captured = False  # in PyTorch 2.11 also after a capture that failed
        self.log, self.graphs, self.num_pools = [], [], 0
        self.streams = {device: Stream(self, device) for device in (HOME, ELSEWHERE)}  # the current one of each
        self.defaults = dict(self.streams)
        for name in ("stream", "current_stream", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "device", self.guard)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device=None: Stream(self, device))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", self.new_pool)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing is not None)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda _, pool: self.given_up.add(pool))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        stream, kwargs = self.streams[self.home], kwargs or {}
        if self.capturing is None or stream is not self.capturing.stream:
            if self.is_generator_captured and torch.Tag.nondeterministic_seeded in func.tags:
                raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
            stream.set_up.add(str(func))
            return func(*args, **kwargs)
        return self.capturing.note(func, args, kwargs)

    def new_pool(self):
        self.num_pools += 1
        return (0, self.num_pools)

    def end_allocating(self, _, pool):
        if pool not in self.allocating:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.allocating.remove(pool)

    def current_stream(self, device=None):
        return self.streams[self.device if device is None else torch.device(device)]

    def synchronize(self, device=None):
        if self.capturing is not None:
            self.capturing.is_valid = False
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.log.append(("synchronize", self.device))

    def call_from_another_thread(self):
        """What the thread of a loader that pins its batches does: it allocates."""
        if self.capturing is not None and self.capturing.mode == "global":
            self.capturing.is_valid = False

    @contextlib.contextmanager
    def guard(self, device):
        before, self.device = self.device, torch.device(device)
        try:
            yield
        finally:
            self.device = before

    def stream(self, stream):
        return _StreamContext(self, stream)


class _StreamContext:
    """As PyTorch's: entered and left by hand by `torch.cuda.graph`, which may forget to."""

    def __init__(self, cuda, stream):
        self.cuda, self.own = cuda, stream

    def __enter__(self):
        self.before = self.cuda.device, self.cuda.streams[self.own.device]
        self.cuda.device, self.cuda.streams[self.own.device] = self.own.device, self.own

    def __exit__(self, *_):
        self.cuda.device, self.cuda.streams[self.own.device] = self.before
