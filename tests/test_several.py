"""Several optimizers as one template, against the loop that people write with them."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Muon
from torch.optim.lr_scheduler import StepLR

import vecsweep as vs

pytestmark = pytest.mark.usefixtures("float64")

LRS = [0.003, 0.02, 0.1]
NUM_STEPS = 9


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def make_batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 6, generator=generator), torch.randn(5, 3, generator=generator)) for _ in range(4)]


def matrices_and_others(params):
    params = list(params)
    return [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]


def muon_and_adamw(params, lr=0.02, weight_decay=0.1):
    matrices, others = matrices_and_others(params)
    return [Muon(matrices, lr=lr, weight_decay=weight_decay), AdamW(others, lr=0.1 * lr, weight_decay=weight_decay)]


def adamw_and_sgd(params, lr=0.02, weight_decay=0.1):
    matrices, others = matrices_and_others(params)
    return (
        AdamW(matrices, lr=lr, betas=(0.8, 0.9), weight_decay=weight_decay),
        SGD([{"params": others[:1]}, {"params": others[1:], "lr": 3 * lr}], lr=2 * lr, momentum=0.5),
    )


def adagrad_and_muon(params, lr=0.02, weight_decay=0.1):
    matrices, others = matrices_and_others(params)
    return [Adagrad(others, lr=lr, initial_accumulator_value=0.3), Muon(matrices, lr=lr / 2)]


def train_alone(make, lr, num_steps=NUM_STEPS, **options):
    model, batches = make_model(), make_batches()
    optimizers, losses = make(model.parameters(), lr=lr, **options), []
    for t in range(num_steps):
        x, y = batches[t % len(batches)]
        loss = F.mse_loss(model(x), y)
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return losses, model


def make_task(make, is_function):
    model = make_model()
    return vs.Task(model, make_batches(), F.mse_loss, optimizer=make if is_function else make(model.parameters()))


@pytest.mark.parametrize("is_function", [True, False], ids=["function", "template"])
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("make", [muon_and_adamw, adamw_and_sgd, adagrad_and_muon])
def test_several_optimizers_train_as_a_loop_that_steps_each(make, engine, is_function):
    task = make_task(make, is_function)
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine, divergence_factor=None)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(LRS):
        losses, trained = train_alone(make, lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).state_dict(), trained.state_dict(), rtol=1e-9, atol=1e-9)


def test_range_test_ramps_the_learning_rates_of_all():
    found = vs.range_test(make_task(muon_and_adamw, True), start_lr=1e-3, end_lr=1e-1, num_lrs=3, num_steps=6)
    for i, lr in enumerate(found.lrs):
        np.testing.assert_allclose(found.train_loss[:, i], train_alone(muon_and_adamw, float(lr), 6)[0], rtol=1e-9)


def test_hyperparameter_that_all_have_in_common_is_varied_in_all():
    runs = vs.sweep(
        make_task(muon_and_adamw, False), lrs=[0.02], vary={"weight_decay": [0.0, 0.5]}, num_steps=NUM_STEPS
    )
    for i, member in enumerate(runs.members):
        losses, _ = train_alone(muon_and_adamw, 0.02, weight_decay=member.hyper["weight_decay"])
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)


def test_hyperparameter_that_only_the_first_has_is_varied_in_it():
    runs = vs.sweep(make_task(adamw_and_sgd, False), lrs=[0.02], vary={"beta1": [0.8, 0.5]}, num_steps=NUM_STEPS)
    np.testing.assert_allclose(runs.train_loss[:, 0], train_alone(adamw_and_sgd, 0.02)[0], rtol=1e-9)
    assert not np.allclose(runs.train_loss[:, 1], runs.train_loss[:, 0])


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_run_that_is_extended_goes_on_with_what_each_optimizer_remembers(engine):
    runs = vs.sweep(make_task(muon_and_adamw, False), lrs=LRS, num_steps=4, engine=engine, divergence_factor=None)
    runs = runs.extend(num_steps=5)
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], train_alone(muon_and_adamw, lr)[0], rtol=1e-9)


def test_optimizers_that_were_stepped_begin_anew_and_stay_as_they_are():
    model = make_model()
    optimizers = adagrad_and_muon(model.parameters())
    start = copy.deepcopy(model.state_dict())
    F.mse_loss(model(torch.ones(1, 6)), torch.ones(1, 3)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    model.load_state_dict(start)
    StepLR(optimizers[0], 1)  # which puts a `step` of its own on it
    before = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    groups = [optimizer.param_groups for optimizer in optimizers]
    task = vs.Task(model, make_batches(), F.mse_loss, optimizer=optimizers)
    with pytest.warns(UserWarning, match="A scheduler is attached"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, divergence_factor=None)
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], train_alone(adagrad_and_muon, lr)[0], rtol=1e-9)
    assert all(optimizer.param_groups is own for optimizer, own in zip(optimizers, groups, strict=True))
    torch.testing.assert_close([optimizer.state_dict() for optimizer in optimizers], before, rtol=0, atol=0)
