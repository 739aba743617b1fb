"""The same call on a cluster: the same numbers, as one device has."""

import re

import numpy as np
import pytest
import stock
import torch
from clusters import LRS, assert_same, make_task

import vecsweep as vs
from vecsweep.execution import Cluster

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


def test_members_equal_ordinary_loops_whatever_the_worker_that_trains_them(warm):
    task = make_task(dropout=0.2)
    runs = vs.sweep(task, lrs=np.geomspace(0.01, 0.2, 12), seeds=2, num_steps=12, cluster=warm.address)
    stock.assert_equal(runs, task, 12)
    found = re.match(r"cluster, 24 members in (\d+) shards on 2 workers; the largest: vectorized", runs.engine)
    assert int(found[1]) >= 8


@pytest.fixture(scope="module")
def pairs(warm):
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
    return vs.sweep(task, cluster=warm.address, **how), vs.sweep(task, **how)


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


def test_range_test_is_that_of_one_device(warm):
    how = {"num_lrs": 6, "num_steps": 9, "seeds": 2, "evaluate": True}
    found, expected = vs.range_test(make_task(), cluster=warm.address, **how), vs.range_test(make_task(), **how)
    assert_same(found, expected)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)


def test_members_of_all_shards_are_compared_at_rungs(warm):
    how = {"lrs": LRS, "seeds": 2, "epochs": 8, "prune": "halving"}
    expected = vs.sweep(make_task(), **how)
    assert_same(vs.sweep(make_task(), cluster=warm.address, **how), expected)
    assert {member.stopped_at for member in expected.members} == {5, 10, None}


def test_what_goes_wrong_on_workers_is_told_here_once(warm):
    broken = make_task(lambda data: [*data[:3], tuple(torch.full_like(tensor, torch.nan) for tensor in data[3])])
    with pytest.warns(RuntimeWarning, match=r"of seed 0 diverged at step 3, whose batch holds NaN") as caught:
        runs = vs.sweep(broken, lrs=np.geomspace(0.01, 0.2, 12), num_steps=6, cluster=warm.address)
    assert (runs.diverged_at == 3).all()
    told = [str(own.message) for own in caught if own.category is RuntimeWarning]
    assert len(told) == len(set(told)) < int(re.search(r"in (\d+) shards", runs.engine)[1])


def test_check_holds_what_workers_do_against_a_plain_loop_here(warm):
    report = vs.check(make_task(), num_steps=5, cluster=Cluster(address=warm.address, num_workers=1))
    assert report.is_equal
    assert report.engine.startswith("cluster, 3 members in ")
