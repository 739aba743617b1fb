"""Whole sweeps on a GPU that is pretended: every branch for GPUs is taken, and what it may not do is refused."""

import copy
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from cuda_stand_in import Graph
from pretended_gpu import GPU, PretendedGpu, pretended_gpu
from test_equivalence import OPTIMIZERS, smooth_task
from test_layers import LAYERS, NOT_TRACED, layer_task
from torch import nn
from torch.utils import _pytree as pytree
from vecsweep.kernels.updates import UPDATES

import vecsweep as vs
from vecsweep._engine.data import batches
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.members import measure
from vecsweep.checkpoint.keeper import FolderKeeper

LRS = list(np.geomspace(1e-3, 1e-1, 6))
NOT_CAPTURED = NOT_TRACED


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu() as machine:
        monkeypatch.setattr(stock, "DEVICE", GPU)
        yield machine


def task(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    return vs.Task(model, batches, F.cross_entropy, lambda p: torch.optim.AdamW(p, lr=0.01), **options)


def test_what_pytorch_refuses_is_refused(gpu):
    x, there = torch.ones(3, device="cuda"), torch.ones(3)
    assert ((2 * x).device, there.device, x.cpu().device) == (GPU, torch.device("cpu"), torch.device("cpu"))
    torch.testing.assert_close((x + torch.tensor(2.0)).cpu(), torch.full((3,), 3.0))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        x + there
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    gpu.waits.clear()
    pinned = torch.empty(3, pin_memory=True).copy_(x, non_blocking=True)
    assert not gpu.waits
    assert x.sum() == 3
    assert gpu.waits
    torch.testing.assert_close(pinned, there)


def test_draws_of_the_cpu_and_of_the_gpu_do_not_disturb_each_other(gpu):
    torch.manual_seed(3)
    own = torch.rand(4, device="cuda").cpu()
    first = torch.rand(4)
    torch.manual_seed(3)
    torch.testing.assert_close(torch.rand(4), first)
    torch.testing.assert_close(torch.rand(4, device="cuda").cpu(), own)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_is_captured_and_trains_as_in_an_ordinary_loop(float64, gpu, layer):
    made = layer_task(*LAYERS[layer])
    runs = vs.sweep(made, lrs=[0.002, 0.03], num_steps=7, device="cuda", engine="vectorized", divergence_factor=None)
    assert ("captured" in runs.engine) == (layer not in NOT_CAPTURED), runs.engine
    stock.assert_equal(runs, made, 7)


def weighed(model, batch):
    """A loss that reads a batch of any layout: a matrix by which the outputs are mixed, or each sample's weight."""
    inputs, targets, own = batch
    outputs = model(inputs)
    if own.ndim == 1:
        return F.mse_loss(own[:, None] * outputs, targets)
    return F.mse_loss(own @ outputs if own.layout == torch.strided else torch.sparse.mm(own, outputs), targets)


FORMS = {
    "dense": lambda x: x,
    "expanded": lambda x: x[0, :1].expand(8),
    "every other": lambda x: x.repeat(1, 2)[:, ::2],
    "pinned": lambda x: x.pin_memory(),
    "sparse": lambda x: x.relu().to_sparse_coo(),
    "compressed": lambda x: x.relu().to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("is_fresh", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_batches_of_all_layouts_come_to_the_gpu(float64, gpu, form, is_fresh):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randn(8, 3), FORMS[form](torch.randn(8, 8))) for _ in range(3)]
    made = vs.Task(model, batches, training_step=weighed, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    source = made if is_fresh else replace(made, batches=lambda: iter(batches))
    runs = vs.sweep(source, lrs=[0.01, 0.1], num_steps=9, device="cuda", engine="vectorized")
    assert ("captured" in runs.engine) == (form not in ("sparse", "compressed")), runs.engine
    stock.assert_equal(runs, made, 9)


def queued(gpu, batch, *, is_fresh):
    """What moving a batch queues, how often; and the batch there."""
    gpu.log.clear()
    moved = batches.move(batch, GPU, None, is_fresh=is_fresh)
    for own, given in zip(pytree.tree_leaves(moved), pytree.tree_leaves(batch), strict=True):
        torch.testing.assert_close(own.cpu(), given, rtol=0, atol=0)
        assert own.storage_offset() * own.itemsize % 512 == 0, "compiled code takes aligned tensors for granted"
    return Counter(kind for kind, *_ in gpu.log), moved


@pytest.mark.parametrize("is_fresh", [True, False])
def test_batch_comes_to_the_gpu_in_one_copy_which_is_waited_for_once(gpu, is_fresh):
    leaves = [torch.randn(8, 6), torch.randint(3, (8,)), torch.rand(8, 3).double(), torch.ones(3, 5).T > 0]
    of_all = {"pin": 1, "copy": 1, "wait": 1, "record": 1}
    for batch in (tuple(leaves), dict(zip("abcd", leaves, strict=True)), (leaves[0], {"deep": leaves[1:]})):
        num, moved = queued(gpu, batch, is_fresh=is_fresh)
        assert num == of_all
    steps, copies = gpu.current_stream(GPU), batches._copy_stream(GPU)
    assert [entry[1:] for entry in gpu.log if entry[0] in ("wait", "record")] == [(steps, copies), (steps,)]
    assert moved[1]["deep"][2].stride() == (1, 5)


def test_tensors_that_a_loader_has_pinned_are_copied_from_where_they_are(gpu):
    pinned = [torch.randn(8, 6).pin_memory(), torch.randint(3, (8,)).pin_memory()]
    assert queued(gpu, pinned, is_fresh=True)[0] == {"copy": 2, "wait": 1, "record": 2}
    assert queued(gpu, [*pinned, torch.ones(3)], is_fresh=True)[0] == {"pin": 1, "copy": 3, "wait": 1, "record": 3}
    assert queued(gpu, pinned, is_fresh=False)[0] == {"pin": 1, "copy": 1, "wait": 1, "record": 1}  # it may be reused


def test_object_that_moves_itself_keeps_on_the_host_what_it_leaves_there(gpu):
    class Lengthy:
        def __init__(self):
            self.x, self.lengths = torch.ones(3), torch.tensor([2, 1])

        def to(self, device):
            self.x = self.x.to(device)
            return self

    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(3, 2, 4), torch.tensor([3, 2]))
    for is_fresh in (True, False):
        own, moved, x = unpack(batches.move([Lengthy(), packed, torch.ones(2)], GPU, None, is_fresh=is_fresh))
        assert (own.x.device, own.lengths.device.type, x.device) == (GPU, "cpu", GPU)
        assert (moved.data.device, moved.batch_sizes.device.type) == (GPU, "cpu")


def test_packed_sequences_train_as_in_an_ordinary_loop(float64, gpu):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 5), nn.Linear(5, 3)

        def forward(self, packed):
            return self.head(self.lstm(packed)[1][0][0])

    torch.manual_seed(0)
    sequences = [nn.utils.rnn.pack_padded_sequence(torch.randn(3, 2, 4), torch.tensor([3, 2])) for _ in range(3)]
    made = vs.Task(
        Reader(), [(x, torch.randn(2, 3)) for x in sequences], F.mse_loss, lambda p: torch.optim.SGD(p, lr=0.1)
    )
    with pytest.warns(vs.FallbackWarning, match="a packed sequence"):
        runs = vs.sweep(made, lrs=[0.1], num_steps=6, device="cuda")
    model, losses = copy.deepcopy(made.model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in 2 * made.batches:
        optimizer.zero_grad()
        losses.append(F.mse_loss(model(x), y))
        losses[-1].backward()
        optimizer.step()
    np.testing.assert_allclose(runs.train_loss[:, 0], [loss.item() for loss in losses], rtol=1e-9)


@pytest.mark.parametrize("is_fresh", [True, False])
def test_inputs_that_require_gradients_do_on_the_gpu(gpu, is_fresh):
    given = torch.ones(3, requires_grad=True)
    moved = batches.move((given,), GPU, None, is_fresh=is_fresh)[0]
    assert (moved.device, moved.requires_grad, moved.is_leaf) == (GPU, True, True)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_trains_as_in_an_ordinary_loop(float64, gpu, optimizer, engine):
    made = smooth_task(OPTIMIZERS[optimizer])
    runs = vs.sweep(made, lrs=[0.01, 0.1], num_steps=9, device="cuda", engine=engine, divergence_factor=None)
    has_formula = type(OPTIMIZERS[optimizer]([nn.Parameter(torch.ones(1))])) in UPDATES
    assert ("captured" in runs.engine) == (engine == "vectorized") or not has_formula
    stock.assert_equal(runs, made, 9)


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_batches_of_several_shapes_in_a_window_train_as_in_an_ordinary_loop(float64, num_seeds):
    made = task()
    made.batches[2:2] = [(torch.randn(3, 6), torch.randint(3, (3,)))]
    how = {"lrs": LRS, "seeds": num_seeds, "num_steps": 60}
    expected = vs.sweep(made, **how, device="cpu", engine="sequential")
    for chunk_size in (2, 6):
        with pretended_gpu() as gpu:
            runs = vs.sweep(made, **how, device="cuda", chunk_size=chunk_size)
            assert len(gpu.graphs) == 2
        np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


def test_host_does_nothing_but_replay_between_the_steps_of_a_window(gpu, monkeypatch):
    run, replay, seen = PretendedGpu.__torch_dispatch__, Graph.replay, []
    monkeypatch.setattr(PretendedGpu, "__torch_dispatch__", lambda *args: seen.append("operator") or run(*args))
    monkeypatch.setattr(Graph, "replay", lambda self: seen.append("replay") or replay(self))
    vs.sweep(task(), lrs=LRS, num_steps=96, device="cuda", engine="vectorized", compile=False)
    runs = [len(list(own)) for kind, own in itertools.groupby(seen) if kind == "replay"]
    assert runs == [1, 13, 12, 1, 3, 16, 16, 16, 16]  # steps that are captured or checked are taken by themselves


def test_evaluation_is_captured_for_each_shape_of_batch_and_gives_what_it_gave(float64):
    val_batches = [(torch.randn(n, 6), torch.randint(3, (n,))) for n in (8, 8, 5)]
    made = task(val_batches=val_batches, metrics={"accuracy": lambda y, t: (y.argmax(1) == t).double().mean()})
    how = {"lrs": LRS, "seeds": 2, "num_steps": 80, "val_every": 16}
    expected = vs.sweep(made, **how, device="cpu", engine="sequential")
    for chunk_size in (3, 6):
        with pretended_gpu() as gpu:
            runs = vs.sweep(made, **how, device="cuda", chunk_size=chunk_size, engine="vectorized")
            num_chunks = 12 // chunk_size
            assert len(gpu.graphs) == 1 + 2 * num_chunks  # members are measured where they wait for their turn
        for name in ("val_loss", "val_accuracy"):
            np.testing.assert_allclose(runs.metrics[name], expected.metrics[name], rtol=1e-9)


def waits(gpu, num_windows, *, num_batches=0, **how):
    gpu.waits.clear()
    batch = (torch.randn(8, 6), torch.randint(3, (8,)))
    options = {"val_batches": [batch] * num_batches} if num_batches else {}
    if num_batches:
        how["val_every"] = 16
    vs.sweep(task(**options), lrs=LRS, num_steps=16 * num_windows, device="cuda", compile=False, **how)
    return len(gpu.waits)


@pytest.mark.parametrize("chunk_size", [6, 2])
def test_window_waits_once_and_an_evaluation_twice(gpu, chunk_size, monkeypatch):
    monkeypatch.setattr(measure, "CHECKED_CALLS", ())
    how = {"chunk_size": chunk_size, "engine": "vectorized"}
    assert waits(gpu, 6, **how) - waits(gpu, 3, **how) == 3
    assert waits(gpu, 6, num_batches=3, **how) - waits(gpu, 3, num_batches=3, **how) == 3 * (1 + 2)


def test_member_that_is_stepped_alone_waits_once_a_step(gpu):
    assert waits(gpu, 4, engine="sequential") - waits(gpu, 3, engine="sequential") == 16 * 6 + 3


def test_snapshot_copies_stacked_states_and_goes_on_where_it_stood(float64, gpu, tmp_path, monkeypatch):
    is_due = FolderKeeper.is_due
    # Where one is still being written, the next would be left out.
    monkeypatch.setattr(FolderKeeper, "is_due", lambda keeper, step: keeper.wait() or is_due(keeper, step))
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)).requires_grad_(False)  # whose statistics members share
    torch.manual_seed(0)
    model = nn.Sequential(body, nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    made = vs.Task(model, batches, F.cross_entropy, lambda p: torch.optim.AdamW([q for q in p if q.requires_grad]))
    how = {"num_steps": 64, "device": "cuda", "engine": "vectorized"}
    few, many = np.geomspace(1e-4, 1e-2, 4), np.geomspace(1e-4, 1e-2, 12)
    num_waits = []
    for lrs in (few, many):
        gpu.waits.clear()
        vs.sweep(made, lrs=lrs, **how, checkpoint=tmp_path / str(len(lrs)), checkpoint_every="16 steps")
        num_waits.append(len(gpu.waits))
    assert num_waits[0] == num_waits[1]
    first = vs.sweep(made, lrs=few, **how | {"num_steps": 32})
    whole = vs.sweep(made, lrs=few, **how)
    np.testing.assert_array_equal(first.extend(num_steps=32).train_loss, whole.train_loss)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_default_device_is_no_device_of_the_engine(float64, gpu, tmp_path, engine):
    torch.set_default_device("cuda")
    try:
        made = task(val_batches=task().batches)
        made = replace(made, batches=[tuple(leaf.cpu() for leaf in batch) for batch in made.batches])
        how = {
            "lrs": [1e-3, 1e-2],
            "seeds": 2,
            "engine": engine,
            "checkpoint": tmp_path,
            "checkpoint_every": "16 steps",
        }
        runs = vs.sweep(made, num_steps=40, val_every=8, **how)
        assert np.isfinite(runs.extend(num_steps=8).train_loss).all()
    finally:
        torch.set_default_device(None)
    for i, member in enumerate(runs.members):
        expected = stock.train(made, member.lr, 40, seed=member.seed)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


@pytest.mark.parametrize("is_asked", [True, False])
def test_result_says_whether_a_gpu_was_asked_for_the_same_bits(gpu, is_asked):
    torch.use_deterministic_algorithms(is_asked)
    try:
        runs = [vs.sweep(task(), lrs=LRS, num_steps=8, device="cuda") for _ in range(2)]
        assert torch.are_deterministic_algorithms_enabled() == is_asked
    finally:
        torch.use_deterministic_algorithms(False)
    np.testing.assert_array_equal(runs[0].train_loss, runs[1].train_loss)
    said = runs[0].about["repeatable"]
    assert said == "bit for bit" if is_asked else "use_deterministic_algorithms(True)` asks" in said
    assert "repeatable" not in vs.sweep(task(), lrs=LRS, num_steps=8, device="cpu").about
