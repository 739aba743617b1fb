"""Messages between processes of one machine: pickled objects, whose tensors lie in memory that both processes map.

The memory is anonymous, by memfd_create(2): it is not bounded by what is mounted at /dev/shm, as that of
torch.multiprocessing is, and nothing of it is left when a process dies.
"""

import io
import os
import pickle
import socket
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

_HEADER = struct.Struct("=QQ?")  # bytes of the pickle and of the tensors, and whether the latter are in shared memory
_INLINE_BYTES = 2**16  # of tensors, up to which they go through the socket
_ALIGNMENT = 64  # as torch allocates


class _Place(NamedTuple):
    """Where a tensor lies in a message's memory."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Message:
    """An object on its way, to one process or to several.

    Args:
        content: what pickle takes; tensors in it arrive with their strides.

    Raises:
        Exception: what pickle raises for what it does not take.
    """

    def __init__(self, content: object) -> None:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        pickler.dump(content)
        self._pickled = buffer.getvalue()
        self._num_bytes = pickler.num_bytes
        self._fd: int | None = None
        self._inline = bytearray()
        if self._num_bytes > _INLINE_BYTES:
            self._fd = os.memfd_create("vecsweep")
            os.ftruncate(self._fd, self._num_bytes)
            memory = _shared(self._fd, self._num_bytes)
        else:
            self._inline = bytearray(self._num_bytes)
            memory = _own(self._inline)
        for tensor, place in pickler.tensors:
            _tensor_at(memory, place).copy_(tensor)

    def send(self, connection: socket.socket) -> None:
        """Send it; OSError where the other side is gone."""
        header = _HEADER.pack(len(self._pickled), self._num_bytes, self._fd is not None)
        socket.send_fds(connection, [header], [] if self._fd is None else [self._fd])
        connection.sendall(self._pickled)
        connection.sendall(self._inline)

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            os.close(self._fd)  # type: ignore[arg-type]  # those who map the memory keep it


def receive(connection: socket.socket) -> Any:
    """Wait for a message; EOFError where the other side is gone."""
    header, fds, _, _ = socket.recv_fds(connection, _HEADER.size, 1)
    if not header:
        raise EOFError
    header += _exactly(connection, _HEADER.size - len(header))
    num_pickled, num_bytes, is_shared = _HEADER.unpack(header)
    pickled = _exactly(connection, num_pickled)
    if is_shared:
        memory = _shared(fds[0], num_bytes)
        os.close(fds[0])
    else:
        memory = _own(_exactly(connection, num_bytes))
    return _Unpickler(pickled, memory).load()


def _exactly(connection: socket.socket, num_bytes: int) -> bytearray:
    data = bytearray(num_bytes)
    view = memoryview(data)
    while view:
        if not (num_read := connection.recv_into(view)):
            raise EOFError
        view = view[num_read:]
    return data


class _Pickler(pickle.Pickler):
    """Leave plain tensors out, and say where each is to lie."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.num_bytes = 0
        self.tensors: list[tuple[Tensor, _Place]] = []
        self._places: dict[int, _Place] = {}  # by id: a tensor that comes twice lies there once

    def persistent_id(self, obj: Any) -> _Place | None:
        """Where a tensor lies; None for what is pickled."""
        if type(obj) is not Tensor or obj.layout != torch.strided or obj.device.type != "cpu" or obj.requires_grad:
            return None
        if id(obj) not in self._places:
            stride = torch.empty_like(obj, device="meta").stride()  # the same order of axes, without gaps
            place = _Place(self.num_bytes, obj.dtype, tuple(obj.shape), stride)
            self.num_bytes += -(-obj.nbytes // _ALIGNMENT) * _ALIGNMENT
            self.tensors.append((obj, place))
            self._places[id(obj)] = place
        return self._places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Put tensors in; what is read was written by another process of the same program."""

    def __init__(self, pickled: bytearray, memory: UntypedStorage) -> None:
        super().__init__(io.BytesIO(pickled))
        self._memory = memory
        self._tensors: dict[_Place, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        """Find what was left out."""
        if pid not in self._tensors:
            tensor = _tensor_at(self._memory, _Place(*pid))
            # A small one need not keep the others; nor does torch.Generator.set_state look where in its memory it lies.
            self._tensors[pid] = tensor.clone() if tensor.nbytes <= _INLINE_BYTES else tensor
        return self._tensors[pid]


def _shared(fd: int, num_bytes: int) -> UntypedStorage:
    """The memory of a file; the descriptor may be closed."""
    return torch.from_file(f"/proc/self/fd/{fd}", shared=True, size=num_bytes, dtype=torch.uint8).untyped_storage()


def _own(data: bytearray) -> UntypedStorage:
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else UntypedStorage(0)


def _tensor_at(memory: UntypedStorage, place: _Place) -> Tensor:
    """A tensor that lies in this memory, and keeps it."""
    tensor = torch.empty(0, dtype=place.dtype, device="cpu")
    return tensor.set_(memory, place.offset // tensor.element_size(), place.shape, place.stride)
