"""Keep freed memory in the process, for the command line alone: importing the library changes no setting.

torch's CPU allocator does not cache. glibc gives large blocks back to the system as soon as they are freed, so that in
each step of a wide ensemble its activations and gradients would be mapped, zeroed and faulted in again. Programs that
use the library set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment to the same effect.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MMAP_THRESHOLD_BYTES = 2**30  # a larger block, such as a whole data set, is still given back
_NEVER = 2**31 - 1
# What sets an allocator from outside: glibc's two ways, another library in its place, and torch's own on a GPU.
_VARIABLES = (
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"),
    *("LD_PRELOAD", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
)

_is_kept = False


def keep_memory() -> bool:
    """Raise glibc's thresholds for this process; say whether that could be done.

    Reference:
        mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library than glibc
        return False
    global _is_kept
    is_mmap_set = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)  # an older glibc may refuse so much
    is_trim_set = mallopt(_M_TRIM_THRESHOLD, _NEVER)
    _is_kept = bool(is_mmap_set and is_trim_set)
    return _is_kept


def allocator_setting() -> tuple[str | bool | None, ...]:
    """How memory is handed out in this process, on which depends which way of stepping is fastest."""
    return (_is_kept, *map(os.environ.get, _VARIABLES))
