"""`check` finds what is wrong: each defect is put into the engine on purpose, beside a healthy twin that is equal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep._engine import engines
from vecsweep._engine.data.batches import BatchStream
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.optimizer import StackedUpdate
from vecsweep._engine.members.step import Step, StepResult
from vecsweep._engine.ways import vectorized
from vecsweep._engine.ways.chunk import VectorizedChunk

FEW = {"lrs": [0.01, 0.1], "num_steps": 36}


def batches_of(num_batches=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(num_batches)
    ]


def task_of(*layers, batches=None, optimizer=None, **fields):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *layers, nn.Tanh(), nn.Linear(8, 3))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = batches_of() if batches is None else batches
    fields = {"loss_fn": F.cross_entropy} | fields
    return vs.Task(model, batches, optimizer=optimizer, **fields)


class Counting(nn.Module):
    """A model that scales its gradient by how often it was called, up to 20."""

    def __init__(self):
        super().__init__()
        self.linear, self.num_calls = nn.Linear(6, 3), 0

    def forward(self, x):
        self.num_calls += 1
        y, share = self.linear(x), min(self.num_calls, 20) / 20
        return y * share + y.detach() * (1 - share)


def counting_task():
    torch.manual_seed(0)
    model = Counting()
    return vs.Task(model, batches_of(), F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


# Each function puts one defect into the engine.


def hold_one_buffer(monkeypatch):
    """What comes of references to a buffer that the source writes again: the steps of a window see its last batch."""
    take, buffers = BatchStream.take, {}

    def held(self):
        batch = take(self)
        buffer = buffers.setdefault((id(self), batch[0].dtype), [tensor.clone() for tensor in batch])
        for own, new in zip(buffer, batch, strict=True):
            own.copy_(new)
        return tuple(buffer)

    monkeypatch.setattr(BatchStream, "take", held)


def repeat_batches(monkeypatch, begin=20):
    """Every batch from some step on is the one before."""
    take, before = BatchStream.take, {}

    def stale(self):
        num_taken, last = before.get(self, (0, None))
        batch = take(self)
        before[self] = (num_taken + 1, batch)
        return last if num_taken >= begin else batch

    monkeypatch.setattr(BatchStream, "take", stale)


def freeze_counters(monkeypatch):
    """The probe overlooks that a pass counts, so that the count is a constant of the trace."""
    seen = vectorized.probe
    for module in (engines, vectorized):
        monkeypatch.setattr(module, "probe", lambda *given: replace(seen(*given), obstacle=None))


def average_losses(monkeypatch):
    gradients = Step._gradients

    def averaged(self, ensemble, *rest):
        loss, grads, buffers = gradients(self, ensemble, *rest)
        return loss, {name: grad / len(ensemble) for name, grad in grads.items()}, buffers

    monkeypatch.setattr(Step, "_gradients", averaged)


def bend_update(monkeypatch):
    apply = StackedUpdate.apply

    def bent(self, parameters, grads, states, hyper, is_stepped):
        return apply(self, parameters, grads, states, {**hyper, "lr": hyper["lr"] * (1 + 1e-6)}, is_stepped)

    monkeypatch.setattr(StackedUpdate, "apply", bent)


def shift_masks(monkeypatch):
    """Masks come a step late."""
    gather, before = VectorizedChunk._gather, {}

    def shifted(self, *given):
        batches, draws, drawn = gather(self, *given)
        late = before.get(id(self), drawn)
        before[id(self)] = drawn
        return batches, draws, late

    monkeypatch.setattr(VectorizedChunk, "_gather", shifted)


def keep_buffers(monkeypatch):
    """Running statistics stay where they were; no loss depends on them, but evaluation does."""
    call = Step.__call__

    def kept(self, ensemble, *rest):
        result = call(self, ensemble, *rest)
        return StepResult(replace(result.ensemble, buffers=ensemble.buffers), *result[1:])

    monkeypatch.setattr(Step, "__call__", kept)


DEFECTS = {
    "references to a reused buffer": (hold_one_buffer, task_of, "losses"),
    "stale batches": (repeat_batches, task_of, "losses, from step 20 on"),
    "a counter frozen into the trace": (freeze_counters, counting_task, "losses"),
    "losses averaged, not summed": (average_losses, task_of, "losses, from step 1 on"),
    "a wrong coefficient": (bend_update, task_of, "losses, from step 1 on"),
    "shifted masks": (shift_masks, lambda: task_of(nn.Dropout(0.5)), "losses, from step 1 on"),
    "running statistics that stay": (keep_buffers, lambda: task_of(nn.BatchNorm1d(8)), "outputs in eval mode"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_check_finds_a_defect_and_nothing_once_it_is_mended(name, monkeypatch):
    put_in, make, what = DEFECTS[name]
    healthy = vs.check(make(), **FEW)
    assert healthy.is_equal, str(healthy)
    assert "DIFFERS" not in healthy.verdict
    put_in(monkeypatch)
    found = vs.check(make(), **FEW)
    assert not found.is_equal, str(found)
    assert "In float64 the batched pass DIFFERS from a plain loop" in found.verdict
    assert f"these differ: the {what}" in found.verdict


def test_check_says_of_which_members_what_differs_from_which_step_on(monkeypatch):
    repeat_batches(monkeypatch, begin=7)
    report = vs.check(task_of(), lrs=[0.01, 0.1], num_steps=12)
    assert "Of members 0, 1 these differ: the losses, from step 7 on; the outputs" in report.verdict
    losses = [d for d in report.deviations if d.name == "loss" and d.dtype == "float64"]
    assert [d.step for d in losses] == [7, 7]
    assert all(d.step is None for d in vs.check(task_of(), num_steps=7).deviations)  # it had not come to it


def test_the_steps_that_are_compared_by_default_go_beyond_windows_and_late_checks_of_traces(monkeypatch):
    repeat_batches(monkeypatch, begin=33)
    assert not vs.check(task_of(), lrs=[0.1]).is_equal


def test_check_holds_the_sequential_engine_against_the_loop_where_there_is_no_batched_pass(monkeypatch):
    healthy = vs.check(counting_task(), **FEW)
    assert healthy.is_equal
    assert not healthy.is_batched
    assert "the sequential engine equals a plain loop on stock PyTorch" in healthy.verdict
    assert "There is no batched pass: sequential, 2 members, because PyTorch cannot batch them" in healthy.verdict
    set_hyper = Learner.set_hyper
    monkeypatch.setattr(Learner, "set_hyper", lambda self, hyper: set_hyper(self, {"lr": 1.001 * hyper["lr"]}))
    found = vs.check(counting_task(), **FEW)
    assert not found.is_equal
    assert "the sequential engine DIFFERS" in found.verdict


class Attention(nn.Module):
    """Attention of one head, whose key bias moves no output: it adds the same to all scores of a query."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):  # [position, feature]
        scores = self.query(x) @ self.key(x).T
        return self.head(scores.softmax(-1) @ self.value(x))


def adam(params):
    return torch.optim.Adam(params, lr=0.03)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)), "0.bias"),
        (Attention, "key.bias"),
    ],
    ids=["bias before a batch norm", "key bias"],
)
def test_parameters_whose_true_gradient_is_zero_are_listed_apart(make, name):
    """Adam makes whole steps of the rounding of such a gradient, in another direction each time it is computed."""
    torch.manual_seed(0)
    report = vs.check(vs.Task(make(), batches_of(), F.cross_entropy, optimizer=adam), num_steps=16)
    assert report.is_equal, str(report)
    assert name in {d.name for d in report.without_effect}
    assert f"Without effect on any loss or output, these differ, as parameters do whose gradient is 0: {name}" in str(
        report
    )
    assert {d.name for d in report.without_effect} <= {name, "1.running_mean"}


def groups_of(params):
    first, *rest = params
    groups = [{"params": [first], "lr": 0.2}, {"params": rest, "lr": 0.02, "weight_decay": 0.1}]
    return torch.optim.SGD(groups, lr=0.2, momentum=0.9)


def noisy(seed):
    def read():
        for x, y in DataLoader(TensorDataset(torch.randn(24, 6), torch.randint(3, (24,))), 8, shuffle=True):
            yield x + 0.1 * torch.randn_like(x), y

    return read()


def masked_step(model, batch):
    return F.cross_entropy(model(batch["x"]) * (torch.rand(3) < 0.9), batch["y"])


class Turned(nn.Module):
    """Turns its inputs by phases that it keeps as complex numbers, as rotary embeddings do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("phases", torch.polar(torch.ones(3), torch.tensor([0.1, 0.5, 2.0])))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        turned = torch.view_as_complex(x.unflatten(1, (3, 2)).contiguous()) * self.phases
        return self.head(torch.view_as_real(turned).flatten(1).to(self.head.weight.dtype))


class Spectral(nn.Module):
    """Weighs frequencies by complex numbers, as neural operators do."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(0.3 * torch.randn(4, 3, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.rfft(x) @ self.weights).abs()


HEALTHY = {
    "complex weights": (lambda: vs.Task(Spectral(), batches_of(), F.cross_entropy, optimizer=sgd), {}),
    "complex buffers": (lambda: vs.Task(Turned(), batches_of(), F.cross_entropy, optimizer=adam), {}),
    "several seeds, batches of each": (lambda: task_of(nn.Dropout(0.3), batches=noisy), {"seeds": 2}),
    "a function that builds the model": (
        lambda: vs.Task(lambda: nn.Linear(6, 3), batches_of(), F.cross_entropy, optimizer=adam),
        {"seeds": [3, 5]},
    ),
    "groups of a function's optimizer": (lambda: task_of(optimizer=groups_of), {}),
    "clipped and accumulated": (task_of, {"max_grad_norm": 0.1, "accumulation_steps": 3}),
    "bf16": (task_of, {"precision": "bf16"}),
    "fp16": (task_of, {"precision": "fp16"}),
    "a training step on dicts that draws": (
        lambda: task_of(batches=[{"x": x, "y": y} for x, y in batches_of()], loss_fn=None, training_step=masked_step),
        {"seeds": 2},
    ),
    "a loss with weights": (lambda: task_of(loss_fn=nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))), {}),
    "losses that are soon not finite": (task_of, {"lrs": [0.1, 1e38]}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_right_is_found_equal(name):
    make, options = HEALTHY[name]
    report = vs.check(make(), **({"lrs": [0.02, 0.2], "num_steps": 20} | options))
    assert report.is_equal, str(report)
    assert {d.dtype for d in report.deviations} == {"float64", options.get("precision", "float32")}
    assert max(d.value for d in report.deviations if d.dtype == "float64") < 1e-10


def test_groups_of_a_template_keep_their_ratios():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    template = groups_of(list(model.parameters()))
    assert vs.check(vs.Task(model, batches_of(), F.cross_entropy, optimizer=template), **FEW).is_equal


def test_a_loss_that_writes_into_its_batch_harms_no_batch_of_the_callers():
    def step(model, batch):
        batch[0].mul_(0.5)
        return F.cross_entropy(model(batch[0]), batch[1])

    batches = batches_of()
    before = [x.clone() for x, _ in batches]
    with pytest.warns(UserWarning, match="The loss writes into its batch"):
        assert vs.check(task_of(batches=batches, loss_fn=None, training_step=step), **FEW).is_equal
    assert all(torch.equal(x, own) for (x, _), own in zip(batches, before, strict=True))


def test_the_plain_loop_is_the_loop_that_is_written_by_hand():
    """Its losses against a loop that has not a line in common with it."""
    from vecsweep._engine.run import plain_loop
    from vecsweep.execution import Execution

    task = task_of(nn.Dropout(0.5), nn.BatchNorm1d(8))
    execution = Execution(max_grad_norm=0.5, accumulation_steps=2)
    with plain_loop(task, execution, torch.float64) as loop:
        trained = loop.train(0.05, 7, 12)
    torch.manual_seed(7)
    model = task_of(nn.Dropout(0.5), nn.BatchNorm1d(8)).model.double()
    torch.manual_seed(7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(12):
        model.zero_grad()
        loss = 0.0
        for k in range(2):
            x, y = task.batches[(2 * step + k) % 5]
            loss = loss + F.cross_entropy(model(x.double()), y) / 2
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(trained.losses, losses, rtol=1e-12)
    for own, expected in zip(trained.model.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(own, expected)


def test_check_reports_a_task_that_does_not_run_in_float64():
    step = {"training_step": lambda model, b: F.cross_entropy(model(b[0].float()), b[1]), "loss_fn": None}
    report = vs.check(task_of(**step), **FEW)
    assert {d.dtype for d in report.deviations} == {"float32"}
    assert "In float64 the task does not run" in report.verdict
