"""Worker processes of loaders that raise, die or hang: what was trained is kept, and no process is left."""

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, _utils

import vecsweep as vs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forked workers, read off /proc"),
    # Of multiprocessing, which asks a worker for a tensor's memory: open if the worker dies before it has answered.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

AT = 330  # the sample at which something happens
HANG_S = 60.0


def children():
    return {path for task in Path("/proc/self/task").iterdir() for path in (task / "children").read_text().split()}


def num_open():
    """How many files are open, but for what PyTorch's look for the limit of open files leaves.

    It opens temporary ones, and its handler for workers that die may raise in the midst of that.
    """
    files = list(map(Path.readlink, filter(Path.is_symlink, Path("/proc/self/fd").iterdir())))
    return sum(not str(file).startswith(f"{tempfile.gettempdir()}/tmp") for file in files)


def found():
    """The processes, threads and descriptors that are there."""
    gc.collect()
    return children(), threading.active_count(), num_open()


def is_more(before):
    """Whether there is something that was not there before; what others left may end meanwhile."""
    of_now, num_threads, num_files = found()
    return bool(of_now - before[0]) or num_threads > before[1] or num_files > before[2]


@pytest.fixture(autouse=True)
def nothing_left():
    """That nothing is there afterwards which was not there before, once queues have closed."""
    handler, before, num_looks = signal.signal(signal.SIGINT, signal.default_int_handler), found(), 0
    yield
    signal.signal(signal.SIGINT, handler)
    while is_more(before) and num_looks < 50:
        num_looks += 1
        time.sleep(0.1)
    assert not is_more(before), (found(), before)


class Samples(Dataset):
    def __init__(self, how=None):
        self.how = how

    def __len__(self):
        return 400

    def __getitem__(self, i):
        if i == AT and self.how is not None:
            self.how()
        return torch.full((6,), i / 400), i % 3


def make_task(batches, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return vs.Task(model, batches, F.cross_entropy, optimizer=optimizer, **options)


RUN = {"lrs": [0.01, 0.1], "engine": "vectorized", "compile": False}


def whole(num_steps):
    return vs.sweep(make_task(DataLoader(Samples(), 8)), **RUN, num_steps=num_steps).train_loss


def assert_kept(stopped):
    """That a partial result has what a whole one has, and its weights."""
    assert 16 <= len(stopped.train_loss) < 60
    np.testing.assert_array_equal(stopped.train_loss, whole(60)[: len(stopped.train_loss)])
    stopped.model(1)


def die():
    os._exit(3)


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise LookupError(f"sample {AT} is missing")


IS_HANGING = multiprocessing.get_context("fork").Event() if hasattr(os, "fork") else None


def hang():
    """Heed neither the loader nor Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    IS_HANGING.set()
    time.sleep(HANG_S)


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        (fail, LookupError, f"sample {AT}"),
        (die, RuntimeError, r"DataLoader worker \(pid.* \d+\) exited unexpectedly"),
        (be_killed, RuntimeError, r"DataLoader worker \(pid.* \d+\) (is killed by signal|exited unexpectedly)"),
    ],
)
def test_worker_that_fails_dies_or_is_killed_keeps_what_was_trained(how, error, said):
    with pytest.raises(error, match=said) as caught:
        vs.sweep(make_task(DataLoader(Samples(how), 8, num_workers=1)), **RUN, num_steps=60)
    assert_kept(caught.value.result)


@pytest.mark.parametrize("how", [fail, die])
def test_worker_of_the_validation_set_that_fails_keeps_what_was_trained(how):
    task = make_task(DataLoader(Samples(), 8), val_batches=DataLoader(Samples(), 8, num_workers=1))
    runs = vs.sweep(task, **RUN, num_steps=40, val_every=20)
    failing = make_task(DataLoader(Samples(), 8), val_batches=DataLoader(Samples(how), 8, num_workers=1))
    with pytest.raises((LookupError, RuntimeError), match=f"sample {AT}|DataLoader worker") as caught:
        vs.sweep(failing, **RUN, num_steps=40, val_every=20)
    np.testing.assert_array_equal(caught.value.result.train_loss, runs.train_loss[:20])
    caught.value.result.model(0)


def test_worker_that_hangs_and_comes_back_is_waited_for():
    task = make_task(DataLoader(Samples(lambda: time.sleep(1.0)), 8, num_workers=1))
    np.testing.assert_array_equal(vs.sweep(task, **RUN, num_steps=60).train_loss, whole(60))


def test_worker_that_hangs_for_longer_than_the_loader_waits_keeps_what_was_trained():
    task = make_task(DataLoader(Samples(hang), 8, num_workers=1, timeout=1))
    with pytest.raises(RuntimeError, match="DataLoader timed out after 1") as caught:
        vs.sweep(task, **RUN, num_steps=60)
    assert_kept(caught.value.result)


@pytest.mark.parametrize("where", ["training", "validation", "first batch", "check"])
def test_ctrl_c_ends_the_run_while_a_worker_hangs(where, monkeypatch):
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", HANG_S)  # how long PyTorch itself waits for a worker
    hanging, plain = DataLoader(Samples(hang), 8, num_workers=1), DataLoader(Samples(), 8)
    if where == "first batch":
        hanging = DataLoader(Samples(hang), 8, num_workers=1, sampler=range(AT, 400))
    task = make_task(plain, val_batches=hanging) if where == "validation" else make_task(hanging)
    call = vs.check if where == "check" else partial(vs.sweep, **RUN, val_every=20 if where == "validation" else None)
    pressed = []

    def press():
        IS_HANGING.wait(HANG_S)
        time.sleep(0.3)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    IS_HANGING.clear()
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(vs.Interrupted) as caught:
        call(task, num_steps=60)
    assert time.monotonic() - pressed[0] < HANG_S / 2
    thread.join()
    if where == "training":
        assert_kept(caught.value.result)
