"""Losses that take gradients themselves, against a plain loop: penalties, forces, differential equations."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import grad

import vecsweep as vs

LRS = [1e-3, 1e-2, 5e-2]
NUM_STEPS = 9


@pytest.fixture(autouse=True)
def in_float64(float64):
    torch.manual_seed(0)


def points(num=4):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(6, 2, generator=generator), torch.randn(6, 1, generator=generator)) for _ in range(num)]


def images():
    return [(torch.randn(3, 1, 7, 7), torch.randn(3, 1)) for _ in range(3)]


def sequences():
    return [(torch.randn(3, 5, 8), torch.randn(3, 1)) for _ in range(3)]


def molecules():
    return [(torch.randn(3, 4, 3), (torch.randn(3), torch.randn(3, 4, 3))) for _ in range(3)]


def net(*middle, width=2):
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), *middle, nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))


def critic():
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 3, stride=2)]
    layers += [nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(4)]
    return nn.Sequential(*layers, nn.Linear(4, 1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):  # the others cannot be differentiated twice
            return self.head(self.layer(x)).mean(1)


class Energy(nn.Module):
    """The energy of atoms, by their distances."""

    def __init__(self):
        super().__init__()
        self.net = net(width=1)

    def forward(self, positions):
        between = positions[:, :, None] - positions[:, None]
        return self.net(between.square().sum(-1).flatten(1)[..., None]).sum((1, 2))


def heat(model, batch):
    x, targets = batch[0].clone().requires_grad_(True), batch[1]
    u = model(x)
    first = grad(u, x, torch.ones_like(u), create_graph=True)[0]
    second = grad(first[:, 0], x, torch.ones_like(first[:, 0]), create_graph=True)[0]
    return (first[:, 1] - 0.1 * second[:, 0]).square().mean() + F.mse_loss(u, targets)


def transport(model, batch):
    x, t = batch[0][:, :1], batch[0][:, 1:]
    x.requires_grad = t.requires_grad = True
    u = model(torch.cat([x, t], 1))
    by_x, by_t = grad(u.sum(), [x, t], create_graph=True)
    return (by_t - by_x).square().mean() + F.mse_loss(u, batch[1])


def wasserstein(model, batch):
    real = batch[0]
    fake = torch.randn_like(real)
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_(True)
    outputs = model(between)
    slope = grad(outputs, between, grad_outputs=torch.ones(outputs.size()), create_graph=True, retain_graph=True)[0]
    return model(fake).mean() - model(real).mean() + 10 * (slope.norm(2, dim=1) - 1).square().mean()


def smooth(model, batch):
    x = batch[0].clone().requires_grad_()
    outputs = model(x)
    return F.mse_loss(outputs, batch[1]) + grad(outputs.sum(), x, create_graph=True)[0].square().mean()


def forces(model, batch):
    positions, (energies, expected) = batch
    positions.requires_grad_()
    energy = model(positions)
    return F.mse_loss(energy, energies) + F.mse_loss(-grad(energy.sum(), positions, create_graph=True)[0], expected)


def flat_minimum(model, batch):
    loss = F.mse_loss(model(batch[0]), batch[1])
    return loss + 0.1 * sum(g.square().sum() for g in grad(loss, list(model.parameters()), create_graph=True))


def adversarial(model, batch):
    x = batch[0].clone().requires_grad_()
    away = grad(F.mse_loss(model(x), batch[1]), x)[0].sign()
    return F.mse_loss(model((x + 0.1 * away).detach()), batch[1])


def of_hidden(model, batch):
    hidden = model[0](batch[0]).detach().requires_grad_()
    away = grad(F.mse_loss(model[1:](hidden), batch[1]), hidden)[0]
    return F.mse_loss(model[1:](model[0](batch[0]) + 0.1 * away), batch[1])


def with_unused(model, batch):
    x, other = batch[0].clone().requires_grad_(), batch[1].clone().requires_grad_()
    by_x, by_other = grad(model(x).sum(), [x, other], create_graph=True, allow_unused=True)
    assert by_other is None
    return by_x.square().mean() + F.mse_loss(model(x), batch[1])


def functional(model, batch):
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), batch[0], create_graph=True)
    return jacobian.square().mean() + F.mse_loss(model(batch[0]), batch[1])


def of_torch_func(model, batch):
    parameters = dict(model.named_parameters())

    def output(x):
        return torch.func.functional_call(model, parameters, (x[None],))[0, 0]

    slopes = torch.func.vmap(torch.func.grad(output))(batch[0])
    return slopes.square().mean() + F.mse_loss(model(batch[0]), batch[1])


def directional(model, batch):
    outputs, along = torch.func.jvp(model, (batch[0],), (torch.ones_like(batch[0]),))
    return along.square().mean() + F.mse_loss(outputs, batch[1])


def curvature(model, batch):
    hessian = torch.func.vmap(torch.func.hessian(lambda x: model(x)[0]))(batch[0])
    return (hessian.diagonal(dim1=1, dim2=2).sum(1) - batch[0][:, 0]).square().mean()


def sensitive(model, batch):
    slopes = torch.func.vmap(torch.func.jacrev(lambda x: model(x)[0]))(batch[0])
    return slopes.square().mean() + F.mse_loss(model(batch[0]), batch[1])


def of_next_step(model, batch):
    """Finn et al., MAML, 2017."""
    parameters = dict(model.named_parameters())
    slopes = grad(F.mse_loss(model(batch[0]), batch[1]), list(parameters.values()), create_graph=True)
    ahead = {name: p - 0.1 * slope for (name, p), slope in zip(parameters.items(), slopes, strict=True)}
    return F.mse_loss(torch.func.functional_call(model, ahead, (batch[0] + 0.1,)), batch[1])


# name: (a function that builds the model, one that makes batches, the loss)
CASES = {
    "heat": (net, points, heat),
    "transport": (net, points, transport),
    "wasserstein": (net, points, wasserstein),
    "forces": (Energy, molecules, forces),
    "flat minimum": (net, points, flat_minimum),
    "adversarial": (net, points, adversarial),
    "of hidden": (net, points, of_hidden),
    "with unused": (net, points, with_unused),
    "functional": (net, points, functional),
    "of torch.func": (net, points, of_torch_func),
    "directional": (net, points, directional),
    "curvature": (net, points, curvature),
    "sensitive": (net, points, sensitive),
    "of next step": (net, points, of_next_step),
    "convolutions": (critic, images, smooth),
    "batch norm and dropout": (lambda: net(nn.BatchNorm1d(8), nn.Dropout(0.2)), points, smooth),
    "attention": (Encoder, sequences, smooth),
}


def adamw(parameters, lr=1e-3):
    return torch.optim.AdamW(parameters, lr=lr, eps=1e-3)  # or gradients that are rounding alone would be whole steps


def make_task(name, **kwargs):
    make, batches, loss = CASES[name]
    return vs.Task(make(), batches(), training_step=loss, optimizer=adamw, **kwargs)


def plain_loop(task, lr, num_steps=NUM_STEPS):
    model, losses = copy.deepcopy(task.model), []
    optimizer = adamw(model.parameters(), lr)
    torch.manual_seed(0)
    for step in range(num_steps):
        loss = task.training_step(model, copy.deepcopy(task.batches[step % len(task.batches)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch.func.jvp itself
@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_members_whose_loss_takes_gradients_train_in_one_pass_as_plain_loops_do(name, seeds):
    task = make_task(name)
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, seeds=seeds, engine="vectorized", compile=False)
    assert runs.engine.startswith("vectorized, traced")
    for lr in LRS:
        losses, model = plain_loop(task, lr)
        own = runs.select(lr=lr, seed=0)
        np.testing.assert_allclose(own.train_loss[:, 0], losses, rtol=1e-9)
        for ours, theirs in zip(own.model(0).parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("name", ["heat", "forces", "curvature", "sensitive", "of next step"])
def test_loss_that_takes_gradients_takes_them_in_validation_too(name, engine, recwarn):
    task = make_task(name, val_batches=CASES[name][1]())
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine)
    for i, lr in enumerate(LRS):
        model = plain_loop(task, lr)[1].eval()
        of_batches = [task.training_step(model, copy.deepcopy(batch)).item() for batch in task.val_batches]
        np.testing.assert_allclose(runs.metrics["val_loss"][-1, i], np.mean(of_batches), rtol=1e-9)
    assert not [w for w in recwarn if issubclass(w.category, vs.FallbackWarning)]


def test_first_evaluation_of_a_loss_that_takes_gradients_draws_what_the_later_ones_do():
    def penalty(model, batch):
        between = (torch.rand(6, 1) * batch[0]).requires_grad_()
        return (grad(model(between).sum(), between, create_graph=True)[0].norm(dim=1) - 1).square().mean()

    task = vs.Task(net(), points(), training_step=penalty, optimizer=adamw, val_batches=points(1))
    runs = vs.sweep(task, lrs=[1e-12], seeds=2, num_steps=2, val_every=1, engine="sequential")
    for i, member in enumerate(runs.members):
        torch.manual_seed(member.seed)
        expected = penalty(copy.deepcopy(task.model).eval(), task.val_batches[0]).item()
        np.testing.assert_allclose(runs.metrics["val_loss"][:, i], expected, rtol=1e-9)


def test_gradient_with_respect_to_what_no_batch_brings_is_taken_member_by_member():
    collocation = torch.rand(5, 2, requires_grad=True)

    def residual(model, batch):
        slope = grad(model(collocation).sum(), collocation, create_graph=True)[0]
        return slope.square().mean() + F.mse_loss(model(batch[0]), batch[1])

    task = vs.Task(net(), points(), training_step=residual, optimizer=adamw)
    with pytest.warns(vs.FallbackWarning, match="a tensor that all members have in common; batches could bring it"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine="vectorized")
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], plain_loop(task, lr)[0], rtol=1e-9)


@pytest.mark.parametrize(
    "make_norm",
    [lambda: nn.LayerNorm(8), lambda: nn.BatchNorm1d(8, track_running_stats=False)],
    ids=["layer norm", "batch norm"],
)
def test_gradient_of_the_gradient_of_a_norms_weight_is_that_of_a_plain_loop(make_norm):
    def flat(model, batch):
        def loss(parameters):
            return F.mse_loss(torch.func.functional_call(model, parameters, (batch[0],)), batch[1])

        parameters = dict(model.named_parameters())
        return loss(parameters) + sum(slope.square().sum() for slope in torch.func.grad(loss)(parameters).values())

    task = vs.Task(net(make_norm()), points(), training_step=flat, optimizer=adamw)
    with pytest.warns(vs.FallbackWarning, match="takes a gradient of the weight of `(layer|batch)_norm`"):
        runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine="vectorized")
    for i, lr in enumerate(LRS):
        np.testing.assert_allclose(runs.train_loss[:, i], plain_loop(task, lr)[0], rtol=1e-9)


def test_outputs_that_are_no_scalars_need_grad_outputs_as_in_torch():
    def step(model, batch):
        x = batch[0].clone().requires_grad_()
        return grad(model(x), x, create_graph=True)[0].square().mean()

    task = vs.Task(net(), points(), training_step=step, optimizer=adamw)
    with pytest.raises(RuntimeError, match="grad can be implicitly created only for scalar outputs"):
        vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS)
