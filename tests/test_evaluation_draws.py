"""Evaluations that draw random numbers: one pass, and each member measured as an ordinary loop measures it alone.

The oracle trains and evaluates one model at a time, by stock PyTorch. Each batch of an evaluation is drawn for as after
`torch.manual_seed(seed)`, and training goes on as if there had been none.
"""

import copy
import random
from contextlib import contextmanager

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from kept_runs import DiesError
from torch import nn
from torch.nn.utils import parametrizations

import vecsweep as vs
from vecsweep._engine.members import measure
from vecsweep._engine.ways.chunk import VectorizedChunk
from vecsweep.checkpoint.keeper import FolderKeeper

pytestmark = pytest.mark.usefixtures("float64")

every_device = pytest.mark.usefixtures("device")
LRS, SEEDS, NUM_STEPS, VAL_EVERY = [0.01, 0.1], 2, 12, 3
ENGINES = ["vectorized", "sequential"]


class VAE(nn.Module):
    """Kingma and Welling, auto-encoding variational Bayes, 2013."""

    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 8), nn.Linear(4, 6)

    def forward(self, x):
        mean, log_var = self.encode(x).chunk(2, dim=1)
        sample = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.decode(sample), mean, log_var


def elbo(model, batch):
    made, mean, log_var = model(batch[0])
    return F.mse_loss(made, batch[0]) + 0.1 * (mean.square() + log_var.exp() - 1 - log_var).mean()


class MonteCarlo(nn.Module):
    """Gal and Ghahramani, dropout as a Bayesian approximation, 2016: the mean of passes with dropout left on."""

    def __init__(self, num_passes=3):
        super().__init__()
        self.body, self.head, self.num_passes = nn.Linear(6, 8), nn.Linear(8, 3), num_passes

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        num = 1 if self.training else self.num_passes
        return torch.stack([self.head(F.dropout(hidden, 0.3, training=True)) for _ in range(num)]).mean(0)


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps, self.body, self.out = nn.Embedding(10, 6), nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x, t):
        return self.out(torch.tanh(self.body(x + self.steps(t))))


def diffusion(model, batch):
    """Ho et al., denoising diffusion probabilistic models, 2020: a step and noise for each sample."""
    x = batch[0]
    t = torch.randint(0, 10, (len(x),), device=x.device)
    kept = torch.linspace(0.95, 0.05, 10, device=x.device)[t][:, None]
    noise = torch.randn_like(x)
    return F.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)


class Gumbel(nn.Module):
    """Jang et al., categorical reparameterization with Gumbel-softmax, 2017."""

    def __init__(self):
        super().__init__()
        self.choose, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(F.gumbel_softmax(self.choose(x), tau=0.7))


class Skipping(nn.Module):
    """Huang et al., deep networks with stochastic depth, 2016: left on, with noise on what goes in."""

    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), nn.Linear(6, 3)

    def forward(self, x):
        x = x + 0.1 * torch.randn(x.shape, device=x.device)
        for block in self.blocks:
            x = x + torch.empty(len(x), 1, device=x.device).bernoulli_(0.8) * torch.tanh(block(x))
        return self.head(x)


class Sampled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = parametrizations.weight_norm(nn.Linear(6, 6))
        self.out = nn.Linear(3, 3)

    def forward(self, x):
        mean, scale = self.body(x).chunk(2, dim=1)
        return self.out(torch.distributions.Normal(mean, F.softplus(scale) + 0.1).rsample())


class Attending(nn.Module):
    """Dropout left on where no mode sees it: within attention, and between the layers of an LSTM."""

    class LeftOn(nn.LSTM):
        def train(self, mode=True):
            return super().train(True)

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Linear(2, 12), nn.Linear(4, 3)
        self.layers = self.LeftOn(4, 4, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, x):
        q, k, v = self.body(x.view(-1, 3, 2)).chunk(3, dim=-1)
        return self.out(self.layers(F.scaled_dot_product_attention(q, k, v, dropout_p=0.3))[0][:, -1])


def penalty(model, batch):
    """Gulrajani et al., improved training of Wasserstein GANs, 2017: a critic, its slope between real and made."""
    x = batch[0]
    share = torch.rand(len(x), 1, device=x.device)
    between = (share * x + (1 - share) * x.flip(0)).requires_grad_()
    (slope,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
    return (model(x) * batch[1][:, None]).mean() + (slope.norm(dim=1) - 1).square().mean()


def bootstrap(outputs, targets):
    """The loss of a sample of the batch, drawn with replacement."""
    rows = torch.randint(0, len(targets), (len(targets),), device=targets.device)
    return F.cross_entropy(outputs[rows], targets[rows])


def bootstrap_by_numpy(outputs, targets):
    rows = torch.as_tensor(np.random.randint(0, len(targets), len(targets)), device=targets.device)
    return F.cross_entropy(outputs[rows], targets[rows]) + random.random()


def plain_net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def critic():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


TASKS = {  # a model; how it is trained, if not by cross entropy; its metrics
    "vae": (VAE, elbo, {}),
    "monte carlo dropout": (MonteCarlo, None, {"spread": lambda outputs, targets: outputs.std()}),
    "diffusion": (Denoiser, diffusion, {}),
    "gumbel": (Gumbel, None, {}),
    "stochastic depth": (Skipping, None, {"bootstrap": bootstrap}),
    "rsample": (Sampled, None, {}),
    "attention": (Attending, None, {}),
    "gradient penalty": (critic, penalty, {}),
    "bootstrap": (plain_net, None, {"bootstrap": bootstrap}),
}


def make_task(name="vae", **options):
    """A task whose last validation batch is smaller."""
    model, step, metrics = TASKS[name]
    torch.manual_seed(0)
    inputs, targets = torch.randn(53, 6), torch.randint(3, (53,))
    batches = list(zip(inputs.split(8), targets.split(8), strict=True))
    how = {
        "loss_fn": None if step else F.cross_entropy,
        "training_step": step,
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "val_batches": batches[4:],
        "metrics": metrics,
    }
    return vs.Task(model(), batches[:4], **(how | options))


@contextmanager
def drawing_apart(seed):
    """Draw as after seeding all generators, and put them back."""
    generators = [torch.default_generator, *(torch.cuda.default_generators if stock.DEVICE.type == "cuda" else ())]
    before = [generator.get_state() for generator in generators], random.getstate(), np.random.get_state()
    try:
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before[0], strict=True):
            generator.set_state(state)
        random.setstate(before[1])
        np.random.set_state(before[2])


def evaluate(task, model, seed, batches):
    """The loss and the metrics of a model, each a mean over samples."""
    model = copy.deepcopy(model).eval()
    found = []
    for batch in map(stock.placed, batches):
        with drawing_apart(seed):
            if task.training_step is not None:
                values = [task.training_step(model, batch)]
            else:
                outputs = model(batch[0])
                values = [task.loss_fn(outputs, batch[1]), *(own(outputs, batch[1]) for own in task.metrics.values())]
        found.append([value.item() for value in values])
    return np.average(found, axis=0, weights=[len(batch[0]) for batch in batches])


def plain_curves(task, lrs, seed, evaluated_at, val_batches=None):
    """What an ordinary loop finds: the loss of each step, and `[evaluation, metric]`."""
    model = copy.deepcopy(task.model).to(stock.DEVICE)
    optimizer = task.optimizer(model.parameters())
    torch.manual_seed(seed)
    losses, found = [], []
    for t, lr in enumerate(lrs):
        batch = stock.placed(task.batches[t % len(task.batches)])
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss = task.training_step(model, batch) if task.training_step else task.loss_fn(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if t + 1 in evaluated_at:
            found.append(evaluate(task, model, seed, task.val_batches if val_batches is None else val_batches))
    return np.array(losses), np.array(found)


def assert_as_plain_loops(runs, task, val_batches_of=lambda seed: None):
    """Hold the curves of all members against ordinary loops at their learning rates."""
    names = [name for name in runs.metrics if name.startswith("val_")]
    for i, member in enumerate(runs.members):
        own = val_batches_of(member.seed)
        losses, found = plain_curves(task, runs.lr[:, i], member.seed, runs.evaluated_at.tolist(), own)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9, err_msg=str(member))
        measured = np.stack([runs.metrics[name][:, i] for name in names], axis=1)
        np.testing.assert_allclose(measured, found, rtol=1e-9, err_msg=str(member))


@pytest.fixture
def at_once(monkeypatch):
    """No batched engine evaluates one member after another, with words or without."""

    def refuse(self, batches):
        raise AssertionError("members are evaluated one after another")

    monkeypatch.setattr(VectorizedChunk, "_measure_each", refuse)


@pytest.mark.parametrize(("engine", "chunk_size"), [("vectorized", 4), ("vectorized", 2), ("sequential", "auto")])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.usefixtures("at_once")
def test_members_are_evaluated_as_each_would_be_alone(name, engine, chunk_size):
    task = make_task(name)
    how = {"num_steps": NUM_STEPS, "val_every": VAL_EVERY, "engine": engine, "chunk_size": chunk_size}
    runs = vs.sweep(task, lrs=LRS, seeds=SEEDS, **how)
    assert runs.engine.startswith(engine)
    assert_as_plain_loops(runs, task)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["vae", "monte carlo dropout", "diffusion", "gumbel", "stochastic depth"])
@pytest.mark.usefixtures("at_once")
def test_members_are_drawn_for_where_they_are(name, engine):
    task = make_task(name)
    runs = vs.sweep(task, lrs=LRS, seeds=SEEDS, num_steps=30, val_every=VAL_EVERY, engine=engine)
    assert_as_plain_loops(runs, task)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("at_once")
def test_seeds_with_validation_batches_of_their_own_draw_their_own_numbers(engine):
    task = make_task("monte carlo dropout")
    folds = [task.val_batches[:2], task.val_batches[1::-1]]
    own = make_task("monte carlo dropout", val_batches=lambda seed: folds[seed])
    runs = vs.sweep(own, lrs=LRS, seeds=2, num_steps=NUM_STEPS, val_every=VAL_EVERY, engine=engine)
    assert_as_plain_loops(runs, own, val_batches_of=lambda seed: folds[seed])


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("at_once")
def test_train_metrics_are_drawn_for_in_the_same_way(engine):
    task = make_task("stochastic depth", val_batches=None)
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, train_metrics=True, engine=engine)
    for i, member in enumerate(runs.members):
        expected = evaluate(task, runs.model(i), member.seed, task.batches)[1]
        assert runs.metrics["train_bootstrap"][-1, i] == pytest.approx(expected, rel=1e-9)


def test_an_evaluation_that_draws_is_traced(monkeypatch):
    eager, function = [], measure.measure_at_once
    monkeypatch.setattr(measure, "measure_at_once", lambda *args: eager.append(args) or function(*args))
    task = make_task(val_batches=make_task().val_batches[:2])
    runs = vs.sweep(task, lrs=LRS, num_steps=30, val_every=1, engine="vectorized", compile=False)
    assert_as_plain_loops(runs, task)
    assert len(runs.evaluated_at) == 30
    assert len(eager) < 12, "60 batches are evaluated"


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_that_draw_go_on_as_if_they_had_not_been_broken_off(engine, tmp_path, monkeypatch):
    task = make_task()
    how = {"lrs": LRS, "seeds": SEEDS, "num_steps": NUM_STEPS, "val_every": VAL_EVERY, "engine": engine}
    how |= {"divergence_factor": None, "compile": False}
    whole, keep = vs.sweep(task, **how), FolderKeeper.keep
    assert_as_plain_loops(whole, task)

    def keep_and_die(self, snapshot):
        keep(self, snapshot)
        self.wait()
        raise DiesError

    with monkeypatch.context() as patched:
        patched.setattr(FolderKeeper, "keep", keep_and_die)
        for _ in range(3):
            with pytest.raises(DiesError):
                vs.sweep(task, **how, checkpoint=tmp_path, checkpoint_every="3 steps")
    again = vs.sweep(task, **how, checkpoint=tmp_path, checkpoint_every="3 steps")
    np.testing.assert_array_equal(again.train_loss, whole.train_loss)
    np.testing.assert_array_equal(again.metrics["val_loss"], whole.metrics["val_loss"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("at_once")
def test_extension_and_branch_evaluate_with_the_same_draws(engine):
    task = make_task("monte carlo dropout")
    half = vs.sweep(task, lrs=LRS, seeds=SEEDS, num_steps=6, val_every=VAL_EVERY, engine=engine)
    assert_as_plain_loops(half.extend(num_steps=6), task)
    assert half.members[1].seed == 1
    assert_as_plain_loops(half.branch(1, lrs=[0.003, 0.3], num_steps=6), task)


@pytest.mark.parametrize("engine", ENGINES)
def test_callers_generators_stay_where_they_stood(engine):
    task = make_task("bootstrap", metrics={"own": bootstrap_by_numpy, "other": bootstrap})
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    vs.sweep(task, lrs=LRS, num_steps=4, val_every=2, engine=engine)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    np.testing.assert_equal(np.random.get_state(), before[2])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("at_once")
def test_numbers_of_numpy_and_python_are_drawn_once_for_all_members_of_a_seed(engine):
    task = make_task("monte carlo dropout", metrics={"own": bootstrap_by_numpy, "other": bootstrap})
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, val_every=VAL_EVERY, engine=engine)
    assert_as_plain_loops(runs, task)


def test_seeds_that_draw_numbers_of_numpy_are_evaluated_one_after_another_with_words():
    task = make_task("bootstrap", metrics={"own": bootstrap_by_numpy})
    with pytest.warns(vs.FallbackWarning, match=r"evaluated one after another.*generators of Python or NumPy"):
        runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=NUM_STEPS, val_every=VAL_EVERY, engine="vectorized")
    assert_as_plain_loops(runs, task)


def random_flip(model, batch):
    """A step that augments in training alone, by NumPy, as people write it."""
    x = batch[0].flip(1) if model.training and np.random.random() < 0.5 else batch[0]
    return F.cross_entropy(model(x), batch[1])


@pytest.mark.usefixtures("at_once")
def test_a_step_that_draws_numbers_in_training_alone_is_evaluated_at_once():
    task = make_task("bootstrap", loss_fn=None, training_step=random_flip, metrics={})
    runs = vs.sweep(task, lrs=LRS, seeds=2, num_steps=NUM_STEPS, val_every=VAL_EVERY, engine="vectorized")
    for i, member in enumerate(runs.members):
        expected = evaluate(task, runs.model(i), member.seed, task.val_batches)
        np.testing.assert_allclose(runs.metrics["val_loss"][-1, i], expected[0], rtol=1e-9)


def by_values(outputs, targets):
    """Draws for as many rows as the batch's numbers say."""
    return outputs[torch.rand(int(targets.sum())).argmax() % len(outputs)].mean()


def by_weights(outputs, targets):
    return F.cross_entropy(outputs * torch.poisson(outputs.sigmoid()), targets)


@pytest.mark.parametrize("metric", [by_values, by_weights])
def test_draws_that_cannot_be_foreseen_are_told_of_and_drawn_one_after_another(metric):
    task = make_task("bootstrap", metrics={"own": metric})
    with pytest.warns(vs.FallbackWarning, match="evaluated one after another"):
        runs = vs.sweep(task, lrs=LRS, seeds=SEEDS, num_steps=NUM_STEPS, val_every=VAL_EVERY, engine="vectorized")
    assert_as_plain_loops(runs, task)
