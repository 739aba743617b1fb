"""A sweep that dies and goes on equals one that never did, bit for bit.

The oracle is the undisturbed run of the same call without a checkpoint, which `test_equivalence.py` holds against stock
PyTorch.
"""

import errno
import functools
import itertools
import json
import os
import signal
import time

import numpy as np
import pytest
import torch
from kept_runs import (
    BATCHES,
    CASES,
    DiesError,
    Mortal,
    assert_same,
    better_half,
    call,
    clipped,
    fork,
    make_task,
    mlp,
    noisy,
    shuffled,
    with_workers,
)
from torch import nn

import vecsweep as vs


def live_on(case, folder, lives):
    """Make the call again each time it dies, after so many batches."""
    for num_read in lives:
        try:
            return call(case, folder, [num_read])
        except DiesError:
            continue
    return call(case, folder)


@pytest.mark.filterwarnings("ignore:The members are:vecsweep.FallbackWarning")
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("a generator", "workers", "compiled")])
def test_sweep_that_dies_again_and_again_equals_one_that_never_did(case, tmp_path):
    whole = call(case)
    assert_same(live_on(case, tmp_path / "runs", [20, 21, 30, 35]), whole)
    assert_same(call(case, tmp_path / "runs"), whole)  # which only reads it


def test_batches_of_a_generator_function_are_read_forward_to_their_place(tmp_path, monkeypatch):
    whole = call("a generator")
    die_after(monkeypatch, 2)
    with pytest.raises(DiesError):
        call("a generator", tmp_path / "runs")
    monkeypatch.undo()
    assert_same(call("a generator", tmp_path / "runs"), whole)


def die_after(monkeypatch, num_snapshots):
    """Let the run die once so many snapshots are on disk."""
    from vecsweep.checkpoint.keeper import FolderKeeper

    left, keep = itertools.count(num_snapshots - 1, -1), FolderKeeper.keep

    def keep_and_die(self, snapshot):
        keep(self, snapshot)
        self.wait()
        if next(left) == 0:
            raise DiesError

    monkeypatch.setattr(FolderKeeper, "keep", keep_and_die)


def test_loader_with_workers_draws_the_same_noise_again(tmp_path, monkeypatch):
    task = make_task(batches=with_workers)
    how = {"lrs": [0.01, 0.1], "num_steps": 12, "checkpoint_every": "2 steps"}
    whole = vs.sweep(task, **how, checkpoint=tmp_path / "whole")
    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        vs.sweep(task, **how, checkpoint=tmp_path / "runs", val_every=7)
    monkeypatch.undo()
    again = vs.sweep(task, **how, checkpoint=tmp_path / "runs", val_every=7)
    np.testing.assert_array_equal(again.train_loss, whole.train_loss)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_sweep_in_processes_goes_on_in_others(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        task, how = make_task(noisy, shuffled), {"lrs": [0.01, 0.1, 30.0], "epochs": 4, "engine": "parallel"}
        whole = vs.sweep(task, **how)
        die_after(monkeypatch, 2)
        with pytest.raises(DiesError):
            vs.sweep(task, **how, checkpoint=tmp_path, checkpoint_every="3 steps")
        monkeypatch.undo()
        assert_same(vs.sweep(task, **how, checkpoint=tmp_path, checkpoint_every="3 steps"), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("folder", ["one", "another"])
def test_extension_and_branch_are_kept_in_the_folder_of_their_origin(folder, tmp_path, monkeypatch):
    case, own = "dropout and batch norm", tmp_path / folder
    task, runs = make_task(**CASES[case][0]), call(case)
    for go_on, whole in (
        (lambda: call(case, own).select(seed=1).extend(epochs=2), runs.select(seed=1).extend(epochs=2)),
        (lambda: call(case, own).branch(3, lrs=[0.02, 0.05], epochs=2), runs.branch(3, lrs=[0.02, 0.05], epochs=2)),
    ):
        call(case, own)
        die_after(monkeypatch, 1)
        with pytest.raises(DiesError):
            go_on()
        monkeypatch.undo()
        again = go_on() if folder == "one" else vs.resume(own, task, progress=False)
        assert_same(again, whole)


def test_find_lr_goes_on_in_the_part_that_it_was_in(tmp_path, monkeypatch):
    how = {"num_steps": 64, "schedule": "cosine", "budget": 3}
    whole = vs.find_lr(make_task(), **how)
    for num in (1, 2, 1):
        die_after(monkeypatch, num)
        with pytest.raises(DiesError):
            vs.find_lr(make_task(), **how, checkpoint=tmp_path, checkpoint_every="5 steps")
        monkeypatch.undo()
    again = vs.resume(tmp_path, make_task(), checkpoint_every="5 steps")
    assert (again.lr, again.interval, again.trials) == (whole.lr, whole.interval, whole.trials)
    for a, b in zip(again.runs, whole.runs, strict=True):
        assert_same(a, b)


def test_find_lr_refuses_weights_that_were_not_seeded(tmp_path):
    vs.find_lr(make_task(), num_steps=64, budget=2, checkpoint=tmp_path)
    other = make_task(lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3), nn.Identity())[:3])
    with torch.no_grad():
        other.model[0].bias.add_(1)
    with pytest.raises(ValueError, match=r"holds another call: `weights` was"):
        vs.find_lr(other, num_steps=64, budget=2, checkpoint=tmp_path)


@pytest.mark.parametrize("method", ["grid", "ramp"])
def test_range_test_goes_on_where_it_stood(method, tmp_path, monkeypatch):
    how = {"num_steps": 40, "method": method} | ({"num_lrs": 6} if method == "grid" else {"seeds": 2})
    whole = vs.range_test(make_task(noisy), **how)
    die_after(monkeypatch, 2)
    with pytest.raises(DiesError):
        vs.range_test(make_task(noisy), **how, checkpoint=tmp_path, checkpoint_every="1 steps")
    monkeypatch.undo()
    again = vs.resume(tmp_path, make_task(noisy))
    np.testing.assert_array_equal(again.train_loss, whole.train_loss)
    assert again.members == whole.members
    assert again.suggest() == whole.suggest()
    assert type(vs.load(tmp_path)) is vs.RangeTest


def test_way_of_stepping_is_taken_over_and_not_timed_again(tmp_path, monkeypatch):
    from vecsweep._engine import engines

    how = {"lrs": np.linspace(0.01, 0.5, 40), "num_steps": 48, "checkpoint": tmp_path, "checkpoint_every": "1 steps"}
    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        vs.sweep(make_task(), **how)
    monkeypatch.undo()
    monkeypatch.setattr(engines, "choose_way", lambda *_: pytest.fail("it was chosen again"))
    vs.sweep(make_task(), **how)


def test_first_weights_need_not_be_seeded_for_a_sweep_to_go_on(tmp_path, monkeypatch):
    whole = call("sgd")
    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        call("sgd", tmp_path)
    monkeypatch.undo()
    other = make_task()
    with torch.no_grad():
        other.model[0].bias.add_(1)
    again = vs.resume(tmp_path, other)
    assert_same(again, whole)


# What is another is refused.

OTHERS = {
    "model": (
        lambda: make_task(lambda: nn.Sequential(nn.Linear(6, 13), nn.ReLU(), nn.Linear(13, 3))),
        r"`model.parameters.0.weight` was 'torch.float32 \[12, 6\]' and is",
    ),
    "layers": (
        lambda: make_task(lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))),
        r"`model.layers\[2\]` was '  \(1\): ReLU\(\)' and is",
    ),
    "optimizer": (lambda: make_task(optimizer=torch.optim.Adam), "`optimizer.class` was 'SGD' and is 'Adam'"),
    "options": (
        lambda: make_task(optimizer=functools.partial(torch.optim.SGD, momentum=0.8)),
        r"`optimizer.groups\[0\].options.momentum` was '0.9' and is '0.8'",
    ),
    "loss": (lambda: make_task(step=lambda: clipped), "`loss` was 'cross_entropy' and is 'clipped'"),
    "frozen part": (lambda: make_task(frozen_body), "`model.what is not trained"),
    "shapes": (
        lambda: make_task(batches=lambda: [(x[:3], y[:3]) for x, y in BATCHES]),
        r"were torch.float32 \[4, 6\].* and are torch.float32 \[3, 6\]",
    ),
    "numbers": (lambda: make_task(batches=lambda: [(x + 1, y) for x, y in BATCHES]), "they hold other numbers"),
    "fewer": (lambda: make_task(batches=lambda: BATCHES[:2]), "ran out earlier than the first time|`evaluations|is 2"),
}


def frozen_body():
    model = mlp()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(("other", "match"), OTHERS.values(), ids=OTHERS.keys())
def test_another_task_is_refused_by_what_is_another(other, match, tmp_path, monkeypatch):
    how = {"lrs": [0.01, 0.1], "num_steps": 40, "checkpoint": tmp_path, "checkpoint_every": "1 steps", "val_every": 40}
    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        vs.sweep(make_task(), **how)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=match):
        vs.sweep(other(), **how)
    vs.sweep(make_task(), **how)


def test_another_call_in_a_folder_is_refused_until_it_is_told_to_begin_anew(tmp_path):
    how = {"num_steps": 10, "checkpoint": tmp_path}
    first = vs.sweep(make_task(), lrs=[0.01], **how)
    with pytest.raises(ValueError, match=r"`lrs` was \[0.01\] and is \[0.02\]. Pass `restart=True`"):
        vs.sweep(make_task(), lrs=[0.02], **how)
    with pytest.raises(ValueError, match=r"holds a call of `sweep`, not of `range_test`"):
        vs.range_test(make_task(), **how)
    np.testing.assert_array_equal(vs.load(tmp_path).train_loss, first.train_loss)
    other = vs.sweep(make_task(), lrs=[0.02], restart=True, **how)
    assert_same(vs.resume(tmp_path, make_task()), other)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"checkpoint_every": "often"}, "`checkpoint_every` must be a time or a number of steps"),
        ({"checkpoint_every": 5}, "`checkpoint_every` must be a time or a number of steps"),
        ({"checkpoint_every": "0s"}, "`checkpoint_every` must be a time or a number of steps"),
        ({"checkpoint": None, "restart": True}, "`restart` belongs to `checkpoint`"),
    ],
)
def test_arguments_are_checked_before_the_folder_is_made(how, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        vs.sweep(make_task(), **{"lrs": [0.1], "num_steps": 3, "checkpoint": tmp_path / "runs"} | how)
    assert not (tmp_path / "runs").exists()


def test_folder_must_be_a_path():
    with pytest.raises(TypeError, match="`checkpoint` must be the path of a folder; got 5"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=3, checkpoint=5)


def test_iterator_is_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"`checkpoint` needs batches that can be read again.*got an iterator"):
        vs.sweep(make_task(batches=lambda: iter(BATCHES)), lrs=[0.1], num_steps=3, checkpoint=tmp_path / "runs")


def test_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match=r"must be a folder of its own; .* holds 'thesis.tex'"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=3, checkpoint=tmp_path, restart=True)
    with pytest.raises(ValueError, match=r"is a file. Name another"):
        vs.sweep(make_task(), lrs=[0.1], num_steps=3, checkpoint=tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "all of it"


def test_folder_without_a_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        vs.resume(tmp_path, make_task())


def test_function_among_the_arguments_has_to_be_given_again(tmp_path):
    how = {"lrs": [0.1], "num_steps": 6}
    whole = vs.sweep(make_task(), **how, schedules={"mine": lambda t: 1 - t}, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"`schedules` must be given again: .*a checkpoint does not keep"):
        vs.resume(tmp_path, make_task())
    assert_same(vs.resume(tmp_path, make_task(), schedules={"mine": lambda t: 1 - t}), whole)


def test_schedule_of_the_library_need_not_be_given_again(tmp_path):
    schedules = [vs.schedules.one_cycle(div=10, pct_start=0.3), vs.schedules.cosine(1, 0.123456789)]
    whole = vs.sweep(make_task(), lrs=[0.1], num_steps=6, schedules=schedules[:1], checkpoint=tmp_path)
    assert_same(vs.resume(tmp_path, make_task()), whole)


def test_prune_that_decides_otherwise_is_refused(tmp_path, monkeypatch):
    case = "prune"
    die_after(monkeypatch, 4)
    with pytest.raises(DiesError):
        call(case, tmp_path)
    monkeypatch.undo()
    other = functools.wraps(better_half)(lambda runs: range(len(runs.members)))
    with pytest.raises(ValueError, match="what follows the metrics stops other members than it did"):
        vs.resume(tmp_path, make_task(), prune=other)


# What is on disk.


def snapshots(folder):
    return sorted((folder / "run-000").glob("step-*"))


def test_last_two_snapshots_are_kept_and_can_be_read_without_the_library(tmp_path):
    from safetensors.numpy import load_file

    runs = call("sgd", tmp_path)
    _, last = snapshots(tmp_path)
    assert last.name == "step-000000040"
    with np.load(last / "curves.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["loss"], runs.train_loss)
        np.testing.assert_array_equal(file["metrics/val_loss"], runs.metrics["val_loss"])
    weights = load_file(last / "states-000.safetensors")
    for name, value in runs.model(1).state_dict().items():
        np.testing.assert_array_equal(weights[f"ended/1/parameters/{name}"], value.numpy())
    manifest = json.loads((last / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("vecsweep checkpoint", 1)
    assert sorted(manifest["files"]) == sorted(path.name for path in last.iterdir() if path.name != "manifest.json")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["manifest.json", "curves.npz", "streams.npz", "states-000.safetensors"])
def test_damaged_snapshot_falls_back_to_the_one_before(name, harm, tmp_path, monkeypatch):
    whole = call("sgd")
    die_after(monkeypatch, 3)
    with pytest.raises(DiesError):
        call("sgd", tmp_path)
    monkeypatch.undo()
    last = snapshots(tmp_path)[-1]
    harm(last / name)
    with pytest.warns(vs.FallbackWarning, match=f"{last.name} is damaged.* The run goes on from the checkpoint before"):
        again = call("sgd", tmp_path)
    assert_same(again, whole)
    for path in snapshots(tmp_path):
        harm(path / name)
    with pytest.raises(vs.ResultFileError, match="No other checkpoint is left; pass `restart=True`"):
        call("sgd", tmp_path)


@pytest.mark.parametrize("name", ["../../secret.npz", "/etc/passwd", "a/b.npz", "states.pkl"])
def test_manifest_that_names_files_elsewhere_is_damaged(name, tmp_path):
    from vecsweep.checkpoint import disk

    disk.write_folder(tmp_path / "run" / "own", {"a": torch.ones(3)}, {})
    manifest = tmp_path / "run" / "own" / "manifest.json"
    whole = json.loads(manifest.read_text())
    del whole["checksum"]
    whole["files"] = {name: next(iter(whole["files"].values()))}
    manifest.write_text(json.dumps({"checksum": disk._checksum_of(whole), **whole}))
    np.savez(tmp_path / "secret.npz", a=np.ones(3))
    with pytest.raises(vs.ResultFileError, match="is not as it was written"):
        disk.read_folder(tmp_path / "run" / "own")


def test_values_come_back_as_they_were_without_pickle():
    from vecsweep.checkpoint.values import Box

    value = {
        "a": [1, 2.5, float("inf"), -0.0, None, True, "text", b"\x00\xff", 3 - 4j, (1, (2,)), {3, 4}, frozenset({"x"})],
        ("of", "tuples"): {"is": "a word", 5: np.float32(1.25), "of": np.arange(3, dtype=np.uint32)},
        "t": [
            torch.tensor(3, dtype=torch.bfloat16),
            torch.ones(2, 2, dtype=torch.complex64),
            torch.Size([2]),
            torch.float16,
        ],
    }
    box = Box()
    text = json.dumps(box.pack(value, "value"))
    again = box.unpack(json.loads(text))
    assert repr(again) == repr(value)
    with pytest.raises(TypeError, match="value/0 is of the class object"):
        box.pack([object()], "value")
    for foreign in ({"is": "module", "of": "os"}, {"is": "dtype", "of": "load"}):
        with pytest.raises(ValueError, match="is no "):
            box.unpack(foreign)


def test_what_no_file_can_hold_is_told_after_the_first_steps(tmp_path):
    class Handle:
        pass

    handles = []

    def step(model, batch):
        handles[:] = [Handle()]
        return clipped(model, batch)

    task = make_task(step=lambda: step)
    with pytest.raises(ValueError, match=r"A checkpoint keeps numbers, text, tensors .* of the class .*Handle"):
        vs.sweep(task, lrs=[0.1], num_steps=60, engine="sequential", checkpoint=tmp_path, checkpoint_every="1 steps")


def fail_from(monkeypatch, num):
    """Let the disk be full from the n-th snapshot on."""
    from vecsweep.checkpoint import keeper

    left, write = itertools.count(num - 1, -1), keeper.write_snapshot

    def write_or_fail(folder, snapshot):
        if next(left) <= 0:
            raise OSError(28, "No space left on device")
        write(folder, snapshot)

    monkeypatch.setattr(keeper, "write_snapshot", write_or_fail)


def test_full_disk_is_an_os_error_whoever_writes(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from vecsweep.checkpoint import disk

    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(disk, "save_file", full)
    with pytest.raises(OSError, match=r"cannot be written to .*first.*: No space left on device\. Make room") as caught:
        call("sgd", tmp_path / "first")
    assert caught.value.errno == errno.ENOSPC
    assert len(caught.value.result.train_loss) > 0
    with pytest.raises(OSError, match=r"No space left on device: '.*whole'") as caught:
        call("sgd").save(tmp_path / "whole")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "whole").exists()


def test_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    task = make_task(step=lambda: lambda *_: pytest.fail("it trains"))
    with pytest.raises(OSError, match=r"cannot be written to .*run: Not a directory\. Make room, or choose another"):
        vs.sweep(task, lrs=[0.1], num_steps=8, checkpoint=tmp_path / "file" / "run")


def test_full_disk_at_first_is_an_error_and_later_a_warning(tmp_path, monkeypatch):
    whole = call("sgd")
    fail_from(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left"):
        call("sgd", tmp_path / "first")
    monkeypatch.undo()
    fail_from(monkeypatch, 2)
    with pytest.warns(vs.FallbackWarning, match="could not be written .*No space left on device.*the one before it"):
        runs = call("sgd", tmp_path / "later")
    assert_same(runs, whole)


# Signals, locks and processes.


@pytest.fixture
def usual_handlers():
    """Python's own handlers, which what runs in the background may lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("usual_handlers")
@pytest.mark.parametrize(
    ("number", "error", "match"),
    [(signal.SIGTERM, SystemExit, "143"), (signal.SIGINT, vs.Interrupted, "goes on from .* when it is called again")],
)
def test_signal_to_leave_is_obeyed_once_the_run_is_kept(number, error, match, tmp_path):
    whole, handlers = call("sgd"), [signal.getsignal(number)]

    class Signalled(Mortal):
        def __iter__(self):
            for batch in super().__iter__():
                if self.num_read == 20:
                    os.kill(os.getpid(), number)
                yield batch

    task = make_task(batches=lambda: Signalled(BATCHES))
    how = {"lrs": [0.01, 0.1, 30.0], "epochs": 5, "compile": False, "engine": "vectorized", "checkpoint": tmp_path}
    with pytest.raises(error, match=match) as stop:
        vs.sweep(task, **how, checkpoint_every=None)
    assert len(snapshots(tmp_path)) == 1
    if error is vs.Interrupted:
        assert stop.value.checkpoint == tmp_path
        assert len(stop.value.result.train_loss) == 16  # reading is not waited for
    assert [signal.getsignal(number)] == handlers
    assert_same(vs.resume(tmp_path, make_task()), whole)


def test_sigusr1_has_the_run_kept_and_go_on(tmp_path, monkeypatch):
    class Signalled(Mortal):
        def __iter__(self):
            for batch in super().__iter__():
                if self.num_read == 20:
                    os.kill(os.getpid(), signal.SIGUSR1)
                yield batch

    how = {"lrs": [0.01, 0.1], "epochs": 6, "checkpoint": tmp_path}
    vs.sweep(make_task(batches=lambda: Signalled(BATCHES)), **how, checkpoint_every=None)
    assert [path.name for path in snapshots(tmp_path)] == ["step-000000024", "step-000000048"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_second_process_at_a_folder_is_told_who_has_it(tmp_path):
    from vecsweep.checkpoint.journal import Journal
    from vecsweep.checkpoint.keeper import Interval

    ready, told = os.pipe()

    def hold():
        with Journal(tmp_path, "sweep", {}, Interval()).opened():
            os.write(told, b".")
            time.sleep(60)

    child = fork(hold)
    os.read(ready, 1)
    with pytest.raises(ValueError, match=f"is in use by process {child} on "):
        vs.sweep(make_task(), lrs=[0.1], num_steps=3, checkpoint=tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    vs.sweep(make_task(), lrs=[0.1], num_steps=3, checkpoint=tmp_path, restart=True)


# A sweep that is saved whole.


@pytest.mark.parametrize(
    "case", ["adamw, seeds and chunks", "fp16", "state in a closure", "optimizer of its own class"]
)
def test_sweep_that_was_saved_to_a_folder_extends_and_branches_as_before(case, tmp_path):
    runs = call(case)
    assert runs.save(tmp_path / "runs") == tmp_path / "runs"
    again = vs.load(tmp_path / "runs", task=make_task(**CASES[case][0]))
    assert_same(again, runs)
    assert_same(again.extend(epochs=2), runs.extend(epochs=2))
    assert_same(again.branch(1, lrs=[0.02], epochs=1), runs.branch(1, lrs=[0.02], epochs=1))
    with pytest.raises(ValueError, match="The weights of the members are not here"):
        vs.load(tmp_path / "runs").model(0)


def test_folder_of_another_task_is_refused(tmp_path):
    call("sgd").save(tmp_path / "runs")
    with pytest.raises(ValueError, match=r"`optimizer.class` was 'SGD' and is 'Adam'"):
        vs.load(tmp_path / "runs", task=make_task(optimizer=torch.optim.Adam))
    with pytest.raises(ValueError, match="`task` goes with a folder"):
        vs.load(call("sgd").save(tmp_path / "runs.npz"), task=make_task())


def test_saving_to_a_folder_replaces_a_sweep_and_nothing_else(tmp_path):
    runs = call("sgd")
    runs.save(tmp_path / "runs")
    runs.select(lr=0.1).save(tmp_path / "runs")
    assert len(vs.load(tmp_path / "runs", task=make_task()).members) == 1
    (tmp_path / "thesis").mkdir()
    with pytest.raises(FileExistsError, match="There is something else"):
        runs.save(tmp_path / "thesis")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "thesis"]


def test_unfinished_call_is_resumed_and_not_loaded(tmp_path, monkeypatch):
    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        call("sgd", tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"holds a call that is not over. Go on with `vecsweep.resume"):
        vs.load(tmp_path, task=make_task())
    runs = vs.resume(tmp_path, make_task())
    assert_same(vs.load(tmp_path, task=make_task()), runs)


def test_run_that_goes_on_elsewhere_says_that_it_is_equal_but_for_rounding(tmp_path, monkeypatch):
    from vecsweep._engine import loop

    die_after(monkeypatch, 1)
    with pytest.raises(DiesError):
        call("sgd", tmp_path)
    monkeypatch.undo()
    describe = loop.describe_machine
    monkeypatch.setattr(loop, "describe_machine", lambda device: describe(device) | {"processor": "Another"})
    with pytest.warns(vs.FallbackWarning, match="the processor was .* and is Another: .* but for rounding"):
        again = call("sgd", tmp_path)
    np.testing.assert_allclose(again.train_loss, call("sgd").train_loss, rtol=1e-5)
