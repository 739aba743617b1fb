"""Observers: what they are told is what the sweep returns, and nothing that they do changes a run."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep.observers import Observer
from vecsweep.observers._tracker import Tracker

X, Y = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
BATCHES = [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 40, 8)]


def task_of(batches=BATCHES, model=None, **options):
    torch.manual_seed(0)
    how = {"loss_fn": F.cross_entropy, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
    how |= {"val_batches": [(X, Y)]}
    return vs.Task(model or nn.Linear(6, 3), batches, **(how | options))


class Notes(Observer):
    """Writes down everything, in order."""

    def __init__(self):
        self.told = []
        self.parts = {}

    def start(self, run):
        self.told.append(("start", run))

    def losses(self, step, loss, hyper):
        self.told.append(("losses", step, loss, hyper))

    def metrics(self, step, values):
        self.told.append(("metrics", step, values))

    def member_ended(self, member, step, reason):
        self.told.append(("member_ended", member, step, reason))

    def end(self, runs):
        self.told.append(("end", runs))

    def part(self, name):
        return self.parts.setdefault(name, type(self)())

    def of(self, kind):
        return [rest[0] if len(rest) == 1 else tuple(rest) for name, *rest in self.told if name == kind]


class Kept(Tracker):
    """Keeps what a tracker would write."""

    def __init__(self):
        super().__init__("group", 1000)
        self.rows = {}

    def _open(self, name, settings, known):
        return self.rows.setdefault(name, []), name

    def _log(self, opened, rows):
        opened += rows

    def _close(self, opened, fields, status):
        opened.append(fields)


class Failing(Observer):
    """Raises at one of its methods, and counts."""

    def __init__(self, at, error=None):
        self.calls = 0

        def fail(*_):
            self.calls += 1
            raise error or OSError("the server is gone")

        setattr(self, at, fail)


def test_what_is_told_is_what_the_sweep_returns():
    notes = Notes()
    runs = vs.sweep(
        task_of(), lrs=[0.01, 0.1], schedules=["cosine"], vary={"weight_decay": [0.0, 0.1]}, epochs=4, callbacks=[notes]
    )
    (run,) = notes.of("start")
    assert run.members == runs.members
    assert (run.begin, run.num_steps, run.steps_per_epoch) == (0, 20, 5)
    parts = notes.of("losses")
    assert [step for step, _, _ in parts] == np.cumsum([0, *(len(loss) for _, loss, _ in parts)])[:-1].tolist()
    np.testing.assert_array_equal(np.concatenate([loss for _, loss, _ in parts]), runs.train_loss)
    np.testing.assert_array_equal(np.concatenate([hyper["lr"] for _, _, hyper in parts]), runs.lr)
    evaluated = notes.of("metrics")
    assert [step for step, _ in evaluated] == runs.evaluated_at.tolist() == [5, 10, 15, 20]
    np.testing.assert_array_equal([values["val_loss"] for _, values in evaluated], runs.metrics["val_loss"])
    kinds = [kind for kind, *_ in notes.told]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    (end,) = notes.of("end")
    np.testing.assert_array_equal(end.train_loss, runs.train_loss)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_members_that_diverge_or_are_stopped_are_told_once(engine):
    notes = Notes()
    options = {"epochs": 12, "patience": 3, "engine": engine, "callbacks": [notes]}
    runs = vs.sweep(task_of(val_batches=[(X, (Y + 1) % 3)]), lrs=[1e-9, 0.5, 1e308], **options)
    diverged, stopped = runs.members[2].diverged_at, runs.members[1].stopped_at
    assert diverged is not None
    assert stopped is not None
    ends = {member: (step, reason) for member, step, reason in notes.of("member_ended")}
    assert ends[2] == (diverged, "diverged")
    assert ends[1] == (stopped, "stopped")
    assert len(notes.of("member_ended")) == len([m for m in runs.members if m.stopped_at or m.diverged_at is not None])


def test_extension_is_a_run_of_its_own_whose_steps_go_on():
    notes = Notes()
    runs = vs.sweep(task_of(), lrs=[0.1, 1e308], epochs=4, callbacks=[notes])
    longer = runs.extend(epochs=1)
    _, run = notes.of("start")
    assert (run.begin, run.num_steps, [member.lr for member in run.members]) == (20, 5, [0.1])
    steps = {step: loss for step, loss, _ in notes.of("losses")}
    np.testing.assert_array_equal(steps[20][:, 0], longer.train_loss[20:, 0])
    assert notes.of("metrics")[-1][0] == 25


def test_branch_is_a_part_of_its_own():
    notes = Notes()
    runs = vs.sweep(task_of(), lrs=[0.1], epochs=2, callbacks=[notes])
    runs.branch(0, lrs=[0.02, 0.03], epochs=1)
    assert len(notes.of("start")) == 1
    (run,) = notes.parts["branch of member 0 at step 10"].of("start")
    assert [member.lr for member in run.members] == [0.02, 0.03]


def test_answer_has_a_scan_and_a_race():
    notes = Notes()
    answer = vs.find_lr(task_of(), num_steps=64, callbacks=[notes])
    assert notes.told == []
    raced = {(m.lr, m.seed) for runs in answer.runs[1:] for m in runs.members}
    watched = {(m.lr, m.seed) for run in notes.parts["race"].of("start") for m in run.members}
    assert watched == raced
    assert notes.parts["scan"].of("start")[0].members == answer.runs[0].members


def test_range_test_is_told_of_too():
    notes = Notes()
    found = vs.range_test(task_of(), num_lrs=8, num_steps=20, evaluate=True, callbacks=[notes])
    np.testing.assert_array_equal(np.concatenate([loss for _, loss, _ in notes.of("losses")]), found.train_loss)
    assert [step for step, _ in notes.of("metrics")] == [20]


@pytest.mark.parametrize("at", ["start", "losses", "metrics", "member_ended", "end"])
def test_observer_that_fails_warns_once_and_stops_nobody(at):
    how = {"lrs": [0.01, 1e308], "epochs": 4}
    quiet = vs.sweep(task_of(), **how)
    failing, notes = Failing(at), Notes()
    with pytest.warns(
        RuntimeWarning, match=r"Failing failed, .* OSError: the server is gone\. The run goes on"
    ) as caught:
        runs = vs.sweep(task_of(), **how, callbacks=[failing, notes]).extend(epochs=1)
    assert len(caught) == failing.calls == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(runs.train_loss[:20], quiet.train_loss)
    assert len(notes.of("end")) == 2


def test_parts_of_an_observer_that_has_failed_are_told_nothing():
    failing = Failing("part")
    with pytest.warns(RuntimeWarning, match="Failing failed") as caught:
        vs.find_lr(task_of(), num_steps=64, callbacks=[failing])
    assert len(caught) == failing.calls == 1


def test_ctrl_c_in_an_observer_is_ctrl_c():
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(task_of(), lrs=[0.1], epochs=4, callbacks=[Failing("metrics", KeyboardInterrupt())])
    assert len(caught.value.result.train_loss) == 5


def test_end_is_told_when_an_error_breaks_a_run_off():
    def batches():
        yield from BATCHES * 4
        raise OSError("the disk of the data is gone")

    notes = Notes()
    with pytest.raises(OSError, match="the disk of the data is gone"):
        vs.sweep(task_of(batches), lrs=[0.1], num_steps=60, val_every=5, callbacks=[notes])
    [end] = notes.of("end")
    assert len(end.train_loss) == 20
    assert not end.is_complete


class Gambling(Observer):
    """Draws from, and seeds, every global generator."""

    def _gamble(self, *_):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.rand(3)

    start = losses = metrics = end = _gamble


def test_random_numbers_of_an_observer_are_nobody_elses():
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(), nn.Linear(16, 3))
    quiet = vs.sweep(task_of(model=model), lrs=[0.1, 0.2], epochs=4)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    watched = vs.sweep(task_of(model=model), lrs=[0.1, 0.2], epochs=4, callbacks=[Gambling()])
    np.testing.assert_array_equal(watched.train_loss, quiet.train_loss)
    assert random.getstate() == before[1]


class Writing(Observer):
    def losses(self, step, loss, hyper):
        loss[:] = 0.0


def test_arrays_are_read_only():
    with pytest.warns(RuntimeWarning, match="read-only"):
        runs = vs.sweep(task_of(), lrs=[0.1], epochs=1, callbacks=[Writing()])
    assert (runs.train_loss > 0).all()


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Notes(), "`callbacks` must be a list of observers; got .*Pass"),
        ([Notes], "`callbacks` must hold observers; got <class .*pass an instance"),
        ([print], "`callbacks` must hold observers; got <built-in function print>"),
    ],
)
def test_callbacks_that_are_no_observers_are_refused_at_the_call(callbacks, message):
    for verb, how in ((vs.sweep, {"lrs": [0.1], "num_steps": 1}), (vs.range_test, {}), (vs.find_lr, {"num_steps": 64})):
        with pytest.raises(TypeError, match=message):
            verb(task_of(), **how, callbacks=callbacks)


def test_callbacks_and_a_tensorboard_folder_go_together(tmp_path):
    notes = Notes()
    vs.sweep(task_of(), lrs=[0.1], epochs=1, tensorboard=tmp_path, callbacks=[notes])
    assert len(notes.of("end")) == 1
    assert [run.name for run in tmp_path.iterdir()] == ["lr=0.1 schedule=constant seed=0"]


def test_metric_beside_one_that_is_nan_is_tracked():
    tracker, first = Kept(), {"nothing": lambda outputs, targets: outputs.sum() * torch.nan}
    task = task_of(
        metrics=first | {"zero": lambda outputs, targets: outputs.sum() * 0}, val_batches=[(X * torch.nan, Y)]
    )
    vs.sweep(task, lrs=[0.1, 1e308], num_steps=5, val_every=5, callbacks=[tracker])
    task = task_of(metrics=first | {"mean": lambda outputs, targets: outputs.mean()})
    runs = vs.sweep(task, lrs=[0.1, 1e308], num_steps=5, val_every=5, callbacks=[tracker := Kept()])
    rows = next(iter(tracker.rows.values()))
    assert rows[-2] == (5, {"val_loss": runs.metrics["val_loss"][0, 0], "val_mean": runs.metrics["val_mean"][0, 0]})
    losses = [step for step, values in list(tracker.rows.values())[1][:-1] if "train_loss" in values or "lr" in values]
    assert losses == np.flatnonzero(~np.isnan(runs.train_loss[:, 1])).tolist()
