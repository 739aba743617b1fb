"""Files are whole, or what they were before, whatever ends their writing; nothing else is left beside them."""

import csv
import os
import resource
import signal
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kept_runs import BATCHES, fork, make_task, mlp
from safetensors.torch import load_file

import vecsweep as vs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits of files")

FULL_BYTES = 500  # of a file, as on a disk that has no more


@pytest.fixture(scope="module")
def runs():
    return vs.sweep(make_task(), lrs=np.geomspace(0.01, 0.1, 8), num_steps=60)


WRITERS = {
    "result.npz": lambda runs, path: runs.save(path),
    "folder": lambda runs, path: runs.save(path),
    "all.csv": lambda runs, path: runs.to_csv(path),
    "all.parquet": lambda runs, path: runs.to_parquet(path),
    "page.html": lambda runs, path: runs.to_html(path),
    "model.safetensors": lambda runs, path: runs.save_model(0, path),
}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_whole(path, runs):
    """Whether a file holds all that was written to it."""
    if path.suffix == ".safetensors":
        weights, expected = load_file(path), runs.model(0).state_dict()
        return all(torch.equal(weights[name], value) for name, value in expected.items())
    if path.suffix in ("", ".npz"):
        return np.array_equal(vs.load(path).train_loss, runs.train_loss)
    return path.read_bytes() == contents(path.parent / "before")[Path(path.name)]


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_is_an_error_and_leaves_what_was_there(name, runs, tmp_path):
    WRITERS[name](runs, tmp_path / name)
    before = contents(tmp_path)

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
        with pytest.raises(OSError, match=r"too large|cannot|could not"):
            WRITERS[name](runs, tmp_path / name)

    assert os.waitpid(fork(write), 0)[1] == 0
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", WRITERS)
def test_process_that_is_killed_as_it_writes_leaves_a_whole_file(name, runs, tmp_path):
    (tmp_path / "before").mkdir()
    WRITERS[name](runs, tmp_path / "before" / name)
    WRITERS[name](runs, tmp_path / name)
    random = np.random.default_rng(0)

    def write_for_ever():
        while True:
            WRITERS[name](runs, tmp_path / name)

    for _ in range(5):
        child = fork(write_for_ever)
        time.sleep(random.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if name == "folder" and not (tmp_path / name).exists():  # killed between two names
            continue
        assert is_whole(tmp_path / name, runs)


def test_boards_of_a_process_that_is_killed_hold_what_was_written_and_can_be_written_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def losses():
        found = {}
        for file in tmp_path.rglob("events.*"):
            events = EventAccumulator(str(file.parent)).Reload()
            if "train_loss" in events.Tags()["scalars"]:
                found[file.parent.name] = [event.value for event in events.Scalars("train_loss")]
        return found

    options = {"lrs": [0.01, 0.1], "num_steps": 64, "val_every": 8, "compile": False}
    whole = vs.sweep(make_task(), **options).train_loss.T.astype(np.float32)
    for delay_s in (0.2, 0.3):
        child = fork(lambda: vs.sweep(make_task(), **options | {"num_steps": 10**6}, tensorboard=tmp_path))
        until_s = time.monotonic() + 60
        while not list(tmp_path.rglob("events.*")) and time.monotonic() < until_s:
            time.sleep(0.01)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        losses()  # reads without an error
    vs.sweep(make_task(), **options, tensorboard=tmp_path)
    for found, expected in zip(sorted(losses().items()), whole, strict=True):
        np.testing.assert_array_equal(found[1], expected)


def test_csv_is_written_as_it_comes_and_not_made_in_memory_first(tmp_path):
    torch.manual_seed(0)
    model = mlp()
    task = vs.Task(model, BATCHES, F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    short = vs.sweep(task, lrs=np.geomspace(1e-4, 1e-2, 32), num_steps=500, compile=False)
    tracemalloc.start()
    try:
        short.to_csv(tmp_path / "all.csv")
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 0.5e6 < (tmp_path / "all.csv").stat().st_size
    with (tmp_path / "all.csv").open() as file:
        assert sum(1 for _ in csv.reader(file)) >= 32 * 500
