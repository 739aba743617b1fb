"""Whether other work keeps the cores busy, so that threads that spin while they wait for each other cost much.

On two cores with a load of 7.6 the steps of a range test took 12 to 17 s in place of 0.4 to 0.7.
"""

import os

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def find_load(share: float = 1.0) -> str | None:
    """Say how busy the cores are; None where they are free, there is one, or the user has said how threads wait.

    Args:
        share: of the cores, from which load on they are busy; a program itself may have kept all of them so until now.
    """
    is_chosen = os.environ.get("OMP_NUM_THREADS") == "1" or any(name in os.environ for name in _SETTINGS)
    if is_chosen or not hasattr(os, "getloadavg"):
        return None
    load, num = os.getloadavg()[0], num_cores()
    return f"{num} cores with a load of {load:.1f}" if num > 1 and load >= share * num else None


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
