"""CUDA graphs. Without a GPU `cuda_stand_in` takes its place: it queues, captures and refuses as PyTorch does."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_stand_in import ELSEWHERE, HOME, Cuda
from torch import nn

import vecsweep as vs
from vecsweep._engine.graphs import capture, staging
from vecsweep._engine.ways import program, vectorized

LRS = list(np.geomspace(1e-3, 1e-1, 6))


def task(device="cpu", optimizer=torch.optim.AdamW, middle=None):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), *([middle] if middle else []), nn.Dropout(0.3), nn.Linear(8, 3)
    ).to(device)
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: optimizer(params, lr=0.01))


@pytest.fixture
def cuda(monkeypatch):
    """A machine with a GPU, whose tensors are on the CPU and whose current device is another."""
    capture._capture_stream.cache_clear()
    with monkeypatch.context() as patch, Cuda(patch) as stand_in:
        patch.setattr(vectorized, "is_capturable", lambda tensors: True)
        yield stand_in
    capture._capture_stream.cache_clear()


def is_as_before(cuda):
    return cuda.device == ELSEWHERE and cuda.streams == cuda.defaults


@pytest.mark.parametrize(("chunk_size", "seeds"), [(2, 1), (6, 2)])
def test_captured_step_trains_as_an_ordinary_loop_does(cuda, float64, chunk_size, seeds):
    how = {"lrs": LRS, "seeds": seeds, "num_steps": 40}
    runs = vs.sweep(task(), **how, chunk_size=chunk_size)
    assert runs.engine.startswith("vectorized, traced and captured")
    assert sum(graph.num_replays for graph in cuda.graphs) == 40 * 6 * seeds // chunk_size - 2
    assert is_as_before(cuda)
    expected = vs.sweep(task(), **how, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


def test_chunks_that_look_alike_share_a_graph_and_the_memory_it_works_on(cuda):
    vs.sweep(task(), lrs=LRS, num_steps=60, chunk_size=2)
    assert len(cuda.graphs) == 1


def test_steps_of_all_kinds_of_batches_share_a_pool(cuda):
    made = task()
    made.batches.append((torch.randn(3, 6), torch.randint(3, (3,))))
    vs.sweep(made, lrs=LRS, num_steps=60)
    assert [graph.pool for graph in cuda.graphs] == [cuda.graphs[0].pool] * 2


def test_graphs_of_members_that_have_diverged_make_way_for_those_of_the_rest(cuda, float64):
    lrs = [1e-3, 1e-2, 1e9, 1e10, 1e11, 1e12]
    runs = vs.sweep(task(optimizer=torch.optim.SGD), lrs=lrs, num_steps=80)
    assert len(cuda.graphs) == 2
    expected = vs.sweep(task(optimizer=torch.optim.SGD), lrs=lrs, num_steps=80, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


class Waiting(nn.Module):
    """A layer that waits for the device where that cannot be seen when it is traced."""

    def forward(self, x):
        return x * torch.ops.aten.bincount(torch.zeros(3, dtype=torch.int64, device=x.device))[0] / 3


def test_step_that_cannot_be_captured_runs_on_and_leaves_no_trace_of_the_attempt(cuda):
    with pytest.warns(vs.FallbackWarning, match="cannot be captured .* operation not permitted|previous error") as told:
        runs = vs.sweep(task(middle=Waiting()), lrs=LRS, num_steps=40)
    assert len(told) == 1
    assert runs.engine.startswith("vectorized, traced, ")
    assert [kind for kind, *_ in cuda.log].count("capture") == 2  # the other gives the generator free
    assert is_as_before(cuda)
    assert not cuda.allocating, "the allocator still waits for the end of the capture"
    assert not cuda.is_generator_captured, "nothing can be drawn"
    expected = vs.sweep(task(middle=Waiting()), lrs=LRS, num_steps=40, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-5)


def short_of(memory, monkeypatch):
    """Let captures of more members than so many find no memory."""
    init = staging.Staged.__init__

    def limited(self, function, state, *rest):
        init(self, function, state, *rest)
        if len(state[0]) > memory:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(staging.Staged, "__init__", limited)


def test_capture_that_finds_no_memory_is_tried_again_with_fewer_members(cuda, float64, monkeypatch):
    short_of(2, monkeypatch)
    with pytest.warns(vs.FallbackWarning, match="not enough memory for chunks of 6 members, which are halved"):
        runs = vs.sweep(task(), lrs=LRS, num_steps=40, engine="vectorized")
    assert runs.engine.startswith("vectorized, traced and captured")
    expected = vs.sweep(task(), lrs=LRS, num_steps=40, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


def test_member_whose_step_finds_no_memory_to_be_captured_is_stepped_without_and_that_is_told(
    cuda, float64, monkeypatch
):
    short_of(0, monkeypatch)
    val_batches = [(torch.randn(8, 6), torch.randint(3, (8,)))]
    how = {"lrs": [0.01], "num_steps": 40, "val_every": 10}
    made = replace(task(), val_batches=val_batches)
    with pytest.warns(vs.FallbackWarning, match="cannot be captured .* there is not enough memory for it") as told:
        runs = vs.sweep(made, **how, engine="vectorized")
    assert len(told) == 1, "of steps and evaluations"
    assert runs.engine.startswith("vectorized, traced, ")
    expected = vs.sweep(made, **how, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)
    np.testing.assert_allclose(runs.metrics["val_loss"], expected.metrics["val_loss"], rtol=1e-9)


def captured(function, state, inputs, pool=None):
    with capture.aside(state[0].device):
        function(*[x.clone() for x in (*state, *inputs)])
    return capture.Captured(function, state, inputs, pool or capture.Pool())


def double_(state, x):
    state.mul_(2).add_(x)
    return [state.sum()]


def test_capture_on_another_than_the_current_device_is_of_the_tensors_device(cuda):
    state = torch.ones(3)
    doubled = captured(double_, [state], [torch.ones(3)])
    assert cuda.graphs[0].stream.device == HOME
    torch.testing.assert_close(state, torch.ones(3))  # nothing has run
    torch.testing.assert_close(doubled([torch.tensor([0.0, 1.0, 2.0])])[0], torch.tensor(9.0))
    torch.testing.assert_close(state, torch.tensor([2.0, 3.0, 4.0]))
    assert is_as_before(cuda)


def test_failed_capture_gives_the_stream_and_the_pool_back(cuda):
    def waiting(state, x):
        return [state.mul_(2), torch.nonzero(x)]

    state, pool = torch.ones(3), capture.Pool()
    with pytest.raises(RuntimeError, match="previous error during capture"):
        captured(waiting, [state], [torch.ones(3)], pool)
    assert is_as_before(cuda)
    torch.testing.assert_close(state, torch.ones(3))
    assert captured(double_, [state], [torch.ones(3)], pool)([torch.ones(3)])[0] == 9


def test_capture_that_finds_no_memory_gives_back_what_it_has_taken(cuda):
    calls, pool, state = [], capture.Pool(), torch.ones(3)

    def large(state, x):
        calls.append(state.mul_(2))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return [state]

    num_kept = len(capture._FAILED)
    with pytest.raises(torch.OutOfMemoryError):
        captured(large, [state], [torch.ones(3)], pool)
    assert len(capture._FAILED) == num_kept, "a graph that is kept holds its memory"
    assert is_as_before(cuda)
    assert not cuda.is_generator_captured
    torch.testing.assert_close(state, torch.ones(3))
    assert captured(double_, [state], [torch.ones(3)], pool)([torch.ones(3)])[0] == 9


def test_other_threads_may_allocate_during_a_capture(cuda):
    def shared(state, x):
        cuda.call_from_another_thread()
        return double_(state, x)

    assert captured(shared, [torch.ones(3)], [torch.ones(3)])([torch.ones(3)])[0] == 9


def test_what_runs_aside_is_queued_between_what_came_before_and_what_comes_after(cuda):
    with pytest.raises(ZeroDivisionError), capture.aside(HOME):
        1 / 0  # noqa: B018 - also where it fails
    own = capture._capture_stream(HOME)
    assert cuda.log == [("wait", own, cuda.defaults[HOME]), ("wait", cuda.defaults[HOME], own)]
    assert is_as_before(cuda)


LAYOUTS = {
    "dense": lambda x: x,
    "transposed": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(4, 6),
    "expanded twice": lambda x: x[0, 0].expand(4, 6),
    "a row": lambda x: x[:, 3],
    "empty": lambda x: x[:0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_captured_inputs_keep_their_strides(cuda, layout):
    make, seen = LAYOUTS[layout], []

    def strides(state, x):
        seen.append(x.stride())
        return [state + x.sum()]

    given = make(torch.randn(4, 6))
    summed = captured(strides, [torch.zeros(())], [given])
    assert seen[-1] == given.stride()
    for _ in range(2):
        other = make(torch.randn(4, 6))
        torch.testing.assert_close(summed([other])[0], other.sum())


def test_input_that_lies_over_itself_is_not_captured(cuda):
    windows = torch.randn(8).unfold(0, 3, 1)
    with pytest.raises(RuntimeError, match=r"strides \(1, 1\) cannot be written to"):
        captured(double_, [torch.zeros(6, 3)], [windows])


def test_check_of_a_captured_step_compares_what_was_captured_with_some_members(cuda, monkeypatch):
    sizes, eager = [], program.Program._eager

    def noted(self, *tensors, members=None):
        sizes.append(None if members is None else len(members))
        return eager(self, *tensors, members=members)

    monkeypatch.setattr(program.Program, "_eager", noted)
    runs = vs.sweep(task(), lrs=np.geomspace(1e-3, 1e-1, 16), num_steps=40, compile=False, chunk_size=16)
    assert runs.engine.startswith("vectorized, traced and captured")
    assert sizes == [None, None, program._CHECKED_MEMBERS]  # traced, and at calls 3 and 30
    assert sum(graph.num_replays for graph in cuda.graphs) == 38


def test_captured_step_that_has_gone_wrong_is_found_out_and_undone(cuda, float64, monkeypatch):
    replay = staging.Staged.__call__

    def wrong(self, steps):
        results = replay(self, steps)
        if cuda.graphs[0].num_replays == 27:  # the one that is checked
            self.state[0].mul_(1.1)
            results[0].mul_(1.1)
        return results

    def noted(self, function, state, *rest):
        start(self, function, state, *rest)
        self.state = state

    start = staging.Staged.__init__
    monkeypatch.setattr(staging.Staged, "__init__", noted)
    monkeypatch.setattr(staging.Staged, "__call__", wrong)
    with pytest.warns(vs.FallbackWarning, match="since step 2 is in doubt"):
        runs = vs.sweep(task(), lrs=LRS, num_steps=40, seeds=2, compile=False)
    assert runs.engine.startswith("vectorized, eager")
    expected = vs.sweep(task(), lrs=LRS, num_steps=40, seeds=2, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Rprop])
@pytest.mark.gpu
def test_batched_pass_on_a_gpu_trains_as_an_ordinary_loop_does(float64, optimizer):
    how = {"lrs": LRS, "seeds": 2, "num_steps": 40}
    runs = vs.sweep(task("cuda", optimizer), **how)
    assert ("captured" in runs.engine) == (optimizer is not torch.optim.Rprop)
    expected = vs.sweep(task("cuda", optimizer), **how, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


@pytest.mark.gpu
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


@pytest.mark.gpu
def test_failed_capture_on_a_gpu_gives_the_stream_and_the_pool_back():
    def waiting(state, x):
        return [state.mul_(2), torch.nonzero(x)]

    before = torch.cuda.current_stream()
    state, pool, one = torch.ones(3, device="cuda"), capture.Pool(), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="captur"):
        captured(waiting, [state], [one], pool)
    assert torch.cuda.current_stream() == before
    assert torch.rand(3, device="cuda").isfinite().all(), "in PyTorch 2.11 nothing can be drawn"
    assert state.tolist() == [1, 1, 1]
    assert captured(double_, [state], [one], pool)([one])[0].item() == 9
    other = torch.cuda.Stream()
    held = torch.cuda.memory_allocated()
    used = torch.ones(2**20, device="cuda")
    used.record_stream(other)
    del used
    torch.cuda.synchronize()
    torch.ones(1, device="cuda")  # at which the allocator looks for what is free again
    assert torch.cuda.memory_allocated() - held < 2**20


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_capture_on_another_gpu_than_the_current_one_trains(float64):
    runs = vs.sweep(task("cuda:1"), lrs=LRS, num_steps=40)
    assert "captured" in runs.engine
    expected = vs.sweep(task("cuda:1"), lrs=LRS, num_steps=40, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("layer", [nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2), nn.GRU(6, 6, 2, dropout=0.2)])
def test_models_that_draw_inside_train_in_one_pass_on_a_gpu(float64, layer):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = copy.deepcopy(layer).double(), nn.Linear(6, 3)

        def forward(self, x):
            y = self.layer(x)
            return self.head(y[0] if isinstance(y, tuple) else y).mean(0)

    torch.manual_seed(0)
    batches = [(torch.randn(5, 8, 6), torch.randint(3, (8,))) for _ in range(4)]
    made = vs.Task(Model().cuda(), batches, F.cross_entropy, lambda params: torch.optim.SGD(params, lr=0.1))
    runs = vs.sweep(made, lrs=LRS, num_steps=12)
    assert runs.engine.startswith("vectorized")
    expected = vs.sweep(made, lrs=LRS, num_steps=12, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)


@pytest.mark.gpu
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
