"""Memory: how what is freed is kept in the process, on a CPU; how much there is stands in `room.py`.

The command line keeps it for as long as it runs, the library for as long as a run lasts.

torch's CPU allocator does not cache. glibc gives large blocks back to the system as soon as they are freed, so that in
each step of a wide ensemble its activations and gradients would be mapped, zeroed and faulted in again. Importing the
library changes no setting, and where somebody has set the allocator up, or says VECSWEEP_KEEP_MEMORY=0, no run does.
"""

import ctypes
import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MMAP_THRESHOLD_BYTES = 2**30  # a larger block, such as a whole data set, is still given back
_NEVER = 2**31 - 1
# What glibc raises its thresholds to by itself as large blocks are freed, until somebody sets one.
_OWN_MMAP_BYTES, _OWN_TRIM_BYTES = 2**25, 2**26
_APART_BYTES = 2**16  # from which on a block is large: what Python allocates besides tensors is smaller
_SHORT_BYTES = 2**20  # from which on blocks are given back where memory has run out
_LONG_RUN_S = 1.0  # from which on what a run leaves is given back at once, which takes a while, too
# What else PyTorch says in a RuntimeError, of the CPU's allocator, of CUDA, cuBLAS and cuDNN.
_NO_MEMORY = (
    *("DefaultCPUAllocator", "CUDA error: out of memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"),
)
# What sets an allocator from outside: glibc's two ways, another library in its place, and torch's own on a GPU.
_VARIABLES = (
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"),
    *("LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)

_is_kept = False
_thresholds: tuple[int, int] | None = None  # as they were set last; None where they are glibc's own


def keep_memory() -> bool:
    """Raise glibc's thresholds for this process; say whether that could be done.

    Reference:
        mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    global _is_kept
    if (libc := _glibc()) is not None:
        _is_kept = _set(libc, _MMAP_THRESHOLD_BYTES, _NEVER)
    return _is_kept


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory for a while, unless the allocator has been set up otherwise; give it back in the end."""
    libc = _glibc()
    if libc is None or _is_kept or _is_set_up():
        yield
        return
    started = time.perf_counter()
    _set(libc, _MMAP_THRESHOLD_BYTES, _NEVER)
    try:
        yield
    finally:
        _set(libc, _OWN_MMAP_BYTES, _OWN_TRIM_BYTES)
        _forget_thresholds()
        if time.perf_counter() - started > _LONG_RUN_S:
            libc.malloc_trim(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Give each large block pages of its own for a while, which go back as it is freed, where memory is kept.

    For steps that come once. What tracing one allocates besides tensors would come to lie where tensors were, and leave
    what is kept in pieces that fit none: such a step took several times the memory of all its tensors.
    """
    libc, before = _glibc(), _thresholds
    if libc is None or before is None:
        yield
        return
    if not _is_kept:
        libc.malloc_trim(0)
    _set(libc, _APART_BYTES, _NEVER)
    try:
        yield
    finally:
        if _thresholds == (_APART_BYTES, _NEVER):  # else memory has run out meanwhile
            _set(libc, *before)


def make_room() -> None:
    """Give what is free back to the system, at once and from now on: what is kept in pieces fits nothing larger."""
    libc = _glibc()
    if libc is not None and not _is_set_up():
        _set(libc, _SHORT_BYTES, _SHORT_BYTES)
        libc.malloc_trim(0)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # blocks of another size than will be asked for next


def _is_set_up() -> bool:
    """Whether somebody else has said how memory is handed out."""
    return any(map(os.environ.get, _VARIABLES)) or os.environ.get("VECSWEEP_KEEP_MEMORY") == "0"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine lacks memory; not only PyTorch's own allocator for GPUs finds none."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _glibc() -> Any:
    """The C library, if it has the functions that are needed."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _set(libc: Any, mmap_bytes: int, trim_bytes: int) -> bool:
    """Set both thresholds; an older glibc may refuse the first when it is large."""
    global _thresholds
    _thresholds = (mmap_bytes, trim_bytes)
    is_mmap_set = libc.mallopt(_M_MMAP_THRESHOLD, mmap_bytes)
    is_trim_set = libc.mallopt(_M_TRIM_THRESHOLD, trim_bytes)
    return bool(is_mmap_set and is_trim_set)


def _forget_thresholds() -> None:
    global _thresholds
    _thresholds = None


def allocator_setting() -> tuple[str | bool | None, ...]:
    """How memory is handed out in this process, on which depends which way of stepping is fastest."""
    return (_is_kept, *map(os.environ.get, _VARIABLES))


def let_go_of(failure: Exception) -> None:
    """Free the tensors in the frames that an error and what led to it have gone through; their lines stay known."""
    error: BaseException | None = failure
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    make_room()
