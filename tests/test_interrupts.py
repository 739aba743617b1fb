"""Ctrl-C: acted on where nothing is half done, so that what was computed can be taken up; and never lost."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a process itself")
pytestmark = needs_signals


@pytest.fixture(autouse=True)
def own_handler():
    """Python's own handler, which what runs in the background may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler that was there is back"
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def presses(at, then=lambda *inputs: None):
    """Make a function that presses Ctrl-C when it is called for the n-th time; a run cannot set its count back."""
    calls = queue.SimpleQueue()

    def press(*inputs):
        calls.put(1)
        if calls.qsize() == at:
            press_ctrl_c()
        return then(*inputs)

    return press, calls


def pressing(at, then=F.cross_entropy):
    return presses(at, then)[0]


def make_task(loss=F.cross_entropy, num_batches=10, **options):
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator))
        for _ in range(num_batches)
    ]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3))
    options = {"batches": batches, "val_batches": batches[:2], "loss_fn": loss} | options
    return vs.Task(model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01), **options)


RUN = {"lrs": [0.003, 0.03], "schedules": ["cosine"], "seeds": 2, "num_steps": 120, "val_every": 10}


def weights(runs, i):
    return [tensor.clone() for tensor in runs.model(i).state_dict().values()]


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("where", ["loss", "metric", "batches"])
def test_what_ctrl_c_stopped_is_taken_up_bit_for_bit(engine, where):
    whole = vs.sweep(make_task(), **RUN, engine=engine)
    if where == "loss":  # of a batched pass, which is called in Python while it is traced
        task = make_task(pressing(15 if engine == "vectorized" else 200))
    elif where == "metric":
        task = make_task(metrics={"loss again": pressing(20 if engine == "sequential" else 4)})
    else:
        plain, press = make_task().batches, pressing(90, lambda: None)

        def batches():
            for batch in plain:
                press()
                yield batch

        task = make_task(batches=batches)
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(task, **RUN, engine=engine)
    stopped = caught.value.result
    num_steps = len(stopped.train_loss)
    assert not stopped.is_complete
    assert 0 < num_steps < 120
    np.testing.assert_array_equal(stopped.train_loss, whole.train_loss[:num_steps])
    on = stopped.extend()
    np.testing.assert_array_equal(on.train_loss, whole.train_loss)
    np.testing.assert_array_equal(on.lr, whole.lr)
    for i in range(4):
        for mine, undisturbed in zip(weights(on, i), weights(whole, i), strict=True):
            assert torch.equal(mine, undisturbed)
    measured = np.isin(whole.evaluated_at, on.evaluated_at)  # but for an evaluation that Ctrl-C broke off
    assert (~measured).sum() <= 1
    np.testing.assert_array_equal(on.metrics["val_loss"], whole.metrics["val_loss"][measured])


def rounds_otherwise(graph):
    """Compile a graph to what computes nearly the same, as compilers do."""

    def code(*tensors):
        results = graph(*tensors)
        weights = [t for t in tensors if t.ndim == 3]
        if weights and not any(t.ndim == 3 for t in results):  # the part that writes the new state
            weights[0].mul_(1 + 1e-6)
        return results

    return code


def of_two_sizes():
    generator = torch.Generator().manual_seed(1)
    sizes = [8] * 30 + [12] * 30  # a step is compiled for each, the second after 30 steps
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


@pytest.mark.parametrize(
    ("chunk_size", "at", "num_kept"),
    [(3, 1, 0), (3, 3, 30), (2, 3, 10)],
    ids=["at first", "for other batches", "for the second of two chunks"],
)
def test_ctrl_c_does_not_wait_for_a_compiler(monkeypatch, tmp_path, chunk_size, at, num_kept):
    may_end, compiled = threading.Event(), []
    how = {"lrs": [0.003, 0.01, 0.03], "num_steps": 60, "val_every": 10, "engine": "vectorized", "compile": True}
    how |= {"chunk_size": chunk_size, "checkpoint": tmp_path / "run", "checkpoint_every": None}

    def task():
        return make_task(batches=of_two_sizes())

    def compile_quickly(graph, tensors):
        return rounds_otherwise(graph)

    def compile_slowly(graph, tensors):
        compiled.append(graph)
        if len(compiled) == at:  # a step has two parts
            press_ctrl_c()
            assert may_end.wait(60)
        return rounds_otherwise(graph)

    monkeypatch.setattr("vecsweep.kernels._compile._compile", compile_quickly)
    whole = vs.sweep(task(), **how | {"checkpoint": tmp_path / "whole"})
    plain = vs.sweep(task(), **how | {"compile": False, "checkpoint": None})
    assert np.abs(whole.train_loss - plain.train_loss).max() > 1e-7, "what is compiled rounds otherwise"

    monkeypatch.setattr("vecsweep.kernels._compile._compile", compile_slowly)
    started = time.monotonic()
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(task(), **how)
    assert time.monotonic() - started < 30, "the compiler still waits"
    may_end.set()
    stopped = caught.value.result
    assert (0 if stopped is None else len(stopped.train_loss)) == num_kept
    if stopped is not None:
        assert stopped.model(0) is not None

    monkeypatch.setattr("vecsweep.kernels._compile._compile", compile_quickly)
    on = vs.sweep(task(), **how)
    if chunk_size == 2:  # the first chunk was through the window, so that the other went through it uncompiled
        np.testing.assert_allclose(on.train_loss, whole.train_loss, rtol=1e-3)
    else:
        np.testing.assert_array_equal(on.train_loss, whole.train_loss)


def test_what_a_compiler_raises_is_told(monkeypatch):
    def fails(graph, tensors):
        raise TimeoutError("the compiler's own")

    monkeypatch.setattr("vecsweep.kernels._compile._compile", fails)
    with pytest.warns(vs.FallbackWarning, match="cannot be compiled here, and runs uncompiled: the compiler's own"):
        vs.sweep(make_task(), **RUN, engine="vectorized", chunk_size=4, compile=True)


def test_interrupted_sweep_can_be_branched_and_its_weights_saved(tmp_path):
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(pressing(200)), **RUN, engine="sequential")
    stopped = caught.value.result
    fork = stopped.branch(0, lrs=[0.01], num_steps=5)
    np.testing.assert_array_equal(fork.train_loss[: len(stopped.train_loss), 0], stopped.train_loss[:, 0])
    assert stopped.save_model(1, tmp_path / "second.safetensors").exists()


def test_interrupted_extension_is_taken_up():
    runs = vs.sweep(make_task(pressing(60)), lrs=[0.01], num_steps=10, engine="sequential")
    whole = vs.sweep(make_task(), lrs=[0.01], num_steps=90, engine="sequential")
    with pytest.raises(vs.Interrupted) as caught:
        runs.extend(num_steps=80)
    stopped = caught.value.result
    assert 10 < len(stopped.train_loss) < 90
    on = stopped.extend(num_steps=90 - len(stopped.train_loss))
    np.testing.assert_array_equal(on.train_loss, whole.train_loss)


def test_ctrl_c_in_the_last_steps_loses_nothing():
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(pressing(20), val_batches=None), lrs=[0.01], num_steps=16, engine="sequential")
    whole = caught.value.result
    assert whole.is_complete
    assert len(whole.train_loss) == 16
    whole.model(0)


def test_second_ctrl_c_is_raised_at_once():
    calls = queue.SimpleQueue()

    def loss(outputs, targets):
        calls.put(1)
        if calls.qsize() > 43:
            press_ctrl_c()
        return F.cross_entropy(outputs, targets)

    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(loss), lrs=[0.01], num_steps=100, engine="sequential")
    assert calls.qsize() == 45, "the first is acted on at the end of the window"
    with pytest.raises(ValueError, match="weights of the members are not here"):
        caught.value.result.model(0)


def test_ctrl_c_is_not_waited_for_a_loader_that_hangs():
    def batches():
        yield from make_task().batches
        yield from make_task().batches
        timer = threading.Timer(0.3, press_ctrl_c)
        timer.start()
        time.sleep(30)

    started = time.perf_counter()
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(batches=batches, val_batches=None), lrs=[0.01], num_steps=100)
    assert time.perf_counter() - started < 20
    assert len(caught.value.result.train_loss) == 16
    caught.value.result.model(0)


def test_ctrl_c_that_a_callback_drops_still_stops_the_run():
    """Python prints what is raised in `__del__`, and goes on; the signal itself must not be lost there."""

    class Presses:
        def __del__(self):
            press_ctrl_c()
            time.sleep(0.01)  # where a KeyboardInterrupt would be raised, and dropped

    calls = queue.SimpleQueue()

    def loss(outputs, targets):
        calls.put(1)
        if calls.qsize() == 30:
            Presses()
        return F.cross_entropy(outputs, targets)

    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(loss), lrs=[0.01], num_steps=500, engine="sequential")
    assert len(caught.value.result.train_loss) < 100


def test_interrupted_check_has_no_verdict():
    with pytest.raises(vs.Interrupted) as caught:
        vs.check(make_task(pressing(60)), num_steps=20)
    assert caught.value.result is None
    assert "there is no result" in str(caught.value)
    press, calls = presses(10**9, F.cross_entropy)
    assert vs.check(make_task(press), num_steps=5).is_equal
    for at in np.linspace(5, calls.qsize(), 7).astype(int).tolist():
        with pytest.raises(vs.Interrupted):
            vs.check(make_task(pressing(at)), num_steps=5)


def test_interrupted_range_test_and_find_lr_say_so():
    with pytest.raises(vs.Interrupted) as caught:
        vs.range_test(make_task(pressing(100)), num_lrs=3, num_steps=60, engine="sequential")
    assert isinstance(caught.value.result, vs.RangeTest)
    with pytest.raises(vs.Interrupted):
        vs.find_lr(make_task(pressing(300)), num_steps=64, engine="sequential")


def test_handler_of_the_callers_own_is_left_alone():
    noted = []

    def handler(*_):
        noted.append(1)

    signal.signal(signal.SIGINT, handler)
    runs = vs.sweep(make_task(pressing(20)), lrs=[0.01], num_steps=32, engine="sequential")
    assert runs.is_complete
    assert noted == [1]
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_handler_that_the_task_installs_is_left_in_place():
    def handler(*_):
        pass

    press = []

    def loss(outputs, targets):
        if not press:
            press.append(signal.signal(signal.SIGINT, handler))
        return F.cross_entropy(outputs, targets)

    vs.sweep(make_task(loss), lrs=[0.01], num_steps=3, engine="sequential")
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_sweep_in_another_thread_goes_on_and_the_main_thread_gets_its_ctrl_c():
    found, is_under_way = [], threading.Event()

    def loss(outputs, targets):
        is_under_way.set()
        time.sleep(0.001)
        return F.cross_entropy(outputs, targets)

    thread = threading.Thread(
        target=lambda: found.append(vs.sweep(make_task(loss), lrs=[0.01], num_steps=60, engine="sequential"))
    )
    thread.start()
    is_under_way.wait()
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()
    thread.join()
    assert found[0].is_complete


def test_waiting_for_the_sweep_of_another_thread_ends_at_ctrl_c():
    is_under_way, may_end = threading.Event(), threading.Event()

    def loss(outputs, targets):
        is_under_way.set()
        may_end.wait(30)
        return F.cross_entropy(outputs, targets)

    thread = threading.Thread(target=lambda: vs.sweep(make_task(loss), lrs=[0.01], num_steps=2, engine="sequential"))
    thread.start()
    is_under_way.wait()
    threading.Timer(0.2, press_ctrl_c).start()
    with pytest.raises(KeyboardInterrupt):
        vs.sweep(make_task(), lrs=[0.01], num_steps=2)
    may_end.set()
    thread.join()
    assert vs.sweep(make_task(), lrs=[0.01], num_steps=2).is_complete, "the lock is free again"


SWEEP = """
import torch
import torch.nn.functional as F
import vecsweep as vs
model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(20)]
def task():
    def noted():
        for batch in batches:
            print("under way", flush=True)
            yield batch
    return vs.Task(model, noted, F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
"""


NUM_PRESSES = int(os.environ.get("VECSWEEP_SOAK_PRESSES", "6"))


@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_process_is_sound_whenever_ctrl_c_came(engine):
    """Here it may come anywhere: in the set-up, in a trace, in torch's modes, in an evaluation, between two steps."""
    options = {"lrs": [0.01, 0.1], "val_every": 8, "engine": engine, "compile": False}
    whole = vs.sweep(make_task(), **options, num_steps=64)
    random = np.random.default_rng(0)
    for _ in range(NUM_PRESSES):
        task, timer = make_task(), threading.Timer(0.05 + random.exponential(0.2), press_ctrl_c)
        timer.start()
        with pytest.raises(vs.Interrupted) as caught:
            vs.sweep(task, **options, num_steps=10**5)
        timer.join()
        stopped = caught.value.result
        if stopped is not None:
            assert stopped.extend(num_steps=8).is_complete
        assert torch.is_grad_enabled()
        again = vs.sweep(make_task(), **options, num_steps=64)
        np.testing.assert_array_equal(again.train_loss, whole.train_loss)


def test_command_ends_with_130_and_a_readable_file(tmp_path):
    (tmp_path / "run.py").write_text(SWEEP)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "vecsweep", "sweep", "run.py:task", "--lrs", "0.01,0.1", "--num-steps", "100000"),
            *("--no-compile", "--output-dir", "sweep"),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for _ in range(200):
            assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"^vecsweep: interrupted after \d+ steps; what they found is in \S+\.npz\.\n\Z", err, re.MULTILINE)
    assert not vs.load(tmp_path / "sweep" / "sweep.npz").is_complete
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["sweep.npz"]
