"""Comparing schedules and seeds: members against ordinary loops with torch's own schedulers; evaluation; going on."""

import copy
import dataclasses

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep import schedules

pytestmark = pytest.mark.usefixtures("float64")

every_device = pytest.mark.usefixtures("device")
ENGINES = ["vectorized", "sequential"]
EPOCHS, STEPS_PER_EPOCH = 5, 4


def accuracy(outputs, targets):
    return (outputs.argmax(dim=1) == targets).double().mean()


def margin(outputs, targets):
    """A metric of floats, so that the tests do not hang on counts alone."""
    return outputs.gather(1, targets[:, None]).mean()


def make_data(num_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 6, generator=generator)
    return inputs, (inputs @ torch.arange(18.0).reshape(6, 3).sin()).argmax(dim=1)


def make_task(optimizer=None, *, batches=None, **options):
    """A small classifier with batch norm and dropout, and validation data whose last batch is smaller."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    inputs, targets = make_data(8 * STEPS_PER_EPOCH, 1)
    val_inputs, val_targets = make_data(21, 2)
    how = {
        "loss_fn": F.cross_entropy,
        "optimizer": optimizer or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)),
        "val_batches": list(zip(val_inputs.split(8), val_targets.split(8), strict=True)),
        "metrics": {"accuracy": accuracy, "margin": margin},
    }
    own = list(zip(inputs.split(8), targets.split(8), strict=True))
    return vs.Task(model, own if batches is None else batches, **(how | options))


class Loop:
    """An ordinary training loop, with a scheduler of torch's and an evaluation after each epoch."""

    def __init__(self, task, lr, *, seed=0, make_scheduler=None, interval="epoch", **options):
        self.task, self.interval = task, interval
        self.model = copy.deepcopy(task.model).to(stock.DEVICE)
        self.optimizer = task.optimizer(self.model.parameters())
        for group in self.optimizer.param_groups:
            group.update(lr=lr, **options)
        self.scheduler = make_scheduler(self.optimizer) if make_scheduler else None
        self.losses, self.lrs, self.evaluations = [], [], []
        torch.manual_seed(seed)

    def run(self, epochs):
        for _ in range(epochs):
            for inputs, targets in map(stock.placed, self.task.batches):
                self.lrs.append(self.optimizer.param_groups[0]["lr"])
                self.optimizer.zero_grad()
                loss = self.task.loss_fn(self.model(inputs), targets)
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
                if self.scheduler and self.interval == "step":
                    self.scheduler.step()
            self.evaluations.append(evaluate(self.model, self.task.val_batches))
            if self.scheduler and self.interval == "epoch":
                fed = isinstance(self.scheduler, ReduceLROnPlateau)
                self.scheduler.step(*([self.evaluations[-1][0]] if fed else []))
        return self


@torch.no_grad()
def evaluate(model, batches):
    """Loss, accuracy and margin over a data set, row by row: no batch has more of a say than its rows."""
    model.eval()
    batches = list(map(stock.placed, batches))
    outputs = torch.cat([model(inputs) for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    model.train()
    return [function(outputs, targets).item() for function in (F.cross_entropy, accuracy, margin)]


def assert_member_equals(runs, i, loop):
    """Losses, learning rates, evaluations and weights."""
    np.testing.assert_allclose(runs.train_loss[:, i], loop.losses, rtol=1e-9)
    np.testing.assert_allclose(runs.lr[:, i], loop.lrs, rtol=1e-12)
    measured = np.stack([runs.metrics[name][:, i] for name in ("val_loss", "val_accuracy", "val_margin")], axis=1)
    np.testing.assert_allclose(measured, loop.evaluations, rtol=1e-9)
    assert_same_weights(runs.model(i), loop.model)


def assert_same_weights(model, expected, rtol=1e-9):
    own = model.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(own[name], value, rtol=rtol, atol=rtol, msg=lambda m, name=name: f"{name}: {m}")


TOTAL = EPOCHS * STEPS_PER_EPOCH


def one_cycle(optimizer):
    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=TOTAL, cycle_momentum=True)


SCHEDULERS = {
    "step": (lambda optimizer: StepLR(optimizer, 2, 0.3), "epoch"),
    "exponential-per-step": (lambda optimizer: ExponentialLR(optimizer, 0.93), "step"),
    "one-cycle": (one_cycle, "step"),
    "chained": (lambda o: ChainedScheduler([ConstantLR(o, 0.5, 2), LinearLR(o, 0.2, 1.0, 3)]), "epoch"),
    "plateau": (lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.05), "epoch"),
}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, betas=(0.85, 0.99)),
    "rprop": lambda params: torch.optim.Rprop(params, lr=0.1),  # has no stacked update
}


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_member_equals_a_loop_with_the_real_scheduler(scheduler, optimizer, engine):
    if (scheduler, optimizer) == ("one-cycle", "rprop"):
        pytest.skip("torch refuses it: Rprop has neither momentum nor betas")
    make_scheduler, interval = SCHEDULERS[scheduler]
    task = make_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(
        task,
        lrs=[0.02, 0.3],
        schedules={"constant": schedules.constant(), scheduler: schedules.from_torch(make_scheduler, interval)},
        epochs=EPOCHS,
        engine=engine,
        divergence_factor=None,
    )
    for i, member in enumerate(runs.members):
        own = make_scheduler if member.schedule == scheduler else None
        assert_member_equals(runs, i, Loop(task, member.lr, make_scheduler=own, interval=interval).run(EPOCHS))


def test_plateau_members_go_different_ways():
    task = make_task()
    runs = vs.sweep(task, lrs=[0.001, 0.5], schedules=[schedules.plateau(patience=0, threshold=0.05)], epochs=8)
    drops = (np.diff(runs.lr, axis=0) < 0).sum(axis=0)
    assert drops[0] != drops[1], "each follows its own validation loss"


def test_momentum_is_annealed_the_opposite_way():
    runs = vs.sweep(make_task(), lrs=[0.1], schedules=["one-cycle", "constant"], num_steps=101)
    momentum, lr = runs.hyper["momentum"], runs.lr
    assert momentum[[0, 25, 100], 0] == pytest.approx([0.95, 0.85, 0.95])
    assert (momentum[:, 1] == 0.9).all(), "the optimizer's own where the schedule leaves it alone"
    assert lr[:, 0].argmax() == momentum[:, 0].argmin()
    adam = vs.sweep(make_task(OPTIMIZERS["adamw"]), lrs=[0.1], schedules=["one-cycle"], num_steps=9)
    assert list(adam.hyper) == ["beta1"]


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_function_of_progress_trains_like_a_lambda_scheduler(engine):
    task = make_task()
    runs = vs.sweep(task, lrs=[0.05, 0.2], schedules={"cosine": schedules.cosine(1, 0.1)}, epochs=EPOCHS, engine=engine)

    def make_scheduler(optimizer):
        def multiple(step):
            return 0.1 + 0.9 * (1 + np.cos(np.pi * min(1, step / (TOTAL - 1)))) / 2

        return torch.optim.lr_scheduler.LambdaLR(optimizer, multiple)

    for i, member in enumerate(runs.members):
        loop = Loop(task, member.lr, make_scheduler=make_scheduler, interval="step").run(EPOCHS)
        assert_member_equals(runs, i, loop)


def test_momentum_of_one_cycle_needs_an_optimizer_that_has_it():
    with pytest.raises(ValueError, match=r"anneals momentum, which this optimizer does not have.*momentums=None"):
        vs.sweep(make_task(OPTIMIZERS["rprop"]), lrs=[0.1], schedules=["one-cycle"], num_steps=5)


VARIED = {
    "sgd": {"weight_decay": [0.0, 0.05], "momentum": [0.0, 0.8]},
    "adamw": {"beta1": [0.5, 0.95], "beta2": [0.9, 0.999], "weight_decay": [0.0, 0.1]},
    "rmsprop": {"momentum": [0.0, 0.9], "alpha": [0.8, 0.99], "eps": [1e-8, 1e-2]},
}


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", VARIED)
def test_varied_hyperparameters_train_each_member_as_torch_does(name, engine):
    optimizer = OPTIMIZERS.get(name, lambda params: torch.optim.RMSprop(params, lr=0.1))
    task = make_task(optimizer)
    runs = vs.sweep(task, lrs=[0.02], vary=VARIED[name], epochs=3, engine=engine, seeds=2)
    assert len(runs.members) == 2 * np.prod([len(values) for values in VARIED[name].values()])
    for i, member in enumerate(runs.members):
        own = dict(member.hyper)
        betas = {"betas": (own.pop("beta1"), own.pop("beta2"))} if "beta1" in own else {}
        assert_member_equals(runs, i, Loop(task, member.lr, seed=member.seed, **own, **betas).run(3))


def test_parameter_group_with_a_value_of_its_own_keeps_it():
    def optimizer(params):
        first, *others = params
        groups = [{"params": others}, {"params": [first], "weight_decay": 0.0, "lr": 0.05}]
        return torch.optim.SGD(groups, lr=0.1, weight_decay=0.01)

    task = make_task(optimizer)
    runs = vs.sweep(task, lrs=[0.1], vary={"weight_decay": [0.01, 0.3]}, epochs=2)
    for i, member in enumerate(runs.members):
        loop = Loop(task, 0.1)
        loop.optimizer.param_groups[0]["weight_decay"] = member.hyper["weight_decay"]
        loop.optimizer.param_groups[1]["lr"] = 0.05
        loop.run(2)
        np.testing.assert_allclose(runs.train_loss[:, i], loop.losses, rtol=1e-9)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_train_metrics_are_those_of_the_same_weights_in_eval_mode(engine):
    task = make_task()
    runs = vs.sweep(task, lrs=[0.02, 0.3], epochs=2, train_metrics=True, engine=engine)
    for i in range(2):
        _, *expected = evaluate(runs.model(i), task.batches)
        measured = [runs.metrics[name][-1, i] for name in ("train_accuracy", "train_margin")]
        np.testing.assert_allclose(measured, expected, rtol=1e-9)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_leaves_training_as_it_is(engine):
    task = make_task()
    bare = vs.Task(task.model, task.batches, task.loss_fn, task.optimizer)
    with_it = vs.sweep(task, lrs=[0.02, 0.3], seeds=2, num_steps=13, val_every=3, train_metrics=True, engine=engine)
    without = vs.sweep(bare, lrs=[0.02, 0.3], seeds=2, num_steps=13, engine=engine)
    np.testing.assert_array_equal(with_it.train_loss, without.train_loss)
    assert_same_weights(with_it.model(3), without.model(3), rtol=0)


def test_evaluations_come_after_every_k_steps_and_at_the_end():
    runs = vs.sweep(make_task(), lrs=[0.1], num_steps=10, val_every=3)
    assert runs.evaluated_at.tolist() == [3, 6, 9, 10]
    assert vs.sweep(make_task(), lrs=[0.1], epochs=2).evaluated_at.tolist() == [4, 8]
    assert vs.sweep(make_task(), lrs=[0.1], num_steps=6).evaluated_at.tolist() == [4, 6]
    halves = vs.sweep(make_task(), lrs=[0.1], epochs=3, accumulation_steps=3)
    assert halves.evaluated_at.tolist() == [2, 3, 4], "epochs of a step and a third"


def test_model_that_cannot_be_batched_in_eval_mode_is_evaluated_one_after_another():
    class Fussy(nn.Linear):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            return outputs if self.training or outputs.sum() > -1e9 else -outputs

    task = make_task()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), Fussy(8, 3))
    task = dataclasses.replace(task, model=model)
    with pytest.warns(vs.FallbackWarning, match="evaluated one after another"):
        runs = vs.sweep(task, lrs=[0.02, 0.3], epochs=2, engine="vectorized")
    assert "vectorized" in runs.engine
    for i, member in enumerate(runs.members):
        assert_member_equals(runs, i, Loop(task, member.lr).run(2))


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_in_validation_batches_are_those_of_each_members_seed(engine):
    def weighted(model, batch):
        return (model(batch["x"]).square() * torch.as_tensor(batch["weights"])).mean()

    def validation(seed):
        return [{"x": make_data(8, 2)[0], "weights": np.full((8, 1), 1.0 + seed)}]

    train = [{"x": x, "weights": torch.ones(8, 1)} for x, _ in make_task().batches]
    task = make_task(batches=train, loss_fn=None, training_step=weighted, metrics={}, val_batches=validation)
    runs = vs.sweep(task, lrs=[0.02, 0.1], seeds=2, num_steps=4, engine=engine)
    for i, member in enumerate(runs.members):
        (batch,) = validation(member.seed)
        expected = weighted(runs.model(i).eval(), batch).item()
        np.testing.assert_allclose(runs.metrics["val_loss"][-1, i], expected, rtol=1e-9)


def test_metrics_of_a_training_step_are_given_model_and_batch():
    plain = make_task()
    task = vs.Task(
        plain.model,
        [{"x": x, "y": y} for x, y in plain.batches],
        optimizer=plain.optimizer,
        training_step=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]),
        val_batches=[{"x": x, "y": y} for x, y in plain.val_batches],
        metrics={"accuracy": lambda model, batch: accuracy(model(batch["x"]), batch["y"])},
    )
    expected = vs.sweep(plain, lrs=[0.1, 0.2], epochs=2)
    runs = vs.sweep(task, lrs=[0.1, 0.2], epochs=2)
    for name in ("val_loss", "val_accuracy"):
        np.testing.assert_allclose(runs.metrics[name], expected.metrics[name], rtol=1e-12)


def test_validation_data_and_mode_of_the_model_stay_the_callers():
    task = make_task()
    before = copy.deepcopy(task.val_batches)
    task.model[3].eval()  # a dropout that the caller has switched off
    vs.sweep(task, lrs=[0.1], epochs=2)
    assert [module.training for module in task.model] == [True, True, True, False, True]
    for (x, y), (own_x, own_y) in zip(before, task.val_batches, strict=True):
        assert torch.equal(x, own_x)
        assert torch.equal(y, own_y)


@pytest.mark.parametrize("engine", ENGINES)
def test_diverged_member_has_no_metrics_and_harms_none(engine):
    task = make_task()
    alone = vs.sweep(task, lrs=[0.02], epochs=3, engine=engine, chunk_size=2)
    runs = vs.sweep(task, lrs=[0.02, 1e308], epochs=3, engine=engine, chunk_size=2)
    assert runs.members[1].diverged_at is not None
    assert np.isnan(runs.metrics["val_loss"][:, 1]).all()
    np.testing.assert_allclose(runs.metrics["val_loss"][:, 0], alone.metrics["val_loss"][:, 0], rtol=1e-12)
    assert runs.best() == 0


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_member_stops_where_its_metric_no_longer_improves(engine):
    task = make_task()
    lrs, epochs, patience = [0.0005, 0.4, 0.6], 12, 2
    whole = vs.sweep(task, lrs=lrs, epochs=epochs, engine=engine, divergence_factor=None)
    runs = vs.sweep(task, lrs=lrs, epochs=epochs, patience=patience, engine=engine, divergence_factor=None)
    ends = []
    for i in range(len(lrs)):
        best, waited, end = np.inf, 0, None
        for k, value in enumerate(whole.metrics["val_loss"][:, i]):
            waited = 0 if value < best else waited + 1
            best = min(best, value)
            if waited == patience and k + 1 < epochs:
                end = (k + 1) * STEPS_PER_EPOCH
                break
        ends.append(end)
        assert runs.members[i].stopped_at == end
        np.testing.assert_allclose(runs.train_loss[:end, i], whole.train_loss[:end, i], rtol=1e-9)
        assert np.isnan(runs.train_loss[len(runs.train_loss) if end is None else end :, i]).all()
        assert_same_weights(runs.model(i), Loop(task, lrs[i]).run(end // STEPS_PER_EPOCH if end else epochs).model)
    assert None in ends, "the slow one goes on"
    assert set(ends) != {None}, "others stop"


def test_stopping_watches_the_metric_it_is_told():
    runs = vs.sweep(make_task(), lrs=[0.3], epochs=30, patience=1, monitor="val_accuracy")
    values = runs.metrics["val_accuracy"][:, 0]
    end = runs.members[0].stopped_at // STEPS_PER_EPOCH
    assert values[end - 1] <= values[: end - 1].max()
    assert np.isnan(values[end:]).all()
    assert runs.final("val_accuracy")[0] == values[end - 1]


def make_loader(task):
    inputs, targets = make_data(30, 1)
    return dataclasses.replace(task, batches=DataLoader(TensorDataset(inputs, targets), 8, shuffle=True))


GOING_ON = {
    "constant": None,
    "torch": {"step": schedules.from_torch(lambda o: StepLR(o, 3, 0.5))},
    "plateau": {"plateau": schedules.plateau(patience=0, threshold=0.02, factor=0.5)},
}


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("schedule", GOING_ON)
@pytest.mark.parametrize("unit", ["epochs", "num_steps"])
def test_ten_and_ten_more_are_twenty(unit, schedule, engine):
    """Bitwise: shuffling, dropout, batch norm, momentum and torch's schedulers all go on where they stood."""
    task = make_loader(make_task())
    how = {"lrs": [0.02, 0.2], "seeds": 2, "schedules": GOING_ON[schedule], "engine": engine}
    whole = vs.sweep(task, **how, **{unit: 20})
    parts = vs.sweep(task, **how, **{unit: 10})
    both = parts.extend(**{unit: 3}).extend(**{unit: 7})
    np.testing.assert_array_equal(both.train_loss, whole.train_loss)
    np.testing.assert_array_equal(both.lr, whole.lr)
    if unit == "epochs":
        np.testing.assert_array_equal(both.metrics["val_loss"], whole.metrics["val_loss"])
        np.testing.assert_array_equal(both.evaluated_at, whole.evaluated_at)
    for i in range(4):
        assert_same_weights(both.model(i), whole.model(i), rtol=0)
    assert both.phases == ((0, 40, 52) if unit == "epochs" else (0, 10, 13))
    assert len(parts.train_loss) == (40 if unit == "epochs" else 10), "what was extended stays as it was"


def test_function_of_progress_holds_its_last_value():
    runs = vs.sweep(make_task(), lrs=[0.1], schedules=[schedules.cosine(1, 0.25)], num_steps=10).extend(num_steps=5)
    assert runs.lr[9:, 0].tolist() == [0.025] * 6


@every_device
def test_extension_leaves_out_what_diverged_or_stopped():
    task = make_task()
    runs = vs.sweep(task, lrs=[0.02, 1e308], epochs=2)
    more = runs.extend(epochs=2)
    assert more.members[1] == runs.members[1]
    assert np.isnan(more.train_loss[8:, 1]).all()
    assert_member_equals(more, 0, Loop(task, 0.02).run(4))
    assert_same_weights(more.model(1), runs.model(1), rtol=0)
    with pytest.raises(ValueError, match=r"nothing to train further: all 1 members diverged"):
        runs.select(lr=1e308).extend(epochs=1)


def test_member_that_ended_keeps_its_last_hyperparameters_where_others_go_on():
    runs = vs.sweep(make_task(), lrs=[0.02, 1e308], vary={"weight_decay": [0.0, 0.1]}, num_steps=6)
    more = runs.extend(num_steps=4)
    assert [member.diverged_at is None for member in more.members] == [True, True, False, False]
    np.testing.assert_array_equal(more.hyper["weight_decay"], np.tile([0.0, 0.1, 0.0, 0.1], (10, 1)))
    np.testing.assert_array_equal(more.lr, np.tile([0.02, 0.02, 1e308, 1e308], (10, 1)))


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_branch_equals_a_loop_that_goes_on_from_saved_states(optimizer, engine):
    task = make_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=[0.05, 0.02], epochs=2, engine=engine, divergence_factor=None)
    branched = runs.branch(1, lrs=[0.01, 0.1], epochs=3)
    assert [(m.lr, m.schedule, m.seed) for m in branched.members] == [(0.01, "constant", 0), (0.1, "constant", 0)]
    for i, lr in enumerate([0.01, 0.1]):
        loop = Loop(task, 0.02).run(2)
        saved = copy.deepcopy((loop.model.state_dict(), loop.optimizer.state_dict()))
        resumed = Loop(task, lr)
        resumed.losses, resumed.lrs, resumed.evaluations = loop.losses, loop.lrs, loop.evaluations
        Loop(task, 0.02).run(2)  # so that dropout goes on where it stood
        resumed.model.load_state_dict(saved[0])
        resumed.optimizer.load_state_dict(saved[1])
        resumed.optimizer.param_groups[0]["lr"] = lr
        assert_member_equals(branched, i, resumed.run(3))
    assert_same_weights(runs.model(1), Loop(task, 0.02).run(2).model)


def test_branch_begins_its_schedules_where_it_begins():
    runs = vs.sweep(make_task(), lrs=[0.1, 0.2], schedules=["cosine"], epochs=2, seeds=2)
    branched = runs.branch(2, schedules=["constant", "one-cycle"], vary={"weight_decay": [0.0, 0.1]}, epochs=3)
    assert [(m.lr, m.schedule, m.seed, m.hyper["weight_decay"]) for m in branched.members] == [
        (0.2, "constant", 0, 0.0),
        (0.2, "constant", 0, 0.1),
        (0.2, "one-cycle", 0, 0.0),
        (0.2, "one-cycle", 0, 0.1),
    ]
    assert branched.phases == (0, 8)
    assert (branched.lr[:8] == runs.lr[:, [2]]).all()
    assert branched.lr[8, 0] == 0.2
    assert branched.lr[8, 2] == pytest.approx(0.2 / 25)
    assert (branched.hyper["momentum"][:8] == 0.9).all()
    assert (branched.hyper["weight_decay"][:8] == 0).all()
    longer = branched.extend(epochs=1)
    assert longer.phases == (0, 8, 20)
    assert longer.lr[-1, 2] == pytest.approx(0.2e-5), "the end of its one cycle"


@every_device
def test_selected_members_go_on_too():
    task = make_task()
    runs = vs.sweep(task, lrs=[0.02, 0.1, 0.3], epochs=1)
    one = runs.select(lr=0.1)
    assert_member_equals(one.extend(epochs=1), 0, Loop(task, 0.1).run(2))
    assert_same_weights(one.model(0), runs.model(1), rtol=0)


def test_saved_model_is_the_trained_one(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_model

    task = make_task()
    runs = vs.sweep(task, lrs=[0.02, 0.1], epochs=1)
    path = runs.save_model(1, tmp_path / "best")
    assert path.name == "best.safetensors"
    fresh = copy.deepcopy(task.model)
    assert load_model(fresh, path) == (set(), [])
    assert_same_weights(fresh, runs.model(1), rtol=0)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"lr": "0.1", "schedule": "constant", "seed": "0", "num_steps": "4"}


def test_tied_weights_are_saved_once_and_come_back(tmp_path):
    from safetensors.torch import load_model

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.second(torch.tanh(self.first(inputs)))

    task = make_task()
    task = vs.Task(Tied(), task.batches, task.loss_fn, task.optimizer)
    runs = vs.sweep(task, lrs=[0.02], num_steps=3)
    fresh = Tied()
    load_model(fresh, runs.save_model(0, tmp_path / "tied"))
    assert_same_weights(fresh, runs.model(0), rtol=0)
    assert fresh.second.weight is fresh.first.weight


WRONG = {
    "negative schedule": (
        {"schedules": {"mine": lambda p: p - 0.5}},
        ValueError,
        r"The schedule `mine` must return fin",
    ),
    "NaN schedule": ({"schedules": {"mine": lambda p: p * np.nan}}, ValueError, r"`mine` must return finite.*step 0"),
    "short schedule": ({"schedules": {"mine": lambda p: p[1:]}}, ValueError, r"shape"),
    "same names": ({"schedules": ["cosine", "cosine"]}, ValueError, r"different names; got 'cosine' 2 times"),
    "no schedules": ({"schedules": {}}, ValueError, r"at least one schedule; got none"),
    "one schedule": ({"schedules": schedules.cosine(1, 0)}, TypeError, r"a dict from names to schedules, or a list"),
    "unknown schedule": ({"schedules": ["cosin"]}, ValueError, r"cosine"),
    "factory": (
        {"schedules": {"mine": schedules.from_torch(lambda optimizer: 3)}},
        TypeError,
        r"`factory` must return a scheduler of torch\.optim\.lr_scheduler; it returned 3",
    ),
    "unknown hyperparameter": (
        {"vary": {"beta1": [0.9]}},
        ValueError,
        r"hyperparameters of SGD that are numbers, momentum, dampening, weight_decay; got 'beta1'",
    ),
    "vary lr": ({"vary": {"lr": [0.9]}}, ValueError, r"must not hold the lr\. Pass `lrs`"),
    "vary nothing": ({"vary": {"momentum": []}}, ValueError, r"must hold finite numbers; got \[\]"),
    "vary twice": ({"vary": {"momentum": [0.5, 0.5]}}, ValueError, r"must hold different values"),
    "vary text": ({"vary": {"momentum": ["much"]}}, TypeError, r"must be a list of numbers"),
    "vary number": ({"vary": {"momentum": 0.5}}, TypeError, r"must be a list of numbers; got 0\.5\. Pass \[0\.5\]"),
    "vary out of range": ({"vary": {"momentum": [-1.0]}}, ValueError, r"must suit SGD; got -1\.0: Invalid momentum"),
    "vary what is scheduled": (
        {"vary": {"momentum": [0.5]}, "schedules": ["one-cycle"]},
        ValueError,
        r"the schedule 'one-cycle' sets 'momentum'",
    ),
    "patience": ({"patience": 0}, ValueError, r"`patience` must be a whole number of at least 1; got 0"),
    "monitor": ({"patience": 1, "monitor": "val_los"}, ValueError, r"`mode` must be \"min\" or \"max\""),
    "unmeasured": ({"patience": 1, "monitor": "val_f1"}, ValueError, r"`patience` follows 'val_f1', which is not meas"),
    "val_every": ({"val_every": 0}, ValueError, r"`val_every` must be a whole number of at least 1; got 0"),
    "plateau": ({"schedules": [schedules.plateau("val_f1")]}, ValueError, r"A schedule follows 'val_f1', which is not"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_argument_is_told_before_any_work(what):
    options, kind, message = WRONG[what]

    def step(model, batch):
        raise AssertionError("work was done")

    task = dataclasses.replace(make_task(), loss_fn=None, training_step=step, metrics={"accuracy": step})
    with pytest.raises(kind, match=message):
        vs.sweep(task, lrs=[0.1], epochs=2, **options)


def test_metric_that_is_no_scalar_is_refused():
    task = make_task(metrics={"hits": lambda outputs, targets: outputs.argmax(1) == targets})
    with pytest.raises(ValueError, match=r"The metric 'hits' must be a scalar; got shape \(8,\)"):
        vs.sweep(task, lrs=[0.1], epochs=1)
    task = make_task(metrics={"hits": lambda outputs, targets: "many"})
    with pytest.raises(TypeError, match=r"The metric 'hits' must be a scalar; got str"):
        vs.sweep(task, lrs=[0.1], epochs=1)


def test_empty_validation_data_are_refused():
    with pytest.raises(ValueError, match="`val_batches` must yield at least one batch; got none"):
        vs.sweep(make_task(val_batches=[]), lrs=[0.1], epochs=1)


def test_validation_is_needed_where_it_is_asked_for():
    task = make_task(val_batches=None, metrics={})
    with pytest.raises(ValueError, match="`val_every` needs `val_batches` in the task"):
        vs.sweep(task, lrs=[0.1], epochs=1, val_every=2)
    with pytest.raises(ValueError, match="`train_metrics` needs `metrics` in the task"):
        vs.sweep(task, lrs=[0.1], epochs=1, train_metrics=True)
    with pytest.raises(ValueError, match="follows 'val_loss', which is not measured; there is mean_train_loss"):
        vs.sweep(task, lrs=[0.1], epochs=1, patience=2)
    with pytest.raises(
        ValueError, match="`monitor` is what `patience` and \"halving\" go by; got 'val_loss' and neither"
    ):
        vs.sweep(make_task(), lrs=[0.1], epochs=1, monitor="val_loss", prune=lambda so_far: [0])


def test_evaluations_without_validation_come_as_often_as_whoever_looks_at_them_needs():
    task, how = make_task(val_batches=None, metrics={}), {"lrs": [0.1, 0.2], "num_steps": 8, "val_every": 3}
    asked = []
    vs.sweep(task, prune=lambda so_far: asked.append(len(so_far.train_loss)) or range(2), **how)
    assert asked == [3, 6]
    runs = vs.sweep(task, schedules=[vs.schedules.plateau("mean_train_loss")], **how)
    assert runs.evaluated_at.tolist() == [3, 6, 8]
    np.testing.assert_allclose(runs.metrics["mean_train_loss"][0], runs.train_loss[:3].mean(axis=0))


def test_branch_from_a_diverged_member_is_refused():
    runs = vs.sweep(make_task(), lrs=[0.1, 1e308], epochs=1)
    with pytest.raises(ValueError, match=r"`i` must be a member that did not diverge; member 1, at lr 1e\+308, did at"):
        runs.branch(1, epochs=1)
    with pytest.raises(IndexError, match="`i` must be one of the 2 members; got 2"):
        runs.branch(2, epochs=1)
    with pytest.raises(ValueError, match="Exactly one of `num_steps` and `epochs`"):
        runs.branch(0)


def test_selection_without_a_match_says_what_there_is():
    runs = vs.sweep(make_task(), lrs=[0.1, 0.2], schedules=["constant", "cosine"], num_steps=2)
    with pytest.raises(ValueError, match=r"`lr` must be one that members have; got 0\.3\. There is 0\.1, 0\.2\."):
        runs.select(lr=0.3)
    with pytest.raises(ValueError, match=r"There is 'constant', 'cosine'"):
        runs.select(schedule="one-cycle")
    with pytest.raises(ValueError, match=r"Members differ in member, lr, schedule, seed; got 'momentum'"):
        runs.select(momentum=0.9)
    assert len(runs.select(lr=[0.1, 0.2], schedule="cosine").members) == 2


def test_interrupted_extension_keeps_the_history_and_the_sweep_before_it():
    task = make_task()
    runs = vs.sweep(task, lrs=[0.02], epochs=2)
    calls = []

    def batches():
        for batch in make_task().batches:
            calls.append(1)
            if len(calls) > 30:
                raise KeyboardInterrupt
            yield batch

    patient = vs.sweep(make_task(batches=batches), lrs=[0.02], epochs=4)
    with pytest.raises(vs.Interrupted) as stop:
        patient.extend(epochs=20)
    shorter = stop.value.result
    assert 16 <= len(shorter.train_loss) < 96
    assert not shorter.is_complete
    np.testing.assert_array_equal(shorter.train_loss[:16], patient.train_loss)
    assert len(runs.extend(epochs=1).train_loss) == 12


def test_schedule_is_asked_once_for_all_seeds():
    asked = []

    def mine(progress):
        asked.append(len(progress))
        return np.ones_like(progress)

    vs.sweep(make_task(), lrs=[0.1, 0.2], schedules={"mine": mine}, seeds=4, num_steps=3)
    assert asked == [3, 3]


def test_patience_on_the_training_loss_looks_at_each_epoch():
    task = dataclasses.replace(make_task(), val_batches=None, metrics={})
    runs = vs.sweep(task, lrs=[0.5], num_steps=4 * 30, patience=1, monitor="mean_train_loss", divergence_factor=None)
    means = runs.metrics["mean_train_loss"][:, 0]
    assert runs.evaluated_at.tolist() == list(range(4, 121, 4))
    end = runs.members[0].stopped_at
    assert end is not None
    assert means[end // 4 - 1] >= means[: end // 4 - 1].min()
    np.testing.assert_allclose(means[: end // 4], runs.train_loss[:end, 0].reshape(-1, 4).mean(axis=1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("parts", [(2, 1, 9), (11, 1), (1,) * 12])
def test_patience_counts_on_over_phases(parts, engine):
    how = {"lrs": [0.0005, 0.4, 0.6], "patience": 2, "divergence_factor": None, "engine": engine}
    whole = vs.sweep(make_task(), epochs=12, **how)
    runs = vs.sweep(make_task(), epochs=parts[0], **how)
    for epochs in parts[1:]:
        runs = runs.extend(epochs=epochs)
    assert [m.stopped_at for m in runs.members] == [m.stopped_at for m in whole.members]
    assert {m.stopped_at for m in whole.members} != {None}
    np.testing.assert_array_equal(runs.train_loss, whole.train_loss)
    for i in range(3):
        assert_same_weights(runs.model(i), whole.model(i), rtol=0)


def test_branch_has_patience_of_its_own():
    runs = vs.sweep(make_task(), lrs=[0.6], epochs=12, patience=2, divergence_factor=None)
    assert runs.members[0].stopped_at < 48
    branched = runs.branch(0, lrs=[1e-4], epochs=4)
    assert branched.members[0].stopped_at is None or branched.members[0].stopped_at > len(runs.train_loss) + 4


@pytest.mark.parametrize("val_every", [None, 3])
def test_what_is_followed_does_not_see_the_evaluation_at_the_end_of_a_phase(val_every):
    how = {"lrs": [0.02, 0.3], "schedules": GOING_ON["plateau"], "val_every": val_every}
    whole = vs.sweep(make_task(), num_steps=30, **how)
    parts = vs.sweep(make_task(), num_steps=10, **how).extend(num_steps=20)
    assert 10 in parts.evaluated_at
    assert 10 not in whole.evaluated_at
    np.testing.assert_array_equal(parts.lr, whole.lr)


def test_branch_takes_a_schedule_that_sets_what_was_varied():
    runs = vs.sweep(make_task(OPTIMIZERS["adamw"]), lrs=[0.01], vary={"beta1": [0.5, 0.9]}, epochs=1)
    branched = runs.branch(1, schedules=["one-cycle", "constant"], epochs=1)
    assert [m.hyper for m in branched.members] == [{}, {"beta1": 0.9}]
    assert branched.hyper["beta1"][4, 0] == pytest.approx(0.95)
    with pytest.raises(ValueError, match="the schedule 'one-cycle' sets 'beta1'"):
        runs.branch(1, schedules=["one-cycle"], vary={"beta1": [0.5]}, epochs=1)


def test_train_metrics_of_each_seed_are_those_of_its_own_batches():
    """Seeds whose batches differ in size and number."""

    def of_seed(seed):
        inputs, targets = make_data(40, seed)
        size = 8 if seed == 0 else 5
        return list(zip(inputs[: 40 - 7 * seed].split(size), targets[: 40 - 7 * seed].split(size), strict=True))

    for how in ({}, {"chunk_size": 1}, {"engine": "sequential"}):
        runs = vs.sweep(make_task(batches=of_seed), lrs=[0.1], seeds=2, num_steps=10, train_metrics=True, **how)
        for seed in range(2):
            _, *expected = evaluate(runs.model(seed), of_seed(seed))
            measured = [runs.metrics[name][-1, seed] for name in ("train_accuracy", "train_margin")]
            np.testing.assert_allclose(measured, expected, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # of the loader's workers
def test_loader_whose_workers_persist_is_not_shared_with_the_caller_or_between_seeds():
    def loader():
        dataset = TensorDataset(*make_data(32, 1))
        return DataLoader(dataset, 8, num_workers=1, persistent_workers=True)

    plain = DataLoader(TensorDataset(*make_data(32, 1)), 8)
    train, val = loader(), loader()
    task = make_task(batches=train, val_batches=val)
    under_way = iter(val)
    next(under_way)
    runs = vs.sweep(task, lrs=[0.1], seeds=2, epochs=2, train_metrics=True)
    expected = vs.sweep(make_task(batches=plain, val_batches=plain), lrs=[0.1], seeds=2, epochs=2, train_metrics=True)
    for name, values in expected.metrics.items():
        np.testing.assert_allclose(runs.metrics[name], values, rtol=1e-12, err_msg=name)
    assert len(list(under_way)) == 3
    assert train._iterator is None


@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_metric_that_keeps_state_stays_the_callers(engine):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_right = torch.zeros(())
            self.register_buffer("num_calls", torch.zeros(()))

        def forward(self, outputs, targets):
            self.num_right = self.num_right + (outputs.argmax(dim=1) == targets).sum()
            self.num_calls += 1
            return accuracy(outputs, targets)

    counting, task = Counting(), make_task()
    runs = vs.sweep(dataclasses.replace(task, metrics={"accuracy": counting}), lrs=[0.1, 0.2], epochs=2, engine=engine)
    assert (counting.num_right.item(), counting.num_calls.item()) == (0, 0)
    plain = vs.sweep(task, lrs=[0.1, 0.2], epochs=2, engine=engine)
    np.testing.assert_allclose(runs.metrics["val_accuracy"], plain.metrics["val_accuracy"], rtol=1e-12)


def test_iterator_does_not_tell_epochs_to_what_follows_a_metric():
    with pytest.raises(ValueError, match="What follows a metric needs epochs, which an iterator does not tell"):
        vs.sweep(make_task(batches=iter(make_task().batches)), lrs=[0.1], num_steps=4, patience=1)
    runs = vs.sweep(make_task(batches=iter(make_task().batches)), lrs=[0.1], num_steps=4, patience=1, val_every=2)
    assert runs.evaluated_at.tolist() == [2, 4]


def test_repeated_learning_rates_are_refused():
    with pytest.raises(ValueError, match=r"`lrs` must differ from each other; got 0\.1 again\. Pass `seeds`"):
        vs.sweep(make_task(), lrs=[0.1, 0.2, 0.1], epochs=1)


def test_metric_that_is_nan_from_the_start_brings_no_progress():
    nan = [(inputs * np.nan, targets) for inputs, targets in make_task().val_batches]
    runs = vs.sweep(make_task(val_batches=nan), lrs=[0.1], epochs=5, patience=2)
    assert runs.members[0].stopped_at == 8
    assert runs.members[0].diverged_at is None
