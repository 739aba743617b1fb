"""TensorBoard: what its own reader finds in the runs that vecsweep writes."""

import queue
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata
from torch import nn

import vecsweep as vs
from vecsweep import schedules
from vecsweep.observers import Run, TensorBoard, tensorboard
from vecsweep.results import MemberRecord, Sweep

X, Y = torch.randn(44, 6, generator=torch.Generator().manual_seed(0)), torch.arange(44) % 3
BATCHES = [(X[start : start + 8], Y[start : start + 8]) for start in range(0, 40, 8)]


def accuracy(outputs, targets):
    return (outputs.argmax(-1) == targets).float().mean()


def task_of(batches=BATCHES, **options):
    torch.manual_seed(0)
    how = {"loss_fn": F.cross_entropy, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
    how |= {"val_batches": [(X, Y)], "metrics": {"accuracy": accuracy}}
    return vs.Task(nn.Linear(6, 3), batches, **(how | options))


def made_up(loss, members=None, **options):
    """A sweep of these losses, [step, member], that nobody trained."""
    loss = np.asarray(loss, dtype=float)
    members = members or [MemberRecord(0.1 * (i + 1), "constant", 0, None) for i in range(loss.shape[1])]
    how = {"lr": np.full(loss.shape, 0.5), "steps_per_epoch": None, "engine": "", "duration_s": 0.0} | options
    return Sweep(members=tuple(members), train_loss=loss, **how)


def begun(folder, members, begin, num_steps):
    """A writer of a run that has begun."""
    writer = TensorBoard(folder)
    writer.start(Run(tuple(members), begin, num_steps))
    return writer


def read(run):
    everything = EventAccumulator(str(run), size_guidance={"scalars": 0})
    return everything.Reload()


def scalars(run):
    """The steps and the values of each curve of a run."""
    events = read(run)
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    return {tag: ([e.step for e in curve], [e.value for e in curve]) for tag, curve in found.items()}


def curves(folder):
    """The same by the name of the run, without what is written at the end."""
    return {
        run.name: {tag: curve for tag, curve in scalars(run).items() if not tag.startswith("final/")}
        for run in sorted(folder.iterdir())
    }


def expected(runs, i):
    """What a member's curves are, by the arrays of the sweep."""
    there = ~np.isnan(runs.train_loss[:, i])
    found = {}
    for tag, values in {"train_loss": runs.train_loss, "lr": runs.lr, **runs.hyper}.items():
        found[tag] = (np.flatnonzero(there).tolist(), np.float32(values[there, i]).tolist())
    for tag, values in runs.metrics.items():
        there = ~np.isnan(values[:, i])
        found[tag] = (runs.evaluated_at[there].tolist(), np.float32(values[there, i]).tolist())
    return found


def session(run):
    content = read(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content)


def end_of_session(run):
    content = read(run).SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    return api_pb2.Status.Name(metadata.parse_session_end_info_plugin_data(content).status)


def test_each_member_is_a_run_named_by_what_it_has_of_its_own(tmp_path):
    vary = {"weight_decay": [0.0, 0.01]}
    options = {"schedules": ["cosine"], "seeds": 2, "vary": vary, "num_steps": 1}
    vs.sweep(task_of(), lrs=[0.01, 0.1], tensorboard=tmp_path, **options)
    assert {run.name for run in tmp_path.iterdir()} == {
        f"lr={lr} schedule=cosine seed={seed} weight_decay={decay}"
        for lr in ("0.01", "0.1")
        for seed in (0, 1)
        for decay in ("0", "0.01")
    }


@pytest.mark.parametrize("is_live", [True, False])
def test_curves_are_the_arrays_of_the_sweep(tmp_path, is_live):
    options = {"schedules": ["constant", "one-cycle"], "epochs": 3, "val_every": 4}
    runs = vs.sweep(task_of(), lrs=[0.01, 0.1], tensorboard=tmp_path if is_live else None, **options)
    if not is_live:
        assert runs.to_tensorboard(str(tmp_path)) == tmp_path
    found = curves(tmp_path)
    assert len(found) == 4
    for i, member in enumerate(runs.members):
        own = found[f"lr={member.lr:g} schedule={member.schedule} seed=0"]
        assert own == expected(runs, i)
        assert own["val_accuracy"][0] == [4, 8, 12, 15]
        assert own["lr"][0] == list(range(15))


def test_hyperparameters_that_have_curves_are_written(tmp_path):
    task = task_of(optimizer=lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
    runs = vs.sweep(task, lrs=[0.1], schedules=[schedules.one_cycle()], num_steps=6, tensorboard=tmp_path)
    (own,) = curves(tmp_path).values()
    assert own == expected(runs, 0)
    assert len(set(own["momentum"][1])) > 1


def test_live_runs_are_those_written_afterwards(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.01, 0.1], epochs=2, seeds=2, tensorboard=tmp_path / "live")
    runs.to_tensorboard(tmp_path / "after")
    live, after = ({run.name: scalars(run) for run in (tmp_path / when).iterdir()} for when in ("live", "after"))
    assert live == after
    assert len(live) == 4


def test_numbers_of_bytes_that_hold_a_step_may_differ(tmp_path):
    loss = np.random.default_rng(0).random((300, 3))
    made_up(loss).to_tensorboard(tmp_path)
    for i, run in enumerate(sorted(tmp_path.iterdir())):
        assert scalars(run)["train_loss"] == (list(range(300)), np.float32(loss[:, i]).tolist())


def test_many_members_are_each_their_own(tmp_path):
    loss = np.random.default_rng(0).random((40, 700))  # more than one block of records
    made_up(loss).to_tensorboard(tmp_path)
    for i in (0, 1, 350, 699):
        (run,) = tmp_path.glob(f"lr={0.1 * (i + 1):.6g} *")
        assert scalars(run)["train_loss"][1] == np.float32(loss[:, i]).tolist()


def test_long_curves_are_thinned_and_their_metrics_are_not(tmp_path):
    steps = np.arange(2500.0)[:, None]
    evaluated_at = np.arange(1, 2501)
    made_up(steps, metrics={"val_loss": steps}, evaluated_at=evaluated_at).to_tensorboard(tmp_path)
    (own,) = curves(tmp_path).values()
    assert own["train_loss"] == (list(range(0, 2500, 3)), [float(step) for step in range(0, 2500, 3)])
    assert own["val_loss"][0] == evaluated_at.tolist()


def test_windows_do_not_change_which_steps_are_thinned_out(tmp_path):
    steps = np.arange(2500.0)[:, None]
    runs = made_up(steps)
    writer = begun(tmp_path, runs.members, 100, 2500)
    for start in range(0, 2500, 16):
        rows = slice(start, start + 16)
        writer.losses(100 + start, steps[rows], {"lr": runs.lr[rows]})
    writer.end(None)
    (own,) = curves(tmp_path).values()
    assert own["train_loss"] == (list(range(100, 2600, 3)), [float(step) for step in range(0, 2500, 3)])


def test_curves_of_a_member_end_where_it_diverged(tmp_path):
    jump = {"jump": lambda progress: np.where(progress < 0.4, 1.0, 1e7)}
    runs = vs.sweep(task_of(), lrs=[1e-9, 0.1], schedules=jump, epochs=12, tensorboard=tmp_path)
    diverged_at = runs.members[1].diverged_at
    assert 24 < diverged_at < 55
    well, diverged = (tmp_path / f"lr={lr} schedule=jump seed=0" for lr in ("1e-09", "0.1"))
    own = curves(tmp_path)
    assert [own[well.name], own[diverged.name]] == [expected(runs, 0), expected(runs, 1)]
    assert own[diverged.name]["lr"][0] == list(range(own[diverged.name]["train_loss"][0][-1] + 1))
    assert own[diverged.name]["lr"][0][-1] <= diverged_at
    assert own[diverged.name]["val_loss"][0] == [step for step in range(5, 60, 5) if step <= diverged_at]
    assert not any(tag.startswith("final/") for tag in scalars(diverged))
    assert end_of_session(diverged) == "STATUS_FAILURE"
    assert end_of_session(well) == "STATUS_SUCCESS"


def test_curves_of_a_member_end_where_it_was_stopped(tmp_path):
    targets = [(X, (Y + 1) % 3)]  # what is learned makes these worse
    runs = vs.sweep(task_of(val_batches=targets), lrs=[1e-9, 0.5], epochs=12, patience=3, tensorboard=tmp_path)
    stopped_at = runs.members[1].stopped_at
    assert stopped_at is not None
    assert stopped_at < 60
    own = scalars(tmp_path / "lr=0.5 schedule=constant seed=0")
    assert own["train_loss"][0] == own["lr"][0] == list(range(stopped_at))
    assert own["val_loss"][0][-1] == own["final/val_loss"][0][0] == stopped_at


def test_nan_is_not_written_and_other_numbers_are(tmp_path):
    nan, inf = np.nan, np.inf
    loss = [[1.0, 2.0], [inf, 1e300], [nan, nan]]
    metrics = {"val_loss": np.array([[nan, 3.0]])}
    made_up(loss, metrics=metrics, evaluated_at=np.array([2])).to_tensorboard(tmp_path)
    first, second = curves(tmp_path).values()
    assert first == {"train_loss": ([0, 1], [1.0, inf]), "lr": ([0, 1], [0.5, 0.5])}
    assert second == {**first, "train_loss": ([0, 1], [2.0, inf]), "val_loss": ([2], [3.0])}


def test_mean_of_losses_that_patience_follows_is_a_curve_of_its_own(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.1], epochs=2, patience=3, monitor="mean_train_loss", tensorboard=tmp_path)
    (own,) = curves(tmp_path).values()
    assert own["train_loss"][0] == list(range(10))
    assert own["mean_train_loss"][0] == [5, 10]
    np.testing.assert_allclose(own["mean_train_loss"][1], runs.train_loss.reshape(2, 5).mean(axis=1), rtol=1e-6)


def test_run_can_be_watched_while_it_goes(tmp_path):
    seen = []

    def batches():
        yield from BATCHES
        if tmp_path.exists():
            seen.append([(own["train_loss"][0], own["val_loss"][0]) for own in curves(tmp_path).values() if own])

    vs.sweep(task_of(batches), lrs=[0.01, 0.1], epochs=3, tensorboard=tmp_path)
    assert [(list(range(5)), [5])] * 2 in seen
    assert [(list(range(10)), [5, 10])] * 2 in seen


def test_run_without_evaluations_reaches_the_disk_every_few_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(tensorboard, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0, time_ns=int))
    runs = made_up(np.ones((8, 1)))
    writer = begun(tmp_path, runs.members, 0, 8)
    (run,) = tmp_path.iterdir()
    writer.losses(0, runs.train_loss[:4], {"lr": runs.lr[:4]})
    assert scalars(run) == {}
    now[0] += 4
    writer.losses(4, runs.train_loss[4:], {"lr": runs.lr[4:]})
    assert scalars(run)["train_loss"][0] == list(range(8))


def test_what_was_taken_is_not_changed_by_what_becomes_of_it(tmp_path):
    loss = np.ones((2, 1))
    writer = begun(tmp_path, made_up(loss).members, 0, 2)
    writer.losses(0, loss, {"lr": loss})
    loss[:] = 7
    writer.end(None)
    (own,) = curves(tmp_path).values()
    assert own["train_loss"][1] == [1.0, 1.0]


def test_what_was_trained_before_a_failure_is_kept(tmp_path):
    def batches():
        yield from BATCHES * 4
        raise OSError("the disk of the data is gone")

    with pytest.raises(OSError, match="the disk of the data is gone"):
        vs.sweep(task_of(batches), lrs=[0.1], num_steps=60, val_every=5, tensorboard=tmp_path)
    (own,) = curves(tmp_path).values()
    assert own["train_loss"][0] == list(range(len(own["train_loss"][0])))
    assert len(own["val_loss"][0]) >= 3


def test_interrupted_run_is_written_with_its_hparams(tmp_path):
    calls = queue.SimpleQueue()  # where a sweep does not look

    def interrupting(outputs, targets):
        calls.put(1)
        if calls.qsize() > 8:
            raise KeyboardInterrupt
        return accuracy(outputs, targets)

    options = {"engine": "sequential", "tensorboard": tmp_path}
    with pytest.raises(vs.Interrupted) as caught:
        vs.sweep(task_of(metrics={"accuracy": interrupting}), lrs=[0.1], epochs=30, **options)
    runs = caught.value.result
    (own,) = curves(tmp_path).values()
    assert own == expected(runs, 0)
    (run,) = tmp_path.iterdir()
    assert session(run).hparams["lr"].number_value == 0.1


def test_extension_goes_on_in_the_same_runs(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.01, 0.1], epochs=2, tensorboard=tmp_path)
    longer = runs.extend(epochs=1)
    found = list(curves(tmp_path).values())
    assert found == [expected(longer, i) for i in range(2)]
    assert found[0]["train_loss"][0] == list(range(15))
    assert found[0]["val_loss"][0] == [5, 10, 15]
    last = [scalars(run)["final/val_loss"][1][-1] for run in sorted(tmp_path.iterdir())]
    assert last == np.float32(longer.final("val_loss")).tolist()


def test_extension_leaves_the_runs_of_diverged_members_alone(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.1, 1e308], epochs=4, tensorboard=tmp_path)
    assert runs.members[1].diverged_at is not None
    before = curves(tmp_path)["lr=1e+308 schedule=constant seed=0"]
    runs.extend(epochs=1)
    after = curves(tmp_path)
    assert after["lr=1e+308 schedule=constant seed=0"] == before
    assert after["lr=0.1 schedule=constant seed=0"]["train_loss"][0] == list(range(25))


def test_branch_begins_its_runs_at_the_step_it_branched_from(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.1], epochs=2, tensorboard=tmp_path)
    branch = runs.branch(0, lrs=[0.02, 0.03], schedules=["cosine"], epochs=1)
    (folder,) = (path for path in tmp_path.iterdir() if path.name.startswith("branch of member 0 at step 10"))
    own = curves(folder)["lr=0.03 schedule=cosine seed=0"]
    assert own["train_loss"] == (list(range(10, 15)), np.float32(branch.train_loss[10:, 1]).tolist())
    assert own["val_loss"][0] == [15]


def test_second_sweep_into_a_folder_replaces_the_curves_of_the_first(tmp_path):
    vs.sweep(task_of(), lrs=[0.1], epochs=4, tensorboard=tmp_path)
    runs = vs.sweep(task_of(BATCHES[::-1]), lrs=[0.1], epochs=2, tensorboard=tmp_path)
    (own,) = curves(tmp_path).values()
    assert own == expected(runs, 0)


@pytest.mark.parametrize("is_live", [True, False])
def test_hparams_hold_the_settings_and_what_came_of_them(tmp_path, is_live):
    options = {"schedules": ["cosine"], "seeds": [7], "vary": {"weight_decay": [0.25]}, "epochs": 4}
    runs = vs.sweep(task_of(), lrs=[0.5], tensorboard=tmp_path if is_live else None, **options)
    if not is_live:
        runs.to_tensorboard(tmp_path)
    (run,) = tmp_path.iterdir()
    hparams = session(run).hparams
    assert hparams["schedule"].string_value == "cosine"
    assert {name: hparams[name].number_value for name in ("lr", "seed", "weight_decay")} == {
        "lr": 0.5,
        "seed": 7.0,
        "weight_decay": 0.25,
    }
    own = scalars(run)
    names = ("train_loss", "val_loss", "val_accuracy")
    assert {name: own[f"final/{name}"] for name in names} == {
        name: ([20], np.float32(runs.final(name)).tolist()) for name in names
    }


def test_hparams_tab_finds_every_hparam_and_metric(tmp_path):
    vs.sweep(task_of(), lrs=[0.5], vary={"weight_decay": [0.25]}, epochs=1, tensorboard=tmp_path)
    (run,) = tmp_path.iterdir()
    content = read(run).SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    kinds = {info.name: api_pb2.DataType.Name(info.type) for info in experiment.hparam_infos}
    numbers = dict.fromkeys(("lr", "seed", "weight_decay"), "DATA_TYPE_FLOAT64")
    assert kinds == {**numbers, "schedule": "DATA_TYPE_STRING"}
    assert {info.name.tag: info.display_name for info in experiment.metric_infos} == {
        f"final/{name}": name for name in ("train_loss", "val_loss", "val_accuracy")
    }
    assert all(info.name.tag in scalars(run) for info in experiment.metric_infos)


def test_names_tell_members_apart_and_suit_every_file_system(tmp_path):
    settings = [
        (0.1, "a/b"),
        (0.1, "a_b"),
        (0.1, "a%2Fb"),
        (0.1, "a seed=0"),
        (0.1, '<:"|?*>\\\n'),
        (0.1, ".."),
        (0.1, "höher"),
        (0.1 + 1e-12, "a_b"),
        (0.1, "a_b"),
    ]
    members = [MemberRecord(lr, schedule, 0, None) for lr, schedule in settings]
    loss = np.arange(9.0)[None]
    made_up(loss, members).to_tensorboard(tmp_path)
    runs = list(tmp_path.iterdir())
    assert all(re.fullmatch(r"[\w .=%+()-]+", run.name, re.ASCII) for run in runs)
    assert sorted(scalars(run)["train_loss"][1][0] for run in runs) == list(range(9))
    (run,) = tmp_path.glob("lr=0.1000000000010* schedule=a_b seed=0")
    assert scalars(run)["train_loss"][1] == [7.0]


def test_range_test_can_be_written_too(tmp_path):
    found = vs.range_test(task_of(), method="ramp", num_steps=20, progress=False)
    found.to_tensorboard(tmp_path)
    (own,) = curves(tmp_path).values()
    assert own == expected(found, 0)


def test_folder_that_is_a_file_is_told_before_training(tmp_path):
    file = tmp_path / "runs"
    file.write_text("kept")
    trained = []
    task = task_of(loss_fn=lambda outputs, targets: trained.append(1))
    with pytest.raises(NotADirectoryError, match=r"need a folder, and this is a file; name another.*runs"):
        vs.sweep(task, lrs=[0.1], epochs=1, tensorboard=file)
    assert not trained
    assert file.read_text() == "kept"


def test_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot be written here \(Not a directory\); name another folder"):
        made_up([[1.0]]).to_tensorboard(tmp_path / "file" / "runs")


def test_missing_package_is_named_with_its_remedy_before_training(tmp_path, monkeypatch):
    trained = []
    task = task_of(loss_fn=lambda outputs, targets: trained.append(1))
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    message = r"needs TensorBoard\. Run: pip install 'vecsweep\[tensorboard\]'"
    with pytest.raises(ImportError, match=message):
        vs.sweep(task, lrs=[0.1], epochs=1, tensorboard=tmp_path / "runs")
    assert not trained
    with pytest.raises(ImportError, match=message):
        made_up([[1.0]]).to_tensorboard(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_long_names_of_schedules_are_shortened_to_what_file_systems_take(tmp_path):
    parts = [schedules.one_cycle(momentums=None)] * 6
    named = [schedules.combine([1 / 6] * 6, [*parts[:5], last]) for last in (parts[5], schedules.cosine(1, 0))]
    losses = [[1.0, 2.0, 3.0], [0.5, 1.5, 2.5]]
    long = [MemberRecord(0.1, own.name, seed, None) for own, seed in ((named[0], 0), (named[0], 1), (named[1], 0))]
    made_up(losses, long).to_tensorboard(tmp_path)
    folders = list(tmp_path.iterdir())
    assert sorted(tuple(scalars(folder)["train_loss"][1]) for folder in folders) == list(zip(*losses, strict=True))
    assert all(len(folder.name) < 255 and folder.name.startswith("lr=0.1 schedule=combine") for folder in folders)


def test_branches_have_folders_of_their_own_and_void_nothing(tmp_path):
    runs = vs.sweep(task_of(), lrs=[0.1], epochs=2, tensorboard=tmp_path)
    runs.branch(0, lrs=[0.1], epochs=1)
    runs.branch(0, lrs=[0.1, 0.2], epochs=1)
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders[:2] == ["branch of member 0 at step 10", "branch of member 0 at step 10 (2)"]
    assert len(folders) == 3
    assert len(list((tmp_path / folders[1]).iterdir())) == 2
