"""Clusters for tests: nodes that are processes of this machine, a small task, and batches that kill or wait."""

import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vecsweep as vs

STORE = 80 * 2**20  # bytes of each node's object store, the least that Ray takes
LRS = [0.01, 0.03, 0.1, 0.2]


@contextmanager
def two_nodes():
    """A cluster of two nodes with a core each."""
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        yield cluster
        cluster.shutdown()


def make_task(batches=None, *, dropout=0.0, **how):
    """A small regression in float64, the optimizer as `stock` wants it."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 1)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(draw(*parameter.shape))
    data = [(draw(8, 4), draw(8, 1)) for _ in range(5)]
    optimizer = lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)  # noqa: E731
    how = {"loss_fn": nn.functional.mse_loss, "optimizer": optimizer, "val_batches": data[:2]} | how
    return vs.Task(model, data if batches is None else batches(data), **how)


def assert_same(runs, expected, rtol=1e-9):
    """Hold a sweep against another."""
    assert runs.members == expected.members
    for name in ("train_loss", "lr", "evaluated_at"):
        np.testing.assert_allclose(getattr(runs, name), getattr(expected, name), rtol=rtol, err_msg=name)
    assert runs.metrics.keys() == expected.metrics.keys()
    for name, values in expected.metrics.items():
        np.testing.assert_allclose(runs.metrics[name], values, rtol=rtol, err_msg=name)


def wait_for(condition, what):
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def killed_once(folder, *, at, seed=None, times=1):
    """Batches whose reading kills the process, the first times that a batch is come to."""

    def batches(data):
        def read(own):
            for k, batch in enumerate(data):
                deaths = list(folder.iterdir())
                if k == at and len(deaths) < times and seed in (None, own):
                    (folder / str(len(deaths))).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        return read

    return batches


def telling(folder):
    """Batches that say which process reads them."""

    def batches(data):
        def read(seed):
            (folder / f"{os.getpid()}").touch()
            return data

        return read

    return batches


def halting(folder, go, *, at, pause_s=0.0):
    """64 batches of an epoch, that say who reads one of them, wait there until there is a file, and pause at others."""

    def batches(data):
        def read(seed):
            for k in range(64):
                if k == at:
                    (folder / f"{os.getpid()}").touch()
                    while not go.exists():
                        time.sleep(0.05)
                if k > at:
                    time.sleep(pause_s)
                yield data[k % len(data)]

        return read

    return batches


def gated(folder, go, *, at=10):
    """Batches that say who reads them, and wait at one until there is a file: after the 7 that a worker is timed with.

    Nobody must have to count them.
    """

    def batches(data):
        num_read = 0

        def read(seed):
            nonlocal num_read
            for batch in data:
                if num_read == at:
                    (folder / f"{os.getpid()}").touch()
                    while not go.exists():
                        time.sleep(0.05)
                num_read += 1
                yield batch

        return read

    return batches


def in_background(function):
    """Run a function in a thread; what it returns waits for it, and raises what it raised."""
    errors = []

    def run():
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        if errors:
            raise errors[0]

    return join
