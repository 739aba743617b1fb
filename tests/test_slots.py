"""Members that wait for their turn on the host, where a GPU has no room for all: on one that is pretended."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from pretended_gpu import GPU, pretended_gpu
from torch import nn
from vecsweep.kernels._compile import compile_graph
from vecsweep.kernels._trace import trace

import vecsweep as vs
from vecsweep._engine import engines, evaluate
from vecsweep._engine.data.layouts import side_by_side
from vecsweep._engine.graphs.slots import Offloaded, Slot
from vecsweep._engine.members.ensemble import MemberState, OptimizerState

NUM = 6
LRS = list(np.geomspace(1e-3, 1e-1, NUM))


@pytest.fixture
def gpu(monkeypatch):
    with pretended_gpu() as machine:
        monkeypatch.setattr(stock, "DEVICE", GPU)
        yield machine


@pytest.fixture
def small(gpu, monkeypatch):
    """One that has next to no memory, as far as PyTorch says beforehand."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10, 10))
    return gpu


def task(width=8, **options):
    torch.manual_seed(0)
    layers = nn.Linear(6, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.3), nn.Linear(width, 3)
    model = nn.Sequential(*layers)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    return vs.Task(model, batches, F.cross_entropy, lambda p: torch.optim.AdamW(p, lr=0.01), **options)


WIDE = {"width": 256}
VAL = {
    "val_batches": [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)],
    "metrics": {"accuracy": lambda y, t: (y.argmax(1) == t).double().mean()},
}
HOW = {"lrs": [*LRS, 1e9, 2e9], "seeds": 2, "num_steps": 64, "val_every": 16, "device": "cuda", "chunk_size": 3}


def test_members_that_wait_on_the_host_give_the_same_bits(gpu, monkeypatch, tmp_path):
    made = task(**VAL)
    here = vs.sweep(made, **HOW)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10, 10))
    offloaded = vs.sweep(made, **HOW)
    np.testing.assert_array_equal(offloaded.train_loss, here.train_loss)
    for name in ("val_loss", "val_accuracy"):
        np.testing.assert_array_equal(offloaded.metrics[name], here.metrics[name])
    for i in range(len(here.members)):
        models = offloaded.model(i), here.model(i)
        for own, expected in zip(*(model.state_dict().values() for model in models), strict=True):
            assert own.device == expected.device == GPU
            torch.testing.assert_close(own, expected, rtol=0, atol=0, equal_nan=True)
    expected = here.extend(num_steps=16).train_loss
    np.testing.assert_array_equal(offloaded.extend(num_steps=16).train_loss, expected)
    offloaded.save(tmp_path / "kept")
    np.testing.assert_array_equal(vs.load(tmp_path / "kept", task=made).extend(num_steps=16).train_loss, expected)


def test_members_that_wait_on_the_host_train_as_in_an_ordinary_loop(float64, small):
    runs = vs.sweep(task(), lrs=LRS, num_steps=40, device="cuda", chunk_size=2)
    assert "captured" in runs.engine
    for i, lr in enumerate(LRS):
        expected = stock.train(task(), lr, 40)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


def peak_bytes(gpu, num_members, **how):
    """The most memory of the GPU that a sweep takes, and its losses."""
    gc.collect()
    gpu.graphs.clear()
    gpu.log.clear()
    gpu.peak_bytes = 0
    lrs = np.geomspace(1e-3, 1e-1, num_members)
    made = task(**WIDE, **VAL)
    runs = vs.sweep(made, lrs=lrs, num_steps=48, val_every=16, device="cuda", compile=False, engine="vectorized", **how)
    return gpu.peak_bytes, np.concatenate([runs.train_loss, runs.metrics["val_loss"]])


def test_memory_of_the_gpu_does_not_grow_with_the_members_that_wait(small):
    few, many = (peak_bytes(small, num_members, chunk_size=2)[0] for num_members in (4, 12))
    member_bytes = 3 * sum(p.nbytes for p in task(**WIDE).model.parameters())
    assert many - few < 8 * member_bytes / 8  # hyperparameters and losses are of all


def test_nothing_moves_where_all_have_room(gpu, monkeypatch):
    monkeypatch.setattr(Offloaded, "__init__", None)
    vs.sweep(task(), lrs=LRS, num_steps=32, device="cuda", chunk_size=2)


def test_turn_takes_a_move_there_and_one_back_and_several_batches_are_measured_in_one(small, monkeypatch):
    kinds = []
    for name in ("load", "store"):
        usual = getattr(Offloaded, name)
        monkeypatch.setattr(Offloaded, name, lambda *args, usual=usual, name=name: kinds.append(name) or usual(*args))
    how = {"lrs": LRS, "device": "cuda", "chunk_size": 2, "engine": "vectorized", "compile": False}
    vs.sweep(task(), **how, num_steps=48)
    assert kinds == ["load", "store"] * 3 * 3
    kinds.clear()
    vs.sweep(task(**VAL), **how, num_steps=16, val_every=16)
    assert kinds == ["load", "store"] * 3 + ["load"] * 3
    kinds.clear()
    monkeypatch.setattr(evaluate, "_BYTES_AT_ONCE", 1)  # as if the batches were large
    vs.sweep(task(**VAL), **how, num_steps=16, val_every=16)
    assert kinds == ["load", "store"] * 3 + ["load"] * 3 * 5


def test_member_that_has_the_gpu_for_itself_stays_there(small, monkeypatch):
    monkeypatch.setattr(Offloaded, "__init__", None)
    vs.sweep(task(), lrs=[0.01], num_steps=32, device="cuda", engine="vectorized")


def test_gpu_that_runs_out_of_memory_has_members_wait_on_the_host(gpu):
    own, expected = peak_bytes(gpu, 12, chunk_size=1)
    gpu.most_bytes = own // 2
    with pytest.warns(vs.FallbackWarning, match="for their turn do so in the host's memory"):
        peak, losses = peak_bytes(gpu, 12, chunk_size=1)
    assert peak > gpu.most_bytes, "it had been refused"
    np.testing.assert_array_equal(losses, expected)


def test_run_that_members_wait_for_on_the_host_goes_on_from_a_checkpoint(small, tmp_path):
    how = {"lrs": LRS, "device": "cuda", "chunk_size": 2, "num_steps": 64}
    whole = vs.sweep(task(), **how)
    kept = vs.sweep(task(), **how, checkpoint=tmp_path, checkpoint_every="16 steps")
    np.testing.assert_array_equal(kept.train_loss, whole.train_loss)


@pytest.mark.gpu
def test_members_that_wait_on_the_host_give_the_same_bits_on_a_gpu(monkeypatch):
    how = {"lrs": LRS, "seeds": 2, "num_steps": 64, "val_every": 16, "device": "cuda", "chunk_size": 3}
    how |= {"engine": "vectorized", "compile": False}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        here = vs.sweep(task(**VAL), **how)
        monkeypatch.setattr(engines, "must_offload", lambda *_: True)
        offloaded = vs.sweep(task(**VAL), **how)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "captured" in offloaded.engine
    np.testing.assert_array_equal(offloaded.train_loss, here.train_loss)
    np.testing.assert_array_equal(offloaded.metrics["val_loss"], here.metrics["val_loss"])


@pytest.mark.gpu
def test_memory_of_the_host_that_is_pinned_on_a_gpu_is_ordinary_again_afterwards():
    offloaded = Offloaded([torch.ones(3, 5)], torch.device("cuda", 0))
    assert offloaded.tensors[0].is_pinned()
    kept = offloaded.tensors
    del offloaded
    assert not kept[0].is_pinned()
    assert torch.equal(kept[0], torch.ones(3, 5))


def test_state_that_is_copied_holds_no_more_memory_than_its_own():
    weights, moments = torch.randn(8, 3), torch.randn(8, 3)
    state = MemberState.start({"w": weights[2]}, {}, None)
    state = replace(state, optimizer=OptimizerState({"w": {"exp_avg": moments[2], "step": 3}}))
    copied = state.copy().optimizer.of_parameters["w"]
    assert torch.equal(copied["exp_avg"], moments[2])
    assert copied["exp_avg"].untyped_storage().nbytes() == moments[2].nbytes
    assert copied["step"] == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of its own parts
def test_step_on_tensors_that_lie_side_by_side_can_be_compiled():
    """As the tensors of a batch do on a GPU; of views in one piece of memory the compiler would not know the dtype."""

    def step(w, x, i):
        return [w - (x @ w).mean(0, keepdim=True), (x @ w).sum() + i.sum()]

    given = [torch.randn(8, 6), torch.randint(3, (5,))]
    _, parts = side_by_side(given, torch.device("cpu"))
    for part, tensor in zip(parts, given, strict=True):
        part.copy_(tensor)
    w = torch.randn(6, 1)
    expected = step(w, *given)
    with torch.no_grad():
        graph = trace(step, [w, *parts]).module()
        results = compile_graph(graph, is_wanted=lambda: True)(w, *parts)
    for result, own in zip(results, expected, strict=True):
        torch.testing.assert_close(result, own)
    assert not any(part._is_view() for part in parts)


TENSORS = {
    "small": torch.arange(3.0),
    "one number": torch.tensor(7),
    "half": torch.arange(50).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.ones(0, 3),
    "of other strides": torch.arange(60.0).reshape(6, 10).T,
    "complex": torch.tensor([1 + 2j, 3 - 1j]),
    "double": torch.arange(7, dtype=torch.float64),
}


def test_state_of_all_kinds_of_tensors_comes_to_the_gpu_and_back(gpu):
    state = list(TENSORS.values())
    offloaded, slot = Offloaded(state, GPU), Slot(state, GPU)
    offloaded.load(slot)
    for place, tensor in zip(slot.tensors, state, strict=True):
        assert (place.device, place.dtype, place.stride()) == (GPU, tensor.dtype, tensor.stride())
        assert torch.equal(place.cpu(), tensor)
        place.copy_(torch.ones_like(tensor, device="cuda"))
    gpu.waits.clear()
    offloaded.store(slot)
    assert not gpu.waits
    offloaded.wait()
    assert gpu.waits
    for own, tensor in zip(offloaded.tensors, state, strict=True):
        assert torch.equal(own, torch.ones_like(tensor))
