"""Keep freed memory in the process, for the command line alone: importing the library changes no setting.

torch's CPU allocator does not cache. glibc gives large blocks back to the system as soon as they are freed, so that in
each step of a wide ensemble its activations and gradients would be mapped, zeroed and faulted in again. Programs that
use the library set MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ in the environment to the same effect.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MMAP_THRESHOLD_BYTES = 2**30  # a larger block, such as a whole data set, is still given back
_NEVER = 2**31 - 1


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
    is_mmap_set = mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)  # an older glibc may refuse so much
    is_trim_set = mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(is_mmap_set and is_trim_set)
