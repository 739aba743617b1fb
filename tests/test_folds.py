"""Folds of cross-validation as members, against an ordinary loop per fold; validation batches by seed."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.model_selection import KFold
from torch import nn

import vecsweep as vs
from vecsweep.report.members import table_members

LRS = [0.05, 0.2]
NUM_STEPS = 12

pytestmark = pytest.mark.usefixtures("float64")


def cut(inputs, targets, size):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


class Data:
    """33 samples in folds: of three of them 22 are left to train on, of four 24 or 25."""

    def __init__(self, num_folds):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(33, 5, generator=generator)
        self.targets = self.inputs[:, :3].argmax(1)
        self.folds = list(KFold(num_folds).split(self.inputs))

    def train(self, fold):
        rows = torch.tensor(self.folds[fold][0])
        return cut(self.inputs[rows], self.targets[rows], 11)

    def val(self, fold):
        rows = torch.tensor(self.folds[fold][1])
        return cut(self.inputs[rows], self.targets[rows], 4)


def accuracy(outputs, targets):
    return (outputs.argmax(1) == targets).double().mean()


def task_of(data, **fields):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    given = {"val_batches": data.val, "metrics": {"accuracy": accuracy}} | fields
    return vs.Task(model, data.train, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **given)


def train_plainly(task, data, fold, lr):
    """Losses, and the mean loss and accuracy over the samples that were held out, after 6 and 12 steps."""
    model, batches = copy.deepcopy(task.model), data.train(fold)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses, measured = [], []
    for step in range(NUM_STEPS):
        inputs, targets = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 6 == 0:
            rows = torch.tensor(data.folds[fold][1])
            outputs = model(data.inputs[rows]).detach()
            measured.append([float(own(outputs, data.targets[rows])) for own in (F.cross_entropy, accuracy)])
    return losses, np.array(measured)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("num_folds", [3, 4], ids=["even", "uneven"])
def test_member_trains_on_its_fold_and_is_validated_on_what_that_holds_out(engine, num_folds):
    data = Data(num_folds)
    task = task_of(data)
    runs = vs.sweep(task, lrs=LRS, folds=num_folds, num_steps=NUM_STEPS, val_every=6, engine=engine)
    assert [(m.lr, m.seed) for m in runs.members] == [(lr, fold) for lr in LRS for fold in range(num_folds)]
    for i, member in enumerate(runs.members):
        losses, measured = train_plainly(task, data, member.seed, member.lr)
        np.testing.assert_allclose(runs.train_loss[:, i], losses, rtol=1e-9)
        np.testing.assert_allclose(runs.metrics["val_loss"][:, i], measured[:, 0], rtol=1e-9)
        np.testing.assert_allclose(runs.metrics["val_accuracy"][:, i], measured[:, 1], rtol=1e-9)


def test_ranking_is_of_means_over_folds():
    data = Data(3)
    task = task_of(data)
    runs = vs.sweep(task, lrs=LRS, folds=3, num_steps=NUM_STEPS)
    means = {lr: np.mean([train_plainly(task, data, k, lr)[1][-1, 0] for k in range(3)]) for lr in LRS}
    ranked = {row.setting.lr: row.mean for row in runs.ranking("val_loss").standings}
    assert ranked == pytest.approx(means)


def test_seeds_repeat_the_folds():
    read = []

    def train(fold):
        read.append(fold)
        return Data(2).train(fold)

    task = task_of(Data(2))
    task = vs.Task(task.model, train, F.cross_entropy, optimizer=task.optimizer, val_batches=Data(2).val)
    runs = vs.sweep(task, lrs=[0.1], folds=2, seeds=[3, 5], num_steps=2)
    assert [m.seed for m in runs.members] == [6, 7, 10, 11]
    assert set(read) == {0, 1}


def test_folds_go_on_and_are_pruned_by_their_means():
    data = Data(3)
    task = task_of(data)
    runs = vs.sweep(task, lrs=LRS, folds=3, num_steps=6, val_every=6).extend(num_steps=6)
    np.testing.assert_allclose(runs.train_loss[:, 2], train_plainly(task, data, 2, LRS[0])[0], rtol=1e-9)
    runs = vs.sweep(task, lrs=[0.001, *LRS, 0.002], folds=3, num_steps=16, prune="halving")
    stopped = [m.stopped_at for m in runs.members]
    assert {tuple(stopped[k : k + 3]) for k in range(0, 12, 3)} == {(2,) * 3, (4,) * 3, (None,) * 3}


def test_validation_batches_may_be_a_function_of_the_seed():
    data = Data(3)
    task = task_of(data)
    folds = vs.sweep(task, lrs=LRS, folds=3, num_steps=NUM_STEPS)
    seeds = vs.sweep(task, lrs=LRS, seeds=3, num_steps=NUM_STEPS)
    np.testing.assert_array_equal(folds.metrics["val_loss"], seeds.metrics["val_loss"])


def test_results_speak_of_folds(tmp_path):
    runs = vs.sweep(task_of(Data(3)), lrs=LRS, folds=3, num_steps=2)
    loaded = vs.load(runs.save(tmp_path / "runs.npz"))
    for own in (runs, loaded, runs.extend(num_steps=2), runs.select(lr=LRS)):
        ranking = own.ranking("val_loss")
        assert own.folds == 3
        assert "2 lrs, 1 schedule, 3 folds;" in repr(own)
        assert "what 3 folds cannot tell from it" in str(ranking)
        assert "what 3 folds cannot tell from it" in ranking._repr_html_()
        for kind in ("curves", "final"):
            axes = own.plot(kind=kind, metric="val_loss")
            assert axes.get_title().endswith("3 folds") or kind == "curves"
            assert any(label.get_text() == "lowest to highest\nof 3 folds" for label in axes.get_legend().get_texts())
    assert "With one fold nothing tells a difference from chance; compare all of them." in str(
        runs.select(seed=1).ranking("val_loss")
    )
    data = Data(3)
    alike = task_of(data, val_batches=lambda fold: data.val(0))
    alike = vs.sweep(dataclasses.replace(alike, batches=lambda fold: data.train(0)), lrs=LRS, folds=3, num_steps=2)
    assert "All folds gave the same numbers: see that `batches`" in str(alike.ranking("val_loss"))
    assert "3 seeds" in str(vs.sweep(task_of(data), lrs=LRS, seeds=3, num_steps=2).ranking("val_loss"))


def test_report_speaks_of_folds(tmp_path):
    pytest.importorskip("plotly")
    runs = vs.sweep(task_of(Data(3)), lrs=LRS, folds=3, seeds=[0, 2], num_steps=2)
    page = runs.to_html(tmp_path / "runs.html").read_text()
    for words in (
        "Settings are compared fold by fold",
        "mean over folds",
        "over the folds of a setting",
        "By 6 folds, ",
    ):
        assert words in page
    assert '"fold 1 of seed 2"' in page
    table = table_members([("", runs)])
    assert table.columns[:5] == ("member", "lr", "schedule", "seed", "fold")
    assert [row[3:5] for row in table.rows[:6]] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)]


def test_folds_of_several_seeds_go_on_from_a_folder(tmp_path):
    task = task_of(Data(3))
    runs = vs.sweep(task, lrs=LRS[:1], folds=3, seeds=2, num_steps=6, val_every=6)
    runs.save(tmp_path / "runs")
    longer = vs.load(tmp_path / "runs", task).extend(num_steps=6)
    for i in range(6):
        np.testing.assert_allclose(longer.train_loss[:, i], train_plainly(task, Data(3), i % 3, LRS[0])[0], rtol=1e-9)


def test_batch_sizes_are_compared_over_folds():
    data = Data(3)
    task = task_of(data)
    runs = vs.sweep(task, lrs=LRS, folds=3, vary={"batch_size": [11, 22]}, num_steps=NUM_STEPS // 2)
    assert "3 folds" in repr(runs)
    losses = train_plainly(task, data, 2, LRS[0])[1]
    np.testing.assert_allclose(runs.select(batch_size=11, lr=LRS[0], seed=2).metrics["val_loss"][-1], losses[-1, 0])
    assert runs.extend(num_steps=1).folds == 3
    folds = vs.sweep(task, lrs=LRS, folds=3, num_steps=1)
    seeds = vs.sweep(task, lrs=LRS, seeds=3, num_steps=1)
    with pytest.raises(ValueError, match=r"`sweeps` must have the same folds; part 1 has 3, 2 has None"):
        vs.join({1: folds, 2: seeds}, "part")
    listed = dataclasses.replace(task, batches=data.train(0))
    with pytest.raises(TypeError, match=r"whose `batches` is a function of the fold, 0 to 2; got list"):
        vs.sweep(listed, lrs=LRS, folds=3, vary={"batch_size": [11, 22]}, num_steps=1)


def test_folds_are_in_the_call_that_a_result_comes_from():
    assert "folds=3" in vs.sweep(task_of(Data(3)), lrs=LRS, folds=3, num_steps=1).about["call"]


def test_mistakes_are_told_at_the_call():
    data = Data(3)
    with pytest.raises(TypeError, match=r"whose `val_batches` is a function of the fold, 0 to 2; got list"):
        vs.sweep(task_of(data, val_batches=data.val(0)), lrs=LRS, folds=3, num_steps=1)
    with pytest.raises(TypeError, match=r"whose `val_batches` is a function of the fold, 0 to 2; got NoneType"):
        vs.sweep(task_of(data, val_batches=None, metrics={}), lrs=LRS, folds=3, num_steps=1)
    with pytest.raises(ValueError, match=r"`folds` must be a whole number of at least 2; got 1"):
        vs.sweep(task_of(data), lrs=LRS, folds=1, num_steps=1)
    with pytest.raises(ValueError, match=r"at least one batch to evaluate on; got none for seed 1"):
        vs.sweep(task_of(data, val_batches=lambda fold: data.val(0)[fold:1]), lrs=LRS, folds=3, num_steps=1)
