"""Every optimizer and every way to train, against an ordinary loop with torch.optim."""

import copy

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

import vecsweep as vs

pytestmark = pytest.mark.usefixtures("float64", "device")

LRS = [0.003, 0.01, 0.05]
NUM_STEPS = 50


class ThirdParty(torch.optim.Optimizer):
    """An optimizer that nobody here has heard of: sign descent with memory."""

    def __init__(self, params, lr=0.1, keep=0.9):
        super().__init__(params, {"lr": lr, "keep": keep})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                memory = self.state[p].setdefault("memory", torch.zeros_like(p))
                memory.mul_(group["keep"]).add_(p.grad, alpha=1 - group["keep"])
                p.add_(torch.tanh(memory), alpha=-group["lr"])


class ScheduleFree(torch.optim.Optimizer):
    """An optimizer that keeps a count in its group, numbers in its state and an attribute of its own."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0})
        self.half_life = 10.0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                state["norm"] = state.get("norm", 0.0) + p.grad.square().sum().item()
                p.sub_(group["lr"] * 0.5 ** (group["k"] / self.half_life) * p.grad / (1 + state["norm"]) ** 0.5)


class Rebinding(torch.optim.Optimizer):
    """An optimizer that puts a new tensor into each parameter."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd-momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "sgd-nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "sgd-dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=1e-2),
    "adam": lambda p: Adam(p, lr=0.1),
    "adam-eps": lambda p: Adam(p, lr=0.1, eps=0.1),
    "adam-amsgrad": lambda p: Adam(p, lr=0.1, betas=(0.8, 0.99), amsgrad=True, weight_decay=1e-2),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw-amsgrad": lambda p: AdamW(p, lr=0.1, amsgrad=True),
    "nadam": lambda p: NAdam(p, lr=0.1, weight_decay=1e-2),
    "nadam-decoupled": lambda p: NAdam(p, lr=0.1, weight_decay=1e-2, decoupled_weight_decay=True),
    "radam": lambda p: RAdam(p, lr=0.1),
    "adamax": lambda p: Adamax(p, lr=0.1),
    "adagrad": lambda p: Adagrad(p, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1),
    "adadelta": lambda p: Adadelta(p, lr=0.1, weight_decay=1e-2),
    "rmsprop": lambda p: RMSprop(p, lr=0.1),
    "rmsprop-centered": lambda p: RMSprop(p, lr=0.1, centered=True, momentum=0.9),
    "asgd": lambda p: ASGD(p, lr=0.1),
    "rprop": lambda p: Rprop(p, lr=0.1),
    "third-party": lambda p: ThirdParty(p, lr=0.1),
    "schedule-free": lambda p: ScheduleFree(p, lr=0.1),
    "rebinding": lambda p: Rebinding(p, lr=0.1),
    "sgd-subclass": lambda p: type("Own", (SGD,), {})(p, lr=0.1, momentum=0.5),
}


# Three members in chunks of two are a chunk of two and one of one. In what other chunks may do otherwise, optimizers
# are of four kinds: with a formula, with numbers in the state, and of an unknown class, whose state is tensors or not.
ENGINES = [(name, *way) for name in OPTIMIZERS for way in (("sequential", "auto"), ("vectorized", 2))]
ENGINES += [
    (name, "vectorized", size) for name in ("adamw", "nadam", "third-party", "schedule-free") for size in (1, "auto")
]


def smooth_task(optimizer, *, model=None, num_batches=7, **options):
    """A model without kinks, so that rounding stays rounding over 50 steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)) if model is None else model
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(num_batches)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=optimizer, **options)


@pytest.mark.parametrize(("optimizer", "engine", "chunk_size"), ENGINES)
def test_optimizer_trains_every_member_as_an_ordinary_loop_does(optimizer, engine, chunk_size):
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=LRS, num_steps=NUM_STEPS, engine=engine, chunk_size=chunk_size, divergence_factor=None)
    assert runs.engine.startswith(engine)
    stock.assert_equal(runs, task, NUM_STEPS)


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_maximize_climbs_as_torch_does(optimizer):
    def climb(params):
        own = OPTIMIZERS[optimizer](params)
        for group in own.param_groups:
            group["maximize"] = True
        return own

    task = smooth_task(climb)
    runs = vs.sweep(task, lrs=[1e-3, 3e-3], num_steps=10, divergence_factor=None)
    stock.assert_equal(runs, task, 10)


def test_template_optimizer_trains_as_the_function_that_built_it():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    by_template = smooth_task(OPTIMIZERS["adamw"](model.parameters()), model=model)
    by_function = smooth_task(OPTIMIZERS["adamw"], model=model)
    runs = vs.sweep(by_template, lrs=LRS, num_steps=10)
    stock.assert_equal(runs, by_function, 10)


@pytest.mark.parametrize(
    "optimizer", [name for name in OPTIMIZERS if name not in ("third-party", "schedule-free", "rebinding")]
)
def test_stepped_template_trains_from_a_fresh_state(optimizer):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    template = OPTIMIZERS[optimizer](model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    template.step()
    task = smooth_task(template, model=model)
    fresh = smooth_task(OPTIMIZERS[optimizer], model=model)
    for engine in ("vectorized", "sequential"):
        stock.assert_equal(vs.sweep(task, lrs=LRS, num_steps=5, engine=engine, divergence_factor=None), fresh, 5)


def test_stepped_template_of_an_unknown_class_is_refused():
    model = nn.Linear(6, 3)
    template = ThirdParty(model.parameters())
    model(torch.randn(4, 6)).sum().backward()
    template.step()
    with pytest.raises(ValueError, match="`optimizer` must not have been stepped; ThirdParty holds state"):
        vs.sweep(smooth_task(template, model=model), lrs=[0.1], num_steps=1)


@pytest.mark.parametrize("optimizer", ["schedule-free", "third-party", "adamw"])
def test_members_keep_their_optimizer_state_when_their_chunk_shrinks(optimizer):
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=[0.01, 1e9, 1e10, 1e11, 1e12], num_steps=40)
    assert all(member.diverged_at is not None for member in runs.members[1:])
    expected = stock.train(task, 0.01, 40)
    np.testing.assert_allclose(runs.train_loss[:, 0], expected.losses, rtol=1e-9)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("optimizer", [SGD, AdamW, ASGD], ids=lambda c: c.__name__)
def test_parameter_groups_keep_their_ratios_and_hyperparameters(optimizer, engine):
    def two_groups(params):
        params = list(params)
        return optimizer([{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.02}], lr=0.1)

    task = smooth_task(two_groups)
    runs = vs.sweep(task, lrs=LRS, num_steps=20, engine=engine, divergence_factor=None)
    stock.assert_equal(runs, task, 20)


def test_template_under_a_warming_scheduler_keeps_the_ratios_of_its_groups():
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def two_groups(params):
        params = list(params)
        return SGD([{"params": params[:2]}, {"params": params[2:], "lr": 1.0}], lr=0.1)

    template = two_groups(model.parameters())
    torch.optim.lr_scheduler.LambdaLR(template, lambda step: step / 100)
    with pytest.warns(UserWarning, match="A scheduler is attached to `optimizer`; no member follows it"):
        runs = vs.sweep(smooth_task(template, model=model), lrs=LRS, num_steps=10, divergence_factor=None)
    stock.assert_equal(runs, smooth_task(two_groups, model=model), 10)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "asgd"])
def test_accumulation_takes_several_batches_a_step_and_records_their_mean(optimizer, engine):
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=LRS, num_steps=20, accumulation_steps=3, engine=engine, divergence_factor=None)
    stock.assert_equal(runs, task, 20, accumulation_steps=3)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "asgd"])
def test_gradients_are_clipped_per_member(optimizer, engine):
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=LRS, num_steps=20, max_grad_norm=0.1, engine=engine, divergence_factor=None)
    stock.assert_equal(runs, task, 20, max_grad_norm=0.1)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_smaller_last_batch_trains_like_the_others(engine):
    task = smooth_task(OPTIMIZERS["sgd-momentum"])
    task.batches.append((torch.randn(3, 6), torch.randint(3, (3,))))
    runs = vs.sweep(task, lrs=LRS, epochs=3, engine=engine)
    assert len(runs.train_loss) == 24
    stock.assert_equal(runs, task, 24)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_parameter_used_by_some_batches_only_steps_only_with_those(engine):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def step(model, batch):
        head = model.a if batch["head"] == "a" else model.b
        return F.cross_entropy(head(batch["x"]), batch["y"])

    torch.manual_seed(0)
    batches = [
        {"head": head, "x": torch.randn(4, 6), "y": torch.randint(3, (4,))} for head in ("a", "a", "b", "a", "b")
    ]
    task = vs.Task(TwoHeads(), batches, training_step=step, optimizer=OPTIMIZERS["adamw"])
    runs = vs.sweep(task, lrs=LRS, num_steps=30, engine=engine, divergence_factor=None)
    assert runs.engine.startswith(engine)
    stock.assert_equal(runs, task, 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_short_runs_agree_in_the_models_own_dtype(dtype):
    torch.set_default_dtype(dtype)
    task = smooth_task(OPTIMIZERS["adamw"])
    runs = vs.sweep(task, lrs=LRS, num_steps=10)
    stock.assert_equal(runs, task, 10, rtol=1e-9 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adagrad"])
def test_weights_of_16_bits_train_one_after_another_as_in_an_ordinary_loop(optimizer, dtype):
    torch.set_default_dtype(dtype)
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=LRS, num_steps=10, engine="sequential")
    stock.assert_equal(runs, task, 10)


def test_bf16_autocast_agrees_with_an_ordinary_autocast_loop():
    torch.set_default_dtype(torch.float32)
    task = smooth_task(OPTIMIZERS["sgd-momentum"])

    def step(model, batch):
        with torch.autocast(batch[0].device.type, torch.bfloat16):
            return F.cross_entropy(model(batch[0]), batch[1])

    ordinary = vs.Task(task.model, task.batches, training_step=step, optimizer=task.optimizer)
    for engine in ("vectorized", "sequential"):
        runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=10, precision="bf16", engine=engine)
        assert runs.engine.startswith(engine)
        stock.assert_equal(runs, ordinary, 10, rtol=2e-2)


def small_loss(outputs, targets):
    """A loss whose gradient by the last bias fits in fp16 at any scale, so that no rounding decides what is skipped."""
    return 0.3 * F.l1_loss(outputs, targets)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adam-eps", "asgd"])
def test_fp16_keeps_a_loss_scale_for_each_member_as_gradscaler_does(optimizer, engine, device):
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    # Inputs so large that gradients overflow at the initial scale of 65,536: the first steps are skipped.
    batches = [(300 * torch.randn(8, 6), 20 + torch.randn(8, 1)) for _ in range(5)]
    task = vs.Task(model, batches, small_loss, optimizer=OPTIMIZERS[optimizer])
    lrs = [1e-4, 1e-2]
    runs = vs.sweep(task, lrs=lrs, num_steps=12, precision="fp16", engine=engine, divergence_factor=None)
    assert runs.engine.startswith(engine)
    for i, lr in enumerate(lrs):
        own = copy.deepcopy(model).to(device)
        ordinary = OPTIMIZERS[optimizer](own.parameters())
        ordinary.param_groups[0]["lr"] = lr
        scaler = torch.amp.GradScaler(device)
        losses, scales = [], []
        for step in range(12):
            x, y = stock.placed(batches[step % 5])
            ordinary.zero_grad()
            with torch.autocast(device, torch.float16):
                loss = small_loss(own(x), y)
            scaler.scale(loss).backward()
            scaler.step(ordinary)
            scaler.update()
            losses.append(loss.item())
            scales.append(scaler.get_scale())
        assert scales[-1] < 2.0**16, "the test must make GradScaler skip steps"
        torch.testing.assert_close(
            torch.tensor(runs.train_loss[:, i]), torch.tensor(losses).double(), rtol=1e-2, atol=0
        )
        for trained, expected in zip(runs.model(i).parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(trained, expected, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize("optimizer", ["sgd-nesterov", "adamw-amsgrad"])
def test_compiled_step_trains_as_an_ordinary_loop_does(optimizer):
    task = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(task, lrs=LRS, num_steps=20, compile=True, max_grad_norm=0.5, divergence_factor=None)
    assert runs.engine.startswith("vectorized, compiled")
    stock.assert_equal(runs, task, 20, max_grad_norm=0.5)
