"""Frozen parameters are in memory once, and the caller's stay as they are whatever a pass does to them."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vecsweep as vs
from vecsweep._engine.caller.copying import copy_model

ENGINES = ["vectorized", "sequential"]
LRS = (0.02, 0.1)
WIDTH = 512  # 2 MB of frozen weights in float64: enough to be lent

pytestmark = pytest.mark.usefixtures("float64")


class Distilled(nn.Module):
    """A student and its frozen teacher, which some steps move."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.student = nn.Linear(WIDTH, 4)


def make_batches(moves=(False, False, False)):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, WIDTH, generator=generator), torch.tensor(move)) for move in moves]


def loss_of(model, x):
    return F.mse_loss(model.student(torch.tanh(model.teacher(x))), x[:, :4])


def rest(model, batch):
    return loss_of(model, batch[0])


def move_in_place(model, batch):
    with torch.no_grad():
        model.teacher.weight.mul_(0.9).add_(0.01)
    return loss_of(model, batch[0])


def move_behind_autograd(model, batch):
    model.teacher.weight.data[:2] += 0.1
    return loss_of(model, batch[0])


def rebind(model, batch):
    model.teacher.weight.data = model.teacher.weight * 0.9
    return loss_of(model, batch[0])


def move_at_times(model, batch):
    if batch[1]:
        model.teacher.weight.data.mul_(0.9)
    return loss_of(model, batch[0])


def make_task(step, moves=(False, False, False)):
    return vs.Task(
        Distilled(), make_batches(moves), training_step=step, optimizer=lambda params: torch.optim.SGD(params, lr=0.1)
    )


def assert_trains_as_a_plain_loop(task, runs, num_steps):
    for i, lr in enumerate(LRS):
        plain, losses = copy.deepcopy(task.model), []
        optimizer = torch.optim.SGD(plain.parameters(), lr=lr)
        for t in range(num_steps):
            optimizer.zero_grad()
            loss = task.training_step(plain, task.batches[t % len(task.batches)])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(runs.model(i).state_dict()[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("step", "engine"),
    [
        *((step, engine) for step in (rest, move_in_place, move_behind_autograd) for engine in ENGINES),
        (rebind, "sequential"),  # which a trace cannot see, and a sweep says so
    ],
)
def test_pass_that_writes_to_frozen_weights_trains_as_in_a_plain_loop_and_leaves_the_callers_alone(step, engine):
    task = make_task(step)
    before, places = copy.deepcopy(task.model.state_dict()), [p.data_ptr() for p in task.model.parameters()]
    runs = vs.sweep(task, lrs=LRS, num_steps=8, engine=engine)
    assert_trains_as_a_plain_loop(task, runs, 8)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert [p.data_ptr() for p in task.model.parameters()] == places


def test_write_that_no_earlier_batch_has_shown_is_found_out_in_time():
    task = make_task(move_at_times, (False, False, False, False, True))
    before = task.model.teacher.weight.clone()
    with pytest.warns(vs.FallbackWarning, match=r"changes the frozen parameter 'teacher.weight' in place"):
        runs = vs.sweep(task, lrs=LRS, num_steps=8, engine="vectorized")
    assert_trains_as_a_plain_loop(task, runs, 8)
    assert torch.equal(task.model.teacher.weight, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_model_shares_frozen_weights_unless_it_is_to_have_its_own(engine):
    task = make_task(rest)
    runs = vs.sweep(task, lrs=LRS, num_steps=3, engine=engine)
    place = task.model.teacher.weight.data_ptr()
    assert runs.model(0, copy_frozen=True).teacher.weight.data_ptr() != place
    sharing = [runs.model(i) for i in (0, 1)]
    assert [model.teacher.weight.data_ptr() for model in sharing] == [place, place]
    assert len({model.student.weight.data_ptr() for model in (*sharing, task.model)}) == 3
    for i, model in enumerate(sharing):
        for name, value in runs.model(i, copy_frozen=True).state_dict().items():
            assert torch.equal(model.state_dict()[name], value)


def test_model_with_weights_in_common_can_be_trained_on():
    task = make_task(rest)
    runs = vs.sweep(task, lrs=LRS, num_steps=3)
    before, trained = copy.deepcopy(task.model.state_dict()), runs.model(0)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    loss_of(trained, task.batches[0][0]).backward()
    optimizer.step()
    assert not torch.equal(trained.student.weight, runs.model(0).student.weight)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_frozen_weights_of_a_model_of_its_own_may_be_trained_and_nobody_else_notices():
    task = make_task(rest)
    runs = vs.sweep(task, lrs=LRS, num_steps=3)
    own = runs.model(0, copy_frozen=True)
    own.teacher.weight.requires_grad_(True)
    torch.optim.SGD(own.parameters(), lr=0.1).zero_grad()
    loss_of(own, task.batches[0][0]).backward()
    torch.optim.SGD(own.parameters(), lr=0.1).step()
    assert not torch.equal(own.teacher.weight, task.model.teacher.weight)
    assert torch.equal(runs.model(1).teacher.weight, task.model.teacher.weight)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_weights_that_were_written_to_since_the_run_are_told_of(engine):
    task = make_task(rest)
    runs = vs.sweep(task, lrs=LRS, num_steps=3, engine=engine)
    before = task.model.teacher.weight.clone()
    with torch.no_grad():
        runs.model(0).teacher.weight.mul_(1.5)  # as merging an adapter does
    for use in (lambda: runs.model(1), lambda: runs.extend(num_steps=2), lambda: runs.branch(0, num_steps=2)):
        with pytest.raises(ValueError, match=r"parameter 'teacher.weight' is no longer what .* copy_frozen=True"):
            use()
    with torch.no_grad():
        task.model.teacher.weight.copy_(before)
    assert runs.extend(num_steps=2).train_loss.shape == (5, 2)


# Prints by how many times its frozen weights the memory of a process grows at its highest in a sweep.
RUN = """
import sys
import torch
import vecsweep as vs
def highest():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
def sweep(width):
    model = torch.nn.Sequential(torch.nn.Linear(width, width).requires_grad_(False), torch.nn.Linear(width, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    task = vs.Task(model, [(torch.randn(2, width), torch.randn(2, 4))], torch.nn.functional.mse_loss, optimizer)
    before = highest()
    runs = vs.sweep(task, lrs=[1e-3, 2e-3, 3e-3], seeds=2, num_steps=6, engine=sys.argv[1], progress=False)
    runs.model(0)
    return (highest() - before) / model[0].weight.nbytes
sweep(8)  # what PyTorch itself needs
print(sweep(4096))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_weights_are_in_memory_once(engine):
    command = [sys.executable, "-W", "ignore", "-c", RUN, engine]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert float(done.stdout) < 0.7


def test_copied_recurrent_layers_are_put_in_one_piece_for_a_gpu_unless_they_are_lent(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: flattened.append(layer))
    model = nn.Sequential(nn.LSTM(2, 3), nn.GRU(3, 3))
    flattened.clear()
    copied, _ = copy_model(model)
    assert flattened == list(copied)
    flattened.clear()
    copied, _ = copy_model(model, lent={"0.weight_hh_l0": model[0].weight_hh_l0})
    assert flattened == [copied[1]]
