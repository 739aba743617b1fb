"""Tasks on their way to workers, and what cannot be sent."""

import os
import threading

import pytest
import stock
import torch
from clusters import LRS, make_task

import vecsweep as vs
from vecsweep.cluster import session
from vecsweep.execution import Cluster

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Ray's own


def test_function_makes_the_task_on_each_worker(warm, tmp_path):
    def make():
        (tmp_path / f"{os.getpid()}").touch()
        lock = threading.Lock()  # which cannot be sent
        return make_task(lambda data: lambda seed: [batch for batch in data if lock])

    runs = vs.sweep(make, lrs=LRS, num_steps=6, cluster=warm.address)
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


def test_task_that_cannot_be_made_on_a_worker_says_so_in_its_own_words(warm):
    task = make_task(lambda data: NotThere(os.getpid()))
    with pytest.raises(FileNotFoundError, match="no such data here") as raised:
        vs.sweep(task, lrs=LRS, num_steps=3, cluster=Cluster(address=warm.address, num_workers=1))
    assert "could not be made there" in "".join(raised.value.__notes__)


def test_error_of_the_task_is_raised_as_on_one_device(warm):
    def loss_fn(outputs, targets):
        raise LookupError("the loss is at a loss")

    with pytest.raises(LookupError, match="the loss is at a loss"):
        vs.sweep(make_task(loss_fn=loss_fn), lrs=LRS, num_steps=3, cluster=Cluster(address=warm.address, num_workers=1))
