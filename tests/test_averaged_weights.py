"""Members that are evaluated at other weights than they train at.

By their optimizer, against a loop that calls `eval()` and `train()`; by a moving average, against torch's own.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vecsweep as vs
from vecsweep.tasks import Averaged

LRS = [0.01, 0.05]
NUM_STEPS = 24
VAL_EVERY = 8

pytestmark = pytest.mark.usefixtures("float64")


class Averaging(torch.optim.Optimizer):
    """SGD that evaluates at the mean of all weights so far; refuses to step where it evaluates."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr, "train_mode": False, "num_steps": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "call `train()` first"
            group["num_steps"] += 1
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p, 1 / group["num_steps"])

    def train(self):
        self._switch(to=True)

    def eval(self):
        self._switch(to=False)

    @torch.no_grad()
    def _switch(self, to):
        for group in self.param_groups:
            if group["train_mode"] != to:
                group["train_mode"] = to
                for p in group["params"]:
                    if "mean" in self.state[p]:
                        self.swap(p, self.state[p])

    def swap(self, p, state):
        kept = p.clone()
        p.copy_(state["mean"])
        state["mean"].copy_(kept)


class PuttingNewTensors(Averaging):
    def swap(self, p, state):
        p.data, state["mean"] = state["mean"], p.data


def schedule_free(name, **options):
    def build(params):
        return getattr(pytest.importorskip("schedulefree"), name)(params, lr=0.1, **options)

    return pytest.param(build, id=name)


OPTIMIZERS = [
    pytest.param(lambda params: Averaging(params, lr=0.1), id="Averaging"),
    pytest.param(lambda params: PuttingNewTensors(params, lr=0.1), id="PuttingNewTensors"),
    schedule_free("SGDScheduleFree", warmup_steps=4),
    schedule_free("AdamWScheduleFree", warmup_steps=4),
    schedule_free("RAdamScheduleFree"),
]
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def task_of(optimizer, training_step=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    how = {"loss_fn": F.cross_entropy} if training_step is None else {"training_step": training_step}
    return vs.Task(model, batches, **how, optimizer=optimizer, val_batches=batches[:2])


def train_plainly(task, lr, num_steps=NUM_STEPS):
    """Losses, validation losses, and the state of the model in the end."""
    model = copy.deepcopy(task.model)
    optimizer = task.optimizer(model.parameters())
    optimizer.param_groups[0]["lr"] = lr
    optimizer.train()
    losses, validation = [], []
    for step in range(num_steps):
        x, y = task.batches[step % 6]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % VAL_EVERY == 0:
            optimizer.eval()
            with torch.no_grad():
                validation.append(np.mean([F.cross_entropy(model(x), y).item() for x, y in task.val_batches]))
            optimizer.train()
    optimizer.eval()
    return losses, validation, model.state_dict()


def assert_as_in_a_plain_loop(runs, task):
    for i, member in enumerate(runs.members):
        losses, validation, state = train_plainly(task, member.lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        np.testing.assert_allclose(runs.metrics["val_loss"][:, i], validation, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).state_dict(), state, rtol=1e-9, atol=1e-12)


def by_engine(runs, engine):
    request = runs._trained.request
    request = replace(request, execution=replace(request.execution, engine=engine))
    return replace(runs, _trained=replace(runs._trained, request=request))


def sweep(task, num_steps, engine):
    return vs.sweep(
        task, lrs=LRS, num_steps=num_steps, val_every=VAL_EVERY, engine=engine, chunk_size=2, divergence_factor=None
    )


@every_optimizer
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_member_is_validated_and_handed_out_at_its_averaged_weights(optimizer, engine):
    task = task_of(optimizer)
    runs = sweep(task, NUM_STEPS, engine)
    assert runs.engine.startswith(engine)
    assert_as_in_a_plain_loop(runs, task)


@every_optimizer
@pytest.mark.parametrize("engines", [("vectorized", "sequential"), ("sequential", "vectorized")], ids=" to ".join)
def test_member_goes_on_from_where_it_trained(optimizer, engines):
    task = task_of(optimizer)
    runs = sweep(task, VAL_EVERY, engines[0])
    runs.model(0)
    runs = by_engine(runs, engines[1])
    assert_as_in_a_plain_loop(runs.extend(num_steps=NUM_STEPS - VAL_EVERY), task)
    assert_as_in_a_plain_loop(runs.branch(1, num_steps=NUM_STEPS - VAL_EVERY), task)


@every_optimizer
@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
def test_member_that_cannot_be_batched_is_averaged_too(optimizer):
    def step(model, batch):
        loss = F.cross_entropy(model(batch[0]), batch[1])
        return loss if loss.item() > 0 else -loss

    task = task_of(optimizer, step)
    runs = sweep(task, NUM_STEPS, "auto")
    assert runs.engine.startswith("sequential")
    assert_as_in_a_plain_loop(runs, task)


def test_saved_weights_are_the_averaged_ones(tmp_path):
    from safetensors.torch import load_file

    task = task_of(lambda params: Averaging(params, lr=0.1))
    runs = sweep(task, NUM_STEPS, "auto")
    saved = load_file(runs.save_model(1, tmp_path / "member.safetensors"))
    torch.testing.assert_close(saved, dict(train_plainly(task, LRS[1])[2]), rtol=1e-9, atol=1e-12)


@every_optimizer
def test_template_may_be_in_either_mode_and_stays_in_it(optimizer):
    task = task_of(optimizer)
    template = optimizer(task.model.parameters())
    of_template = replace(task, optimizer=template)
    expected = sweep(task, 4, "auto").train_loss
    np.testing.assert_array_equal(sweep(of_template, 4, "auto").train_loss, expected)
    template.train()
    np.testing.assert_array_equal(sweep(of_template, 4, "auto").train_loss, expected)
    assert template.param_groups[0]["train_mode"]


def test_failed_evaluation_leaves_the_caller_with_the_error_itself():
    task = replace(
        task_of(lambda params: Averaging(params, lr=0.1)), metrics={"bad": lambda outputs, targets: outputs.nope}
    )
    with pytest.raises(AttributeError, match="nope"):
        sweep(task, 8, "sequential")


class Tanh(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def averaging_loop(net, batches, lr, *, copies_first):
    """Validation losses at the average, and its weights, by an ordinary loop with torch's own."""
    net = copy.deepcopy(net)
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.n_averaged.fill_(0 if copies_first else 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    validation = []
    for step in range(NUM_STEPS):
        x, y = batches[step % 6]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        average.update_parameters(net)
        if (step + 1) % VAL_EVERY == 0:
            for own, trained in zip(average.module.buffers(), net.buffers(), strict=True):
                own.copy_(trained)  # the average is of the parameters
            average.eval()
            with torch.no_grad():
                validation.append(np.mean([F.cross_entropy(average(x), y).item() for x, y in batches[:2]]))
    return validation, average.module.state_dict()


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_moving_average_is_that_of_a_loop_with_torchs_own(engine):
    batches = task_of(OPTIMIZERS[0].values[0]).batches
    net = Tanh()
    task = vs.Task(
        Averaged(net, decay=0.9),
        batches,
        F.cross_entropy,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        val_batches=batches[:2],
    )
    runs = sweep(task, NUM_STEPS, engine)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(LRS):
        validation, state = averaging_loop(net, batches, lr, copies_first=False)
        np.testing.assert_allclose(runs.metrics["val_loss"][:, i], validation, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).averaged().state_dict(), state, rtol=1e-9, atol=1e-12)
    gone_on = sweep(task, VAL_EVERY, engine).extend(num_steps=NUM_STEPS - VAL_EVERY)
    np.testing.assert_allclose(gone_on.metrics["val_loss"], runs.metrics["val_loss"], rtol=1e-9)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("build", [lambda: nn.Linear(6, 3), Tanh], ids=["linear", "batch norm"])
def test_model_with_torchs_average_in_it_trains_as_a_loop_with_it(build, engine):
    def averaged(net):
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)).requires_grad_(False)
        average.n_averaged.fill_(1)
        return average

    class WithAverage(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net, self.average = net, averaged(net)

        def forward(self, x):
            return self.net(x) if self.training else self.average(x)

    def step(model, batch):
        if model.training:
            model.average.update_parameters(model.net)  # with what the last update left
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = task_of(OPTIMIZERS[0].values[0]).batches
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    task = vs.Task(WithAverage(net), batches, training_step=step, optimizer=optimizer, val_batches=batches[:2])
    runs = sweep(task, NUM_STEPS, engine)
    gone_on = sweep(task, VAL_EVERY, engine).extend(num_steps=NUM_STEPS - VAL_EVERY)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(LRS):
        trained = copy.deepcopy(net)
        average, validation = averaged(trained), []
        optimizer = torch.optim.SGD(trained.parameters(), lr=lr)
        for k in range(NUM_STEPS):
            x, y = batches[k % 6]
            average.update_parameters(trained)
            optimizer.zero_grad()
            F.cross_entropy(trained(x), y).backward()
            optimizer.step()
            if (k + 1) % VAL_EVERY == 0:
                evaluated = copy.deepcopy(average).eval()
                validation.append(np.mean([F.cross_entropy(evaluated(x), y).item() for x, y in batches[:2]]))
        for own in (runs, gone_on):
            np.testing.assert_allclose(own.metrics["val_loss"][:, i], validation, rtol=1e-9)
            torch.testing.assert_close(own.model(i).average.state_dict(), average.state_dict(), rtol=1e-9, atol=1e-12)


def test_average_leaves_the_caller_s_module_and_says_what_it_takes():
    net = nn.Linear(6, 3)
    before = copy.deepcopy(net.state_dict())
    assert Averaged(net).averaged() is not net
    torch.testing.assert_close(net.state_dict(), before)
    with pytest.raises(TypeError, match=r"`module` must be an nn.Module; got type. Build it first"):
        Averaged(nn.Linear)
    with pytest.raises(ValueError, match=r"`decay` must be a number from 0 up to, not including, 1; got 1"):
        Averaged(net, decay=1)
