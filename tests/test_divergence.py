"""When a member diverges, on curves that are known in advance; the rule: `vecsweep/_engine/members/divergence.py`."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
import stock
import torch
from torch import nn

import vecsweep as vs

ENGINES = ["vectorized", "sequential"]
NUM_STEPS = 64
BEYOND = 1e30  # a loss from which one would think there is no way back
NOISE = np.random.default_rng(0).standard_normal(NUM_STEPS) ** 2  # as squared errors of single samples are


def follow(trained, untrained=1.0, **fields):
    """A task whose losses are the curve `trained` at lr 1, and `untrained` as long as the weight has not moved."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    curves = np.stack([np.broadcast_to(own, NUM_STEPS) for own in (trained, untrained)], axis=1)

    def step(model, losses):
        weight = model.weight.sum()
        is_trained = weight.detach() > 0.5
        return torch.where(is_trained, losses[0], losses[1]) - (weight - weight.detach())

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    return vs.Task(model, list(torch.tensor(curves)), training_step=step, optimizer=optimizer, **fields)


def at(height, begin, end=NUM_STEPS, base=1.0):
    """A curve that is at a height in some steps, and at its base in the others."""
    steps = np.arange(NUM_STEPS)
    return np.where((steps >= begin) & (steps < end), height, base)


# The losses of the untrained weights are 1, so that the ceiling is 5. The first 16 steps, 0 to 15, do not count.
CASES = {
    "stays at 1,000 times the start from step 1 on": (at(1000.0, 1), 1.0, 31),
    "explodes late and stays": (at(1000.0, 40), 1.0, 55),
    "grows without end": (1.5 ** np.arange(NUM_STEPS), 1.0, 31),
    "a plateau above the ceiling": (5.1, 1.0, 31),
    "a plateau below the ceiling": (4.9, 1.0, None),
    "one spike": (at(BEYOND, 30, 31), 1.0, None),
    "a spike at once that takes 30 steps to come back": (at(BEYOND, 1, 31), 1.0, None),
    "15 steps above": (at(6.0, 20, 35), 1.0, None),
    "16 steps above": (at(6.0, 20, 36), 1.0, 35),
    "15 steps above, one below, and so on": (np.where(np.arange(NUM_STEPS) % 16, 6.0, 4.0), 1.0, None),
    "not a number": (at(np.nan, 3), 1.0, 3),
    "infinite": (at(-np.inf, 5, 6), 1.0, 5),
    "negative losses that fall": (np.linspace(-2.0, -200.0, NUM_STEPS), -2.0, None),
    "negative losses that explode": (at(7.0, 20, base=-2.0), -2.0, 35),  # the ceiling is -2 + 4 * 2
    "negative losses that stay above where they started": (at(5.0, 20, base=-2.0), -2.0, None),
    "a first loss of 0": (2.0, at(0.0, 0, 1, base=2.0), None),
    "a first loss of 0, and an explosion": (1000.0, at(0.0, 0, 1, base=2.0), 31),
    "first losses that are all 0": (BEYOND, at(0.0, 0, 4), None),
    "a tiny first loss among noise": (NOISE, np.where(np.arange(NUM_STEPS), NOISE, 1e-9), None),
    "data that are not a number in the second batch": (at(np.nan, 1, 2), at(np.nan, 1, 2), 1),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_a_member_diverges_where_it_stays_above_where_its_seed_starts(name, engine):
    trained, untrained, expected = CASES[name]
    task = follow(trained, untrained)
    is_blamed = np.isnan(untrained).any()
    with pytest.warns(RuntimeWarning, match="whose batch holds NaN") if is_blamed else contextlib.nullcontext():
        runs = vs.sweep(task, lrs=[1.0, 1e-9], num_steps=NUM_STEPS, engine=engine)
    assert runs.members[0].diverged_at == expected
    end = NUM_STEPS if expected is None else expected + 1
    own = np.where(np.arange(NUM_STEPS), trained, untrained)
    np.testing.assert_allclose(runs.train_loss[:end, 0], own[:end], rtol=1e-6)
    assert np.isnan(runs.train_loss[end:, 0]).all()
    assert runs.model(0).weight.item() == (NUM_STEPS if expected is None else expected)  # frozen from there on
    if np.isfinite(untrained).all():
        assert runs.members[1].diverged_at is None


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.5, 31), (2.9, 31), (3.1, None), (None, None)], ids=["1.5", "2.9", "3.1", "None"]
)
def test_the_factor_says_how_far_above_the_start_the_ceiling_is(factor, expected):
    runs = vs.sweep(follow(3.0), lrs=[1.0], num_steps=NUM_STEPS, divergence_factor=factor)
    assert runs.members[0].diverged_at == expected


@pytest.mark.parametrize("engine", ENGINES)
def test_members_of_each_seed_are_judged_by_their_own_first_losses(engine):
    torch.manual_seed(0)

    def batches(seed):
        return [torch.tensor([50.0, 1.0 if seed == 0 else 20.0])] * NUM_STEPS

    task = follow(1.0)
    task = vs.Task(task.model, batches, training_step=task.training_step, optimizer=task.optimizer)
    runs = vs.sweep(task, lrs=[1.0], seeds=2, num_steps=NUM_STEPS, engine=engine)
    assert [member.diverged_at for member in runs.members] == [31, None]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_streak_is_carried_through_extension_and_branch(engine):
    runs = vs.sweep(follow(at(1000.0, 10)), lrs=[1.0], num_steps=20, engine=engine)
    assert runs.members[0].diverged_at is None
    assert runs.extend(num_steps=30).members[0].diverged_at == 31
    assert runs.branch(0, num_steps=30).members[0].diverged_at == 31


@pytest.mark.parametrize("engine", ENGINES)
def test_looking_at_the_first_losses_changes_nothing_of_the_training(engine):
    """Masks, running statistics and the number of batches read are those of an ordinary loop."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    data = [(torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(30)]
    read = []

    def batches():
        for batch in data:
            read.append(None)
            yield batch

    def make(params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9)

    task = vs.Task(model, batches, nn.functional.cross_entropy, optimizer=make)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runs = vs.sweep(task, lrs=[0.1, 0.01], num_steps=3, engine=engine)
    assert len(read) == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    stock.assert_equal(runs, vs.Task(model, data, nn.functional.cross_entropy, optimizer=make), 3)


def test_batches_of_one_sample_end_nobody_whose_weights_do_not_move():
    """By the first loss alone, one seed in a dozen would lose all its members here."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    samples = [(torch.randn(1, 3), torch.randn(1, 1)) for _ in range(100)]
    task = vs.Task(
        model,
        lambda seed: samples[seed:] + samples[:seed],
        nn.functional.mse_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    runs = vs.sweep(task, lrs=[1e-6], seeds=60, num_steps=100)
    assert (runs.diverged_at == -1).all()


def test_a_loss_that_takes_gradients_itself_is_trained():
    model = nn.Linear(3, 1)

    def penalty(model, x):
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return slope.square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = vs.Task(model, [torch.randn(4, 3)], training_step=penalty, optimizer=optimizer)
    losses = vs.sweep(task, lrs=[0.1], num_steps=3, engine="sequential").train_loss[:, 0]
    assert losses[0] > losses[1] > losses[2] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_go_on_without_a_value_when_all_have_diverged(engine):
    model = nn.Linear(1, 1)
    batches = [(torch.ones(2, 1), torch.zeros(2, 1))]
    optimizer = torch.optim.SGD(model.parameters())
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=optimizer, val_batches=batches)
    runs = vs.sweep(task, lrs=[1e30, 2e30], num_steps=20, val_every=4, engine=engine)
    assert all(m.diverged_at < 4 for m in runs.members)
    assert runs.metrics["val_loss"].shape == (5, 2)
    assert np.isnan(runs.metrics["val_loss"]).all()


def likelihood(outputs, targets):
    # Validated whether or not something was compiled before: Dynamo puts an end to that by default.
    return -torch.distributions.Normal(outputs[:, 0], outputs[:, 1].exp(), validate_args=True).log_prob(targets).mean()


def vanishing(outputs, targets):
    scale = torch.exp(-outputs[:, 1].square())  # of 0 soon, without NaN or infinity
    return -torch.distributions.Normal(outputs[:, 0].tanh(), scale, validate_args=True).log_prob(targets).mean()


def log_determinant(outputs, targets):
    covariance = outputs.T @ outputs / len(outputs) + torch.eye(2)
    return (outputs[:, 0] - targets).square().mean() + 1e-3 * torch.linalg.cholesky(covariance).diagonal().sum()


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("loss_fn", "error"),
    [(likelihood, ValueError), (vanishing, ValueError), (log_determinant, torch.linalg.LinAlgError)],
)
def test_a_member_whose_nan_ends_in_an_error_has_diverged_and_others_go_on(engine, loss_fn, error):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(torch.randn(8, 4), torch.randn(8)) for _ in range(3)]
    lrs, num_steps = [0.01, 1e4, 1e25], 24
    task = vs.Task(model, batches, loss_fn, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        runs = vs.sweep(task, lrs=lrs, num_steps=num_steps, engine=engine, divergence_factor=None)
    assert runs.engine.startswith("vectorized, traced" if engine == "vectorized" else "sequential")
    said, failed = [str(warning.message) for warning in caught], list[float]()
    for i, lr in enumerate(lrs):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr)
        ended = None
        for step in range(num_steps):
            optimizer.zero_grad()
            try:
                loss = loss_fn(own(batches[step % 3][0]), batches[step % 3][1])
            except error:
                ended = step
                failed.append(lr)
                break
            np.testing.assert_allclose(runs.train_loss[step, i], loss.item(), rtol=1e-5)
            if not loss.isfinite():
                ended = step
                break
            loss.backward()
            optimizer.step()
        assert runs.members[i].diverged_at == ended, lr
    assert runs.members[0].diverged_at is None
    assert runs.members[2].diverged_at is not None
    who = f"{len(failed)} members have diverged, at lr {min(failed):.3g} to {max(failed):.3g}"
    if len(failed) == 1:
        who = f"The member at lr {failed[0]:.3g} of seed 0 has diverged at step {ended}"
    assert [text.startswith(who) and error.__name__ in text for text in said] == [True]


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_whose_nan_ends_in_an_error_measures_nan(engine):
    torch.manual_seed(0)
    model, batches = nn.Linear(4, 2), [(torch.randn(8, 4), torch.randn(8)) for _ in range(3)]
    loss = lambda outputs, targets: (outputs[:, 0] - targets).square().mean()  # noqa: E731
    task = vs.Task(
        model,
        batches,
        loss,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        val_batches=batches,
        metrics={"likelihood": lambda outputs, targets: likelihood(outputs**2 - outputs[:1] ** 2, targets)},
    )
    how = {"num_steps": 1, "val_every": 1, "engine": engine, "divergence_factor": None}
    with pytest.warns(RuntimeWarning, match="evaluation fails with a member's weights.*ValueError"):
        runs = vs.sweep(task, lrs=[0.01, 1e25], **how)  # whose outputs have no squares after a step
    alone = vs.sweep(task, lrs=[0.01], **how)
    for name, values in alone.metrics.items():
        np.testing.assert_allclose(runs.metrics[name][:, 0], values[:, 0], rtol=1e-6)
    assert np.isnan(runs.metrics["val_likelihood"][:, 1]).all()


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_that_untrained_weights_raise_too_or_that_is_of_no_nan_is_the_tasks_own(engine):
    model, batches = nn.Linear(4, 2), [(torch.ones(8, 4), torch.ones(8))] * 3
    broken = [*batches[:2], (torch.full((8, 4), torch.nan), torch.ones(8))]
    optimizer = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    with pytest.raises(ValueError, match="Expected parameter"):
        vs.sweep(vs.Task(model, broken, likelihood, optimizer=optimizer), lrs=[0.1, 0.2], num_steps=9, engine=engine)

    def fails(outputs, targets):
        if bool((outputs[:, 0].mean() - 5.0).abs() < 0.5):
            raise LookupError("on purpose")
        return (outputs[:, 0] - targets - 4.5).square().mean()

    with pytest.raises(LookupError, match="on purpose"):
        vs.sweep(vs.Task(model, batches, fails, optimizer=optimizer), lrs=[0.05, 0.1], num_steps=40, engine=engine)
