"""Runs on a cluster that are kept: what dies goes on from its last checkpoint, and weights stay where they lie."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clusters import LRS, assert_same, make_task, wait_for
from torch import nn

import vecsweep as vs
from vecsweep.checkpoint.keeper import FolderKeeper, Interval
from vecsweep.checkpoint.signals import Signals
from vecsweep.cluster import session
from vecsweep.cluster.driver import Driver
from vecsweep.cluster.job import Job
from vecsweep.cluster.keeping import Keeping, Place
from vecsweep.cluster.shares import Shares
from vecsweep.cluster.worker import Worker
from vecsweep.execution import Cluster, Execution
from vecsweep.plan import Plan

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")
pytest.importorskip("upath", reason="checkpoints at URLs need: pip install 'vecsweep[cluster]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


def dying_when_kept(folder, *, at):
    """Batches whose reading kills the process, once, as soon as a checkpoint is there."""

    def batches(data):
        def read(seed):
            for k in range(64):
                if k == at and not (folder / "death").exists():
                    wait_for(lambda: list(folder.glob("run/**/step-*/manifest.json")), "a checkpoint is written")
                    (folder / "death").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield data[k % len(data)]

        return read

    return batches


def counting(folder):
    """A loss that counts its calls, by process."""

    def loss_fn(outputs, targets):
        with (folder / f"calls-{os.getpid()}").open("ab") as file:
            file.write(b".")
        return nn.functional.mse_loss(outputs, targets)

    return loss_fn


def test_members_of_a_killed_worker_go_on_from_their_last_checkpoint(warm, tmp_path):
    task = make_task(dying_when_kept(tmp_path, at=48), loss_fn=counting(tmp_path), val_batches=None)
    how = {"lrs": [0.1], "num_steps": 64, "engine": "sequential", "divergence_factor": None}
    runs = vs.sweep(task, cluster=warm.address, checkpoint=tmp_path / "run", checkpoint_every="1 steps", **how)
    assert (tmp_path / "death").exists()
    assert_same(runs, vs.sweep(make_task(val_batches=None), **how))
    assert "1 shard dealt out again, because a worker was gone" in runs.engine
    calls = sorted((path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.glob("calls-*"))
    assert len(calls) == 2
    assert calls[1][1] < 64 + 7 - 8, "7 steps are timed, and the first 8 at least need not be taken again"


@pytest.fixture(scope="module")
def done(warm, tmp_path_factory):
    """A sweep that is over, whose weights lie at a URL, and the same on one device."""
    where = f"local://{tmp_path_factory.mktemp('bucket')}/lr"
    how = {"lrs": LRS, "epochs": 3}
    return vs.sweep(make_task(), cluster=warm.address, checkpoint=where, **how), vs.sweep(make_task(), **how), where


def assert_same_weights(runs, expected):
    for i in range(len(expected.members)):
        torch.testing.assert_close(runs.model(i).state_dict(), expected.model(i).state_dict(), rtol=1e-9, atol=1e-9)


def test_weights_are_fetched_from_a_url_when_they_are_asked_for(done, tmp_path):
    runs, expected, _ = done
    assert_same(runs, expected)
    assert_same_weights(runs, expected)
    whole = runs.save(tmp_path / "whole")
    assert_same_weights(vs.load(whole, make_task()), expected)


def test_run_that_is_over_is_read_without_a_cluster_and_goes_on_with_one(done, warm, monkeypatch):
    _, expected, where = done
    with monkeypatch.context() as context:
        context.setattr(session, "_start", None)  # which would be called
        runs = vs.load(where, make_task())
        assert_same(runs, expected)
        assert_same_weights(runs, expected)
        assert_same(vs.load(where), expected)
    longer = runs.extend(epochs=2)
    assert_same(longer, expected.extend(epochs=2))
    assert_same_weights(longer, expected.extend(epochs=2))
    how = {"lrs": [0.01, 0.02], "num_steps": 5}
    assert_same(runs.branch(2, **how), expected.branch(2, **how))
    assert len(vs.resume(where, make_task(), cluster=warm.address).train_loss) == 20, "the last that was gone on with"


def test_weights_that_are_gone_are_an_error_that_says_so(warm, tmp_path):
    runs = vs.sweep(make_task(), lrs=[0.1], num_steps=2, cluster=warm.address, checkpoint=tmp_path / "lr")
    (tmp_path / "lr" / "run-000").rename(tmp_path / "elsewhere")
    with pytest.raises(vs.ResultFileError, match="is no longer there, or cannot be read"):
        runs.model(0)


def test_another_task_is_refused_before_anything_is_started(done, monkeypatch):
    *_, where = done
    monkeypatch.setattr(session, "_start", None)  # which would be called
    other = make_task(optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.8))
    with pytest.raises(ValueError, match=r"goes on with the task that it was begun with; `optimizer.*momentum"):
        vs.resume(where, other)


def test_call_of_a_cluster_is_not_gone_on_with_on_one_device(done):
    *_, where = done
    with pytest.raises(ValueError, match=r"holds another call: `cluster` was 'given' and is None"):
        vs.sweep(make_task(), lrs=LRS, epochs=3, checkpoint=where)


def test_signals_to_the_driver_reach_the_loops_of_all_shards(tmp_path):
    plan = Plan.constant(np.array([0.1, 0.2]), [0], num_steps=4)
    job = Job(task=make_task(), plan=plan, execution=Execution.of({"cluster": "auto"}))
    keeper = FolderKeeper(tmp_path, Interval(), Signals())
    driver = Driver(job, Keeping(keeper, job))
    driver._shares = Shares([0, 0], max_restarts=3)
    driver._shares.deal({7: 1.0})
    worker = Worker("cpu")
    driver._hands[7] = SimpleNamespace(actor=SimpleNamespace(write=SimpleNamespace(remote=worker.write)))
    loop = worker._keeper(Place(tmp_path / "shard", Interval()))
    assert not loop.is_due(3)
    keeper.signals.ask_writing()
    driver._heed_signals()
    assert loop.is_due(3)
    assert not loop.is_due(3), "asked once, written once"
    worker.stop()
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        loop.is_due(4)


def test_folder_that_a_machine_does_not_see_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"all machines of a cluster see; elk does not see .*nowhere.*'s3://bucket/lr'"
    ):
        Place(tmp_path / "nowhere" / "shard-1", Interval()).check("elk")


def test_decisions_that_are_damaged_are_told(done, tmp_path):
    folder = tmp_path / "lr" / "run-000"
    folder.mkdir(parents=True)
    (folder / "shards.json").write_text("{")
    (tmp_path / "lr" / "call.json").write_bytes(Path(done[2].removeprefix("local://"), "call.json").read_bytes())
    with pytest.raises(vs.ResultFileError, match=r"shards\.json is damaged.*`restart=True`"):
        vs.sweep(make_task(), lrs=LRS, epochs=3, cluster=Cluster(), checkpoint=tmp_path / "lr")


def test_folder_at_a_url_is_kept_and_begun_anew_as_one_on_disk():
    where, how = "memory://bucket/lr", {"lrs": [0.1, 0.2], "num_steps": 9, "checkpoint_every": "1 steps"}
    expected = vs.sweep(make_task(), lrs=[0.1, 0.2], num_steps=9)
    calls = []

    def broken(data):
        def read(seed):
            for k in range(9):
                if k == 7 and not calls:
                    calls.append(k)
                    raise ConnectionError("the batches are gone")
                yield data[k % 5]

        return read

    task = make_task(broken)
    with pytest.raises(ConnectionError, match="the batches are gone"):
        vs.sweep(task, val_every=3, checkpoint=where, **how)
    runs = vs.sweep(task, val_every=3, checkpoint=where, **how)
    np.testing.assert_array_equal(runs.train_loss, expected.train_loss)
    with pytest.raises(ValueError, match="holds another call: `val_every` was 3 and is 2"):
        vs.sweep(task, val_every=2, checkpoint=where, **how)
    assert len(vs.sweep(task, val_every=2, checkpoint=where, restart=True, **how).evaluated_at) == 5
    with pytest.raises(FileNotFoundError, match="There is nothing at memory://bucket/no"):
        vs.load("memory://bucket/no")


@pytest.mark.parametrize(
    ("where", "kind", "message"),
    [
        ("nope://lr", ValueError, "a URL that fsspec reads; got 'nope://lr'"),
        ("dropbox://lr", ImportError, "`checkpoint` 'dropbox://lr' needs what reads such URLs"),
    ],
)
def test_url_that_nobody_reads_is_told_at_once(where, kind, message):
    with pytest.raises(kind, match=message):
        vs.sweep(make_task(), lrs=[0.1], num_steps=1, checkpoint=where)
