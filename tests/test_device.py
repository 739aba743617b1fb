"""What a run asks of a device, looked at without one: on tensors that hold nothing, and by what the host waits for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_equivalence import OPTIMIZERS, smooth_task
from test_layers import LAYERS, NOT_TRACED, layer_task
from test_rules import CASES, by_rules, make
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from vecsweep.kernels.updates import UPDATES, formulas_only

import vecsweep as vs
from vecsweep._engine import evaluate
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.graphs.capture import upload
from vecsweep._engine.members import measure
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.probe import probe
from vecsweep._engine.members.step import Step
from vecsweep._engine.members.stock import load_state, save_state
from vecsweep._engine.ways import chunk
from vecsweep._engine.ways.vectorized import Vectorized
from vecsweep.execution import Execution

CPU = torch.device("cpu")
LRS = list(np.geomspace(1e-3, 1e-1, 6))


# Operators that vmap computes one member after another, which PyTorch warns of; see `test_layers` for the first.
NOT_ON_META = NOT_TRACED | {"bilinear", "embedding-bag"}


class Alone(TorchDispatchMode):
    """Let nothing near that is not on the device: no tensor of the host's, and no number taken out of a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        results = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves((args, kwargs, results)):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{func} has a tensor of the host's"
        return results


@pytest.fixture
def alone(monkeypatch):
    """The mode; autocast does not know of tensors that hold nothing."""
    known = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cuda": kind != "meta" and known(kind))
    return Alone()


def to_meta(tree):
    return pytree.tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, tree)


def engine_of(made, varied=("lr",)):
    """The engine that trains a task, its first batch, and what the batch shows."""
    execution, streams = Execution(), Streams(CPU)
    with streams.borrowed():
        learner = Learner.build(made, 0, streams, execution)
        seen = probe(learner, made.batches[0], 0, streams)
        return Vectorized({0: learner}, execution, streams, made.batches[0], seen, varied), seen


def step_on_meta(made, mode):
    """Take a step of three members whose tensors hold nothing."""
    engine, seen = engine_of(made)
    ensemble = engine.load([engine.start(0)] * 3, [0] * 3)._ensemble
    drawn = [draw() for draw in seen.draws]
    engine.pattern.model.to("meta")
    hyper = {"lr": torch.ones(3, dtype=torch.float64, device="meta")}
    step = Step(engine.pattern.objective, engine.update, max_grad_norm=1.0)
    ensemble, batch, drawn = ensemble.with_tensors(to_meta(ensemble.tensors)), to_meta(made.batches[0]), to_meta(drawn)
    with mode:
        return step(ensemble, [batch], [seen.draws], [drawn], None, hyper)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layer", [name for name in LAYERS if name not in NOT_ON_META])
def test_step_of_a_layer_stays_on_the_device(layer, alone):
    assert step_on_meta(layer_task(*LAYERS[layer]), alone).loss.is_meta


@pytest.mark.parametrize(
    "optimizer", [name for name, make in OPTIMIZERS.items() if type(make([nn.Parameter(torch.ones(1))])) in UPDATES]
)
def test_step_of_an_optimizer_stays_on_the_device(optimizer, alone):
    assert step_on_meta(smooth_task(OPTIMIZERS[optimizer]), alone).loss.is_meta


@pytest.mark.parametrize("name", CASES)
def test_rule_stays_on_the_device(name, alone):
    case = CASES[name]
    own = case.variants()[0]
    call, tensors = by_rules(case, own, 0, to_meta), to_meta(make(case, own, 0))
    with alone:
        assert all(result.is_meta for result in pytree.tree_leaves(call(*tensors)))


class Waits(TorchFunctionMode):
    """Count what takes numbers to the host, or from there: each would be a copy, and most a wait, on a GPU."""

    COPIES = (
        *(Tensor.cpu, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__),
        *(torch.tensor, torch.as_tensor),
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.COPIES:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def waits(run):
    """The copies that a run takes, those that wait and those that do not."""
    with pytest.MonkeyPatch.context() as patch, Waits() as seen:
        for module in (chunk, evaluate):
            patch.setattr(module, "upload", lambda *args: seen.found.append("upload") or upload(*args))
        with formulas_only():  # as on a GPU: a kernel for the CPU asks for numbers where they are
            run()
    return seen.found


def sweep(num_windows, chunk_size, num_batches=0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    own = {"val_batches": [batches[0]] * num_batches} if num_batches else {}
    made = vs.Task(model, batches, F.cross_entropy, lambda params: torch.optim.AdamW(params, lr=0.01), **own)
    how = {"lrs": LRS, "num_steps": 16 * num_windows, "val_every": 16 if num_batches else None}
    return vs.sweep(made, **how, chunk_size=chunk_size, engine="vectorized", compile=False)


def copies(*how):
    """How often the host waits in two more windows, none of which has steps that are checked."""
    few, many = (waits(lambda n=n: sweep(n, *how)) for n in (2, 4))
    return len(many) - len(few)


@pytest.mark.parametrize("chunk_size", [6, 2])
def test_window_takes_the_host_three_copies_at_most(chunk_size):
    # What each chunk is trained with, and one look at all of them.
    assert copies(chunk_size) == 2 * (6 // chunk_size + 1)


def test_evaluation_takes_the_host_three_copies_at_most_whatever_the_batches(monkeypatch):
    monkeypatch.setattr(measure, "CHECKED_CALLS", ())  # which are few, whatever the batches
    few, many = copies(6, 1), copies(6, 3)
    assert few == many
    assert few - copies(6) == 2 * 3


def peak_bytes(run):
    """The most memory that was taken at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([num_bytes for _, num_bytes in changes]).max())


def image_task():
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(1152, 3)
    )
    batches = [(torch.randn(16, 2, 16, 16), torch.randint(3, (16,)))]
    return vs.Task(model, batches, F.cross_entropy, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))


def wide_task():
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 3))
    batches = [(torch.randn(8, 64), torch.randint(3, (8,)))]
    return vs.Task(model, batches, F.cross_entropy, lambda params: torch.optim.AdamW(params, lr=0.1))


def attention_task():
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(512, 3))
    batches = [(torch.randn(8, 16, 32), torch.randint(3, (8,)))]
    return vs.Task(model, batches, F.cross_entropy, lambda params: torch.optim.Adam(params, lr=0.1))


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")  # torch 2.11, of a single cycle, too
@pytest.mark.parametrize("make_task", [image_task, wide_task, attention_task], ids=lambda make: make.__name__)
def test_members_that_are_said_to_fit_take_no_more_memory_than_there_is(make_task):
    torch.manual_seed(0)
    made, num_members = make_task(), 32
    engine, _ = engine_of(made)
    start = engine.start(0)
    hyper = {"lr": np.full((2, num_members), 1e-3)}

    def train():
        with engine.streams.borrowed():
            engine.load([start] * num_members, [0] * num_members).run([{0: (made.batches[0],)}] * 2, hyper)

    peak = peak_bytes(train)
    assert engine.footprint.num_that_fit(num_members, peak - 1) < num_members
    assert engine.footprint.num_that_fit(num_members, 2 * peak) == num_members


@pytest.mark.parametrize("option", ["fused", "capturable"])
def test_count_of_steps_goes_to_the_device_where_the_optimizer_wants_it(option):
    """As in `torch.optim.Adam._init_group`: on the parameter's device for these kernels, else on the CPU."""
    on_cpu = nn.Parameter(torch.ones(3))
    trained = torch.optim.AdamW([on_cpu])
    on_cpu.grad = torch.ones(3)
    trained.step()
    parameter = nn.Parameter(torch.ones(3, device="meta"))
    for options, device in (({option: True}, "meta"), ({}, "cpu")):
        optimizer = torch.optim.AdamW([parameter])
        optimizer.param_groups[0].update(options)
        load_state(optimizer, {"p": parameter}, save_state(trained, {"p": on_cpu}))
        assert optimizer.state[parameter]["step"].device.type == device
