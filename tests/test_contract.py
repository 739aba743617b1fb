"""The engine's contract beyond equality: independence, divergence as data, restoration, common random numbers."""

import copy
import gc
import os
import queue
import random
import warnings
from typing import ClassVar

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine.graphs.closeness import num_off

every_device = pytest.mark.usefixtures("device")
ENGINES = ["vectorized", "sequential"]


def mlp_task(*, num_batches=6, optimizer=None, model=None, batches=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) if model is None else model
    made = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(num_batches)]
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return vs.Task(model, made if batches is None else batches, F.cross_entropy, optimizer=optimizer, **options)


def states(runs):
    return [runs.model(i).state_dict() for i in range(len(runs.members))]


def assert_bitwise_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.ASGD], ids=lambda c: c.__name__)
@pytest.mark.parametrize("divergence_factor", [5.0, None])
def test_diverged_member_leaves_the_others_bitwise_unchanged(engine, make, divergence_factor):
    task = mlp_task(optimizer=lambda p: make(p, lr=0.1))
    how = {"num_steps": 40, "engine": engine, "divergence_factor": divergence_factor, "max_grad_norm": 1.0}
    calm = vs.sweep(task, lrs=[0.01, 0.02, 0.03, 0.04, 0.05], **how)
    wild = vs.sweep(task, lrs=[0.01, 0.02, 1e300, 0.04, 0.05], **how)
    assert wild.members[2].diverged_at is not None
    for i in (0, 1, 3, 4):
        np.testing.assert_array_equal(wild.train_loss[:, i], calm.train_loss[:, i])
        assert_bitwise_equal(wild.model(i).state_dict(), calm.model(i).state_dict())


@every_device
def test_member_whose_batch_norm_explodes_leaves_the_others_bitwise_unchanged():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    task = mlp_task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    calm = vs.sweep(task, lrs=[0.01, 0.02, 0.03], num_steps=30)
    wild = vs.sweep(task, lrs=[0.01, 1e300, 0.03], num_steps=30)
    for i in (0, 2):
        assert_bitwise_equal(wild.model(i).state_dict(), calm.model(i).state_dict())


@every_device
def test_members_that_outlive_half_their_chunk_go_on_as_if_alone():
    task = mlp_task()
    lrs = [0.01, 0.03, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9]
    runs = vs.sweep(task, lrs=lrs, num_steps=64)
    alone = vs.sweep(task, lrs=lrs[:2], num_steps=64)
    assert all(m.diverged_at is not None for m in runs.members[2:])
    np.testing.assert_allclose(runs.train_loss[:, :2], alone.train_loss, rtol=1e-4)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_negative_losses_neither_end_a_member_nor_hide_its_divergence(engine):
    model = nn.Linear(6, 1)
    task = vs.Task(
        model,
        [torch.ones(4, 6)],
        training_step=lambda model, x: (model(x) ** 2).mean() - 10.0,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    runs = vs.sweep(task, lrs=[0.01, 10.0], num_steps=60, engine=engine)
    assert runs.members[0].diverged_at is None
    assert runs.train_loss[-1, 0] == pytest.approx(-10.0, abs=1e-2)
    assert runs.members[1].diverged_at is not None


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_nan_in_the_data_ends_every_member_and_still_gives_a_result(engine):
    task = mlp_task()
    task.batches[2][0][0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="All 5 members of seed 0 diverged at step 2, whose batch holds NaN"):
        found = vs.range_test(task, start_lr=1e-4, end_lr=1e-1, num_lrs=5, num_steps=10, engine=engine)
    assert [m.diverged_at for m in found.members] == [2] * 5
    assert np.isnan(found.train_loss[2:]).all()
    assert np.isnan(found.scores).all()
    with pytest.raises(ValueError, match="every learning rate diverged"):
        found.suggest()


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [1, "auto"])
def test_diverged_member_does_not_shift_the_masks_of_the_others(engine, chunk_size):
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3))
    task = mlp_task(model=model, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    runs = vs.sweep(task, lrs=[0.01, 0.02, 1e300], num_steps=50, engine=engine, chunk_size=chunk_size)
    assert runs.members[2].diverged_at is not None
    for i in (0, 1):
        expected = stock.train(task, runs.members[i].lr, 50)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-4)


def test_curve_is_nan_from_the_step_after_divergence():
    runs = vs.sweep(mlp_task(), lrs=[0.01, 1e6], num_steps=50)
    at = runs.members[1].diverged_at
    assert at is not None
    assert at > 0
    assert np.isfinite(runs.train_loss[:at, 1]).all()
    assert np.isnan(runs.train_loss[at + 1 :, 1]).all()
    assert np.isfinite(runs.train_loss[:, 0]).all()


def snapshot(task, model, optimizer):
    return {
        "parameters": copy.deepcopy(model.state_dict()),
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "batches": [tuple(t.clone() for t in b) for b in task.batches] if isinstance(task.batches, list) else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "default_dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "grad_mode": torch.is_grad_enabled(),
        "filters": list(warnings.filters),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def worn_task(fail_at=None, error=None):
    """A task whose objects are in the middle of use: odd modes, old gradients, a stepped optimizer."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    )
    model[0].weight.requires_grad_(False)
    model[1].eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(5)]
    F.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    calls = [0]

    def step(model, batch):
        calls[0] += 1
        if calls[0] == fail_at:
            raise error
        random.random(), np.random.rand()  # a step that also draws elsewhere
        return F.cross_entropy(model(batch[0]), batch[1])

    return vs.Task(model, batches, training_step=step, optimizer=optimizer), model, optimizer


@every_device
@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
def test_everything_of_the_callers_is_as_before_after_success(engine):
    task, model, optimizer = worn_task()
    before = snapshot(task, model, optimizer)
    vs.range_test(task, num_lrs=3, num_steps=5, engine=engine, precision="bf16")
    vs.sweep(task, lrs=[0.1], epochs=1, engine=engine, max_grad_norm=1.0)
    vs.check(task, num_steps=2)
    assert_same(before, snapshot(task, model, optimizer))


@every_device
@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("broken"), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
@pytest.mark.parametrize("fail_at", [1, 9])
def test_everything_of_the_callers_is_as_before_after_a_failure(engine, error, raised, fail_at):
    task, model, optimizer = worn_task(fail_at, error)
    before = snapshot(task, model, optimizer)
    with pytest.raises(raised):
        vs.range_test(task, num_lrs=3, num_steps=50, engine=engine)
    assert_same(before, snapshot(task, model, optimizer))


def test_generator_of_a_data_loader_is_given_back():
    data = torch.utils.data.TensorDataset(torch.randn(40, 6), torch.randint(3, (40,)))
    generator = torch.Generator().manual_seed(5)
    loader = torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)
    before = generator.get_state()
    task = mlp_task(batches=loader)
    a = vs.sweep(task, lrs=[0.1], num_steps=12, seeds=2)
    assert torch.equal(before, generator.get_state())
    assert not np.array_equal(a.train_loss[:, 0], a.train_loss[:, 1]), "seeds shuffle differently"


def test_sweep_trains_inside_no_grad_and_inference_mode():
    task = mlp_task()
    expected = vs.sweep(task, lrs=[0.1], num_steps=5).train_loss
    with torch.no_grad():
        np.testing.assert_array_equal(vs.sweep(task, lrs=[0.1], num_steps=5).train_loss, expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(vs.sweep(task, lrs=[0.1], num_steps=5).train_loss, expected)


def test_ctrl_c_hands_over_what_was_computed():
    task = mlp_task()
    whole = vs.sweep(task, lrs=[0.01, 0.1], num_steps=100).train_loss
    count = [0]

    def batches():
        for batch in task.batches:
            count[0] += 1
            if count[0] == 50:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(mlp_task(batches=batches), lrs=[0.01, 0.1], num_steps=100)
    partial = caught.value.result
    assert not partial.is_complete
    assert 0 < len(partial.train_loss) < 50
    np.testing.assert_array_equal(partial.train_loss, whole[: len(partial.train_loss)])


def test_ctrl_c_inside_a_step_keeps_whole_steps_and_no_weights():
    calls = [0]

    def step(model, batch):
        calls[0] += 1
        if calls[0] == 90:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    model = nn.Linear(6, 3)
    task = vs.Task(model, mlp_task().batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(task, lrs=[0.1, 0.2], num_steps=100, engine="sequential")
    partial = caught.value.result
    assert len(partial.train_loss) == 80  # each member counts its own calls
    calls[0] = 1000  # and no Ctrl-C this time
    whole = vs.sweep(task, lrs=[0.1, 0.2], num_steps=80, engine="sequential")
    np.testing.assert_array_equal(partial.train_loss, whole.train_loss)
    with pytest.raises(ValueError, match="weights of the members are not here"):
        partial.model(0)


def test_ctrl_c_before_the_first_step_has_no_result():
    def batches():
        yield from [(torch.randn(8, 6), torch.randint(3, (8,)))] * 2
        raise KeyboardInterrupt

    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(mlp_task(batches=batches), lrs=[0.01], num_steps=100)
    assert caught.value.result is None


def random_task():
    """Everything that a seed decides: weights, the order of batches, dropout masks."""
    data = torch.utils.data.TensorDataset(
        torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    )
    return vs.Task(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
        torch.utils.data.DataLoader(data, 8, shuffle=True),
        F.cross_entropy,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.01),
    )


@every_device
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("chunk_size", [1, 3, "auto"])
def test_members_of_a_seed_share_weights_batches_and_masks(engine, chunk_size):
    runs = vs.sweep(random_task(), lrs=[1e-30, 1e-29], seeds=2, num_steps=20, engine=engine, chunk_size=chunk_size)
    by_lr = runs.train_loss.reshape(20, 2, 2)  # [step, lr, seed]; so small an lr changes nothing
    np.testing.assert_allclose(by_lr[:, 0], by_lr[:, 1], rtol=1e-6)
    assert len(np.unique(by_lr[:, 0, 0])) > 10, "masks and batches change from step to step"
    assert not np.allclose(by_lr[:, 0, 0], by_lr[:, 0, 1]), "another seed changes them"


@every_device
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chunk_size", [1, 2, 5, "auto"])
def test_engines_and_chunk_sizes_agree_on_several_seeds(chunk_size):
    task = random_task()
    how = {"lrs": [0.001, 0.01, 0.03], "seeds": [7, 3], "num_steps": 20}
    a = vs.sweep(task, **how, chunk_size=chunk_size)
    b = vs.sweep(task, **how, engine="sequential")
    assert a.engine.startswith("vectorized")
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-10)


@every_device
def test_seed_draws_the_same_whatever_other_seeds_run_beside_it():
    both = vs.sweep(random_task(), lrs=[0.01], seeds=[4, 9], num_steps=20)
    alone = vs.sweep(random_task(), lrs=[0.01], seeds=[9], num_steps=20)
    np.testing.assert_allclose(both.train_loss[:, 1], alone.train_loss[:, 0], rtol=1e-5)


@every_device
@pytest.mark.parametrize("engine", ENGINES)
def test_same_call_twice_gives_bitwise_the_same_result(engine):
    how = {"num_lrs": 6, "num_steps": 30, "seeds": 2, "engine": engine}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    a = vs.range_test(random_task(), **how)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    b = vs.range_test(random_task(), **how)
    np.testing.assert_array_equal(a.train_loss, b.train_loss)
    assert a.members == b.members


def test_seed_option_moves_all_seeds():
    a = vs.sweep(random_task(), lrs=[0.01], seeds=2, num_steps=5, seed=3)
    b = vs.sweep(random_task(), lrs=[0.01], seeds=[3, 4], num_steps=5)
    np.testing.assert_array_equal(a.train_loss, b.train_loss)


class Body(nn.Module):
    """Notes whether what passes through it has the member axis."""

    seen: ClassVar[queue.SimpleQueue[bool]] = queue.SimpleQueue()  # of which a sweep keeps what is put into it

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        y = torch.tanh(self.norm(self.linear(x)))
        Body.seen.put(torch._C._functorch.is_batchedtensor(y))
        return y


@every_device
def test_frozen_body_runs_once_for_all_members_batch_norm_included():
    body = Body()
    for p in body.parameters():
        p.requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(8, 3))
    task = mlp_task(model=model, optimizer=torch.optim.SGD(model[1].parameters(), lr=0.1))
    runs = vs.sweep(task, lrs=[0.01, 0.1, 1.0], num_steps=6)
    seen = [Body.seen.get() for _ in range(Body.seen.qsize())]
    assert seen
    assert not any(seen)
    expected = copy.deepcopy(body)
    for step in range(6):
        expected(task.batches[step % 6][0])
    torch.testing.assert_close(runs.model(2)[0].norm.running_mean.cpu(), expected.norm.running_mean)
    assert runs.model(2)[0].norm.num_batches_tracked == 6


def test_model_of_a_member_keeps_what_the_caller_had_frozen():
    task, model, _ = worn_task()
    with pytest.warns(vs.FallbackWarning):
        runs = vs.sweep(task, lrs=[0.1], num_steps=3)
    assert [p.requires_grad for p in runs.model(0).parameters()] == [p.requires_grad for p in model.parameters()]


def short_of_memory(monkeypatch, *, at_most, from_call=1, error=None):
    """Let steps of more than so many members fail as torch does on a full device."""
    from vecsweep._engine.ways.program import Program

    step, calls = Program.__call__, []
    error = torch.OutOfMemoryError("CUDA out of memory.") if error is None else error

    def call(self, state, inputs, now):  # of some steps
        calls.extend([len(self._ensemble)] * len(inputs))
        if len(calls) >= from_call and len(self._ensemble) > at_most:
            state[0].mul_(2)  # half a step
            raise error
        return step(self, state, inputs, now)

    monkeypatch.setattr(Program, "__call__", call)
    return calls


@every_device
@pytest.mark.parametrize("from_call", [1, 20])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Rprop])
def test_out_of_memory_halves_the_chunks_and_loses_nothing(monkeypatch, float64, from_call, kind):
    def optimizer(params):
        return kind(params, lr=0.01)

    lrs = list(np.geomspace(1e-3, 1e-1, 8))
    expected = vs.sweep(mlp_task(optimizer=optimizer), lrs=lrs, num_steps=40)
    calls = short_of_memory(monkeypatch, at_most=2, from_call=from_call)
    with pytest.warns(vs.FallbackWarning, match=r"not enough memory for chunks of 8 members.*`chunk_size=4`") as caught:
        runs = vs.sweep(mlp_task(optimizer=optimizer), lrs=lrs, num_steps=40)
    assert len(caught) == 1
    assert {8, 4, 2} <= set(calls)
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)
    for i in range(8):
        for a, b in zip(runs.model(i).parameters(), expected.model(i).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_memory_that_a_library_of_cuda_finds_none_of_is_no_other_obstacle(monkeypatch, words):
    calls = short_of_memory(monkeypatch, at_most=2, error=RuntimeError(words))
    with pytest.warns(vs.FallbackWarning, match="not enough memory for chunks of 4 members"):
        vs.sweep(mlp_task(), lrs=[0.01, 0.02, 0.03, 0.04], num_steps=4, engine="vectorized", chunk_size=4)
    assert {4, 2} <= set(calls)


def test_out_of_memory_for_a_single_member_is_the_error_itself(monkeypatch):
    short_of_memory(monkeypatch, at_most=0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        vs.sweep(mlp_task(), lrs=[0.1], num_steps=4, engine="vectorized")


@every_device
def test_step_is_traced_once_whatever_the_learning_rates(monkeypatch):
    from vecsweep._engine.ways import program

    traced = []
    try_to_trace = program.try_to_trace
    monkeypatch.setattr(program, "try_to_trace", lambda *step: traced.append(step) or try_to_trace(*step))
    vs.range_test(mlp_task(), method="ramp", start_lr=1e-5, end_lr=1e-1, num_steps=60, engine="vectorized")
    assert len(traced) == 1
    vs.sweep(mlp_task(), lrs=[1e-3, 1e-2, 1e-1, 1.0], chunk_size=2, num_steps=60)
    assert len(traced) == 2, "chunks of one size share a trace"


def test_step_that_cannot_be_compiled_runs_on_with_one_warning(monkeypatch):
    from vecsweep._engine.ways import program

    def fail(graph, is_wanted):
        raise RuntimeError("there is no C++ compiler")

    monkeypatch.setattr(program, "compile_graph", fail)
    with pytest.warns(vs.FallbackWarning, match=r"runs uncompiled: there is no C\+\+ compiler") as caught:
        runs = vs.sweep(mlp_task(), lrs=[0.01, 0.1], num_steps=20, compile=True)
    assert len(caught) == 1
    expected = vs.sweep(mlp_task(), lrs=[0.01, 0.1], num_steps=20, compile=False)
    np.testing.assert_array_equal(runs.train_loss, expected.train_loss)


def test_wrongly_compiled_step_is_not_used(monkeypatch):
    from vecsweep._engine.ways import program

    def wrong(graph, is_wanted):
        return lambda *tensors: [t * 1.01 if t.is_floating_point() else t for t in graph.forward(*tensors)]

    monkeypatch.setattr(program, "compile_graph", wrong)
    with pytest.warns(vs.FallbackWarning, match="compiled step gives other numbers"):
        runs = vs.sweep(mlp_task(), lrs=[0.01, 0.1], num_steps=20, compile=True)
    assert runs.engine.startswith("vectorized, traced")


class Branch(nn.Module):
    """Control flow that depends on data."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        y = self.linear(x)
        return y * 2 if y.sum() > 0 else y


def test_data_dependent_branch_falls_back_with_one_warning_that_names_the_line():
    task = mlp_task(model=Branch(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.warns(vs.FallbackWarning, match=r"test_contract\.py:\d+") as caught:
        runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=10, seeds=2)
    assert len(caught) == 1
    assert runs.engine.startswith("sequential")
    expected = vs.sweep(task, lrs=[0.01, 0.1], num_steps=10, seeds=2, engine="sequential")
    np.testing.assert_array_equal(runs.train_loss, expected.train_loss)


@every_device
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.ASGD], ids=lambda c: c.__name__)
def test_fallback_in_the_middle_of_a_run_goes_on_where_it_stood(optimizer):
    """Only the last kind of batch cannot be mapped; what came before it was trained in one pass."""

    def step(model, batch):
        loss = F.cross_entropy(model(batch["x"]), batch["y"])
        if "weight" in batch and loss.item() > 0:
            loss = loss * batch["weight"]
        return loss

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3))
    batches = [{"x": torch.randn(8, 6), "y": torch.randint(3, (8,))} for _ in range(30)]
    batches[25]["weight"] = torch.tensor(0.5)
    task = vs.Task(model, batches, training_step=step, optimizer=lambda p: optimizer(p, lr=0.01))
    with pytest.warns(vs.FallbackWarning, match="cannot batch them: .item") as caught:
        runs = vs.sweep(task, lrs=[0.001, 0.01, 0.1], num_steps=40, chunk_size=2)
    assert len(caught) == 1
    expected = vs.sweep(task, lrs=[0.001, 0.01, 0.1], num_steps=40, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)
    for i in range(3):
        torch.testing.assert_close(runs.model(i).state_dict(), expected.model(i).state_dict(), rtol=1e-8, atol=1e-10)


def test_forward_pass_with_a_python_counter_falls_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(6, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) * (1 + 0.1 * self.calls)

    model = Counting()
    task = mlp_task(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.warns(vs.FallbackWarning, match="`calls`"):
        runs = vs.sweep(task, lrs=[0.01, 0.02], num_steps=8)
    own, expected = copy.deepcopy(model), []
    optimizer = torch.optim.SGD(own.parameters(), lr=0.02)
    for step in range(8):
        x, y = task.batches[step % 6]
        loss = F.cross_entropy(own(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(runs.train_loss[:, 1], expected, rtol=1e-5)
    assert model.calls == 0


class Remembering(nn.Module):
    """Reads at each pass what the one before left in an attribute."""

    def __init__(self):
        super().__init__()
        self.linear, self.state = nn.Linear(6, 3), torch.zeros(8, 3)

    def forward(self, x):
        y = self.linear(x) + 0.5 * self.state
        self.state = y.detach()
        return y


class Noting(nn.Module):
    """Leaves its activations in attributes, for people to look at."""

    def __init__(self):
        super().__init__()
        self.linear, self.history = nn.Linear(6, 3), []

    def forward(self, x):
        self.last = self.linear(x)
        self.history.append(self.last)
        return self.last


def test_model_that_remembers_its_last_pass_trains_as_in_an_ordinary_loop():
    task = mlp_task(model=Remembering(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.warns(vs.FallbackWarning, match="`state`"):
        runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=10)
    for i, lr in enumerate([0.01, 0.1]):
        np.testing.assert_allclose(runs.train_loss[:, i], stock.train(task, lr, 10).losses, rtol=1e-5)


def test_model_that_only_notes_its_activations_trains_in_one_pass_and_keeps_no_wrappers():
    task = mlp_task(model=Noting(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=10)
    assert runs.engine.startswith("vectorized, traced")
    for i, lr in enumerate([0.01, 0.1]):
        np.testing.assert_allclose(runs.train_loss[:, i], stock.train(task, lr, 10).losses, rtol=1e-5)
    assert runs.model(1).history == []


def penalty(model):
    return sum(p.square().sum() for p in model.parameters() if p.requires_grad and isinstance(p, nn.Parameter))


def writes_into_its_batch(model, batch):
    batch[0].add_(1)
    return F.cross_entropy(model(batch[0]), batch[1])


def takes_its_batch_apart(model, batch):
    batch = list(batch)
    return F.cross_entropy(model(batch.pop(0)), batch.pop(0))


def branches_on_numpy(model, batch):
    x = batch[0] * 2 if batch[0].numpy()[0, 0] > 0 else batch[0]
    return F.cross_entropy(model(x), batch[1])


def selects_rows(model, batch):
    keep = batch[0][:, 0] > 0
    return F.cross_entropy(model(batch[0][keep]), batch[1][keep], reduction="sum") / 8


def draws_as_its_batch_says(model, batch):
    noise = torch.randint(0, 1 + int(batch[0].abs().max() * 10), batch[0].shape)
    return F.cross_entropy(model(batch[0] + 0.01 * noise), batch[1])


def writes_into_its_parameters(model, batch):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.99)
    return F.cross_entropy(model(batch[0]), batch[1])


AWKWARD = {
    "penalty on what requires grad": lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.1 * penalty(m),
    "writes into its batch": writes_into_its_batch,
    "takes its batch apart": takes_its_batch_apart,
    "branches on numpy": branches_on_numpy,
    "selects rows": selects_rows,
    "draws as its batch says": draws_as_its_batch_says,
    "writes into its parameters": writes_into_its_parameters,
    "gradient penalty": lambda m, b: (
        F.cross_entropy(m(b[0]), b[1])
        + torch.autograd.grad(m(x := b[0].clone().requires_grad_()).sum(), x, create_graph=True)[0].square().sum()
    ),
    "functional gradient": lambda m, b: (
        F.cross_entropy(m(b[0]), b[1]) + torch.func.grad(lambda x: torch.tanh(m(x)).sum())(b[0]).square().mean()
    ),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.filterwarnings("ignore:The loss writes into its batch:UserWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", AWKWARD)
def test_awkward_loss_trains_as_in_an_ordinary_loop_and_leaves_the_batches_alone(loss, engine):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(7)]
    before = copy.deepcopy(batches)
    task = vs.Task(
        model, batches, training_step=AWKWARD[loss], optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)
    )
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=14, engine=engine, divergence_factor=None)
    assert_same(batches, before)
    for i, lr in enumerate([0.01, 0.1]):
        fresh = [copy.deepcopy(before[step % 7]) for step in range(14)]
        expected = stock.train(task, lr, 14, batches=fresh)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


def test_loss_on_a_model_that_is_not_the_one_given_is_refused():
    outer = nn.Linear(6, 3)
    task = vs.Task(
        outer,
        mlp_task().batches,
        training_step=lambda model, b: F.cross_entropy(model(b[0]), b[1]) + outer.weight.square().sum(),
        optimizer=torch.optim.SGD(outer.parameters(), lr=0.1),
    )
    for engine in ENGINES:
        with pytest.raises(ValueError, match="reach them through its `model` argument"):
            vs.sweep(task, lrs=[0.1], num_steps=1, engine=engine)
    assert outer.weight.grad is None


def halve_own_gradient(parameter):
    parameter.grad.mul_(0.5)


def halve_first_gradient(optimizer, args, kwargs):
    optimizer.param_groups[0]["params"][0].grad.mul_(0.5)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore::vecsweep.FallbackWarning")
@pytest.mark.parametrize("kind", ["parameter", "accumulated", "module", "optimizer"])
def test_hooks_are_called_for_every_member(kind):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        if kind == "parameter":
            model[0].weight.register_hook(lambda grad: grad * 0.5)
        if kind == "accumulated":
            model[0].weight.register_post_accumulate_grad_hook(halve_own_gradient)
        if kind == "module":
            model[2].register_full_backward_hook(lambda module, grads, _: tuple(0.5 * g for g in grads))
        return model

    def optimizer(params):
        own = torch.optim.SGD(params, lr=0.1)
        if kind == "optimizer":
            own.register_step_pre_hook(halve_first_gradient)
        return own

    task = mlp_task(model=build, optimizer=optimizer)
    batches = [(x.double(), y) for x, y in task.batches]
    task = vs.Task(build, batches, F.cross_entropy, optimizer=optimizer)
    runs = vs.sweep(task, lrs=[0.05, 0.2], num_steps=10)
    for i, lr in enumerate([0.05, 0.2]):
        expected = stock.train_in_place(build(), task, lr, 10)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


def test_optimizer_of_a_function_whose_step_was_replaced_is_refused():
    def clipped(params):
        optimizer = torch.optim.SGD(params, lr=0.1)
        inner = optimizer.step
        optimizer.step = lambda: inner(nn.utils.clip_grad_value_(optimizer.param_groups[0]["params"], 0.1))
        return optimizer

    with pytest.raises(ValueError, match="the `step` of this SGD has been replaced"):
        vs.sweep(mlp_task(optimizer=clipped), lrs=[0.1], num_steps=1)


def test_optimizer_whose_step_was_replaced_is_refused():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = lambda closure=None: None
    with pytest.raises(ValueError, match="the `step` of this SGD has been replaced"):
        vs.sweep(mlp_task(model=model, optimizer=optimizer), lrs=[0.1], num_steps=1)


class Decaying(torch.optim.SGD):
    """Changes its own learning rate, as SWATS does."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.5


@pytest.mark.parametrize("engine", ["auto", "vectorized", "sequential"])
def test_optimizer_that_changes_its_own_lr_is_refused(engine):
    with pytest.raises(ValueError, match=r"Decaying has changed 0\.1 to 0\.05 by itself"):
        vs.sweep(mlp_task(optimizer=lambda p: Decaying(p, lr=0.1)), lrs=[0.1, 0.2], num_steps=2, engine=engine)


def test_factory_that_returns_the_callers_own_module_leaves_it_alone():
    own = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3)).eval()
    before = copy.deepcopy(own.state_dict())
    task = mlp_task(model=lambda: own, optimizer=lambda p: torch.optim.SGD(list(p)[:1], lr=0.1))
    vs.sweep(task, lrs=[0.1], num_steps=3, engine="sequential")
    assert not own.training
    assert all(p.requires_grad for p in own.parameters())
    assert_bitwise_equal(own.state_dict(), before)


def test_programs_of_many_kinds_of_batches_do_not_keep_the_parameters_alive():
    model = nn.Linear(6, 3)
    batches = [{"x": torch.randn(4, 6), "name": f"batch {i}"} for i in range(60)]
    alive = queue.SimpleQueue()  # of which a sweep keeps what is put into it

    def step(model, batch):
        if batch["name"] in ("batch 30", "batch 59"):
            gc.collect()
            stacked = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (2, 3, 6)]
            alive.put(sum(not o.is_meta for o in stacked))
        return model(batch["x"]).square().mean()

    task = vs.Task(model, batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    vs.sweep(task, lrs=[0.01, 0.1], num_steps=60)
    counts = [alive.get() for _ in range(alive.qsize())]
    assert counts[-1] <= counts[0] + 2


def test_loss_that_depends_on_more_than_it_is_given_is_not_traced(monkeypatch):
    """The trace would freeze the number, kept where nobody looks; the check against the eager step finds out."""
    monkeypatch.setenv("CALLS", "0")

    def step(model, batch):
        os.environ["CALLS"] = str(int(os.environ["CALLS"]) + 1)
        return F.cross_entropy(model(batch[0]), batch[1]) * (1.0 + 0.5 * int(os.environ["CALLS"]))

    model = nn.Linear(6, 3)
    task = vs.Task(
        model, mlp_task().batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.01)
    )
    with pytest.warns(vs.FallbackWarning, match="traced step gives other numbers"):
        runs = vs.sweep(task, lrs=[0.01, 0.02], num_steps=10)
    assert runs.engine.startswith("vectorized, eager")


def test_losses_are_compared_by_the_scale_that_they_had():
    """Those of a converged model are small differences of large numbers, in which rounding is all there is."""
    loss, fused = torch.tensor([2.38e-7, 1.19e-7]), torch.tensor([1.19e-7, 2.38e-7])
    assert num_off(fused, loss, rtol=1e-5) == 2
    assert num_off(fused, loss, rtol=1e-5, scale=2.3) == 0
    assert num_off(loss + 0.1, loss, rtol=1e-5, scale=2.3) == 2


def test_unbatched_value_taken_out_of_a_batch_keeps_the_step_eager():
    def step(model, batch):
        return F.cross_entropy(model(batch[0][: int(batch[1].max().item()) + 1]), batch[1][: int(batch[1].max()) + 1])

    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    task = vs.Task(
        model, mlp_task().batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.01)
    )
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=12)
    assert runs.engine.startswith("vectorized, eager")
    expected = vs.sweep(task, lrs=[0.01, 0.1], num_steps=12, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-5)
