"""What functions draw inside of them, where a GPU has kernels that draw otherwise than `F.dropout`.

Without a GPU the switches are looked at by which PyTorch chooses such kernels.
"""

import dataclasses
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vecsweep.kernels._trace import trace
from vecsweep.kernels.rules import OpenDraws, Recorder

import vecsweep as vs


class Switches(TorchDispatchMode):
    """Note how the switches stand when an operator runs."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.fused, self.cudnn = names, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.names:
            self.fused.append(fused())
            self.cudnn.append(torch.backends.cudnn.enabled)
        return func(*args, **(kwargs or {}))


def fused():
    """Whether PyTorch may choose a fused kernel of any kind for attention."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()


class Transformer(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layer = nn.GRU(8, 6, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


@pytest.fixture
def hidden(monkeypatch):
    """Draw as on a GPU."""
    monkeypatch.setattr(OpenDraws, "matters_on", staticmethod(lambda device: True))


def task(model):
    torch.manual_seed(0)
    batches = [(torch.randn(4, 5, 8), torch.randint(3, (4,))) for _ in range(3)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize(
    ("kind", "operators", "switch"),
    [(Transformer, ("_safe_softmax",), "fused"), (Recurrent, ("sigmoid", "sigmoid_"), "cudnn")],
    ids=["attention", "GRU"],
)
def test_ordinary_passes_of_an_engine_take_no_kernel_that_draws_otherwise(hidden, kind, operators, switch, engine):
    before = fused(), torch.backends.cudnn.enabled
    with Switches(*operators) as seen:
        runs = vs.sweep(task(kind(dropout=0.2)), lrs=[0.1, 0.2], num_steps=4, engine=engine)
    assert runs.engine.startswith(engine)
    assert (fused(), torch.backends.cudnn.enabled) == before
    assert getattr(seen, switch)
    if engine == "sequential":
        assert not any(getattr(seen, switch))


@pytest.mark.parametrize("kind", [Transformer, Recurrent])
def test_evaluation_with_dropout_left_on_draws_alike_in_both_engines(hidden, kind):
    model = kind(dropout=0.2).double()

    class LeftOn(type(model.layer)):
        def train(self, mode=True):
            return super().train(True)

    model.layer.__class__ = LeftOn
    made = task(model)
    made = dataclasses.replace(
        made, batches=[(x.double(), y) for x, y in made.batches], val_batches=[(x.double(), y) for x, y in made.batches]
    )
    with Switches("_safe_softmax", "sigmoid", "sigmoid_") as seen:
        alone = vs.sweep(made, lrs=[0.1, 0.2], num_steps=6, val_every=2, engine="sequential")
    assert not any(seen.fused if kind is Transformer else seen.cudnn)
    runs = vs.sweep(made, lrs=[0.1, 0.2], num_steps=6, val_every=2, engine="vectorized")
    torch.testing.assert_close(runs.metrics["val_loss"], alone.metrics["val_loss"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [Transformer, Recurrent])
def test_pass_that_is_recorded_notes_the_draws_of_the_kernels_it_takes(hidden, kind):
    torch.manual_seed(0)
    model, x = kind(dropout=0.2), torch.randn(4, 5, 8)
    torch.manual_seed(1)
    with Switches("bernoulli_") as seen, Recorder() as recorder:
        model(x)
    after = torch.get_rng_state()
    assert False in (seen.fused if kind is Transformer else seen.cudnn)
    torch.manual_seed(1)
    for draw in recorder.draws:
        draw()
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(("dropout", "is_needed"), [(0.0, False), (0.2, True)])
@pytest.mark.parametrize("kind", [Transformer, Recurrent])
def test_model_without_hidden_draws_keeps_its_kernels(hidden, kind, dropout, is_needed):
    with Switches("_safe_softmax", "sigmoid", "sigmoid_") as seen, OpenDraws() as mode:
        kind(dropout)(torch.randn(4, 5, 8))
    assert mode.is_needed == is_needed
    assert all(seen.fused) == all(seen.cudnn) == (not is_needed)


def test_model_is_asked_for_hidden_draws_once(hidden, monkeypatch):
    entered = []
    enter = OpenDraws.__enter__
    monkeypatch.setattr(OpenDraws, "__enter__", lambda self: entered.append(1) or enter(self))
    vs.sweep(task(Recurrent(dropout=0.0)), lrs=[0.1], num_steps=50, engine="sequential", divergence_factor=None)
    assert len(entered) < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("is_cast", [False, True])
def test_attention_is_drawn_in_the_dtype_of_its_weights(dtype, is_cast):
    class Drawn(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket.__name__ == "bernoulli_":
                self.seen = (args[0].dtype, args[0].shape, args[0].stride())
            return func(*args, **(kwargs or {}))

    q = torch.randn(2, 2, 5, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_cast), Drawn() as drawn, Recorder() as recorder:
        F.scaled_dot_product_attention(q, q, q, dropout_p=0.3)
    start = recorder.draws[0].start
    assert (start.dtype, start.shape, start.stride()) == drawn.seen


def test_dropout_in_place_is_drawn_in_place():
    x = torch.randn(4)
    with Recorder() as recorder:
        F.dropout(x.clone(), 0.3, training=True, inplace=True)
        F.dropout(x.clone(), 0.3, True, True)
        F.dropout(x, 0.3)
    assert [draw.kwargs.get("inplace", False) for draw in recorder.draws] == [True, True, False]


def test_backward_pass_of_a_trace_runs_in_its_own_thread():
    threads = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            threads.append((threading.current_thread(), torch.autograd.is_multithreading_enabled()))
            return 2 * grad

    def function(x):
        x = x.detach().requires_grad_()
        return list(torch.autograd.grad(Double.apply(x).sum(), x))

    trace(function, [torch.ones(3)])
    assert threads == [(threading.current_thread(), False)]


@pytest.fixture
def fresh_process(monkeypatch):
    """A process with a GPU that nothing has been done on; its generator is set up with CUDA."""
    generator = torch.Generator()

    def init():
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "default_generators", (generator,))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    generator.manual_seed(5)
    return generator


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_function_that_builds_its_model_on_a_gpu_draws_from_the_seed_and_gives_the_generator_back(
    fresh_process, engine
):
    before = fresh_process.get_state()

    def build():
        torch.cuda.init()  # as the first `.cuda()` does
        model = nn.Linear(4, 3)
        for p in model.parameters():
            p.data.normal_(generator=torch.cuda.default_generators[0])
        return model

    batches = [(torch.randn(4, 4), torch.randint(3, (4,)))]
    made = vs.Task(build, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    runs = vs.sweep(made, lrs=[1e-9], seeds=2, num_steps=1, engine=engine)
    assert torch.equal(fresh_process.get_state(), before)
    for member in runs.members:
        expected = nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(member.seed)
        for p, trained in zip(expected.parameters(), runs.model(member.seed).parameters(), strict=True):
            torch.testing.assert_close(trained.data, p.data.normal_(generator=generator))


def test_gpu_that_cannot_be_set_up_does_not_keep_a_cpu_from_training(fresh_process, monkeypatch):
    def init():
        raise RuntimeError("CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "init", init)
    batches = [(torch.randn(4, 4), torch.randint(3, (4,)))]
    made = vs.Task(
        lambda: nn.Linear(4, 3), batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1)
    )
    assert vs.sweep(made, lrs=[0.1], num_steps=1, engine="sequential").train_loss.shape == (1, 1)
