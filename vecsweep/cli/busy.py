"""Busy cores: what can be done about them before PyTorch is imported, and not after."""

import os
import sys

from vecsweep.cli.waiting import tell

_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def spare_busy_cores() -> None:
    """Let PyTorch's threads sleep while they wait for each other, if other work keeps the cores busy, and say so.

    By themselves they spin. On two cores with a load of 7.6 the steps of a range test took 12 to 17 s in place of 0.4
    to 0.7. Nothing is changed where cores are free, where there is one thread, or where the user has chosen.
    """
    is_chosen = os.environ.get("OMP_NUM_THREADS") == "1" or any(name in os.environ for name in _SETTINGS)
    if "torch" in sys.modules or is_chosen or not hasattr(os, "getloadavg"):
        return
    load, num_cores = os.getloadavg()[0], _num_cores()
    if num_cores > 1 and load >= num_cores:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        tell(
            f"{num_cores} cores with a load of {load:.1f}: threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE) ..."
        )


def _num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
