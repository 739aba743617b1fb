"""Torch's schedulers as schedules: each gives what the real one gives in a stock loop, or says why it cannot."""

import copy
import functools
import inspect
import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from vecsweep import schedules as s

NUM_STEPS = 60
SGD = functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)
ADAM = functools.partial(torch.optim.Adam, lr=1.0, betas=(0.9, 0.999))


def sequential(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(optimizer, 15)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[5])


def chained(optimizer):
    parts = [lr_scheduler.ConstantLR(optimizer, 0.1, total_iters=4), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)


def peaks(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


SCHEDULERS = {
    lr_scheduler.LambdaLR: lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.95**epoch),
    lr_scheduler.MultiplicativeLR: lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.95),
    lr_scheduler.StepLR: lambda o: lr_scheduler.StepLR(o, 3),
    lr_scheduler.MultiStepLR: lambda o: lr_scheduler.MultiStepLR(o, [2, 7]),
    lr_scheduler.ConstantLR: lambda o: lr_scheduler.ConstantLR(o, 0.5, total_iters=4),
    lr_scheduler.LinearLR: lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=8),
    lr_scheduler.ExponentialLR: lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    lr_scheduler.SequentialLR: sequential,
    lr_scheduler.CosineAnnealingLR: lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    lr_scheduler.ChainedScheduler: chained,
    lr_scheduler.CyclicLR: lambda o: lr_scheduler.CyclicLR(o, [lr / 9 for lr in peaks(o)], peaks(o), 7),
    lr_scheduler.CosineAnnealingWarmRestarts: lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2),
    lr_scheduler.OneCycleLR: lambda o: lr_scheduler.OneCycleLR(o, peaks(o), total_steps=NUM_STEPS),
    lr_scheduler.PolynomialLR: lambda o: lr_scheduler.PolynomialLR(o, 18, power=2),
    SWALR: lambda o: SWALR(o, [lr / 5 for lr in peaks(o)], anneal_epochs=9),
}


def trained_with(scheduler, optimizer, steps_per_step, num_steps=NUM_STEPS):
    """What a stock loop trains with: the options of the first group at each step."""
    seen = []
    for step in range(num_steps):
        seen.append(dict(optimizer.param_groups[0]))
        optimizer.step()
        if (step + 1) % steps_per_step == 0:
            scheduler.step()
    return seen


def test_no_scheduler_of_torch_is_left_out():
    found = {
        value
        for value in vars(lr_scheduler).values()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and not value.__name__.startswith("_")
    }
    assert found - {lr_scheduler.LRScheduler, lr_scheduler.ReduceLROnPlateau} == SCHEDULERS.keys() - {SWALR}


@pytest.mark.filterwarnings("ignore:(OneCycle|CosineAnnealing)LR is made for 60 steps:UserWarning")
@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("build", [SGD, ADAM], ids=["SGD", "Adam"])
def test_torchs_scheduler_gives_what_it_gives_in_a_stock_loop(kind, interval, build):
    lr = 0.03
    real = build([torch.zeros(2)], lr=lr)
    expected = trained_with(SCHEDULERS[kind](real), real, 5 if interval == "epoch" else 1)
    template = build([torch.zeros(2)])
    rows = s.from_torch(SCHEDULERS[kind], interval).rows(template, lr, NUM_STEPS, steps_per_epoch=5)
    assert rows["lr"].tolist() == [options["lr"] for options in expected]
    changes_momentum = kind in (lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)
    momentum = "momentum" if build is SGD else "beta1"
    assert rows.keys() == ({"lr", momentum} if changes_momentum else {"lr"})
    if changes_momentum:
        values = [options["momentum"] if build is SGD else options["betas"][0] for options in expected]
        assert rows[momentum].tolist() == values
        assert len(set(values)) > 2


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_parameter_groups_keep_their_ratio_under_every_scheduler(kind):
    template = SGD([{"params": [torch.zeros(2)], "lr": 0.5}, {"params": [torch.zeros(2)], "lr": 0.05}])
    rows = s.from_torch(SCHEDULERS[kind], "step").rows(template, 0.03, NUM_STEPS, 5)
    real = SGD([{"params": [torch.zeros(2)], "lr": 0.03}, {"params": [torch.zeros(2)], "lr": 0.003}])
    expected = trained_with(SCHEDULERS[kind](real), real, 1)
    assert rows["lr"].tolist() == [options["lr"] for options in expected]


@pytest.mark.parametrize(
    ("steps_per_epoch", "stages"),
    [(2.5, [3, 2, 3, 2]), (0.5, [1] * 4), (1 / 3, [1] * 4), (4, [4, 4, 2]), (100, [10])],
)
def test_epoch_ends_before_the_first_step_at_or_after_its_end(steps_per_epoch, stages):
    template = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    halving = s.from_torch(lambda o: lr_scheduler.ExponentialLR(o, 0.5))
    lrs = halving.rows(template, 1.0, sum(stages), steps_per_epoch)["lr"]
    per_stage = max(1, round(1 / steps_per_epoch))
    assert lrs.tolist() == [0.5 ** (per_stage * index) for index, num in enumerate(stages) for _ in range(num)]


def test_epoch_that_ends_at_a_step_but_for_rounding_ends_there():
    template = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    counting = s.from_torch(lambda o: lr_scheduler.LambdaLR(o, lambda epoch: epoch))
    assert 9 / (9 / 7) < 7
    assert counting.rows(template, 1.0, 10, 9 / 7)["lr"][9] == 7


def test_scheduler_leaves_the_template_and_the_random_numbers_alone():
    model = torch.nn.Linear(3, 2)
    template = torch.optim.Adam([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    before, rng = copy.deepcopy(template.state_dict()), torch.get_rng_state()
    s.from_torch(SCHEDULERS[lr_scheduler.OneCycleLR], "step").rows(template, 0.03, NUM_STEPS, 5)
    assert template.state_dict() == before
    assert torch.equal(torch.get_rng_state(), rng)


def test_template_that_a_scheduler_has_set_is_read_as_it_was_built():
    template = SGD([{"params": [torch.zeros(1)], "lr": 0.5}, {"params": [torch.zeros(1)], "lr": 0.05}])
    lr_scheduler.LambdaLR(template, [lambda epoch: 0.1, lambda epoch: 0.5])
    seen = []

    def factory(optimizer):
        seen.extend(dict(group) for group in optimizer.param_groups)
        return lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)

    rows = s.from_torch(factory).rows(template, 0.03, 20, 5)
    assert rows["lr"].tolist() == [0.03 * 0.5**epoch for epoch in range(4) for _ in range(5)]
    assert [group["lr"] for group in seen] == pytest.approx([0.03, 0.003])
    assert "initial_lr" not in seen[0]


def test_factory_sees_the_options_of_the_template_and_the_lr_of_the_member():
    template = torch.optim.AdamW(
        [{"params": [torch.zeros(3)], "lr": 0.5, "name": "head"}, {"params": [torch.zeros(3)], "weight_decay": 0.3}],
        lr=torch.tensor(1.0),
        betas=(0.8, 0.9),
    )
    seen = []

    def factory(optimizer):
        seen.extend(dict(group) for group in optimizer.param_groups)
        assert optimizer.defaults == template.defaults | {"lr": 0.06}  # as if built for the member
        return lr_scheduler.StepLR(optimizer, 3)

    s.from_torch(factory).start(template, 0.03)
    assert [group["lr"] for group in seen] == [0.03, 0.06]
    assert [group["weight_decay"] for group in seen] == [0.01, 0.3]
    assert [group["betas"] for group in seen] == [(0.8, 0.9)] * 2
    assert seen[0]["name"] == "head"


@pytest.mark.parametrize(
    "options", [{"patience": 1}, {"factor": 0.5, "patience": 0, "cooldown": 2}, {"mode": "max", "min_lr": 0.02}]
)
def test_plateau_equals_the_real_one_fed_the_same_metrics(options):
    metrics = np.abs(np.random.default_rng(0).normal(size=60)).tolist() + [math.nan] * 3
    real = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(real, **options)
    running = s.plateau(**options).start(SGD([torch.zeros(4)]), 0.1)
    assert (running.is_fed, running.metric) == (True, "val_loss")
    for metric in metrics:
        scheduler.step(metric)
        running.step(metric)
        assert running.hyper() == {"lr": real.param_groups[0]["lr"]}
    assert real.param_groups[0]["lr"] < 0.1


def test_plateau_takes_a_lower_limit_for_each_group():
    template = SGD([{"params": [torch.zeros(1)], "lr": 0.5}, {"params": [torch.zeros(1)], "lr": 0.05}])
    running = s.plateau("accuracy", patience=0, min_lr=[0.01, 0.001]).start(template, 0.1)
    for _ in range(4):
        running.step(1.0)
    assert running.metric == "accuracy"
    assert running.hyper() == {"lr": pytest.approx(0.01)}


def test_momentum_is_told_once_the_scheduler_changed_it():
    running = s.from_torch(SCHEDULERS[lr_scheduler.CyclicLR]).start(SGD([torch.zeros(1)]), 0.9)
    assert running.hyper() == {"lr": pytest.approx(0.1)}  # its first momentum, 0.9, is the template's
    running.step()
    assert running.hyper() == {"lr": pytest.approx(0.1 + 0.8 / 7), "momentum": pytest.approx(0.9 - 0.1 / 7)}
    for _ in range(13):
        running.step()
    assert running.hyper() == {"lr": pytest.approx(0.1), "momentum": pytest.approx(0.9)}


TWO_GROUPS = [{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.01}]


def decaying(optimizer):
    """A scheduler that changes what it must not."""
    optimizer.param_groups[0]["weight_decay"] = 0.3
    return lr_scheduler.StepLR(optimizer, 3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            s.from_torch(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20)),
            r"one ratio; OneCycleLR gave group 1 0\.004 after 0 of its steps, where 0\.1 times .* 0\.004 is 0\.0004",
        ),
        (s.from_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 3, 0.01)), "CosineAnnealingLR gave group 1"),
        (s.from_torch(lambda o: lr_scheduler.LambdaLR(o, lambda e: 1 - e)), "LambdaLR gave group 0 -0.1 after 2"),
        (s.from_torch(lambda o: lr_scheduler.LambdaLR(o, lambda e: math.nan)), "LambdaLR gave group 0 nan after 0"),
        (s.from_torch(decaying), r"StepLR changed `weight_decay` of group 0 from 0\.0 to 0\.3"),
        (
            s.from_torch(lambda o: lr_scheduler.CyclicLR(o, [1, 0.1], [2, 0.2], 3, max_momentum=[0.9, 0.95])),
            r"find and leave it the same in all parameter groups; CyclicLR changed that of group 1 from 0\.9 to 0\.95",
        ),
        (s.from_torch(lambda o: lr_scheduler.StepLR(SGD([torch.zeros(1)]), 3)), "given; StepLR is on another"),
        (s.from_torch(lambda o: lr_scheduler.StepLR(o, 3), metric="val_loss"), "got 'val_loss' for StepLR"),
        (s.from_torch(lr_scheduler.ReduceLROnPlateau, "step"), "'epoch' for ReduceLROnPlateau.*; got 'step'"),
        (s.plateau(), "ReduceLROnPlateau must be fed a metric while members train"),
        (
            s.from_torch(lambda o: lr_scheduler.OneCycleLR(o, peaks(o), total_steps=6), "step"),
            r"OneCycleLR must last .*; it ended after 7 of the 12 steps \(Tried to step 7 times.*: 12 with",
        ),
    ],
)
def test_scheduler_that_a_member_cannot_follow_is_rejected(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.rows(SGD(TWO_GROUPS), 0.1, 12, 1)


@pytest.mark.parametrize(
    "factory",
    [
        lambda o: lr_scheduler.OneCycleLR(o, peaks(o), total_steps=20),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    ],
)
def test_scheduler_of_as_many_steps_as_the_run_has_is_asked_about_where_it_steps_by_epochs(factory):
    template = SGD([torch.zeros(1)], momentum=0.9)
    with pytest.warns(
        UserWarning, match=r"made for 20 steps, and steps after each epoch, of which the run has 4\. .*step"
    ):
        s.from_torch(factory).rows(template, 0.1, 20, 5)
    s.from_torch(factory, "step").rows(template, 0.1, 20, 5)
    s.from_torch(factory).rows(template, 0.1, 100, 5)  # 20 epochs


def test_momentum_that_differs_between_groups_is_not_scheduled():
    template = SGD([TWO_GROUPS[0], TWO_GROUPS[1] | {"momentum": 0.5}])
    with pytest.raises(ValueError, match=r"OneCycleLR changed that of group 0 from 0\.9 to 0\.95"):
        s.from_torch(SCHEDULERS[lr_scheduler.OneCycleLR]).start(template, 0.1)


@pytest.mark.parametrize("returned", [None, 3, lr_scheduler.StepLR])
def test_factory_that_returns_no_scheduler_is_told_what_it_returned(returned):
    with pytest.raises(TypeError, match=f"`factory` must return a scheduler .*; it returned {returned}"):
        s.from_torch(lambda optimizer: returned).start(SGD(TWO_GROUPS), 0.1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: s.from_torch(3), TypeError, "`factory` must be a function from an optimizer to a scheduler; got 3"),
        (lambda: s.from_torch(peaks, "batch"), ValueError, "`interval` must be 'epoch' or 'step'; got 'batch'"),
        (lambda: s.from_torch(peaks, metric=3), TypeError, "`metric` must be the name of a metric; got 3"),
        (lambda: s.plateau(patiance=3), TypeError, r"got `patiance`\. Pass some of mode, factor, patience"),
        (lambda: s.plateau(optimizer=3), TypeError, "got `optimizer`"),
        (lambda: s.plateau(factor=2), ValueError, r"got factor=2\. It says: Factor should be < 1\.0"),
        (lambda: s.plateau(mode="least"), ValueError, "got mode='least'"),
        (lambda: s.plateau(mode=3), TypeError, "got mode=3"),
        (lambda: s.plateau().start(3, 0.1), TypeError, "`template` must be an optimizer; got 3"),
        (lambda: s.plateau().start(SGD(TWO_GROUPS), 0), ValueError, "`lr` must be positive and finite; got 0"),
        (lambda: s.plateau().start(SGD(TWO_GROUPS), 0.1).step(), ValueError, "got none. Pass this epoch's `val_loss`"),
        (
            lambda: s.from_torch(decaying).rows(SGD(TWO_GROUPS), 0.1, 0, 1),
            ValueError,
            "`num_steps` must be at least 1; got 0",
        ),
        (
            lambda: s.from_torch(decaying).rows(SGD(TWO_GROUPS), 0.1, 1, 0),
            ValueError,
            "`steps_per_epoch` must be positive and finite; got 0",
        ),
        (
            lambda: s.from_torch(sequential).start(SGD(TWO_GROUPS), 0.1).step(0.3),
            ValueError,
            r"SequentialLR takes no metric; got 0\.3",
        ),
        (
            lambda: s.plateau().start(SGD([TWO_GROUPS[0] | {"lr": 0.0}, TWO_GROUPS[1]]), 0.1),
            ValueError,
            "lr of the first parameter group must be positive",
        ),
    ],
)
def test_misuse_of_torchs_schedulers_is_rejected(call, error, message):
    with pytest.raises(error, match=message):
        call()
