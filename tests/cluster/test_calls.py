"""Calls from their start to their end: what they take, start and connect to, and what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
from clusters import LRS, assert_same, gated, halting, in_background, is_alive, make_task, telling, wait_for

import vecsweep as vs
from vecsweep.cluster import session
from vecsweep.execution import Cluster, Execution

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


def test_answer_is_that_of_one_device_and_takes_the_ray_that_is_there_and_two_workers_for_all_its_runs(nodes, tmp_path):
    task = make_task(telling(tmp_path))
    expected = vs.find_lr(task, num_steps=32, budget=2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(nodes.address, log_to_driver=False)
    try:
        answer = vs.find_lr(task, num_steps=32, budget=2.5, cluster="auto")
        assert ray.is_initialized()
        pids = {int(path.name) for path in tmp_path.iterdir()} - {os.getpid()}
        assert len(pids) == 2
        wait_for(lambda: not any(map(is_alive, pids)), "workers are left")
    finally:
        ray.shutdown()
    assert (answer.lr, *answer.interval) == pytest.approx((expected.lr, *expected.interval))
    assert answer.cost == pytest.approx(expected.cost)


def test_runs_of_a_call_share_one_connection(monkeypatch):
    is_there, told = [False], []
    monkeypatch.setattr(ray, "is_initialized", lambda: is_there[0])
    monkeypatch.setattr(session, "Session", lambda cluster, num_members, shared: told.append(num_members))

    def start(cluster):
        told.append("start")
        is_there[0] = True

    def stop():
        told.append("stop")
        is_there[0] = False

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setattr(ray, "shutdown", stop)
    with session.connected_once():
        for num_members in (1, 2):
            with session.connected(Cluster(), num_members):
                pass
    with session.connected(Cluster(), 3):
        pass
    assert told == ["start", 1, 2, "stop", "start", 3, "stop"]


def test_devices_of_this_machine_are_a_worker_each_and_nothing_is_left_of_ray(device, tmp_path):
    num = 3 if device == "cpu" else torch.cuda.device_count()
    if num < 2:
        pytest.skip("there is one GPU alone")
    devices = ["cpu"] * num if device == "cpu" else [f"cuda:{k}" for k in range(num)]

    def batches(data):
        def read(seed):
            from ray.util import get_node_ip_address

            (tmp_path / f"{os.getpid()}").write_text(get_node_ip_address())
            return data

        return read

    task = make_task(batches, val_batches=None)
    runs = vs.sweep(task, lrs=np.geomspace(1e-3, 0.3, num + 1), num_steps=7, device=devices)
    assert f"{num + 1} members in {num} shards on {num} workers" in runs.engine
    stock.assert_equal(runs, make_task(), 7)
    assert not ray.is_initialized()
    addresses = {path.read_text() for path in tmp_path.iterdir()}
    assert addresses == {"127.0.0.1"}
    wait_for(lambda: not any(is_alive(int(path.name)) for path in tmp_path.iterdir()), "workers are left")


def test_ctrl_c_keeps_what_was_trained_and_leaves_no_worker(nodes, tmp_path):
    readers, go = tmp_path / "readers", tmp_path / "go"
    readers.mkdir()

    def interrupt():
        try:
            wait_for(lambda: len(list(readers.iterdir())) == 2, "two workers begin")
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        finally:
            go.touch()

    task = make_task(gated(readers, go, at=40), val_batches=None)
    join = in_background(interrupt)
    with pytest.raises(vs.Interrupted, match="interrupted") as interruption:
        vs.sweep(task, lrs=LRS, num_steps=200_000, cluster=nodes.address, engine="vectorized", compile=False)
    join()
    runs = interruption.value.result
    assert not runs.is_complete
    num_steps = len(runs.train_loss)
    assert 16 <= num_steps < 200_000
    expected = vs.sweep(make_task(), lrs=LRS, num_steps=num_steps).train_loss
    is_done = ~np.isnan(runs.train_loss)
    has_begun = is_done.any(axis=0)
    assert has_begun.sum() >= 2
    assert is_done[:16, has_begun].all()
    np.testing.assert_allclose(runs.train_loss[is_done], expected[is_done], rtol=1e-9)
    assert not np.isnan(runs.lr).any()
    wait_for(lambda: not any(is_alive(int(path.name)) for path in readers.iterdir()), "workers are left")


PRUNED = {"lrs": LRS, "seeds": 2, "num_steps": 64, "val_every": 4, "prune": "halving", "divergence_factor": None}

DRIVER = """
import sys, pathlib
sys.path.insert(0, {tests!r})
import clusters
from ray import cloudpickle
import vecsweep as vs
cloudpickle.register_pickle_by_value(clusters)
folder, address = pathlib.Path(sys.argv[1]), sys.argv[2]
task = clusters.make_task(clusters.halting(folder / "readers", folder / "go", at=int(sys.argv[3]), pause_s=1.0))
vs.sweep(task, cluster=address, checkpoint=folder / "run", checkpoint_every="1 steps", **{how!r})
"""


def is_past(rung, folder):
    """Whether a run has decided a rung, and one of its workers at least has come to the batch where it waits."""
    path = folder / "run" / "run-000" / "shards.json"
    return path.exists() and rung in json.loads(path.read_text())["kept"] and any((folder / "readers").iterdir())


def test_drivers_that_are_told_to_leave_or_killed_are_gone_on_with(nodes, tmp_path):
    readers, go = tmp_path / "readers", tmp_path / "go"
    script = DRIVER.format(tests=str(Path(__file__).parents[1]), how=PRUNED)
    for order, at, rung, status in ((signal.SIGTERM, 12, "8", 128 + 15), (signal.SIGKILL, 24, "16", -9)):
        readers.mkdir()
        words = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path), nodes.address, str(at)]
        with subprocess.Popen(words) as process:
            try:
                # Members are dealt out by speed, as it is measured: one worker may have all that go on.
                wait_for(partial(is_past, rung, tmp_path), f"a worker is past step {rung}")
                process.send_signal(order)
                if order == signal.SIGTERM:
                    go.touch()
                assert process.wait(300) == status
            finally:
                process.kill()
                go.touch()
        wait_for(lambda: not any(is_alive(int(path.name)) for path in readers.iterdir()), "workers are left")
        readers.rename(tmp_path / f"readers-{at}")
        go.unlink()
    dealt = json.loads((tmp_path / "run" / "run-000" / "shards.json").read_text())
    assert set(dealt["kept"]) == {"8", "16"}, "what was decided is not asked for again"
    go.touch()
    task = make_task(halting(tmp_path, go, at=63))
    runs = vs.resume(tmp_path / "run", task)
    assert_same(runs, vs.sweep(task, **PRUNED))
    assert {member.stopped_at for member in runs.members} == {8, 16, None}


def test_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"^`cluster` needs Ray\. Run: pip install 'vecsweep\[cluster\]'$"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=1, cluster="auto")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://localhost:1"])
def test_address_where_nothing_answers_is_told_at_once(address, monkeypatch):
    monkeypatch.setattr(ray, "init", None)  # which would be called, and try again and again
    with pytest.raises(ConnectionError, match=f"nothing answered at '{address}'.*`ray start --head`"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=1, cluster=address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": 3}, r"`cluster` must be \"auto\", the address of a cluster"),
        ({"cluster": "auto", "device": "cuda:1"}, r"'cuda' or 'cpu' where `cluster` is given.*got 'cuda:1'"),
        ({"cluster": "auto", "device": ["cpu", "cpu"]}, r"must not be a list where `cluster` is given"),
        ({"device": ["cpu", "cuda:0"]}, r"different GPUs by their numbers.*got \['cpu', 'cuda:0'\]"),
        ({"device": ["cuda:0", "cuda:0"]}, r"different GPUs by their numbers"),
        ({"device": []}, r"at least one device; got an empty list"),
        ({"device": ["cpu", "gpu"]}, r"one that PyTorch knows.*got 'gpu'"),
    ],
)
def test_devices_that_make_no_cluster_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Execution.of(options)


def test_list_of_one_device_is_that_device():
    assert Execution.of({"device": ["cpu"]}) == Execution.of({"device": "cpu"})


def test_kind_of_device_goes_to_the_cluster():
    assert Execution.of({"cluster": "head:6379", "device": "cuda"}).cluster == Cluster(address="head:6379", kind="cuda")
