"""Range tests in a process of their own, so that their first call is timed with all that it loads.

`first_call` starts such a process; started, this file trains once and prints the seconds from before the finder is
imported to the end. Python's own start and the import of torch are not in them.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from peers import FINDERS


def first_call(finder: str, folder: Path, *, here: bool = False, **environment: str) -> float:
    """Run a finder over the `batches.pt` and `lrs.npy` of a folder in a new process; keep its losses there.

    Args:
        finder: one of FINDERS.
        folder: where the data lie.
        here: whether to do without a new process, which is quicker where only its working is looked at.
        **environment: variables of the new process.

    Returns:
        The seconds that it took.
    """
    if here:
        return _call(finder, folder)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, finder, str(folder), str(torch.get_num_threads())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return float(done.stdout.splitlines()[-1])


def _call(finder: str, folder: Path) -> float:
    batches, lrs = torch.load(folder / "batches.pt"), np.load(folder / "lrs.npy")
    num_steps = int(np.load(folder / "num_steps.npy"))
    started = time.perf_counter()
    losses = FINDERS[finder](batches)(lrs, num_steps)
    seconds = time.perf_counter() - started
    np.save(folder / f"{finder}.npy", losses)
    return seconds


def _main(finder: str, folder: Path, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    print(_call(finder, folder))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
