"""Busy cores: what can be done about them before PyTorch is imported, and not after."""

import os
import sys

from vecsweep._cores import find_load
from vecsweep.cli.waiting import tell


def spare_busy_cores() -> None:
    """Let PyTorch's threads sleep while they wait for each other, if other work keeps the cores busy, and say so."""
    if "torch" not in sys.modules and (load := find_load()) is not None:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        tell(f"{load}: threads sleep while they wait (OMP_WAIT_POLICY=PASSIVE) ...")
