"""A GPU that is pretended: whole sweeps run as on one, branch for branch, on numbers that the CPU computes.

Tensors say that they are on "cuda:0" if they were put there, or made of such tensors. What PyTorch refuses is refused:
operators on tensors of two devices, numbers taken to NumPy from the GPU, waiting during a capture. Draws on the GPU
come from its own generator. A copy to pinned memory that nobody waits for arrives when somebody does.

Not here: what a kernel is like, such as whether cuDNN may be captured, and how fast anything is.
"""

import contextlib
import functools

import pytest
import torch
from cuda_stand_in import _INDEXING, Cuda, Stream, is_awaited, tensors_in
from torch import Tensor
from torch._C import TensorBase
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _device

from vecsweep._engine.data import batches
from vecsweep._engine.graphs import capture

GPU = torch.device("cuda", 0)
_ATEN = torch.ops.aten
_BETWEEN = {_ATEN._to_copy.default, _ATEN.copy_.default, _ATEN._foreach_copy_.default}  # devices
_FILLING = {_ATEN.fill_.Tensor, _ATEN.fill.Tensor, _ATEN.masked_fill.Tensor, _ATEN.masked_fill_.Tensor}  # in numbers
_FACTORIES = (
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.eye, torch.linspace),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal),
)
_FREE = 8 * 2**30  # bytes
_PURGED_EVERY = 10_000  # operators


def storages_of(tensor):
    """The memory of a tensor; a sparse one has several."""
    if tensor.layout == torch.strided:
        return [tensor.untyped_storage()]
    parts = {
        torch.sparse_coo: lambda: (tensor._indices(), tensor._values()),
        torch.sparse_csr: lambda: (tensor.crow_indices(), tensor.col_indices(), tensor.values()),
        torch.sparse_csc: lambda: (tensor.ccol_indices(), tensor.row_indices(), tensor.values()),
    }.get(tensor.layout, tuple)
    return [part.untyped_storage() for part in parts()]


class Marks:
    """A set of tensors by their memory, which views share."""

    def __init__(self):
        self._refs = {}  # as long as one is held, nothing else is at the same address
        self._sizes = {}

    def add(self, tensor):
        self._refs |= {storage._cdata: StorageWeakRef(storage) for storage in storages_of(tensor)}
        self._sizes |= {storage._cdata: storage.nbytes() for storage in storages_of(tensor)}

    @property
    def num_bytes(self):
        """Of all tensors that there still are."""
        self.purge()
        return sum(self._sizes[place] for place in self._refs)

    def discard(self, tensor):
        for storage in storages_of(tensor):
            self._refs.pop(storage._cdata, None)

    def __contains__(self, tensor):
        return any(storage._cdata in self._refs for storage in storages_of(tensor))

    def purge(self):
        self._refs = {place: ref for place, ref in self._refs.items() if not ref.expired()}


@contextlib.contextmanager
def pretended_gpu():
    """Pretend that the machine has a GPU."""
    _device._device_constructors()  # what a default device takes for such is found once
    for streams in (batches._copy_stream, capture._capture_stream):
        streams.cache_clear()
    try:
        with pytest.MonkeyPatch.context() as patch, PretendedGpu(patch) as gpu:
            yield gpu
    finally:
        for streams in (batches._copy_stream, capture._capture_stream):
            streams.cache_clear()


class Event:
    """What `torch.cuda.Event` is, as far as it is used."""

    def __init__(self, machine):
        self._machine = machine

    def record(self, stream=None):
        pass

    def synchronize(self):
        self._machine.synchronize()

    def query(self):
        return False


class PretendedGpu(Cuda):
    """A machine with one GPU, which is the current device.

    Attributes:
        waits: what the host has waited for, by name.
        log: as in `Cuda`.
        peak_bytes: the most memory of the GPU that tensors had at a time; counted where it is set to 0.
        most_bytes: that they may have; None for any number.
    """

    peak_bytes = most_bytes = None

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.device = self.home = GPU
        self.streams = {GPU: Stream(self, GPU)}
        self.defaults = dict(self.streams)
        self.on_gpu, self.pinned, self.waits = Marks(), Marks(), []
        self.unplaced = Marks()  # what an operator made of nothing, on the device that it takes its inputs to be on
        self.generator = torch.Generator()
        self._late, self._num_seen = [], 0  # copies that are under way
        self._registered = {}  # bytes of the host's memory that are pinned, by where they begin
        self._is_lost = False  # by an assertion of a kernel, after which nothing runs any more
        self._deepcopy_on_cpu = Tensor.__deepcopy__
        for name, value in {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "init": lambda: None,
            "_lazy_init": lambda: None,
            "manual_seed_all": self.generator.manual_seed,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "default_generators": (self.generator,),
            "is_bf16_supported": lambda *_, **__: True,
            "get_device_name": lambda device=None: "A pretended GPU",
            "mem_get_info": lambda device=None: (_FREE, _FREE),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "Event": lambda *_, **__: Event(self),
            "cudart": lambda: self,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.backends.cudnn, "is_acceptable", lambda tensor: False)  # which warns
        for name, value in {
            "device": property(lambda x: GPU if self.is_on_gpu(x) else TensorBase.device.__get__(x)),
            "is_cuda": property(self.is_on_gpu),
            "is_cpu": property(lambda x: TensorBase.is_cpu.__get__(x) and not self.is_on_gpu(x)),
            "get_device": lambda x: 0 if self.is_on_gpu(x) else TensorBase.get_device(x),
            "to": self._to,
            "cpu": lambda x, **_: self._to(x, "cpu"),
            "cuda": lambda x, *_, **options: self._to(x, "cuda", **options),
            "pin_memory": self._pin,
            "is_pinned": lambda x, *_: self._is_pinned(x),
            "record_stream": self._record_stream,
            "tolist": self._tolist,
            "numpy": self._numpy,
            "__deepcopy__": self._deepcopy,
        }.items():
            monkeypatch.setattr(Tensor, name, value if isinstance(value, property) else _method(value))
        for make in (torch.tensor, torch.as_tensor):
            monkeypatch.setattr(torch, make.__name__, functools.partial(self._make, make))
        for make in _FACTORIES:
            monkeypatch.setattr(torch, make.__name__, functools.partial(self._place, make))

    def is_on_gpu(self, tensor):
        """Whether a tensor, or what vmap has wrapped, says that it is on the GPU."""
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        return not tensor.is_meta and tensor in self.on_gpu

    def cudaHostRegister(self, place, num_bytes, flags):  # noqa: N802 - CUDA's name
        self._registered[place] = num_bytes
        return 0

    def cudaHostUnregister(self, place):  # noqa: N802
        self._registered.pop(place, None)  # of another machine, if what was there has outlived it
        return 0

    def _is_pinned(self, x):
        return x in self.pinned or any(p <= x.data_ptr() < p + size for p, size in self._registered.items())

    def synchronize(self, device=None):
        super().synchronize(device)
        self._note_wait("synchronize")

    def _note_wait(self, what):
        if self.capturing is not None:
            self.capturing.is_valid = False
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.waits.append(what)
        for place, value in self._late:
            place.copy_(value)
        self._late.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        self._num_seen += 1
        if self._num_seen % _PURGED_EVERY == 0:
            self.on_gpu.purge()
            self.pinned.purge()
            self.unplaced.purge()
        tensors = tensors_in((args, kwargs))
        here = [t for t in tensors if self.is_on_gpu(t)]
        there = [t for t in tensors if not t.is_meta and not self.is_on_gpu(t) and t not in self.unplaced]
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = "cpu"
        is_pinned = kwargs.pop("pin_memory", None)
        is_here = bool(here) if device is None else torch.device(device).type == "cuda"
        if is_pinned and is_here:
            raise RuntimeError("Only dense CPU tensors can be pinned")
        if here:
            _check_devices(func, there)
            is_refused = func is _ATEN.binary_cross_entropy.default and not ((args[0] >= 0) & (args[0] <= 1)).all()
            self._is_lost |= bool(is_refused)
        if self._is_lost and (here or is_here):
            raise RuntimeError("CUDA error: device-side assert triggered")
        if func in _BETWEEN:
            self._note_copy(func, args, kwargs, is_here=is_here)
        elif here and is_awaited(func, args, kwargs):
            self._note_wait(str(func))
        elif here and there and func in _INDEXING:
            self._note_wait("to the GPU")
        if func is _ATEN.copy_.default and here and not self.is_on_gpu(args[0]) and _is_not_awaited(args, kwargs):
            if self._is_pinned(args[0]):
                self._late.append((args[0], args[1].clone()))
                return args[0]
        elif func is _ATEN.copy_.default and there and self._late:  # a copy back finds the one before it done
            for place, value in self._late:
                if place.untyped_storage()._cdata == args[1].untyped_storage()._cdata:
                    place.copy_(value)
        if not is_here:
            results = func(*args, **kwargs)
        elif torch.Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None:
            with self._drawing():
                results = super().__torch_dispatch__(func, (), args, kwargs)
        else:
            results = super().__torch_dispatch__(func, (), args, kwargs)
        given = {storage._cdata for t in tensors for storage in storages_of(t)}
        for tensor in tensors_in(results):
            own = [] if tensor.is_meta else storages_of(tensor)
            if own and all(storage._cdata not in given for storage in own):
                if is_here:
                    self.on_gpu.add(tensor)
                    self._count_bytes()
                elif not there:
                    self.unplaced.add(tensor)
                if is_pinned:
                    self.pinned.add(tensor)
                    self.log.append(("pin",))
        return results

    def _count_bytes(self):
        if self.peak_bytes is not None or self.most_bytes is not None:
            num_bytes = self.on_gpu.num_bytes
            self.peak_bytes = max(self.peak_bytes or 0, num_bytes)
            if self.most_bytes is not None and num_bytes > self.most_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    def _note_copy(self, func, args, kwargs, *, is_here):
        """Whoever copies to the host without pinned memory, or from there, waits."""
        if func is _ATEN._to_copy.default:
            pairs = [(is_here, None, args[0])]
        elif func is _ATEN.copy_.default:
            pairs = [(self.is_on_gpu(args[0]), args[0], args[1])]
        else:
            pairs = [(self.is_on_gpu(place), place, value) for place, value in zip(*args[:2], strict=True)]
        for to_gpu, place, value in pairs:
            if not isinstance(value, Tensor) or value.is_meta or to_gpu == self.is_on_gpu(value) or not value.numel():
                continue
            host = value if to_gpu else place
            if host is not None and self._is_pinned(host) and _is_not_awaited(args, kwargs):
                self.log.append(("copy", to_gpu))
            elif not (to_gpu and value.ndim == 0):  # a number goes along with the kernel that fills it in
                self._note_wait("to the GPU" if to_gpu else "to the host")
            elif self.capturing is not None:
                self._note_wait("to the GPU")

    @contextlib.contextmanager
    def _drawing(self):
        """Let the CPU's generator stand where the GPU's stands."""
        usual = torch.default_generator
        before = usual.get_state()
        usual.set_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(usual.get_state())
            usual.set_state(before)

    def _to(self, x, *args, **kwargs):
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        copy = kwargs.pop("copy", len(args) > 3 and args[3])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        device = GPU if device is not None and device.type == "cuda" else device
        if device is None or device == x.device:
            layout = {} if memory_format is None else {"memory_format": memory_format}
            return TensorBase.to(x, x.dtype if dtype is None else dtype, copy=copy, **layout)
        options = {"dtype": dtype, "device": device, "non_blocking": non_blocking, "memory_format": memory_format}
        return _ATEN._to_copy.default(x, **options)

    def _place(self, make, *args, **kwargs):
        made = make(*args, **kwargs)
        self.unplaced.discard(made)
        return made

    def _make(self, make, data, *, device=None, **options):
        is_kept = isinstance(data, Tensor) and make.__name__ == "as_tensor"
        made = data if is_kept else make(data, device="cpu", **options)
        device = _device.CURRENT_DEVICE if device is None else device
        return made if device is None else made.to(device)

    def _record_stream(self, x, stream):
        if x.layout != torch.strided or not self.is_on_gpu(x):
            raise NotImplementedError("Could not run 'aten::record_stream'; it is only available for CUDA.")
        self.log.append(("record", stream))

    def _pin(self, x, *_):
        assert not self.is_on_gpu(x), "only dense CPU tensors can be pinned"
        if x in self.pinned:
            return x
        is_dense = x.layout == torch.strided
        pinned = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x) if is_dense else x.clone()
        self.pinned.add(pinned)
        return pinned

    def _tolist(self, x):
        if self.is_on_gpu(x):
            self._note_wait("tolist")
        return TensorBase.tolist(x)

    def _numpy(self, x, **options):
        if self.is_on_gpu(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return TensorBase.numpy(x, **options)

    def _deepcopy(self, x, memo):
        if not self.is_on_gpu(x):
            return self._deepcopy_on_cpu(x, memo)
        memo[id(x)] = copied = x.detach().clone().requires_grad_(x.requires_grad)
        return copied


def _method(function):
    """Let a method of the machine be one of tensors."""
    return lambda tensor, *args, **kwargs: function(tensor, *args, **kwargs)


def _is_not_awaited(args, kwargs):
    return kwargs.get("non_blocking", len(args) > 2 and args[2])


def _check_devices(func, there):
    """Refuse what mixes devices; indices, and numbers where an operator goes through each element, may be elsewhere."""
    may_be_numbers = torch.Tag.pointwise in func.tags or func in _FILLING
    if func in _BETWEEN or func in _INDEXING or all(t.ndim == 0 and may_be_numbers for t in there):
        return
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})"
    )
