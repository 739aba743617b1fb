"""Schedules against their published formulas, and those in stages and cycles against torch's at every step."""

import functools
import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from vecsweep import schedules as s

PROGRESS = np.linspace(0, 1, 101)


def progress_of(num_steps):
    return np.arange(num_steps) / max(num_steps - 1, 1)


# The families as their papers and fastai's documentation write them, one number at a time.


def half_cosine(start, end, p):
    return end + (start - end) * (1 + math.cos(math.pi * p)) / 2


def two_cosines(fraction, start, middle, end, p):
    if p < fraction:
        return half_cosine(start, middle, p / fraction)
    return half_cosine(middle, end, (p - fraction) / (1 - fraction))


def restarts(lengths, at):
    for length in lengths[:-1]:
        if at < length - 1e-12:
            return half_cosine(1, 0, at / length)
        at -= length
    return half_cosine(1, 0, min(at / lengths[-1], 1))


def smith(low, high, step_size, at, height):
    cycle = 1 + math.floor(at / (2 * step_size))
    x = abs(at / step_size - 2 * cycle + 1)
    return low + (high - low) * max(0, 1 - x) * height(cycle)


FORMULAS = {
    "constant": (s.constant(0.3), lambda p: 0.3),
    "linear": (s.linear(0.2, 0.9), lambda p: 0.2 * (1 - p) + 0.9 * p),
    "cosine": (s.cosine(0.9, 0.2), lambda p: half_cosine(0.9, 0.2, p)),
    "exponential": (s.exponential(0.9, 1e-3), lambda p: math.exp(math.log(0.9) * (1 - p) + math.log(1e-3) * p)),
    "polynomial": (s.polynomial(0.2, 0.9, 3), lambda p: 0.2 + 0.7 * p * p * p),
    "combine": (
        s.combine([0.2, 0.3, 0.5], [s.linear(0.1, 1), s.constant(0.7), s.exponential(1, 0.01)]),
        lambda p: 0.1 + 4.5 * p if p < 0.2 else 0.7 if p < 0.5 else 0.01 ** (2 * p - 1),
    ),
    "combined_cosine": (s.combined_cosine(0.3, 0.1, 0.8, 0.2), lambda p: two_cosines(0.3, 0.1, 0.8, 0.2, p)),
    "one_cycle": (s.one_cycle(), lambda p: two_cosines(0.25, 1 / 25, 1, 1e-5, p)),
    "one_cycle with options": (
        s.one_cycle(div=10, div_final=50, pct_start=0.4),
        lambda p: two_cosines(0.4, 0.1, 1, 0.02, p),
    ),
    "flat_cosine": (s.flat_cosine(), lambda p: 1 if p < 0.75 else half_cosine(1, 1e-5, (p - 0.75) / 0.25)),
    "sgdr that fills the run": (s.sgdr(3), lambda p: restarts([1 / 7, 2 / 7, 4 / 7], p)),
    "sgdr of equal cycles": (s.sgdr(4, cycle_mult=1), lambda p: restarts([0.25] * 4, p)),
    "sgdr in epochs": (s.sgdr(2, 3, 2.5, total=20), lambda p: restarts([3, 7.5], 20 * p)),
    "sgdr cut off": (s.sgdr(9, 3, 2, total=20), lambda p: restarts([3, 6, 12], 20 * p)),
    "warmup": (
        s.warmup(1 / 6, 0.025, s.cosine(1, 0)),
        lambda p: 0.025 + 0.975 * 6 * p if p < 1 / 6 else half_cosine(1, 0, (p - 1 / 6) / (5 / 6)),
    ),
    "triangular": (s.triangular(0.1, 0.9, 6, total=30), lambda p: smith(0.1, 0.9, 6, 30 * p, lambda cycle: 1)),
    "triangular2": (
        s.triangular2(0.1, 0.9, 0.13),
        lambda p: smith(0.1, 0.9, 0.13, p, lambda cycle: 1 / 2 ** (cycle - 1)),
    ),
    "exp_range": (
        s.exp_range(0.1, 0.9, 6, gamma=0.9, total=30),
        lambda p: smith(0.1, 0.9, 6, 30 * p, lambda cycle: 0.9 ** (30 * p)),
    ),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_family_is_its_formula(case):
    schedule, formula = FORMULAS[case]
    np.testing.assert_allclose(schedule(PROGRESS), [formula(p) for p in PROGRESS.tolist()], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (s.linear(0, 2), [0, 0.5, 1, 1.5, 2]),
        (s.cosine(0, 2), [0, 0.29289, 1, 1.70711, 2]),
        (s.exponential(1, 2), [1, 1.18921, 1.41421, 1.68179, 2]),
        (s.polynomial(0, 2, 2), [0, 0.125, 0.5, 1.125, 2]),
    ],
)
def test_annealing_gives_the_numbers_that_fastai_documents(schedule, values):
    np.testing.assert_allclose(schedule([0, 0.25, 0.5, 0.75, 1]), values, atol=5e-6)


@pytest.mark.parametrize(
    "family",
    [s.linear, s.cosine, s.exponential, functools.partial(s.polynomial, power=1.7)],
    ids=["linear", "cosine", "exponential", "polynomial"],
)
def test_annealing_is_exact_at_both_ends(family):
    rng = np.random.default_rng(0)
    for start, end in np.exp(rng.uniform(-12, 5, (200, 2))).tolist():
        schedule = family(start, end)
        assert (schedule(0.0), schedule(1.0)) == (start, end)
        assert schedule([0.0, 1.0]).tolist() == [start, end]
        fractions = rng.dirichlet([1, 1, 1])  # some sum to a little more than 1
        assert s.combine(fractions, [schedule, s.constant(), schedule])([0.0, 1.0]).tolist() == [start, end]


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        (s.one_cycle(div=7, div_final=3e4), 1 / 7, 1 / 3e4),
        (s.flat_cosine(div_final=3e4), 1.0, 1 / 3e4),
        (s.sgdr(3), 1.0, 0.0),
        (s.sgdr(5, cycle_mult=1.3, total=17), 1.0, 0.0),
        (s.sgdr(2, 10, total=30), 1.0, 0.0),
        (s.sgdr(3, 1, 2, total=3), 1.0, 0.0),  # the third cycle would begin at the end
        (s.warmup(0.1, 0.3, s.linear(1, 0.7)), 0.3, 0.7),
        (s.combined_cosine(0.3, 0.1, 0.8, 0.2), 0.1, 0.2),
        (s.triangular(0.1, 0.9, 6, total=30), 0.1, 0.9),
    ],
)
def test_policy_is_exact_at_both_ends(schedule, start, end):
    assert (schedule(0.0), schedule(1.0)) == (start, end)


@pytest.mark.parametrize("case", FORMULAS)
def test_array_of_progress_gives_what_each_number_gives(case):
    schedule = FORMULAS[case][0]
    np.testing.assert_allclose(schedule(PROGRESS), [schedule(p) for p in PROGRESS.tolist()], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", s.SCHEDULES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (3, 5)])
def test_shape_of_progress_is_kept(name, shape):
    schedule = s.SCHEDULES[name]()
    progress = np.random.default_rng(0).random(shape)
    values = schedule(progress if shape else np.array(progress))
    assert isinstance(values, np.ndarray)
    assert (values.shape, values.dtype) == (shape, np.float64)
    assert type(schedule(0.3)) is float
    assert type(schedule(np.float64(0.3))) is float
    if schedule.momentum is not None:
        assert np.shape(schedule.momentum(progress)) == shape


@pytest.mark.parametrize("name", s.SCHEDULES)
def test_schedule_of_the_command_line_is_usable_without_arguments(name):
    schedule = s.SCHEDULES[name]()
    values = s.evaluate(schedule, PROGRESS, name)
    assert 0.5 < values.max() <= 1
    assert s.parse(name)(PROGRESS).tolist() == values.tolist()


def test_progress_outside_the_run_is_taken_for_its_nearest_end():
    assert s.linear(0.2, 0.9)([-1.0, 1.5]).tolist() == [0.2, 0.9]


def test_momentum_of_one_cycle_goes_the_other_way():
    schedule = s.one_cycle(pct_start=0.4, momentums=(0.9, 0.7, 0.8))
    expected = [two_cosines(0.4, 0.9, 0.7, 0.8, p) for p in PROGRESS.tolist()]
    np.testing.assert_allclose(s.evaluate_momentum(schedule, PROGRESS, "mine"), expected, rtol=1e-12)
    assert s.evaluate_momentum(s.one_cycle(momentums=None), PROGRESS, "mine") is None


def test_momentum_is_combined_part_by_part_and_held_in_a_warmup():
    parts = [s.one_cycle(), s.one_cycle(momentums=(0.5, 0.4, 0.3))]
    combined = s.combine([0.5, 0.5], parts)
    assert combined.momentum(np.array([0.0, 0.5, 1.0])).tolist() == [0.95, 0.5, 0.3]
    warm = s.warmup(0.5, 0.01, parts[1])
    assert warm.momentum(np.array([0.0, 0.3, 0.5, 1.0])).tolist() == [0.5, 0.5, 0.5, 0.3]


def test_warmup_of_five_epochs_ends_where_the_next_schedule_starts():
    by_multiple = s.warmup(5 / 30, 0.001 / 0.04, s.step_decay(10, total=25))
    in_lrs = s.warmup(5 / 30, 0.001, 0.04 * s.step_decay(10, total=25))
    steps_per_epoch = 7
    lrs = in_lrs(progress_of(30 * steps_per_epoch))
    np.testing.assert_allclose(0.04 * by_multiple(progress_of(30 * steps_per_epoch)), lrs, rtol=1e-12)
    assert lrs[0] == 0.001
    assert np.all(np.diff(lrs[: 5 * steps_per_epoch]) > 0)
    for first, last, lr in [(5, 15, 0.04), (15, 25, 0.004), (25, 30, 0.0004)]:
        np.testing.assert_allclose(lrs[first * steps_per_epoch : last * steps_per_epoch], lr, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.01, 2, np.float64(0.5), np.float32(0.5), np.int64(3)])
def test_number_times_a_schedule_scales_it_and_leaves_momentum(factor):
    schedule = s.one_cycle()
    for scaled in (factor * schedule, schedule * factor):
        assert isinstance(scaled, s.Schedule)
        assert scaled(PROGRESS).tolist() == (float(factor) * schedule(PROGRESS)).tolist()
        assert scaled.momentum is schedule.momentum


@pytest.mark.parametrize("factor", [0, -0.01, math.nan, math.inf])
def test_factor_that_is_not_positive_is_rejected(factor):
    with pytest.raises(ValueError, match=rf"`factor` must be a finite number above 0; got {factor}"):
        factor * s.cosine(1, 0)


@pytest.mark.parametrize("factor", ["2", True, s.cosine(1, 0), np.ones(3)])
def test_factor_that_is_no_number_is_rejected(factor):
    with pytest.raises(TypeError, match=r"unsupported operand|can't multiply sequence|does not support ufuncs"):
        s.cosine(1, 0) * factor


def test_schedule_says_how_it_was_made():
    assert repr(0.01 * s.cosine(1, 0)) == "Schedule(0.01 * cosine(start=1, end=0))"
    assert str(s.one_cycle(momentums=None)) == "one_cycle(div=25, div_final=100000, pct_start=0.25, momentums=None)"
    assert str(s.warmup(0.1, 0, s.constant())) == "warmup(fraction=0.1, start=0, then=constant(value=1))"


# Stages, which torch's schedulers are stepped through once an epoch.

STAGED = {
    "step_decay": (
        lambda epochs: s.step_decay(min(3, epochs), 0.5, total=epochs),
        lambda optimizer, epochs: lr_scheduler.StepLR(optimizer, min(3, epochs), 0.5),
    ),
    "step_decay that ends with a stage": (
        lambda epochs: s.step_decay(1, 0.7, total=epochs),
        lambda optimizer, epochs: lr_scheduler.StepLR(optimizer, 1, 0.7),
    ),
    "multi_step": (
        lambda epochs: s.multi_step([m for m in (1, 2, 5, 29) if m < epochs], 0.5, total=epochs),
        lambda optimizer, epochs: lr_scheduler.MultiStepLR(optimizer, [1, 2, 5, 29], 0.5),
    ),
    "exponential_decay": (
        lambda epochs: s.exponential_decay(0.9, total=epochs),
        lambda optimizer, epochs: lr_scheduler.ExponentialLR(optimizer, 0.9),
    ),
    "inverse": (
        lambda epochs: s.inverse(1.5, total=epochs),
        lambda optimizer, epochs: lr_scheduler.LambdaLR(optimizer, lambda epoch: (1 + epoch) ** -1.5),
    ),
    "step_decay in fractions": (
        lambda epochs: s.step_decay(1 / epochs, 0.7),
        lambda optimizer, epochs: lr_scheduler.StepLR(optimizer, 1, 0.7),
    ),
}


@pytest.mark.parametrize("case", STAGED)
@pytest.mark.parametrize("epochs", [1, 2, 3, 6, 7, 10, 30])
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 3, 7, 10, 33])
def test_stages_equal_torchs_scheduler_at_every_step(case, epochs, steps_per_epoch):
    build, factory = STAGED[case]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = factory(optimizer, epochs)
    expected = []
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
    for progress in (progress_of(epochs * steps_per_epoch), np.linspace(0, 1, epochs * steps_per_epoch)):
        np.testing.assert_allclose(build(epochs)(progress), expected, rtol=1e-12)


def test_stages_of_a_long_run_begin_at_the_right_step():
    epochs, steps_per_epoch = 300, 5_000
    steps = np.arange(epochs * steps_per_epoch)
    values = s.exponential_decay(0.99, total=epochs)(progress_of(len(steps)))
    np.testing.assert_allclose(values, 0.99 ** (steps // steps_per_epoch), rtol=1e-12)


def test_sgdr_equals_torchs_warm_restarts():
    num_steps = 100
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    expected = []
    for _ in range(num_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    values = s.sgdr(4, 10, 2, total=num_steps - 1)(progress_of(num_steps))
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("mode", "schedule"),
    [
        ("triangular", s.triangular(0.1, 0.9, 8, total=99)),
        ("triangular2", s.triangular2(0.1, 0.9, 8, total=99)),
        ("exp_range", s.exp_range(0.1, 0.9, 8, 0.97, total=99)),
    ],
)
def test_cyclical_schedules_equal_torchs(mode, schedule):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = lr_scheduler.CyclicLR(optimizer, 0.1, 0.9, 8, mode=mode, gamma=0.97, cycle_momentum=False)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(schedule(progress_of(100)), expected, rtol=1e-12)


# Bad input.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.constant(-1), r"`value` must be a finite number of at least 0; got -1\. Pass a multiple"),
        (lambda: s.linear(math.nan, 1), "`start` must be a finite number of at least 0; got nan"),
        (lambda: s.cosine(1, -0.5), r"`end` must be .* at least 0; got -0\.5"),
        (lambda: s.exponential(1, 0), "`end` must be a finite number above 0; got 0"),
        (lambda: s.polynomial(0, 1, 0), "`power` must be a finite number above 0; got 0"),
        (lambda: s.combine([0.5, 0.4], [s.constant()] * 2), r"`fractions` must sum to 1; the sum of .* is 0\.9"),
        (lambda: s.combine([1.5, -0.5], [s.constant()] * 2), r"`fractions` must be .* above 0; got -0\.5"),
        (lambda: s.combine([0.5, 0.5], [s.constant()]), "must be as many, and at least one; got 2 and 1"),
        (lambda: s.combine([], []), "must be as many, and at least one; got 0 and 0"),
        (lambda: s.combine([0.5, 0.5], [s.constant(), s.one_cycle()]), r"momentum, or none; constant\(value=1\) has"),
        (lambda: s.combined_cosine(1, 0, 1, 0), "`fraction` must be a finite number between 0 and 1; got 1"),
        (lambda: s.combined_cosine(0.5, 0, -1, 0), "`middle` must be a finite number of at least 0; got -1"),
        (lambda: s.one_cycle(div=0), "`div` must be a finite number above 0; got 0"),
        (lambda: s.one_cycle(div_final=-1), "`div_final` must be a finite number above 0; got -1"),
        (lambda: s.one_cycle(pct_start=0), "`pct_start` must be a finite number between 0 and 1; got 0"),
        (lambda: s.one_cycle(momentums=(0.9, 1.0, 0.9)), r"`momentums` must be .* in \[0, 1\); got 1\.0"),
        (lambda: s.flat_cosine(pct_start=1.5), r"`pct_start` must be .* got 1\.5"),
        (lambda: s.warmup(0, 0.1, s.constant()), "`fraction` must be .* got 0"),
        (lambda: s.warmup(0.1, -0.1, s.constant()), r"`start` must be .* got -0\.1"),
        (lambda: s.step_decay(0), "`every` must be a finite number above 0; got 0"),
        (lambda: s.step_decay(10), r"`every` must be at most `total`.*; got 10 with `total=1`.*such as `total=30`"),
        (lambda: s.step_decay(10, total=0), "`total` must be a finite number above 0; got 0"),
        (lambda: s.step_decay(0.5, gamma=0), "`gamma` must be a finite number above 0; got 0"),
        (lambda: s.multi_step([30, 60]), r"`milestones` must be below `total`.*; got 30 with `total=1`"),
        (lambda: s.multi_step([20, 10], total=30), r"`milestones` must ascend; got \[20\.0, 10\.0\]"),
        (lambda: s.multi_step([0], total=30), "`milestones` must be a finite number above 0; got 0"),
        (lambda: s.exponential_decay(math.inf, total=3), "`gamma` must be a finite number above 0; got inf"),
        (lambda: s.inverse(-1, total=3), "`power` must be a finite number above 0; got -1"),
        (lambda: s.sgdr(0), "`num_cycles` must be a finite number above 0; got 0"),
        (lambda: s.sgdr(3, 10), "`cycle_len` must be at most `total`.*; got 10 with `total=1`"),
        (lambda: s.sgdr(3, cycle_mult=0), "`cycle_mult` must be a finite number above 0; got 0"),
        (lambda: s.triangular(0.1, 1, 2000), "`step_size` must be at most `total`.*; got 2000 with `total=1`"),
        (lambda: s.triangular(1, 0.1, 0.1), r"`base_lr` must be at most `max_lr`; got 1 and 0\.1\. Swap them"),
        (lambda: s.triangular2(-1, 0.1, 0.1), "`base_lr` must be a finite number of at least 0; got -1"),
        (lambda: s.exp_range(0.1, 1, 0.1, -1), "`gamma` must be a finite number above 0; got -1"),
    ],
)
def test_value_out_of_bounds_is_rejected_at_the_call(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.constant("1"), "`value` must be a number of at least 0; got '1'"),
        (lambda: s.linear(True, 0), "`start` must be a number of at least 0; got True"),
        (lambda: s.sgdr(2.5), r"`num_cycles` must be a whole number; got 2\.5"),
        (lambda: s.one_cycle(momentums=(0.9, 0.8)), r"`momentums` must be three numbers; got \(0\.9, 0\.8\)"),
        (lambda: s.multi_step(0.5), r"`milestones` must be a list of numbers; got 0\.5\. Pass where the lr falls"),
        (lambda: s.parse("multi-step(milestones='ab')"), "`milestones` must be a list of numbers; got 'ab'"),
        (lambda: s.combine(0.5, [s.constant()]), r"`fractions` must be a list of numbers; got 0\.5"),
        (lambda: s.combine([1.0], s.constant()), "`schedules` must be a list of schedules, one for each fraction; got"),
        (lambda: s.combine([0.5, 0.5], [s.plateau()] * 2), "`schedules` must hold functions of progress; got Torch"),
        (lambda: s.warmup(0.1, 0.1, s.plateau()), "`then` must hold functions of progress; got TorchSchedule"),
        (lambda: s.warmup(0.1, 0.1, 1.0), r"function of progress; got 1\.0\. Pass `vecsweep.schedules.constant"),
        (lambda: s.as_schedule(0.1), r"function of progress; got 0\.1\. Pass `vecsweep.schedules.constant\(0\.1\)`"),
        (lambda: s.as_schedule("cosine"), r"got 'cosine'\. Pass `vecsweep.schedules.parse\('cosine'\)`"),
        (lambda: s.as_schedule(None), r"function of progress; got None\. Pass `vecsweep.schedules.cosine\(1, 0\)`"),
        (
            lambda: s.as_schedule(lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)]), 3)),
            "got <torch.optim.lr_scheduler.StepLR .* Pass `vecsweep.schedules.from_torch",
        ),
    ],
)
def test_wrong_type_is_rejected_at_the_call(call, message):
    with pytest.raises(TypeError, match=message):
        call()


# Functions of the user's.


def halve(progress):
    return 1 - progress / 2


def test_function_of_progress_is_a_schedule():
    assert s.as_schedule(halve)(PROGRESS).tolist() == halve(PROGRESS).tolist()
    assert s.as_schedule(halve).name == "halve"
    assert s.as_schedule(functools.partial(np.power, 0.5)).name == "power"
    for schedule in (s.cosine(1, 0), s.plateau()):
        assert s.as_schedule(schedule) is schedule
    assert s.combine([0.5, 0.5], [halve, halve])([0.0, 0.25, 0.5, 1.0]).tolist() == [1, 0.75, 1, 0.5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p: np.log(p + 1e-3), r"`mine` must .* at least 0; it returned -6\.9.* at progress 0, step 0"),
        (lambda p: np.where(p > 0.505, np.nan, p), r"`mine` must .* it returned nan at progress 0\.51, step 51"),
        (lambda p: np.where(p > 0.995, np.inf, p), "`mine` must .* it returned inf at progress 1, step 100"),
        (lambda p: 0.1, r"`mine` must .* shape of progress, \(101,\); .* returned is \(\)\. Return"),
        (lambda p: p[:-1], r"`mine` must .* shape of progress, \(101,\); .* returned is \(100,\)"),
        (lambda p: None, "`mine` must return an array of numbers; it returned None"),
        (lambda p: p > 0.5, "`mine` must return an array of numbers; it returned array"),
        (lambda p: "0.1", "`mine` must return an array of numbers; it returned '0.1'"),
        (lambda p: [[1], [1, 2]], "`mine` must return an array of numbers; it returned"),
    ],
)
def test_function_that_returns_no_multiples_is_told_by_name_and_place(function, message):
    with pytest.raises(ValueError, match=message):
        s.evaluate(s.as_schedule(function), PROGRESS, "mine")


@pytest.mark.parametrize("value", [1.0, -0.1, math.nan])
def test_momentum_out_of_bounds_is_told_by_name_and_place(value):
    schedule = s.Schedule(halve, momentum=lambda p: np.where(p < 0.195, 0.9, value))
    with pytest.raises(ValueError, match=rf"momentum .* `mine` must be in \[0, 1\); it is {value} at .* 0\.2, step 20"):
        s.evaluate_momentum(schedule, PROGRESS, "mine")


def test_what_a_function_raises_is_passed_on_with_a_note():
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        s.evaluate(s.as_schedule(lambda p: exec("raise ZeroDivisionError('mine')")), PROGRESS, "mine")
    assert "`mine` raised this" in caught.value.__notes__[0]


def test_function_of_an_optimizer_is_told_the_way_for_schedulers_of_torch():
    made = s.as_schedule(lambda optimizer: lr_scheduler.StepLR(optimizer, 2))
    with pytest.raises(TypeError, match="not an Optimizer") as caught:
        s.evaluate(made, np.linspace(0, 1, 3), "mine")
    assert "passed as `schedules.from_torch(function)`" in caught.value.__notes__[0]


def test_function_cannot_change_the_progress_of_other_schedules():
    progress = PROGRESS.copy()
    s.evaluate(s.as_schedule(lambda p: np.multiply(p, 0, out=p)), progress, "mine")
    assert progress.tolist() == PROGRESS.tolist()


# Names.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one-cycle", s.one_cycle()),
        (" one_cycle( div = 10, pct_start=0.3 ) ", s.one_cycle(div=10, pct_start=0.3)),
        ("one-cycle(momentums=(0.9, 0.8, 0.9),)", s.one_cycle(momentums=(0.9, 0.8, 0.9))),
        ("linear()", s.linear(1, 0)),
        ("linear(end=0.1)", s.linear(1, 0.1)),
        ("multi-step(milestones=[10, 20], total=30)", s.multi_step([10, 20], total=30)),
        ("warmup-cosine(fraction=0.2)", s.warmup(0.2, 0.01, s.cosine(1, 0))),
    ],
)
def test_text_is_read_as_the_call_it_looks_like(text, expected):
    schedule = s.parse(text)
    assert schedule(PROGRESS).tolist() == expected(PROGRESS).tolist()
    assert (schedule.momentum is None) == (expected.momentum is None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one-cycel", r"one of constant, linear, .*; got 'one-cycel'\. Did you mean 'one-cycle'\?"),
        ("", "must be a name, or a name with arguments in parentheses; got ''"),
        ("cosine(start=1", "must be a name, or a name with arguments in parentheses; got 'cosine"),
        ("cosine(start=)", r"must be Python; got 'cosine\(start=\)'"),
        ("cosine(1, 0)", r"must be given by name; got 'cosine\(1, 0\)'"),
        ("cosine()(start=1)", "must be given by name; got"),
        ("cosine(start=1) + _(end=0)", r"must be given by name; got 'cosine\(start=1\) \+ _\(end=0\)'"),
        ("cosine(start=1) + (1)", "must be given by name; got"),
        ("cosine(strat=1)", r"cosine has the arguments start, end; got 'strat' in 'cosine\(strat=1\)'"),
        ("cosine(start=exit())", r"must be literals; got 'exit\(\)' in"),
        ("cosine(start=1, **{'end': 0})", "cosine has the arguments start, end; got 'None' in"),
        ("cosine(start=-1)", "`start` must be a finite number of at least 0; got -1"),
    ],
)
def test_text_that_is_no_schedule_is_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        s.parse(text)


def test_name_that_is_no_text_is_rejected():
    with pytest.raises(TypeError, match=r"`text` must be the name of a schedule; got 3\. Pass 'cosine'"):
        s.parse(3)
