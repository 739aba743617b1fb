import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep._engine.ways import choices, program, trials
from vecsweep._engine.ways.choices import Choice, Timing, Way, choose, search

SEQUENTIAL = Way("sequential", 16, is_compiled=False)
AUTO = ("engine", "chunk_size", "compile")
SOME = ("engine", "chunk_size")


def batched(size, *, is_compiled=False):
    return Way("vectorized", size, is_compiled)


def run_search(step_s, *, default=16, num_members=16, num_steps=1000, varied=AUTO, trace_s=0.1, long_trace_s=None):
    """Search with step times by way; return the choice, and which ways were timed."""
    timed = []

    def time(way):
        timed.append(way)
        return Timing(way, trace_s, step_s[way]) if way in step_s else None

    way = batched(default)
    timings = search(time, way, varied=varied, num_members=num_members, num_steps=num_steps, trace_s=long_trace_s)
    return choose(timings, way).way, timed


def test_short_run_is_not_timed():
    assert run_search({SEQUENTIAL: 1.0}, num_steps=50) == (batched(16), [])


def test_run_that_is_soon_over_is_batched_as_it_comes():
    assert run_search({SEQUENTIAL: 0.004}) == (batched(16), [SEQUENTIAL])


def test_loop_is_taken_where_it_is_faster():
    chosen, _ = run_search({SEQUENTIAL: 0.1, batched(16): 0.2, batched(8): 0.19, batched(4): 0.3})
    assert chosen == SEQUENTIAL


def test_chunks_are_halved_for_as_long_as_that_gains():
    times = {SEQUENTIAL: 0.2, batched(16): 0.19, batched(8): 0.15, batched(4): 0.1, batched(2): 0.12}
    chosen, timed = run_search(times, varied=SOME)
    assert chosen == batched(4)
    assert timed == [SEQUENTIAL, batched(16), batched(8), batched(4), batched(2)]


def test_chunks_are_doubled_where_smaller_ones_are_slower():
    times = {SEQUENTIAL: 0.2, batched(4): 0.15, batched(2): 0.18, batched(8): 0.1, batched(16): 0.09}
    assert run_search(times, default=4, varied=SOME)[0] == batched(16)


def test_chunks_are_not_searched_beyond_what_the_run_can_pay_for():
    times = {SEQUENTIAL: 0.2, batched(16): 0.19, batched(8): 0.15}
    assert run_search(times, num_steps=100, varied=SOME, trace_s=1.0)[1] == [
        SEQUENTIAL,
        batched(16),
    ]


@pytest.mark.parametrize(("default", "num_steps"), [(2, 100), (16, 100)], ids=["as it comes", "less than all"])
def test_batching_of_a_large_model_is_tried_on_so_many_members_as_the_run_can_pay_for(default, num_steps):
    times = {SEQUENTIAL: 1.0} | {batched(size): 0.5 for size in (1, 2, 4, 8, 16)}
    chosen, timed = run_search(times, default=default, num_steps=num_steps, varied=SOME, long_trace_s=0.4)
    assert timed[:2] == [SEQUENTIAL, batched(2)]
    assert batched(16) not in timed
    assert chosen == batched(2)


def test_batching_of_a_large_model_is_not_tried_where_two_members_are_too_many():
    times = {SEQUENTIAL: 1.0, batched(2): 0.5, batched(16): 0.5}
    assert run_search(times, num_steps=100, varied=SOME, long_trace_s=3.0) == (SEQUENTIAL, [SEQUENTIAL])
    assert run_search(times, num_steps=100, varied=("engine",), long_trace_s=0.4) == (SEQUENTIAL, [SEQUENTIAL])
    assert run_search(times, num_steps=1000, varied=("engine",), long_trace_s=0.4)[0] == batched(16)


def test_more_members_are_tried_where_some_gain():
    times = {SEQUENTIAL: 1.0, batched(2): 0.9, batched(4): 0.7, batched(8): 0.6, batched(16): 0.5}
    chosen, timed = run_search(times, num_steps=200, varied=SOME, long_trace_s=1.0)
    assert timed == [SEQUENTIAL, batched(4), batched(8)], "all would take more than a few per cent of the run"
    assert chosen == batched(8)


def test_long_run_is_compiled_where_that_gains():
    times = {SEQUENTIAL: 0.2, batched(16): 0.1, batched(8): 0.1, batched(16, is_compiled=True): 0.06}
    assert run_search(times, num_steps=10_000)[0] == batched(16, is_compiled=True)
    assert run_search(times, num_steps=200)[0] == batched(16)
    times[batched(16, is_compiled=True)] = 0.12
    assert run_search(times, num_steps=10_000)[0] == batched(16)


def test_compiling_is_not_tried_where_the_loop_is_far_ahead():
    times = {SEQUENTIAL: 0.05, batched(16): 0.1, batched(8): 0.1, batched(16, is_compiled=True): 0.01}
    assert run_search(times, num_steps=10_000)[0] == SEQUENTIAL


def test_way_that_cannot_be_had_is_passed_over():
    times = {SEQUENTIAL: 0.2, batched(16): 0.1}
    assert run_search(times, num_steps=10_000)[0] == batched(16)
    assert run_search({SEQUENTIAL: 0.2})[0] == SEQUENTIAL


@pytest.mark.parametrize("asked", ["engine", "chunk_size", "compile"])
def test_what_was_asked_for_is_not_varied(asked):
    times = {
        SEQUENTIAL: 0.02,
        batched(16): 0.19,
        batched(8): 0.15,
        batched(4): 0.15,
        batched(16, is_compiled=True): 0.01,
        batched(8, is_compiled=True): 0.01,
    }
    varied = [name for name in AUTO if name != asked]
    chosen, _ = run_search(times, num_steps=10_000, varied=varied)
    assert {"engine": chosen.engine == "vectorized", "chunk_size": chosen.chunk_size == 16}.get(
        asked, not chosen.is_compiled
    )


@pytest.fixture
def always_timed(monkeypatch, tmp_path):
    """Time every run, however short, and remember in a folder of its own."""
    monkeypatch.setattr(choices, "_SHORT_RUN", 0)
    monkeypatch.setattr(choices, "_SHORT_RUN_S", 0.0)
    monkeypatch.setattr(choices, "_SHARE", 1e9)
    monkeypatch.setenv("VECSWEEP_CACHE", str(tmp_path))
    return tmp_path / "choices.json"


def noisy_task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(6)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))


@pytest.mark.parametrize("seeds", [1, 2])
def test_timing_leaves_the_run_as_it_would_have_been(always_timed, float64, seeds):
    lrs = [0.01, 0.02, 0.05, 0.1]
    timed = vs.sweep(noisy_task(), lrs=lrs, seeds=seeds, num_steps=40)
    assert "measured" in timed.engine
    expected = vs.sweep(noisy_task(), lrs=lrs, seeds=seeds, num_steps=40, engine="sequential")
    np.testing.assert_allclose(timed.train_loss, expected.train_loss, rtol=1e-9)


def test_same_call_is_given_the_same_way_and_the_same_bits(always_timed):
    lrs = list(np.geomspace(0.01, 0.1, 6))
    first = vs.sweep(noisy_task(), lrs=lrs, num_steps=40)
    (known,) = json.loads(always_timed.read_text()).values()
    assert known["why"] in first.engine
    again = vs.sweep(noisy_task(), lrs=lrs, num_steps=40)
    assert again.engine == first.engine
    np.testing.assert_array_equal(again.train_loss, first.train_loss)


def test_chosen_way_is_the_one_that_is_taken(always_timed, monkeypatch):
    monkeypatch.setattr(trials, "choose", lambda timings, default: Choice(batched(2), "told so"))
    runs = vs.sweep(noisy_task(), lrs=[0.01, 0.02, 0.05, 0.1], num_steps=20)
    assert runs.engine == "vectorized, traced, 4 members in 2 chunks; told so"
    monkeypatch.setattr(trials, "choose", lambda timings, default: Choice(SEQUENTIAL, "told so"))
    runs = vs.sweep(noisy_task(), lrs=[0.01, 0.02, 0.05, 0.1], num_steps=21)
    assert runs.engine.startswith("sequential")


def test_run_that_is_compiled_after_timing_trains_as_an_ordinary_loop_does(always_timed, float64, monkeypatch):
    monkeypatch.setattr(choices, "_COMPILE_SHARE", 1e9)
    monkeypatch.setattr(choices, "_COMPILE_GAIN", 0.0)
    monkeypatch.setattr(trials, "choose", lambda timings, default: Choice(timings[-1].way, "told so"))
    lrs = [0.01, 0.02, 0.05, 0.1]
    runs = vs.sweep(noisy_task(), lrs=lrs, num_steps=40)
    assert runs.engine.startswith("vectorized, compiled")
    expected = vs.sweep(noisy_task(), lrs=lrs, num_steps=40, engine="sequential")
    np.testing.assert_allclose(runs.train_loss, expected.train_loss, rtol=1e-9)
    again = vs.sweep(noisy_task(), lrs=lrs, num_steps=40)
    np.testing.assert_array_equal(again.train_loss, runs.train_loss)


def test_what_was_only_tried_is_not_said_to_have_run(always_timed, monkeypatch):
    tried = []
    monkeypatch.setattr(program, "compile_graph", lambda graph, is_wanted: tried.append(graph) or graph.forward)
    monkeypatch.setattr(choices, "_COMPILE_SHARE", 1e9)
    monkeypatch.setattr(choices, "_COMPILE_GAIN", 0.0)
    monkeypatch.setattr(trials, "choose", lambda timings, default: Choice(batched(4), "told so"))
    runs = vs.sweep(noisy_task(), lrs=[0.01, 0.02, 0.05, 0.1], num_steps=20)
    assert tried
    assert runs.engine == "vectorized, traced, 4 members in 1 chunk; told so"


def test_engine_that_is_asked_for_is_not_timed_against_the_other(always_timed):
    runs = vs.sweep(noisy_task(), lrs=[0.01, 0.02], num_steps=20, engine="vectorized", compile=False)
    assert "sequential" not in runs.engine


def test_interrupt_while_ways_are_timed_is_a_run_without_steps(monkeypatch):
    def interrupted(*_, **__):
        torch.rand(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "search", interrupted)
    task = noisy_task()
    before = torch.get_rng_state()
    with pytest.raises(vs.Interrupted) as stopped:
        vs.sweep(task, lrs=[0.01, 0.02], num_steps=10)
    assert stopped.value.result is None
    assert torch.equal(torch.get_rng_state(), before)
