"""What sweeps leave behind in their process, however they end: nothing. `make soak` has 500 of them."""

import gc
import linecache
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kept_runs import INPUTS, TARGETS, mlp
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep._engine.graphs import lowering

NUM_SWEEPS = int(os.environ.get("VECSWEEP_SOAK_SWEEPS", "14"))
MOST_MB = 16.0  # that the memory of a process varies by

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="read off /proc")


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own handler of Ctrl-C, which what runs in the background may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def loader(**options):
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=12, shuffle=True, **options)


def sweep(batches=None, num_steps=32, **options):
    torch.manual_seed(0)
    model = mlp()
    task = vs.Task(
        model,
        loader() if batches is None else batches,
        F.cross_entropy,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        val_batches=[(INPUTS, TARGETS)],
    )
    return vs.sweep(task, lrs=[0.01, 0.1], num_steps=num_steps, progress=False, compile=False, **options)


def sweep_in_processes():
    """With two threads, as that takes; all else has one, because on busy cores two wait for each other."""
    torch.set_num_threads(2)
    try:
        return sweep(engine="parallel")
    finally:
        torch.set_num_threads(1)


def breaking(what):
    """Batches that end in something else, after a while."""
    for k in range(100):
        if k == 20:
            what()
        yield INPUTS[:8], TARGETS[:8]


def fail():
    raise OSError("the disk is gone")


def press():
    os.kill(os.getpid(), signal.SIGINT)


WAYS = {
    "to their end": lambda folder: sweep(),
    "one member after another": lambda folder: sweep(engine="sequential"),
    "in processes": lambda folder: sweep_in_processes(),
    "with a loader's workers": lambda folder: sweep(loader(num_workers=1), num_steps=8),
    "with an error": lambda folder: sweep(lambda: breaking(fail)),
    "with Ctrl-C": lambda folder: sweep(lambda: breaking(press)),
    "with a checkpoint": lambda folder: sweep(checkpoint=folder, checkpoint_every="8 steps", restart=True),
}


def found():
    """What the process has: memory in MB, descriptors, threads, children."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tasks = list(Path("/proc/self/task").iterdir())
    return {
        "MB": pages * os.sysconf("SC_PAGESIZE") / 1e6,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - their number alone
        "threads": len(tasks),
        "children": sum(len((task / "children").read_text().split()) for task in tasks),
    }


def test_sweeps_leave_no_memory_descriptors_threads_or_processes(tmp_path):
    def run(num):
        for k in range(num):
            with suppress(OSError, vs.Interrupted):
                list(WAYS.values())[k % len(WAYS)](tmp_path / "kept")

    run(len(WAYS))
    before = found()
    run(NUM_SWEEPS)
    after = found()
    sys.stdout.write(f"{NUM_SWEEPS} sweeps: {before} before, {after} after\n")
    assert after["MB"] - before.pop("MB") < MOST_MB
    assert {name: after[name] for name in before} == before


def test_text_of_a_traced_step_is_gone_with_it():
    def texts():
        gc.collect()
        return [name for name in linecache.cache if name.startswith("<eval_with_key>")]

    lowering._KEPT.clear()
    before = texts()
    sweep()
    assert len(texts()) > len(before), "that of the last ones is kept with them"
    lowering._KEPT.clear()
    assert texts() == before
