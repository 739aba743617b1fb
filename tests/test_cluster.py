"""The same call on a cluster: the same numbers, whoever dies meanwhile. Its nodes are processes on this machine."""

import os
import re
import signal
import sys
import threading
import time
import warnings

import clusters
import numpy as np
import pytest
import stock
import torch
from clusters import (
    LRS,
    STORE,
    assert_same,
    gated,
    in_background,
    is_alive,
    killed_once,
    make_task,
    two_nodes,
    wait_for,
)

import vecsweep as vs
from vecsweep._errors import LostMembersWarning
from vecsweep.cluster import driver, session
from vecsweep.execution import Cluster, Execution

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

from ray import cloudpickle  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own
for module in (sys.modules[__name__], clusters):  # workers do not have the folder of the tests
    cloudpickle.register_pickle_by_value(module)


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as cluster:
        yield cluster


@pytest.fixture
def third(nodes):
    """What adds a third node, and removes it; it is gone after the test."""
    added = []

    def add():
        added.append(nodes.add_node(num_cpus=1, object_store_memory=STORE))

    def remove():
        nodes.remove_node(added.pop(), allow_graceful=False)

    yield add, remove
    while added:
        remove()


# Equal to one device


def test_members_equal_ordinary_loops_whatever_the_worker_that_trains_them(nodes):
    task = make_task(dropout=0.2)
    runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=12, cluster=nodes.address)
    stock.assert_equal(runs, task, 12)
    assert re.match(r"cluster, 8 members in \d shards on 2 workers; the largest: vectorized", runs.engine)


@pytest.fixture(scope="module")
def pairs(nodes):
    """Sweeps with a schedule that follows a metric and with early stopping: on a cluster, and on one device."""
    plateau = vs.schedules.from_torch(
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    )
    how = {
        "lrs": [*LRS, 0.9],
        "schedules": {"plateau": plateau, "cosine": vs.schedules.cosine(1, 0)},
        "seeds": 2,
        "epochs": 6,
        "patience": 3,
        "divergence_factor": 2.0,
    }
    task = make_task(dropout=0.1)
    return vs.sweep(task, cluster=nodes.address, **how), vs.sweep(task, **how)


def test_plateau_patience_and_divergence_are_those_of_one_device(pairs):
    runs, expected = pairs
    assert_same(runs, expected)
    assert np.ptp(expected.lr[:, 0]) > 0
    assert any(member.stopped_at is not None for member in expected.members)
    assert any(member.stopped_at is None and member.diverged_at is None for member in expected.members)


def test_weights_come_back(pairs):
    runs, expected = pairs
    for i in (0, 7, 19):
        for own, other in zip(runs.model(i).parameters(), expected.model(i).parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


def test_sweep_is_extended_and_branched_as_on_one_device(pairs):
    runs, expected = pairs
    assert_same(runs.extend(epochs=2), expected.extend(epochs=2))
    best = expected.best("val_loss")
    how = {"lrs": [0.01, 0.02], "num_steps": 5}
    assert_same(runs.branch(best, **how), expected.branch(best, **how))


def test_range_test_is_that_of_one_device(nodes):
    how = {"num_lrs": 6, "num_steps": 9, "seeds": 2, "evaluate": True}
    found, expected = vs.range_test(make_task(), cluster=nodes.address, **how), vs.range_test(make_task(), **how)
    assert_same(found, expected)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)


def test_members_of_all_shards_are_compared_at_rungs(nodes):
    how = {"lrs": LRS, "seeds": 2, "epochs": 8, "prune": "halving"}
    expected = vs.sweep(make_task(), **how)
    assert_same(vs.sweep(make_task(), cluster=nodes.address, **how), expected)
    assert {member.stopped_at for member in expected.members} == {5, 10, None}


def test_answer_is_that_of_one_device_and_takes_the_ray_that_is_there(nodes):
    expected = vs.find_lr(make_task(), num_steps=32, budget=2.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(nodes.address, log_to_driver=False)
    try:
        answer = vs.find_lr(make_task(), num_steps=32, budget=2.5, cluster="auto")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert (answer.lr, *answer.interval) == pytest.approx((expected.lr, *expected.interval))
    assert answer.cost == pytest.approx(expected.cost)


def test_runs_of_a_call_share_one_connection(monkeypatch):
    is_there, told = [False], []
    monkeypatch.setattr(ray, "is_initialized", lambda: is_there[0])
    monkeypatch.setattr(session, "Session", lambda cluster, num_members: told.append(num_members))

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
    num = 8 if device == "cpu" else torch.cuda.device_count()
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


# Workers that die


class Watching(vs.observers.Observer):
    """Counts the losses that were told, of all members."""

    num_told = 0

    def losses(self, step, loss, hyper):
        self.num_told += int((~np.isnan(loss)).sum())


def test_members_of_a_killed_worker_begin_anew_and_watchers_see_no_step_twice(nodes, tmp_path, capsys):
    deaths, here, there = (tmp_path / name for name in ("deaths", "here", "there"))
    deaths.mkdir()
    how = {"lrs": LRS, "epochs": 3, "seeds": 2}
    expected = vs.sweep(make_task(), tensorboard=here, **how)
    task = make_task(killed_once(deaths, at=4, seed=1))
    watching = Watching()
    runs = vs.sweep(task, cluster=nodes.address, tensorboard=there, callbacks=[watching], progress=True, **how)
    assert len(list(deaths.iterdir())) == 1
    assert watching.num_told == (~np.isnan(runs.train_loss)).sum()
    assert re.search(r"steps/s, 8 of 8 members alive, 0 shards on \d workers?, 1 restarted", capsys.readouterr().err)
    assert_same(runs, expected)
    assert "1 shard dealt out again" in runs.engine
    assert_same_events(there, here)


def assert_same_events(folder, expected):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in sorted(path.name for path in expected.iterdir()):
        own, other = (EventAccumulator(str(path / run)).Reload() for path in (folder, expected))
        assert own.Tags() == other.Tags()
        for tag in other.Tags()["tensors"]:
            steps = [[event.step for event in events.Tensors(tag)] for events in (own, other)]
            assert steps[0] == steps[1], (run, tag)


def test_members_are_lost_with_workers_that_die_again_and_again_and_the_others_stay(tmp_path):
    task = make_task(killed_once(tmp_path, at=2, seed=1, times=99))
    cluster = Cluster(kind="cpu", num_workers=2, max_restarts=1)
    with pytest.warns(LostMembersWarning, match=r"2 members lost: the worker was gone 2 times"):
        runs = vs.sweep(task, lrs=[0.01, 0.1], seeds=2, num_steps=6, cluster=cluster)
    assert "2 members lost with workers that were gone again and again: 1, 3" in runs.engine
    expected = vs.sweep(make_task(), lrs=[0.01, 0.1], num_steps=6)
    np.testing.assert_allclose(runs.train_loss[:, [0, 2]], expected.train_loss, rtol=1e-9)
    assert np.isnan(runs.train_loss[:, [1, 3]]).all()
    assert [member.stopped_at for member in runs.members] == [None, 0, None, 0]
    torch.testing.assert_close(runs.model(1).state_dict(), make_task().model.state_dict(), rtol=0, atol=0)
    assert runs.best("train_loss") in (0, 2)


def test_members_of_a_node_that_goes_are_trained_on_others(nodes, third, tmp_path):
    add, remove = third
    add()
    readers, go = tmp_path / "readers", tmp_path / "go"
    readers.mkdir()

    def take_node_away():
        try:
            wait_for(lambda: len(list(readers.iterdir())) == 3, "three workers begin")
            remove()
            wait_for(lambda: not all(is_alive(int(path.name)) for path in readers.iterdir()), "one of them goes")
        finally:
            go.touch()

    join = in_background(take_node_away)
    runs = vs.sweep(
        make_task(gated(readers, go), val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9, cluster=nodes.address
    )
    join()
    assert_same(runs, vs.sweep(make_task(val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9))
    assert "dealt out again" in runs.engine


def test_node_that_joins_takes_members_that_wait(nodes, third, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_PATIENCE_S", 0.5)
    readers, go = tmp_path / "readers", tmp_path / "go"
    readers.mkdir()

    def bring_node():
        try:
            wait_for(lambda: len(list(readers.iterdir())) == 2, "two workers begin")
            third[0]()
            wait_for(lambda: len(list(readers.iterdir())) == 3, "the third begins")
        finally:
            go.touch()

    join = in_background(bring_node)
    cluster = Cluster(address=nodes.address, num_workers=3)
    runs = vs.sweep(make_task(gated(readers, go), val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9, cluster=cluster)
    join()
    assert_same(runs, vs.sweep(make_task(val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9))
    assert "on 3 workers" in runs.engine


def test_shards_at_a_rung_make_room_for_one_that_has_no_place(nodes, monkeypatch):
    monkeypatch.setattr(driver, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(driver, "_STANDSTILL_S", 0.5)
    how = {"lrs": [*LRS, 0.3, 0.4], "epochs": 8, "prune": "halving"}
    runs = vs.sweep(make_task(), cluster=Cluster(address=nodes.address, num_workers=3), **how)
    assert_same(runs, vs.sweep(make_task(), **how))
    assert "dealt out again" not in runs.engine


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


# Tasks on their way


def test_function_makes_the_task_on_each_worker(nodes, tmp_path):
    def make():
        (tmp_path / f"{os.getpid()}").touch()
        lock = threading.Lock()  # which cannot be sent
        return make_task(lambda data: lambda seed: [batch for batch in data if lock])

    runs = vs.sweep(make, lrs=LRS, num_steps=6, cluster=nodes.address)
    stock.assert_equal(runs, make_task(), 6)
    assert {path.name for path in tmp_path.iterdir()} > {str(os.getpid())}


def test_function_must_return_a_task():
    with pytest.raises(TypeError, match=r"must return a vecsweep\.Task; got int"):
        vs.sweep(lambda: 3, lrs=[0.1], num_steps=1, cluster="auto")


def test_what_cannot_be_sent_is_named_before_anything_is_started(monkeypatch):
    lock = threading.Lock()
    task = make_task(lambda data: lambda seed: [batch for batch in data if lock])
    monkeypatch.setattr(session, "_start", None)  # which would be called
    with pytest.raises(TypeError, match=r"`lock` cannot be sent: .*lock.*\. Pass a function that makes the task"):
        vs.sweep(task, lrs=[0.1], num_steps=1, cluster="auto")


class NotThere:
    """What can only be read where it was written."""

    def __init__(self, home):
        self.home = home

    def __reduce__(self):
        return at_home, (self.home,)

    def __iter__(self):
        return iter([(torch.ones(2, 4).double(), torch.ones(2, 1).double())])


def at_home(home):
    if os.getpid() != home:
        raise FileNotFoundError("no such data here")
    return NotThere(home)


def test_task_that_cannot_be_made_on_a_worker_says_so_in_its_own_words(nodes):
    task = make_task(lambda data: NotThere(os.getpid()))
    with pytest.raises(FileNotFoundError, match="no such data here") as raised:
        vs.sweep(task, lrs=LRS, num_steps=3, cluster=Cluster(address=nodes.address, num_workers=1))
    assert "could not be made there" in "".join(raised.value.__notes__)


def test_error_of_the_task_is_raised_as_on_one_device(nodes):
    def loss_fn(outputs, targets):
        raise LookupError("the loss is at a loss")

    with pytest.raises(LookupError, match="the loss is at a loss"):
        vs.sweep(
            make_task(loss_fn=loss_fn), lrs=LRS, num_steps=3, cluster=Cluster(address=nodes.address, num_workers=1)
        )


# What is asked for


def test_missing_ray_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"^`cluster` needs Ray\. Run: pip install 'vecsweep\[cluster\]'$"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=1, cluster="auto")


def test_check_holds_what_workers_do_against_a_plain_loop_here(nodes):
    report = vs.check(make_task(), num_steps=5, cluster=Cluster(address=nodes.address, num_workers=1))
    assert report.is_equal
    assert report.engine.startswith("cluster, 3 members in ")


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
