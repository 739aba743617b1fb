"""CUDA graphs. Without a GPU a stand-in is captured: like a graph, it has own inputs and works on fixed memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine import program

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
LRS = list(np.geomspace(1e-3, 1e-1, 6))


class StandIn:
    """What program.Captured is, with the function called where the graph would be replayed."""

    made: list["StandIn"]

    def __init__(self, function, state, inputs, pool):
        self.function, self.state = function, list(state)
        self.inputs = [tensor.clone() for tensor in inputs]
        self.made.append(self)

    def __call__(self, inputs):
        torch._foreach_copy_(self.inputs, list(inputs))
        with torch.no_grad():
            return self.function(*self.state, *self.inputs)


class Failing:
    def __init__(self, *_):
        raise RuntimeError("operation not permitted when stream is capturing")


def task(device="cpu", optimizer=torch.optim.AdamW):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)).to(device)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: optimizer(params, lr=0.01))


@pytest.fixture
def capturing(monkeypatch):
    """Let programs capture as on a GPU."""
    init = program.Program.__init__

    def started(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._pool = ()

    StandIn.made = []
    monkeypatch.setattr(program, "Captured", StandIn)
    monkeypatch.setattr(program.Program, "__init__", started)
    return monkeypatch


@pytest.mark.parametrize("chunk_size", [2, 6])
@pytest.mark.parametrize("seeds", [1, 2])
def test_captured_step_trains_as_an_ordinary_loop_does(capturing, float64, chunk_size, seeds):
    how = {"lrs": LRS, "seeds": seeds, "num_steps": 40}
    runs = vs.sweep(task(), **how, chunk_size=chunk_size)
    assert runs.engine.startswith("vectorized, traced and captured")
    expected = vs.sweep(task(), **how, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


def test_each_chunk_is_captured_once(capturing):
    vs.sweep(task(), lrs=LRS, num_steps=60, chunk_size=2)
    assert len(StandIn.made) == 3


def test_step_that_cannot_be_captured_runs_on(capturing):
    capturing.setattr(program, "Captured", Failing)
    runs = vs.sweep(task(), lrs=LRS, num_steps=40)
    assert runs.engine.startswith("vectorized, traced, ")
    capturing.undo()
    np.testing.assert_array_equal(runs.train_loss, vs.sweep(task(), lrs=LRS, num_steps=40).train_loss)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop])
@needs_gpu
def test_batched_pass_on_a_gpu_trains_as_an_ordinary_loop_does(float64, optimizer):
    how = {"lrs": LRS, "seeds": 2, "num_steps": 40}
    runs = vs.sweep(task("cuda", optimizer), **how)
    assert ("captured" in runs.engine) == (optimizer is not torch.optim.Rprop)
    expected = vs.sweep(task("cuda", optimizer), **how, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


@needs_gpu
def test_steps_on_a_gpu_do_not_wait_for_it():
    model = nn.Linear(6, 3, device="cuda")
    batches = [(torch.randn(8, 6, device="cuda"), torch.randint(3, (8,), device="cuda")) for _ in range(4)]
    made = vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing") as caught:
            vs.sweep(made, lrs=LRS, num_steps=320, engine="vectorized", compile=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(caught) < 320


@needs_gpu
def test_out_of_memory_on_a_gpu_halves_the_chunks():
    free, _ = torch.cuda.mem_get_info()
    width = 4096
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8)).cuda()
    batches = [(torch.randn(8, width), torch.randint(8, (8,)))]
    made = vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=1e-3))
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6e9 / free))
    try:
        with pytest.warns(vs.FallbackWarning, match="not enough memory"):
            runs = vs.sweep(made, lrs=np.geomspace(1e-4, 1e-2, 32), num_steps=4)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(runs.train_loss).all()
