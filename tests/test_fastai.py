"""fastai's suggestions: the same numbers on the same curve, and its `lr_find`."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import vecsweep as vs
from vecsweep.suggest import RULES, minimum, slide, smooth, steepest, trim, valley
from vecsweep.suggest.curves import until_explosion

OURS = {"valley": valley, "slide": slide, "minimum": minimum, "steep": steepest}


@pytest.fixture(scope="module")
def fastai_rules():
    """fastai's own functions; it asks for torchvision, so that it is no part of the extra `test`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule = pytest.importorskip("fastai.callback.schedule", reason="fastai is not here; see bench/README.md")
    return {name: getattr(schedule, name) for name in OURS}


def curves():
    """Curves as a recorder has them: of a healthy run, of noise, and with a NaN at the end."""
    generator = np.random.default_rng(0)
    lrs = np.geomspace(1e-7, 10, 101)[:-1]
    for k in range(200):
        fall = 2.3 - 2 / (1 + np.exp(-(np.log(lrs) - generator.normal(-5, 2)) * generator.uniform(0.5, 2)))
        explosion = np.exp(np.clip((np.log(lrs) - generator.normal(0, 1)) * 3, None, 3))
        losses = smooth(fall + explosion + generator.normal(0, 0.02 + 0.3 * (k % 3 == 0), len(lrs)), 0.9)
        num = len(lrs) if k % 2 else generator.integers(40, 100)
        losses[num:] = np.nan
        yield lrs, losses


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # in fastai's own code
@pytest.mark.parametrize("name", OURS)
def test_rule_gives_fastais_number_on_the_same_curve(name, fastai_rules):
    for lrs, losses in curves():
        own_lrs, own_losses = trim(lrs, losses)
        expected, _ = fastai_rules[name](torch.tensor(own_lrs), torch.tensor(own_losses), len(lrs))
        assert OURS[name](own_lrs, own_losses) == pytest.approx(float(expected), rel=1e-6)


def make_task(loss_scale=1.0):
    torch.manual_seed(0)
    inputs = torch.randn(320, 8)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    batches = list(zip(inputs.split(32), targets.split(32), strict=True))
    return vs.Task(
        model,
        batches,
        lambda outputs, targets: loss_scale * nn.functional.cross_entropy(outputs, targets),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    )


def test_lr_find_returns_a_named_tuple_of_what_was_asked():
    task = make_task()
    before = [p.clone() for p in task.model.parameters()]
    found = vs.lr_find(task, suggest_funcs=("valley", minimum, "steep"), seed=3)
    assert type(found).__name__ == "SuggestedLRs"
    assert found._fields == ("valley", "minimum", "steep")
    assert all(torch.equal(p, q) for p, q in zip(before, task.model.parameters(), strict=True))
    ramp = vs.range_test(task, method="ramp", num_steps=100, divergence_factor=4.0, seed=3)
    own = trim(ramp.lrs, smooth(until_explosion(ramp.scores), 0.98))
    assert found.valley == valley(*own)
    assert found.minimum == pytest.approx(ramp.suggest("minimum", smoothing=0.98).lr)
    assert vs.lr_find(task, suggest_funcs=slide)._fields == ("slide",)


def test_lr_find_goes_on_after_an_explosion_if_it_is_told_to():
    task = make_task()
    stopped = vs.range_test(task, method="ramp", end_lr=1e4, divergence_factor=4.0)
    whole = vs.range_test(task, method="ramp", end_lr=1e4, divergence_factor=None)
    assert np.isfinite(whole.scores).sum() > np.isfinite(stopped.scores).sum()
    assert vs.lr_find(task, end_lr=1e4, stop_div=False).valley == whole.suggest("valley", smoothing=0.98).lr
    assert vs.lr_find(task, end_lr=1e4).valley == stopped.suggest("valley", smoothing=0.98).lr


def test_lr_find_averages_over_seeds():
    assert vs.lr_find(make_task(), seeds=4).valley > 0


def test_unknown_rule_is_told_before_the_work():
    def step(model, batch):
        raise AssertionError("work was done")

    task = make_task()
    task = vs.Task(task.model, task.batches, optimizer=task.optimizer, training_step=step)
    with pytest.raises(ValueError, match=r"`rule` must be one of .*Did you mean 'valley'"):
        vs.lr_find(task, suggest_funcs="valey")


def test_every_rule_of_fastai_has_a_name_here():
    assert {"valley", "slide", "minimum", "steepest"} <= RULES.keys()
