"""Every optimizer through every change of engine in the middle of a run, against a plain loop without a break."""

import copy
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

import vecsweep as vs
from vecsweep._engine.groups import Grouping
from vecsweep._engine.members.ensemble import Ensemble
from vecsweep._engine.ways import program
from vecsweep._engine.ways.program import Program
from vecsweep._engine.ways.vectorized import Vectorized

NUM_STEPS = 22
CHANGE = 18  # in the second window of 16 steps
LATE = 20  # from this step on a parameter gets a gradient that had none before
LRS = [1e-3, 1e-2]

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning"),
]


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Keep the steps eager: tracing takes most of the time, and is held to the eager step elsewhere."""

    monkeypatch.setattr(program, "try_to_trace", lambda step, tensors: None)


def case(optimizer, **options):
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    return pytest.param(lambda params: optimizer(params, lr=1.0, **options), id=f"{optimizer.__name__}({text})")


def in_groups(params):
    """Groups at a ratio of learning rates, and with options of their own."""
    first, *others = params
    return SGD(
        [{"params": [first], "momentum": 0.5, "dampening": 0.2}, {"params": others, "lr": 0.3, "weight_decay": 0.1}],
        lr=1.0,
        momentum=0.9,
    )


def fused_in_groups(params):
    """What has no gradient yet is in a group of its own: within one, torch's fused SGD takes all for equally old."""
    late, *others = params
    return SGD([{"params": [late]}, {"params": others}], lr=1.0, momentum=0.9, dampening=0.5, fused=True)


# A new optimizer, or a new option of one that changes its state, is a line here.
OPTIMIZERS = [
    case(SGD),
    case(SGD, momentum=0.9),
    case(SGD, momentum=0.9, dampening=0.5),
    case(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    pytest.param(fused_in_groups, id="SGD(fused, in groups)"),
    case(Adam),
    case(Adam, amsgrad=True, maximize=True),
    case(Adam, fused=True),
    case(Adam, foreach=True),
    case(AdamW, weight_decay=0.1),
    case(AdamW, fused=True, amsgrad=True),
    case(NAdam),
    case(NAdam, momentum_decay=0.5, decoupled_weight_decay=True, weight_decay=0.1),
    case(RAdam),
    case(Adamax),
    case(Adagrad, initial_accumulator_value=0.5, lr_decay=0.1),
    case(Adagrad, initial_accumulator_value=0.5, fused=True),
    case(Adadelta),
    case(RMSprop),
    case(RMSprop, centered=True, momentum=0.9),
    case(ASGD, t0=10, lambd=0.01),
    case(Rprop),
    pytest.param(in_groups, id="groups"),
]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        self.late = nn.Parameter(torch.ones(3))

    def forward(self, batch):
        outputs = self.body(batch["x"])
        return outputs + self.late if "late" in batch else outputs


def training_step(model, batch):
    loss = F.cross_entropy(model(batch), batch["y"])
    if "weight" in batch and loss.item() > 0:  # which cannot be mapped over members
        loss = loss * batch["weight"]
    return loss


def task_of(optimizer, unmappable_at=None):
    """A task whose steps can be mapped, but for one."""
    torch.manual_seed(0)
    model = Model()
    batches = [{"x": torch.randn(4, 5), "y": torch.randint(3, (4,))} for _ in range(NUM_STEPS)]
    for batch in batches[LATE:]:
        batch["late"] = torch.ones(())
    if unmappable_at is not None:
        batches[unmappable_at]["weight"] = torch.tensor(0.5)
    return vs.Task(model, batches, training_step=training_step, optimizer=optimizer)


def train_plainly(task, lr):
    """What an ordinary loop does: losses and the state of the trained model."""
    model = copy.deepcopy(task.model)
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] *= lr
    losses = []
    for batch in task.batches:
        optimizer.zero_grad()
        loss = task.training_step(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), model.state_dict()


def assert_as_in_a_plain_loop(runs, task):
    for i, member in enumerate(runs.members):
        losses, state = train_plainly(task, member.lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).state_dict(), state, rtol=1e-9, atol=1e-12)


def sweep(task, num_steps=NUM_STEPS, engine="vectorized", **options):
    return vs.sweep(task, lrs=LRS, num_steps=num_steps, engine=engine, divergence_factor=None, **options)


def by_engine(runs, engine):
    """The same runs, to be trained further by another engine."""
    request = runs._trained.request
    request = replace(request, execution=replace(request.execution, engine=engine))
    return replace(runs, _trained=replace(runs._trained, request=request))


# A way in which a run changes engines is a function here, from an optimizer to what came of it and its task.


def fall_back_in_the_first_window(optimizer, monkeypatch):
    task = task_of(optimizer, unmappable_at=3)
    return sweep(task), task


def fall_back_later(optimizer, monkeypatch):
    task = task_of(optimizer, unmappable_at=CHANGE)
    return sweep(task), task


def extend_by_the_sequential_engine(optimizer, monkeypatch):
    task = task_of(optimizer)
    runs = by_engine(sweep(task, CHANGE), "sequential").extend(num_steps=NUM_STEPS - CHANGE)
    assert runs.engine.startswith("sequential")
    return runs, task


def extend_by_the_vectorized_engine(optimizer, monkeypatch):
    task = task_of(optimizer)
    runs = by_engine(sweep(task, CHANGE, "sequential"), "vectorized").extend(num_steps=NUM_STEPS - CHANGE)
    assert runs.engine.startswith("vectorized")
    return runs, task


def there_and_back(optimizer, monkeypatch):
    task = task_of(optimizer)
    runs = by_engine(sweep(task, 2), "sequential").extend(num_steps=CHANGE)
    return by_engine(runs, "vectorized").extend(num_steps=NUM_STEPS - CHANGE - 2), task


def branch_by_the_other_engine(optimizer, monkeypatch):
    task = task_of(optimizer)
    runs = by_engine(sweep(task, CHANGE), "sequential").branch(1, num_steps=NUM_STEPS - CHANGE)
    return runs, task


def run_out_of_memory(optimizer, monkeypatch):
    step, calls = Program.__call__, []

    def call(self, state, inputs, now):  # of some steps
        calls.extend([len(self._ensemble)] * len(inputs))
        if len(calls) > CHANGE and len(self._ensemble) > 1:
            state[0].mul_(2)  # half a step
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, state, inputs, now)

    monkeypatch.setattr(Program, "__call__", call)
    task = task_of(optimizer)
    runs = sweep(task)
    assert set(calls) == {1, 2}
    return runs, task


def split_chunks_between_windows(optimizer, monkeypatch):
    def split(self, group, keep):
        return [group.select([i]) for i in keep]

    monkeypatch.setattr(Grouping, "trim", split)
    task = task_of(optimizer)
    return sweep(task), task


CHANGES = [
    fall_back_in_the_first_window,
    fall_back_later,
    extend_by_the_sequential_engine,
    extend_by_the_vectorized_engine,
    there_and_back,
    branch_by_the_other_engine,
    run_out_of_memory,
    split_chunks_between_windows,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_member_that_changes_engines_trains_as_in_a_plain_loop(optimizer, change, monkeypatch):
    assert_as_in_a_plain_loop(*change(optimizer, monkeypatch))


@pytest.mark.parametrize("kind", [AdamW, Rprop], ids=lambda kind: kind.__name__)
def test_recovery_from_lack_of_memory_copies_nothing_before_the_failed_step_is_freed(kind, monkeypatch):
    failed, alive = [], []
    differentiate, select, load = torch.autograd.grad, Ensemble.select, Vectorized.load

    def fail_for_two(loss, parameters, **options):
        if parameters[0].shape[0] > 1 and len(failed) == 0:
            failed.append(weakref.ref(loss))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return differentiate(loss, parameters, **options)

    def counted(function):
        def call(*args):
            alive.extend(loss() is not None for loss in failed)
            return function(*args)

        return call

    monkeypatch.setattr(torch.autograd, "grad", fail_for_two)
    monkeypatch.setattr(Ensemble, "select", counted(select))
    monkeypatch.setattr(Vectorized, "load", counted(load))
    task = task_of(lambda params: kind(params, lr=1.0))
    with pytest.warns(vs.FallbackWarning, match="not enough memory for chunks of 2 members"):
        runs = sweep(task)
    assert alive
    assert not any(alive)
    assert_as_in_a_plain_loop(runs, task)


def test_numbers_that_torch_keeps_in_float32_pass_between_engines_in_the_precision_they_had():
    """torch.optim counts in the default dtype, the engine in float64: that is what stays of it, also in torch.optim."""
    task = task_of(lambda params: NAdam(params, lr=1.0, momentum_decay=0.5))
    torch.set_default_dtype(torch.float32)
    runs = sweep(task, CHANGE).extend(num_steps=2)
    runs = by_engine(runs, "sequential").extend(num_steps=NUM_STEPS - CHANGE - 2)
    torch.set_default_dtype(torch.float64)
    assert_as_in_a_plain_loop(runs, task)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("engines", [("vectorized", "sequential"), ("sequential", "vectorized")], ids=" to ".join)
def test_mixed_precision_and_its_loss_scale_pass_between_engines(engines, precision):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    # Inputs so large that fp16's gradients overflow at the initial scale of 65,536: the first steps are skipped.
    batches = [(300 * torch.randn(8, 6), 20 + torch.randn(8, 1)) for _ in range(12)]

    def loss_fn(outputs, targets):
        return 0.3 * F.l1_loss(outputs, targets)

    def optimizer(params):
        return SGD(params, lr=1.0, momentum=0.9, dampening=0.5)

    task = vs.Task(model, batches, loss_fn, optimizer=optimizer)
    runs = sweep(task, 2, engines[0], precision=precision)
    for num_steps, engine in ((4, engines[1]), (6, engines[0])):
        runs = by_engine(runs, engine).extend(num_steps=num_steps)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for i, lr in enumerate(LRS):
        own, losses = copy.deepcopy(model), []
        ordinary, scaler = optimizer(own.parameters()), torch.amp.GradScaler("cpu", enabled=precision == "fp16")
        ordinary.param_groups[0]["lr"] = lr
        for x, y in batches:
            ordinary.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = loss_fn(own(x), y)
            scaler.scale(loss).backward()
            scaler.step(ordinary)
            scaler.update()
            losses.append(loss.item())
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=2e-2)
        if precision == "fp16":
            assert scaler.get_scale() < 2.0**15, "the test must make GradScaler skip steps"
            assert runs._trained.start.states[i].scale.value.item() == scaler.get_scale()


@pytest.mark.parametrize("kind", [NAdam, ASGD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_counters_of_a_half_precision_model_are_not_rounded_when_it_goes_on(kind, engine):
    """torch.optim's own `load_state_dict` casts them to the parameter's dtype, as no loop without a break does."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = nn.Linear(6, 3).bfloat16()
    batches = [torch.randn(4, 6).bfloat16() for _ in range(NUM_STEPS)]

    def step(model, x):
        return model(x).float().square().mean()

    task = vs.Task(model, batches, training_step=step, optimizer=lambda params: kind(params, lr=1.0))
    runs = sweep(task, 7, engine).extend(num_steps=NUM_STEPS - 7)
    whole = sweep(task, NUM_STEPS, engine)
    np.testing.assert_array_equal(runs.train_loss, whole.train_loss)
    if engine == "sequential":
        np.testing.assert_array_equal(runs.train_loss[:, 1], train_plainly(task, LRS[1])[0])
