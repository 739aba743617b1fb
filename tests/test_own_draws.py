"""Members that draw as many random numbers as their weights say: each draws what it would draw alone.

The oracle is a plain loop of its own for every member, on stock PyTorch.
"""

import itertools

import pytest
import stock
import torch
import torch.nn.functional as F
from kept_runs import DiesError
from torch import nn

import vecsweep as vs
from vecsweep.checkpoint.keeper import FolderKeeper

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore:The members are trained one after another:vecsweep.FallbackWarning"),
]
LRS, NUM_STEPS = [0.02, 0.1, 0.5], 60


class Rates(nn.Module):
    """Gamma distributions, whose samples are drawn by rejection."""

    def __init__(self):
        super().__init__()
        self.shape, self.out = nn.Linear(6, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.out(torch.distributions.Gamma(F.softplus(self.shape(x)) + 0.1, 1.0).rsample())


def rrelu():
    return nn.Sequential(nn.Linear(6, 8), nn.RReLU(), nn.Linear(8, 4))  # which draws for what is negative


def late():
    """The same, but that nothing is negative at first."""
    model = rrelu()
    nn.init.constant_(model[0].bias, 4.0)
    return model


MODELS = {"rrelu": rrelu, "gamma": Rates, "late": late}


def task_of(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    batches = [(torch.randn(8, 6), torch.randint(4, (8,))) for _ in range(5)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("how", [{"engine": "vectorized"}, {"engine": "sequential", "chunk_size": 2}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_members_draw_what_they_would_alone(name, how):
    task = task_of(name)
    runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=NUM_STEPS, **how)
    stock.assert_equal(runs, task, NUM_STEPS)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes are forked where there is no GPU")
def test_members_in_processes_draw_what_they_would_alone():
    task = task_of("rrelu")
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS // 2, engine="parallel")
    assert runs.engine.startswith("parallel")
    stock.assert_equal(runs.extend(num_steps=NUM_STEPS // 2), task, NUM_STEPS)


@pytest.mark.parametrize("name", MODELS)
def test_members_go_on_with_their_own_draws(name, tmp_path):
    task = task_of(name)
    half = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS // 2, engine="sequential")
    stock.assert_equal(half.extend(num_steps=NUM_STEPS // 2), task, NUM_STEPS)
    stock.assert_equal(half.select(lr=LRS[1:]).extend(num_steps=NUM_STEPS // 2), task, NUM_STEPS)
    again = vs.load(half.save(tmp_path / "half"), task=task)
    branched = again.branch(2, lrs=[LRS[2]], num_steps=NUM_STEPS // 2)
    stock.assert_equal(branched, task, NUM_STEPS)


def test_members_of_a_run_that_died_go_on_with_their_own_draws(tmp_path, monkeypatch):
    task, left, keep = task_of("rrelu"), itertools.count(1, -1), FolderKeeper.keep
    how = {"lrs": LRS, "num_steps": NUM_STEPS, "engine": "sequential", "checkpoint_every": "16 steps"}

    def keep_and_die(self, snapshot):
        keep(self, snapshot)
        self.wait()
        if next(left) == 0:
            raise DiesError

    with monkeypatch.context() as patched:
        patched.setattr(FolderKeeper, "keep", keep_and_die)
        with pytest.raises(DiesError):
            vs.sweep(task, **how, checkpoint=tmp_path)
    stock.assert_equal(vs.sweep(task, **how, checkpoint=tmp_path), task, NUM_STEPS)


def test_a_member_that_diverges_leaves_the_draws_of_the_others_alone():
    task = task_of("rrelu")
    runs = vs.sweep(task, lrs=[1e200, *LRS], num_steps=NUM_STEPS, engine="sequential")
    assert runs.members[0].diverged_at is not None
    stock.assert_equal(runs.select(lr=LRS), task, NUM_STEPS)


def test_members_that_draw_alike_keep_one_place_for_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    task = vs.Task(model, task_of("rrelu").batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    runs = vs.sweep(task, lrs=LRS, num_steps=20, engine="sequential")
    assert [state.stream for state in runs._trained.start.states] == [None] * 3
    runs = vs.sweep(task_of("rrelu"), lrs=LRS, num_steps=20, engine="sequential")
    assert sum(state.stream is not None for state in runs._trained.start.states) == 2
