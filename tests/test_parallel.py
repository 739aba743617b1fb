"""Members in several processes: what they compute, what comes back, and what is left when something goes wrong."""

import contextlib
import copy
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep._engine.members.divergence import GRACE, Fate, judge
from vecsweep._engine.members.probe import probe
from vecsweep._engine.members.stock import fastest_kernel
from vecsweep._engine.members.work import Work
from vecsweep._engine.ways import parallel, trials
from vecsweep._engine.ways.choices import Way
from vecsweep._engine.ways.messages import Message, receive
from vecsweep._engine.ways.parallel import num_processes
from vecsweep._engine.ways.trials import without_batching
from vecsweep.observers import Observer
from vecsweep.plan import Plan

CPU = torch.device("cpu")
OPEN_FILES = Path("/proc/self/fd")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create") or torch.accelerator.is_available(), reason="needs Linux and no GPU"
)


@pytest.fixture(autouse=True)
def two_threads():
    """Two processes whatever the machine, and none left behind, nor a file that is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    num_open, num_looks = len(list(OPEN_FILES.iterdir())), 0
    yield
    torch.set_num_threads(before)
    assert multiprocessing.active_children() == []
    while len(list(OPEN_FILES.iterdir())) > num_open and num_looks < 50:  # queues of loaders close by and by
        num_looks += 1
        time.sleep(0.1)
    assert len(list(OPEN_FILES.iterdir())) <= num_open


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(12, 16), nn.BatchNorm1d(16)
        self.drop, self.last = nn.Dropout(0.2), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


def make_task(loss_fn=F.cross_entropy, **how):
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(96, 12), torch.randint(3, (96,)))
    how.setdefault("batches", DataLoader(data, batch_size=16, shuffle=True))
    how.setdefault("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-2))
    return vs.Task(Net(), loss_fn=loss_fn, **how)


def both(verb, task, **how):
    """What the processes give, and what this one does with as many threads as each of them."""
    ours = verb(task, engine="parallel", **how)
    torch.set_num_threads(1)
    theirs = verb(task, engine="sequential", **how)
    torch.set_num_threads(2)
    return ours, theirs


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.train_loss, theirs.train_loss)
    assert ours.engine.startswith("parallel, ")
    for i in range(ours.train_loss.shape[1]):
        for a, b in zip(ours.model(i).state_dict().values(), theirs.model(i).state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_members_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(8, 6).double(), torch.randint(3, (8,))) for _ in range(7)]
    task = vs.Task(model, batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    found = vs.sweep(task, lrs=[0.01, 0.1, 0.3], num_steps=40, engine="parallel")
    for i, lr in enumerate([0.01, 0.1, 0.3]):
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr, momentum=0.9)
        for t in range(40):
            x, y = batches[t % 7]
            optimizer.zero_grad()
            loss = F.cross_entropy(own(x), y)
            loss.backward()
            optimizer.step()
            assert found.train_loss[t, i] == pytest.approx(loss.item(), rel=1e-12)


def test_seeds_draws_buffers_and_metrics_are_those_of_one_process():
    data = torch.randn(40, 12), torch.randint(3, (40,))
    how = {
        "val_batches": [data],
        "metrics": {"accuracy": lambda outputs, targets: (outputs.argmax(1) == targets).float().mean()},
    }
    ours, theirs = both(vs.sweep, make_task(**how), lrs=[1e-3, 1e-2, 1e-1], seeds=2, num_steps=40, val_every=15)
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours.metrics["val_accuracy"], theirs.metrics["val_accuracy"])


def test_range_test_is_that_of_one_process():
    ours, theirs = both(vs.range_test, make_task(), num_lrs=5, num_steps=30)
    np.testing.assert_array_equal(ours.train_loss, theirs.train_loss)


def test_run_is_taken_up_again():
    ours, theirs = both(vs.sweep, make_task(), lrs=[1e-3, 1e-2, 1e-1], num_steps=24)
    ours = ours.extend(num_steps=20)
    torch.set_num_threads(1)
    assert_same(ours, theirs.extend(num_steps=20))


def test_members_that_diverge_harm_no_other():
    task = make_task(optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    ours, theirs = both(vs.sweep, task, lrs=[1e-2, 1e30, 1e-1, 1e35], num_steps=40)
    np.testing.assert_array_equal(ours.diverged_at, theirs.diverged_at)
    np.testing.assert_array_equal(ours.train_loss, theirs.train_loss)
    assert (ours.diverged_at[[1, 3]] >= 0).all()


def test_weights_that_an_optimizer_averages_are_evaluated():
    schedulefree = pytest.importorskip("schedulefree")
    task = make_task(
        optimizer=lambda params: schedulefree.AdamWScheduleFree(params, lr=1e-2),
        val_batches=[(torch.randn(40, 12), torch.randint(3, (40,)))],
    )
    ours, theirs = both(vs.sweep, task, lrs=[1e-3, 1e-2], num_steps=20)
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours.metrics["val_loss"], theirs.metrics["val_loss"])


class RefusedError(Exception):
    """An error of the caller's own."""


def raise_at(step, error):
    """A loss that raises at its k-th call in a process that trains."""
    here, calls = os.getpid(), [0]

    def loss(outputs, targets):
        calls[0] += os.getpid() != here
        if calls[0] > step:
            raise error
        return F.cross_entropy(outputs, targets)

    return loss


def test_error_of_the_callers_own_is_raised_here_with_where_it_came_from():
    state = torch.get_rng_state()
    with pytest.raises(RefusedError, match="no more") as caught:
        vs.sweep(make_task(raise_at(20, RefusedError("no more"))), lrs=[1e-3, 1e-2], num_steps=30, engine="parallel")
    assert "in loss" in "".join(caught.value.__notes__)
    assert torch.equal(torch.get_rng_state(), state)


def test_error_that_cannot_be_sent_says_what_it_was():
    class LocalError(Exception):
        pass

    with pytest.raises(RuntimeError, match="LocalError: no more"):
        vs.sweep(make_task(raise_at(3, LocalError("no more"))), lrs=[1e-3, 1e-2], num_steps=10, engine="parallel")


def test_process_that_is_killed_is_an_error_that_says_so():
    here = os.getpid()

    def loss(outputs, targets):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return F.cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match="exit code -9"):
        vs.sweep(make_task(loss), lrs=[1e-3, 1e-2], num_steps=10, engine="parallel")


def test_ctrl_c_ends_the_processes_and_keeps_what_there_is():
    here = os.getpid()

    def loss(outputs, targets):
        if os.getpid() != here:
            time.sleep(0.02)
        return F.cross_entropy(outputs, targets)

    class Presses(Observer):
        def losses(self, step, loss, hyper):
            if timer.ident is None:  # not started yet
                timer.start()

    timer = threading.Timer(0.2, lambda: os.kill(here, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    started = time.perf_counter()
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(make_task(loss), lrs=[1e-3, 1e-2], num_steps=2_000, engine="parallel", callbacks=[Presses()])
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - started < 30, "all steps would take 40 s"
    assert 0 < len(caught.value.result.train_loss) < 2_000


ORPHANS = """
import os
import torch
import torch.nn.functional as F
import vecsweep as vs
torch.set_num_threads(2)
here = os.getpid()
def step(model, batch):
    if os.getpid() != here:
        os.write(1, f"{os.getpid()}\\n".encode())  # at once, for both write to it
    return F.mse_loss(model(batch), batch)
model = torch.nn.Linear(3, 3)
task = vs.Task(model, [torch.ones(2, 3)], training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
vs.sweep(task, lrs=[0.1, 0.2], num_steps=10**6, engine="parallel", progress=False)
"""


def test_processes_end_when_the_one_that_they_train_for_is_killed():
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", ORPHANS], stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            orphans = set[int]()
            while len(orphans) < 2:
                orphans.add(int(program.stdout.readline()))
        finally:
            program.kill()
    for _ in range(100):
        alive = [pid for pid in orphans if is_running(pid)]
        if not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"{alive} are still there")


def is_running(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_what_a_training_step_prints_is_not_lost(capfd):
    here = os.getpid()

    def loss(outputs, targets):
        if os.getpid() != here:
            print("a step")  # noqa: T201
        return F.cross_entropy(outputs, targets)

    vs.sweep(make_task(loss), lrs=[1e-3, 1e-2], num_steps=20, engine="parallel")
    assert capfd.readouterr().out.count("a step") == 40


class Later(Net):
    """Begins to keep something when nobody looks any more."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.chosen = None, kept

    def forward(self, x):
        self.num += 1
        if self.num > 10:
            self.kept = self.chosen
        return super().forward(x)


def test_what_passes_keep_later_is_handed_over_or_the_caller_is_told():
    def sweep(kept):
        torch.manual_seed(0)
        model = Later(kept)
        model.register_buffer("num", torch.zeros(()))
        task = make_task()
        task = vs.Task(model, task.batches, F.cross_entropy, optimizer=task.optimizer)
        return vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=20, engine="parallel")

    assert sweep("a text").model(1).kept == "a text"
    with pytest.warns(vs.FallbackWarning, match="cannot be handed over"):
        found = sweep(lambda: 1)
    assert found.model(1).kept is None


def test_what_goes_wrong_in_processes_is_told_once_as_it_is_here():
    def step(model, batch):
        inputs, targets = batch
        if inputs.shape[0] == 8:  # not so in the first, which is looked at here
            warnings.warn("half a batch", RuntimeWarning, stacklevel=2)
        return F.cross_entropy(model(inputs), targets)

    def spread(model, batch):
        outputs = model(batch[0])
        if not outputs.isfinite().all():
            raise ValueError("the outputs are not finite")
        return outputs.std()

    torch.manual_seed(0)
    batches = [(torch.randn(n, 12), torch.randint(3, (n,))) for n in (16, 8, 16)]
    how = {"batches": batches, "training_step": step, "val_batches": batches, "metrics": {"spread": spread}}
    asked = {"lrs": [1e-3, 1e-2, 1e30], "num_steps": 9, "val_every": 1, "engine": "parallel"}
    with pytest.warns(RuntimeWarning, match="half a batch|An evaluation fails") as caught:
        runs = vs.sweep(make_task(None, **how), **asked)
    assert runs.engine.startswith("parallel")
    told = sorted(str(own.message) for own in caught)
    assert len(told) == 2
    assert {own.category for own in caught} == {RuntimeWarning}
    assert told[0].startswith("An evaluation fails with a member's weights, and not with untrained ones")
    assert told[1] == "half a batch"


class Unsendable:
    """A batch that no pickle takes."""

    def __init__(self, x, y):
        self.x, self.y, self.lock = x, y, threading.Lock()


def test_batches_that_cannot_be_sent_are_trained_on_here_and_the_caller_is_told():
    batches = [Unsendable(torch.randn(16, 12), torch.randint(3, (16,))) for _ in range(3)]
    task = make_task(None, batches=batches, training_step=lambda model, batch: F.cross_entropy(model(batch.x), batch.y))
    with pytest.warns(vs.FallbackWarning, match="batches that can be pickled"):
        found = vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=5, engine="parallel")
    assert found.engine.startswith("sequential")


def test_batch_that_cannot_be_sent_later_on_ends_the_processes_and_not_the_run():
    torch.manual_seed(0)
    tensors = [(torch.randn(16, 12), torch.randint(3, (16,))) for _ in range(20)]
    batches = [*tensors[:18], (*tensors[18], threading.Lock()), tensors[19]]
    how = {"training_step": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), "batches": batches}
    with pytest.warns(vs.FallbackWarning, match="cannot be sent"):
        ours = vs.sweep(make_task(None, **how), lrs=[1e-3, 1e-2], num_steps=40, engine="parallel")
    how["batches"] = tensors
    theirs = vs.sweep(make_task(None, **how), lrs=[1e-3, 1e-2], num_steps=40, engine="sequential")
    np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-4)


def test_pass_that_keeps_something_is_trained_here_and_the_caller_is_told():
    class Counting(Net):
        num = 0

        def forward(self, x):
            self.num += 1
            return super().forward(x) / self.num

    task = make_task()
    task = vs.Task(Counting(), task.batches, F.cross_entropy, optimizer=task.optimizer)
    with pytest.warns(vs.FallbackWarning, match="keeps something"):
        vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=5, engine="parallel")


def test_there_are_no_processes_where_they_cannot_be():
    batch = torch.zeros(3)
    assert num_processes(5, CPU, batch) == 2
    assert num_processes(1, CPU, batch) == 0
    assert num_processes(5, torch.device("cuda"), batch) == 0
    assert num_processes(5, CPU, threading.Lock()) == 0
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(num_processes(5, CPU, batch)))
    thread.start()
    thread.join()
    assert in_thread == [0]
    torch.set_num_threads(1)
    assert num_processes(5, CPU, batch) == 0


def test_loaders_worker_has_no_processes_of_its_own():
    class Swept(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, i):
            torch.set_num_threads(2)
            return num_processes(5, CPU, torch.zeros(3))

    assert list(DataLoader(Swept(), num_workers=1)) == [torch.tensor([0])]


TENSORS = {
    "small": torch.randn(3, 4),
    "large": torch.randn(300, 400),
    "transposed": torch.randn(300, 400).T,
    "channels last": torch.randn(8, 16, 20, 20).to(memory_format=torch.channels_last),
    "expanded": torch.randn(3, 1).expand(3, 5),
    "strided": torch.randn(40, 40)[::2, ::3],
    "none": torch.empty(0, 3),
    "scalar": torch.tensor(2.5),
    "bool": torch.rand(50) > 0.5,
    "bfloat16": torch.randn(50_000).bfloat16(),
    "complex": torch.randn(50, dtype=torch.complex64),
    "with gradient": torch.randn(3, requires_grad=True),
    "parameter": nn.Parameter(torch.randn(3)),
    "sparse": torch.eye(3).to_sparse(),
}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch 2.11
@pytest.mark.parametrize("padding", [0, 100_000], ids=["in the socket", "in shared memory"])
def test_message_arrives_as_it_was(padding):
    here, there = socket.socketpair()
    with contextlib.closing(here), contextlib.closing(there):
        sent = (TENSORS, {"twice": (TENSORS["large"], TENSORS["large"])} if padding else {}, torch.zeros(padding), "x")
        small = sent if padding else ({k: v for k, v in TENSORS.items() if v.numel() < 1000}, *sent[1:])
        Message(small).send(here)
        found, twice, padded, text = receive(there)
        for name, tensor in small[0].items():
            assert found[name].dtype == tensor.dtype, name
            assert found[name].requires_grad == tensor.requires_grad, name
            assert torch.equal(found[name].to_dense(), tensor.to_dense()), name
        assert padded.shape == (padding,)
        assert text == "x"
        if padding:
            assert found["transposed"].stride() == TENSORS["transposed"].stride()
            assert found["channels last"].is_contiguous(memory_format=torch.channels_last)
            assert twice["twice"][0] is twice["twice"][1]
        if "small" in found:
            found["small"].add_(1)  # what arrives may be written to


def test_message_to_nobody_is_an_error():
    here, there = socket.socketpair()
    here.close()
    with pytest.raises(EOFError):
        receive(there)
    there.close()


def test_one_member_is_judged_as_several_are():
    generator = np.random.default_rng(0)
    for ceiling in (1.0, np.inf):
        losses = np.where(generator.random((400, 50)) < 0.06, 0.5, 2.0)
        losses[generator.random(losses.shape) < 1e-3] = np.nan
        fate = Fate(torch.full((50,), ceiling).double(), torch.full((50,), -GRACE), torch.ones(50, dtype=torch.bool))
        one = [(-GRACE, True)] * 50
        for row in losses:
            fate = fate.after(torch.tensor(row))
            each = zip(one, row, strict=True)
            one = [judge(ceiling, streak, loss) if alive else (streak, False) for (streak, alive), loss in each]
            assert [alive for _, alive in one] == fate.alive.tolist()


@pytest.mark.parametrize(
    ("make", "is_fused"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.1), True),
        (lambda p: torch.optim.SGD(p, lr=0.1), True),
        (lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True), False),
        (lambda p: torch.optim.AdamW(p, lr=0.1, foreach=False), False),
        (lambda p: torch.optim.AdamW(p, lr=0.1, fused=False), False),
        (lambda p: torch.optim.RMSprop(p, lr=0.1), False),
        (lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)), False),
        (lambda p: type("Own", (torch.optim.AdamW,), {})(p, lr=0.1), False),
    ],
)
def test_stock_optimizer_is_stepped_by_the_fastest_kernel_that_its_maker_leaves_open(make, is_fused):
    assert fastest_kernel(make([nn.Parameter(torch.zeros(3))])) == ({"fused": True} if is_fused else {})


def test_sparse_gradients_are_stepped_by_the_kernel_that_takes_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(20, 8, sparse=True), nn.Linear(8, 3))
    batches = [(torch.randint(20, (4, 5)), torch.randint(3, (4,))) for _ in range(3)]
    task = vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    found = vs.sweep(task, lrs=[0.1, 0.2], num_steps=6, engine="sequential")
    np.testing.assert_allclose(found.train_loss[:, 1], stock.train(task, 0.2, 6).losses, rtol=1e-5)


LIGHT, HEAVY = Work(12, 10**6, 10**5, 10**4), Work(120, 10**9, 10**7, 10**6)


def choose_for(work, num_members, num_steps, num_processes):
    plan = Plan.constant(np.geomspace(1e-4, 1e-2, num_members), [0], num_steps)
    return without_batching(work, plan, num_processes, keeps_states=True)


def test_light_steps_are_batched_and_heavy_ones_trained_side_by_side():
    assert LIGHT.is_light
    assert not HEAVY.is_light
    assert choose_for(LIGHT, 8, 100, 2) is None
    assert choose_for(HEAVY, 8, 100, 2).way == Way("parallel", 8, is_compiled=False)
    assert choose_for(HEAVY, 8, 100, 0).way.engine == "sequential"


def test_steps_that_are_longer_to_trace_are_batched_where_the_run_pays_for_it():
    work = Work(60, 4 * 10**6, 10**6, 10**4)  # of a network whose loss takes gradients, say
    assert choose_for(work, 16, 100, 2) is None
    assert choose_for(work, 2, 20, 2).way.engine == "sequential"
    assert choose_for(work._replace(num_operators=400), 16, 100, 2).way.engine == "parallel"
    assert choose_for(work._replace(num_operators=400, is_recurrent=True), 16, 100, 2) is None
    assert choose_for(work._replace(flops=10**9), 16, 100, 2).way.engine == "parallel"


def test_one_member_and_runs_that_are_soon_over_need_no_processes():
    assert choose_for(LIGHT, 1, 1000, 0).way.engine == "sequential"
    assert choose_for(HEAVY, 2, 2, 2).way.engine == "sequential"


def test_processes_that_would_leave_most_threads_idle_are_not_used():
    torch.set_num_threads(16)
    assert choose_for(HEAVY, 2, 1000, 2).way.engine == "sequential"
    assert choose_for(HEAVY, 12, 1000, 12).way.engine == "parallel"


def test_work_is_counted():
    task = make_task()
    seen = []

    def spy(*arguments):
        seen.append(probe(*arguments))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vecsweep._engine.engines.probe", spy)
        vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=3)
    work = seen[0].work
    assert work.flops == 2 * 16 * (12 * 16 + 16 * 3)
    assert work.num_parameters == sum(p.numel() for p in Net().parameters())
    assert 5 < work.num_operators < 40
    assert 0 < work.overhead_s < work.step_s < 1e-2


def test_heavy_model_is_trained_in_processes_without_being_asked(monkeypatch):
    monkeypatch.setattr(Work, "is_mostly_overhead", False)
    monkeypatch.setattr(trials, "_FORK_S", 0.0)
    found = vs.sweep(make_task(), lrs=[1e-3, 1e-2, 3e-2, 1e-1], num_steps=20)
    assert found.engine.startswith("parallel, 4 members in 2 processes")


def test_heavy_model_that_cannot_be_batched_is_trained_in_processes(monkeypatch):
    monkeypatch.setattr(Work, "is_mostly_overhead", False)
    monkeypatch.setattr(trials, "_FORK_S", 0.0)

    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets)

    task = make_task(loss)
    task.model.first.register_full_backward_hook(lambda *_: None)
    found = vs.sweep(task, lrs=[1e-3, 1e-2, 3e-2, 1e-1], num_steps=20)
    assert found.engine.startswith("parallel")
    assert "PyTorch cannot batch them" in found.engine


def test_long_run_of_a_heavy_model_is_timed_in_processes_too(monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_CACHE", str(tmp_path))
    monkeypatch.setattr(Work, "is_mostly_overhead", False)
    monkeypatch.setattr("vecsweep._engine.ways.choices._SHORT_RUN", 0)
    monkeypatch.setattr("vecsweep._engine.ways.choices._SHORT_RUN_S", 0.0)
    monkeypatch.setattr(trials, "_SHARE_S", 10.0)
    loaded = []
    load = parallel.Parallel.load
    monkeypatch.setattr(
        parallel.Parallel,
        "load",
        lambda self, members, seeds: loaded.append(len(members)) or load(self, members, seeds),
    )
    found = vs.sweep(make_task(), lrs=np.geomspace(1e-3, 1e-1, 12), num_steps=20)
    assert " parallel" in found.engine.split("measured")[1]
    assert loaded[0] == 12, "as many as in the run: two would take no longer to be stepped than to be sent a batch"


def test_python_that_knows_no_memfd_is_told_so(monkeypatch):
    monkeypatch.setattr(parallel.sys, "platform", "darwin")
    with pytest.warns(vs.FallbackWarning, match="need Linux"):
        assert vs.sweep(make_task(), lrs=[1e-3, 1e-2], num_steps=3, engine="parallel").engine.startswith("sequential")


class Listener(nn.Module):
    """A recurrent layer over 30 steps: hundreds of small operators."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(8, 16, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


def test_recurrent_members_are_batched_where_the_run_pays_for_the_trace():
    torch.manual_seed(0)
    batches = [(torch.randn(16, 30, 8), torch.randint(2, (16,))) for _ in range(2)]
    task = vs.Task(Listener(), batches, F.cross_entropy, lambda params: torch.optim.Adam(params, lr=1e-3))
    assert vs.sweep(task, lrs=[1e-4, 1e-3], num_steps=4).engine.startswith("sequential")
    found = vs.sweep(task, lrs=np.geomspace(1e-4, 1e-2, 8), num_steps=40)
    assert found.engine.startswith("vectorized")
    np.testing.assert_allclose(found.train_loss[:, 7], stock.train(task, 1e-2, 40).losses, rtol=1e-3)
