"""Distributions, decompositions and some losses raise for bad numbers: here only for the member that has them.

The oracle is a loop over one model, which ends where stock PyTorch raises.
"""

import copy
import warnings

import numpy as np
import pytest
import stock
import torch
import vecsweep.kernels.rules
from torch import nn
from torch.distributions import Bernoulli, Categorical, Distribution, MultivariateNormal, Normal, kl_divergence
from torch.func import vmap
from torch.overrides import TorchFunctionMode

import vecsweep as vs

NUM_STEPS = 40
FAILS = (ValueError, RuntimeError)  # a LinAlgError is one


@pytest.fixture(autouse=True)
def validated(float64):
    """Validation as it is by default; Dynamo, where something imports it, puts an end to it."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)


def evidence(model, x):
    mean, scale = model.encoder(x).chunk(2, dim=1)
    posterior = Normal(mean, scale.exp())
    likelihood = Normal(model.decoder(posterior.rsample()), 1.0).log_prob(x)
    return (kl_divergence(posterior, Normal(0.0, 1.0)).sum(1) - likelihood.sum(1)).mean()


def bernoulli_evidence(model, x):
    logits = model.decoder(model.encoder(x)[:, :2])
    return -Bernoulli(logits=logits).log_prob((x > 0).to(x.dtype)).sum(1).mean()


def cross_entropy_evidence(model, x):
    mean, scale = model.encoder(x).chunk(2, dim=1)
    outputs = model.decoder(mean + torch.randn_like(mean) * scale.exp()).sigmoid()
    return nn.functional.binary_cross_entropy(outputs, x.sigmoid()) + 0.1 * mean.square().mean()


def gaussian(model, x):
    mean, variance = model.encoder(x).chunk(2, dim=1)
    return nn.functional.gaussian_nll_loss(mean, x[:, :2], 1 + 0.2 * variance)


def policy_gradient(model, batch):
    states, actions, returns = batch
    policy = Categorical(logits=model(states).square())
    return -(policy.log_prob(actions) * returns).mean() - 0.01 * policy.entropy().mean()


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.logs = nn.Parameter(torch.tensor([0.0, 0.0, -1.0]))

    def forward(self, x):
        length, height, noise = self.logs.exp()
        return height * torch.exp(-(((x - x.T) / length) ** 2) / 2) + noise * torch.eye(len(x), device=x.device)


def marginal_likelihood(model, batch):
    x, y = batch
    return -MultivariateNormal(torch.zeros_like(y), covariance_matrix=model(x)).log_prob(y) / len(x)


def by_cholesky(model, batch):
    x, y = batch
    factor = torch.linalg.cholesky(model(x))
    whitened = torch.linalg.solve_triangular(factor, y[:, None], upper=False)
    return whitened.square().mean() + factor.diagonal().log().mean()


def by_inverse(model, batch):
    x, y = batch
    return ((torch.linalg.inv(model(x)) * y[:, None] * y).sum() + torch.logdet(model(x))) / len(x)


def by_singular_values(model, batch):
    x, y = batch
    return (torch.linalg.svdvals(model(x)).log().sum() + (torch.linalg.solve(model(x), y) * y).sum()) / len(x)


def images():
    return Vae(), [torch.randn(8, 6) for _ in range(3)]


def episodes():
    batches = [(torch.randn(8, 6), torch.randint(3, (8,)), torch.randn(8)) for _ in range(3)]
    return nn.Linear(6, 3), batches


def points():
    x = torch.linspace(0.0, 3.0, 9)[:, None]
    return Kernel(), [(x + 0.01 * torch.randn(9, 1), torch.sin(3 * x[:, 0])) for _ in range(3)]


CASES = {
    "vae": (evidence, images),
    "binary-cross-entropy": (cross_entropy_evidence, images),
    "bernoulli": (bernoulli_evidence, images),
    "gaussian": (gaussian, images),
    "policy": (policy_gradient, episodes),
    "gaussian-process": (marginal_likelihood, points),
    "cholesky": (by_cholesky, points),
    "inverse": (by_inverse, points),
    "singular-values": (by_singular_values, points),
}


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def task_of(step, make, **fields):
    torch.manual_seed(0)
    model, batches = make()
    return vs.Task(model, batches, training_step=step, optimizer=sgd, **fields)


class RaisesAsOnCpu(TorchFunctionMode):
    """What a kernel of the GPU refuses by an assertion raises here, as on a CPU: the process goes on."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.binary_cross_entropy and not ((args[0] >= 0) & (args[0] <= 1)).all():
            raise RuntimeError("all elements of input should be between 0 and 1")
        return func(*args, **(kwargs or {}))


def alone(task, lr, num_steps=NUM_STEPS, *, seed=0, num_batches=1):
    """The losses of a plain loop, and the step at which it ends with an error or a loss that is not finite."""
    model = copy.deepcopy(task.model).to(stock.DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = np.full(num_steps, np.nan)
    torch.manual_seed(seed)
    for step in range(num_steps):
        optimizer.zero_grad()
        own = [stock.placed(task.batches[(step * num_batches + k) % len(task.batches)]) for k in range(num_batches)]
        try:
            with RaisesAsOnCpu():
                loss = sum(task.training_step(model, batch) for batch in own) / num_batches
        except FAILS:
            return losses, step
        losses[step] = loss.item()
        if not loss.isfinite():
            return losses, step
        loss.backward()
        optimizer.step()
    return losses, None


def assert_as_alone(runs, task, **how):
    for i, member in enumerate(runs.members):
        losses, ended = alone(task, member.lr, len(runs.train_loss), seed=member.seed, **how)
        assert member.diverged_at == ended, member
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-8, err_msg=str(member))


@pytest.mark.filterwarnings("ignore:.*diverged.*:RuntimeWarning")
@pytest.mark.parametrize(("step", "make"), CASES.values(), ids=CASES)
def test_a_member_with_bad_numbers_ends_as_alone_and_the_others_stay_batched_and_traced(step, make, device):
    task = task_of(step, make)
    lrs = [1e-3, 1e-2, 1e4, 1e30, 1e300]
    how = {"divergence_factor": None, "engine": "vectorized", "device": device}
    runs = vs.sweep(task, lrs=lrs, num_steps=NUM_STEPS, **how)
    assert runs.engine.startswith("vectorized, traced")
    assert "5 members in 1 chunk" in runs.engine
    assert_as_alone(runs, task)
    assert [member.diverged_at is None for member in runs.members][::4] == [True, False]


@pytest.mark.filterwarnings("ignore:.*(diverged|fails with a member's weights).*:RuntimeWarning")
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_cross_entropy_of_bad_numbers_loses_no_device(engine, device):
    def reconstruction(model, x):
        outputs = model.decoder(model.encoder(x)[:, :2]).sigmoid()
        return nn.functional.binary_cross_entropy(outputs, x.sigmoid())

    task = task_of(reconstruction, images, val_batches=images()[1])
    how = {"num_steps": 8, "val_every": 4, "divergence_factor": None, "engine": engine, "device": device}
    runs = vs.sweep(task, lrs=[1e-3, 1e300], **how)
    assert [member.diverged_at for member in runs.members] == [None, 1]
    assert np.isfinite(runs.metrics["val_loss"][:, 0]).all()
    assert torch.ones(1, device=device) + 1 == 2


def test_bad_numbers_in_one_of_accumulated_batches_and_of_one_seed_end_that_member():
    task = task_of(evidence, images)
    how = {"lrs": [1e-3, 1e30], "num_steps": 20, "divergence_factor": None, "engine": "vectorized"}
    with pytest.warns(RuntimeWarning, match=r"^2 members have diverged, at lr 1e\+30: "):
        runs = vs.sweep(task, **how, seeds=2, accumulation_steps=2)
    assert runs.engine.startswith("vectorized, traced")
    assert_as_alone(runs, task, num_batches=2)


def test_bad_numbers_of_the_data_are_raised_as_by_a_plain_loop():
    task = task_of(policy_gradient, episodes)
    batches = [*task.batches] * 20
    batches[50] = (torch.full((8, 6), torch.nan), *batches[50][1:])
    broken = vs.Task(task.model, batches, training_step=policy_gradient, optimizer=sgd)
    with pytest.raises(ValueError, match="Expected parameter logits") as raised:
        vs.sweep(broken, lrs=[1e-3, 1e-2], num_steps=60, engine="vectorized")
    assert 0 < len(raised.value.result.train_loss) <= 50
    batches[50] = (batches[0][0], batches[0][1] + 0.5, batches[0][2])  # no actions
    with pytest.raises(ValueError, match="within the support"):
        vs.sweep(broken, lrs=[1e-3, 1e-2], num_steps=60, engine="vectorized")


def test_many_members_with_bad_numbers_are_told_of_at_once():
    task = task_of(evidence, images)
    lrs = [*np.geomspace(1e-5, 1e-3, 44), *np.geomspace(1e20, 1e30, 20)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = vs.sweep(task, lrs=lrs, num_steps=4, divergence_factor=None)
    assert [member.diverged_at for member in runs.members] == [None] * 44 + [1] * 20
    (said,) = [str(warning.message) for warning in caught]
    assert said.startswith("20 members have diverged, at lr 1e+20 to 1e+30: a pass fails with their weights")
    assert "The first was the one at lr 1e+20 of seed 0 at step 1. ValueError: Expected parameter" in said


def test_members_that_follow_the_first_are_counted_at_the_end():
    def late(model, batch):
        x, step = batch
        size = (model.weight.square().sum() - 1.0).relu() * 1e9 * (step > model.weight.detach().abs().sum())
        return Normal(model(x), (-size).exp()).log_prob(x[:, :1]).mean().negative() * 0.0 - model.weight.sum()

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    batches = [(torch.randn(4, 1), torch.tensor(float(step))) for step in range(64)]
    task = vs.Task(model, batches, training_step=late, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs = vs.sweep(task, lrs=[0.01, 0.1, 0.03, 0.024], num_steps=64, divergence_factor=None)
    assert [member.diverged_at for member in runs.members] == [None, 11, 34, 42]
    first, others = (str(warning.message) for warning in caught)
    assert first.startswith("The member at lr 0.1 of seed 0 has diverged at step 11: ")
    assert others.startswith("2 more members have diverged, at lr 0.024 to 0.03: ")


@pytest.mark.filterwarnings("ignore:.*diverged.*:RuntimeWarning")
def test_an_evaluation_with_bad_numbers_stays_batched_and_measures_nan_of_that_member():
    def error(outputs, targets):
        return (outputs - targets).square().mean()

    def likelihood(outputs, targets):
        return Normal(outputs, (-1e-3 * outputs.square()).exp()).log_prob(targets).mean()

    torch.manual_seed(0)
    model, batches = nn.Linear(4, 1), [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(3)]
    task = vs.Task(model, batches, error, optimizer=sgd, val_batches=batches, metrics={"likelihood": likelihood})
    how = {"num_steps": 3, "val_every": 1, "divergence_factor": None}
    with pytest.warns(RuntimeWarning, match="evaluation fails with a member's weights.*ValueError") as caught:
        runs = vs.sweep(task, lrs=[0.01, 0.02, 1e20], **how)
    assert len(caught) == 1
    one_by_one = vs.sweep(task, lrs=[0.01, 0.02], **how, engine="sequential")
    for name, values in one_by_one.metrics.items():
        np.testing.assert_allclose(runs.metrics[name][:, :2], values, rtol=1e-8)
        assert np.isnan(runs.metrics[name][:, 2]).all()
    assert np.isfinite(runs.train_loss[1, 2])


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
def test_a_loss_that_goes_on_after_a_failed_check_trains_as_alone():
    def forgiving(model, batch):
        outputs = model(batch)
        try:
            return -Normal(outputs[:, 0], (-outputs[:, 1].square()).exp()).log_prob(batch[:, 0]).mean()
        except ValueError:
            return 0.1 * outputs.abs().sqrt().mean()

    task = task_of(forgiving, lambda: (nn.Linear(6, 2), [torch.randn(8, 6) for _ in range(3)]))
    runs = vs.sweep(task, lrs=[1e-3, 1e3], num_steps=12, divergence_factor=None)
    assert_as_alone(runs, task)
    assert np.isfinite(runs.train_loss).all()


@pytest.mark.filterwarnings("ignore:.*diverged.*:RuntimeWarning")
def test_checks_within_transforms_of_the_loss_are_its_own():
    def mapped(model, batch):
        def of_sample(x):
            return Normal(model(x)[0], 1.0 + x[0].square()).log_prob(x[1])

        return -vmap(of_sample)(batch).mean() + Normal(model(batch)[:, 0], 1.0).log_prob(batch[:, 1]).square().mean()

    task = task_of(mapped, lambda: (nn.Linear(6, 1), [torch.randn(8, 6) for _ in range(3)]))
    runs = vs.sweep(task, lrs=[1e-4, 1e-3], num_steps=12, divergence_factor=None, engine="vectorized")
    assert runs.engine.startswith("vectorized")
    assert_as_alone(runs, task)


BAD = {
    torch.linalg.cholesky: -1.0,
    torch.linalg.inv: 0.0,
    torch.inverse: 0.0,
    torch.Tensor.inverse: 0.0,
    torch.linalg.solve: 0.0,
    torch.linalg.eigh: torch.nan,
    torch.linalg.eigvalsh: torch.nan,
    torch.linalg.pinv: torch.inf,
    torch.linalg.svd: torch.nan,
    torch.linalg.svdvals: torch.nan,
}


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_functions_of_matrices_compute_what_torch_does_and_say_for_whom_it_raises(function):
    matrices = torch.randn(3, 4, 4)
    matrices = matrices @ matrices.mT + torch.eye(4)
    matrices[1] *= BAD[function]
    others = [torch.randn(4, 2)] * (function is torch.linalg.solve)

    def member(own):
        with vecsweep.kernels.rules.MemberRules([], []) as rules:
            result = function(own, *others)
        return result, rules.is_good

    results, are_good = vmap(member)(matrices)
    assert are_good.tolist() == [True, False, True]
    with pytest.raises(torch.linalg.LinAlgError):
        function(matrices[1], *others)
    for i in (0, 2):
        torch.testing.assert_close(pytree_of(results, i), pytree_of(function(matrices[i], *others)))


def pytree_of(results, i=...):
    return [own[i] for own in results] if isinstance(results, tuple) else results[i]


def test_every_operator_that_raises_is_held_against_torch():
    others = {torch._is_all_true, torch.Tensor.__bool__, nn.functional.binary_cross_entropy}  # as in the tasks above
    assert vecsweep.kernels.rules.CHECKS.keys() == BAD.keys() | others
