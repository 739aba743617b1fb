"""Workers that die, nodes that go and come: the same numbers, whoever is there."""

import os
import re
import signal

import numpy as np
import pytest
import stock
import torch
from clusters import LRS, assert_same, gated, in_background, is_alive, killed_once, make_task, telling, wait_for

import vecsweep as vs
from vecsweep._errors import LostMembersWarning
from vecsweep.cluster import driver, session
from vecsweep.execution import Cluster

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


class Watching(vs.observers.Observer):
    """Counts the losses that were told, of all members."""

    num_told = 0

    def losses(self, step, loss, hyper):
        self.num_told += int((~np.isnan(loss)).sum())


def test_members_of_a_killed_worker_begin_anew_and_watchers_see_no_step_twice(warm, tmp_path, capsys):
    deaths, here, there = (tmp_path / name for name in ("deaths", "here", "there"))
    deaths.mkdir()
    how = {"lrs": LRS, "epochs": 3, "seeds": 2}
    expected = vs.sweep(make_task(), tensorboard=here, **how)
    task = make_task(killed_once(deaths, at=4, seed=1))
    watching = Watching()
    runs = vs.sweep(task, cluster=warm.address, tensorboard=there, callbacks=[watching], progress=True, **how)
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


def test_members_are_lost_with_workers_that_die_again_and_again_and_the_others_stay(warm, tmp_path, monkeypatch):
    monkeypatch.setattr(session.Session, "is_uneven", False)  # a seed for each worker
    task = make_task(killed_once(tmp_path, at=2, seed=1, times=99))
    cluster = Cluster(address=warm.address, max_restarts=1)
    with pytest.warns(LostMembersWarning, match=r"2 members lost: the worker was gone 2 times"):
        runs = vs.sweep(task, lrs=[0.01, 0.1], seeds=2, num_steps=6, cluster=cluster)
    assert "2 members lost with workers that were gone again and again: 1, 3" in runs.engine
    expected = vs.sweep(make_task(), lrs=[0.01, 0.1], num_steps=6)
    np.testing.assert_allclose(runs.train_loss[:, [0, 2]], expected.train_loss, rtol=1e-9)
    assert np.isnan(runs.train_loss[:, [1, 3]]).all()
    assert [member.stopped_at for member in runs.members] == [None, 0, None, 0]
    torch.testing.assert_close(runs.model(1).state_dict(), make_task().model.state_dict(), rtol=0, atol=0)
    assert runs.best("train_loss") in (0, 2)


def test_worker_that_dies_between_two_runs_of_a_call_is_not_missed(warm, tmp_path):
    task = make_task(telling(tmp_path), val_batches=None)
    vs.sweep(task, lrs=LRS, num_steps=3, cluster=warm.address)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    killed = next(pid for pid in pids if pid != os.getpid())
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not is_alive(killed), "it dies")
    runs = vs.sweep(task, lrs=LRS, num_steps=3, cluster=warm.address)
    stock.assert_equal(runs, make_task(val_batches=None), 3)
    assert "dealt out again" not in runs.engine


def test_node_that_joins_takes_members_that_wait_and_others_have_them_when_it_goes(warm, third, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_PATIENCE_S", 0.5)
    add, remove = third
    readers, go = tmp_path / "readers", tmp_path / "go"
    readers.mkdir()
    pids = lambda: {int(path.name) for path in readers.iterdir()}  # noqa: E731

    def bring_node_and_take_it_away():
        try:
            wait_for(lambda: len(pids()) == 2, "two workers begin")
            first = pids()
            add()
            wait_for(lambda: len(pids()) == 3, "the third begins")
            remove()
            wait_for(lambda: not any(is_alive(pid) for pid in pids() - first), "it goes")
        finally:
            go.touch()

    join = in_background(bring_node_and_take_it_away)
    cluster = Cluster(address=warm.address, num_workers=3)
    runs = vs.sweep(make_task(gated(readers, go), val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9, cluster=cluster)
    join()
    assert_same(runs, vs.sweep(make_task(val_batches=None), lrs=[*LRS, 0.3, 0.4], num_steps=9))
    assert re.search(r"on [34] workers; .*1 shard dealt out again, because a worker was gone", runs.engine)


def test_shards_at_a_rung_make_room_for_one_that_has_no_place(warm, monkeypatch):
    monkeypatch.setattr(driver, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(driver, "_STANDSTILL_S", 0.5)
    how = {"lrs": [*LRS, 0.3, 0.4], "epochs": 8, "prune": "halving"}
    runs = vs.sweep(make_task(), cluster=Cluster(address=warm.address, num_workers=3), **how)
    assert_same(runs, vs.sweep(make_task(), **how))
    assert "dealt out again" not in runs.engine
