"""Batch sizes side by side, against an ordinary loop at each; batches cut anew, against a stock DataLoader's."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep.tasks.recut import Recut

LRS = [0.05, 0.2]
SIZES = [4, 12]

pytestmark = pytest.mark.usefixtures("float64")

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(40, 5, generator=GENERATOR, dtype=torch.float64)
TARGETS = INPUTS[:, :3].argmax(1)


def cut(size, num=40):
    return list(zip(INPUTS[:num].split(size), TARGETS[:num].split(size), strict=True))


def task_of(batches=None, **fields):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    batches = cut(7) if batches is None else batches
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return vs.Task(model, batches, F.cross_entropy, optimizer=optimizer, val_batches=cut(10), **fields)


def train_plainly(task, size, lr, num_epochs, scale=lambda progress: 1.0):
    """The losses of each update, the validation loss after each epoch, and the weights."""
    model = copy.deepcopy(task.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    batches, losses, validated = cut(size, num=36), [], []  # whole batches of the largest size
    num_updates = num_epochs * len(batches)
    for update in range(num_updates):
        inputs, targets = batches[update % len(batches)]
        optimizer.param_groups[0]["lr"] = lr * scale(update / (num_updates - 1))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if (update + 1) % len(batches) == 0:
            validated.append(F.cross_entropy(model(INPUTS), TARGETS).item())
    return np.array(losses), validated, model.state_dict()


def assert_as_in_plain_loops(runs, task, num_epochs, **how):
    for i, member in enumerate(runs.members):
        size = int(member.hyper["batch_size"])
        losses, validated, state = train_plainly(task, size, member.lr, num_epochs, **how)
        of_steps = losses.reshape(-1, 12 // size).mean(axis=1)
        np.testing.assert_allclose(runs.train_loss[:, i], of_steps, rtol=1e-9)
        np.testing.assert_allclose(runs.metrics["val_loss"][:, i], validated, rtol=1e-9)
        torch.testing.assert_close(runs.model(i).state_dict(), state, rtol=1e-9, atol=1e-12)


def test_each_size_trains_as_a_plain_loop_on_the_same_samples():
    task = task_of()
    runs = vs.sweep(task, lrs=LRS, vary={"batch_size": SIZES}, epochs=2)
    assert [(m.hyper["batch_size"], m.lr) for m in runs.members] == [(4, 0.05), (4, 0.2), (12, 0.05), (12, 0.2)]
    assert runs.evaluated_at.tolist() == [3, 6]
    assert runs.steps_per_epoch == 3
    assert_as_in_plain_loops(runs, task, 2)


def test_schedules_cover_the_same_samples():
    task = task_of()
    runs = vs.sweep(task, lrs=LRS, schedules=["linear"], vary={"batch_size": SIZES}, num_steps=6, val_every=3)
    assert_as_in_plain_loops(runs, task, 2, scale=lambda progress: 1 - progress)


def test_sweep_goes_on_at_each_size():
    task = task_of()
    runs = vs.sweep(task, lrs=LRS, vary={"batch_size": SIZES}, epochs=1)
    assert_as_in_plain_loops(runs.extend(epochs=1), task, 2)
    assert_as_in_plain_loops(runs.extend(num_steps=3), task, 2)
    assert_as_in_plain_loops(runs.branch(0, num_steps=3), task, 2)
    assert_as_in_plain_loops(runs.select(batch_size=4).extend(epochs=1), task, 2)


def test_until_stops_part_way_through_the_schedules_of_all_sizes():
    task = task_of()
    runs = vs.sweep(task, lrs=LRS, schedules=["linear"], vary={"batch_size": SIZES}, num_steps=6, val_every=3, until=3)
    assert len(runs.train_loss) == 3
    assert_as_in_plain_loops(runs.extend(), task, 2, scale=lambda progress: 1 - progress)


def test_other_hyperparameters_vary_besides_and_results_tell_sizes_apart(tmp_path):
    runs = vs.sweep(
        task_of(),
        lrs=[0.1],
        vary={"batch_size": [2, 4], "weight_decay": [0, 0.1]},
        seeds=2,
        epochs=1,
        record=["grad_norm"],
    )
    assert len(runs.members) == 8
    assert runs.norms["grad_norm"].shape == runs.lr.shape
    assert "batch_size 2" in str(runs.ranking())
    assert "vary={'batch_size': [2, 4]" in runs.about["call"]
    read = vs.load(runs.save(tmp_path / "runs.npz"))
    assert [m.setting for m in read.members] == [m.setting for m in runs.members]
    runs.plot(kind="final")
    with pytest.raises(ValueError, match=r"folder holds the sweep of one"):
        runs.save(tmp_path / "runs")


def test_divergence_is_counted_in_the_same_steps():
    runs = vs.sweep(task_of(), lrs=[1.7e308], vary={"batch_size": SIZES}, epochs=2)
    assert all(m.diverged_at is not None and m.diverged_at < 3 for m in runs.members)
    assert np.isnan(runs.train_loss[-1]).all()


class Log(vs.observers.Observer):
    def __init__(self, name, told):
        self.name, self.told = name, told

    def part(self, name):
        return Log(name, self.told)

    def start(self, run):
        self.told.append((self.name, run.num_steps))


def test_observers_are_told_of_each_size():
    told = []
    vs.sweep(task_of(), lrs=LRS, vary={"batch_size": SIZES}, epochs=1, callbacks=[Log("all", told)])
    assert told == [("batch_size 4", 9), ("batch_size 12", 3)]


def loader(size, **options):
    return DataLoader(TensorDataset(INPUTS, TARGETS), size, generator=torch.Generator(), **options)


def seen(batches, generator):
    generator.manual_seed(3)
    return [tuple(part.tolist() for part in batch) for batch in batches]


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("options", [{"shuffle": True}, {"shuffle": True, "drop_last": True}, {}], ids=str)
def test_cut_batches_are_those_of_a_stock_loader_of_that_size(size, options):
    stock, source = loader(size, **options), loader(16, **options)
    batches = Recut(source, size, 8)
    num = (32 if options.get("drop_last") else 40) // size
    assert seen(batches, source.generator) == seen(stock, stock.generator)[:num]
    assert len(batches) == num


@pytest.mark.parametrize("num_workers", [0, 2])
def test_sizes_see_the_same_samples_of_a_loader_that_shuffles(num_workers):
    persistent = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    task = task_of(loader(10, shuffle=True, **persistent))
    runs = vs.sweep(task, lrs=[1e-30], vary={"batch_size": [4, 8]}, seeds=2, epochs=2)
    small, large = runs.select(batch_size=4), runs.select(batch_size=8)
    np.testing.assert_allclose(small.train_loss, large.train_loss, rtol=1e-9)  # the mean over the same samples
    assert not np.allclose(small.train_loss[:, 0], small.train_loss[:, 1])


def test_batches_may_be_dicts_and_functions_of_the_seed():
    def batches(seed):
        return [{"x": x, "y": y.numpy()} for x, y in cut(7 + seed)]

    def step(model, batch):
        return F.cross_entropy(model(batch["x"]), torch.as_tensor(batch["y"]))

    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = vs.Task(model, batches, training_step=step, optimizer=optimizer)
    runs = vs.sweep(task, lrs=[1e-30], vary={"batch_size": [4, 8]}, seeds=2, epochs=1)
    assert runs.train_loss.shape == (5, 4)
    np.testing.assert_allclose(runs.train_loss, runs.train_loss[:, [0, 0, 0, 0]], rtol=1e-9)  # the same samples


@pytest.mark.parametrize("sizes", [[4.0, 12.0], np.array([4, 12]), (4, 12)], ids=["floats", "array", "tuple"])
def test_sizes_are_whole_numbers_however_they_are_written(sizes):
    runs = vs.sweep(task_of(), lrs=[0.1], vary={"batch_size": sizes}, epochs=1)
    assert [m.hyper["batch_size"] for m in runs.members] == [4, 12]


MISTAKES = {
    "not a list": ({"batch_size": 8}, {}, TypeError, r"must be a list of whole numbers; got 8. Pass \[8\]"),
    "none": ({"batch_size": []}, {}, ValueError, r"at least one size; got none"),
    "not whole": ({"batch_size": [2.5]}, {}, ValueError, r"whole number of at least 1; got 2.5"),
    "repeated": ({"batch_size": [4, 4]}, {}, ValueError, r"different sizes; got 4 again"),
    "does not divide": ({"batch_size": [3, 4]}, {}, ValueError, r"divide the largest.*got 3 and 4. Take powers"),
    "prune": ({"batch_size": SIZES}, {"prune": "halving"}, ValueError, r"`prune` goes with one batch size; got 2"),
    "checkpoint": ({"batch_size": SIZES}, {"checkpoint": "x"}, ValueError, r"`checkpoint` goes with one batch size"),
    "callbacks": ({"batch_size": SIZES}, {"callbacks": [print]}, TypeError, r"`callbacks` must hold observers"),
    "no such hyperparameter": ({"batch_size": SIZES, "x": [1]}, {}, ValueError, r"hyperparameters of SGD.*got 'x'"),
}


@pytest.mark.parametrize(("vary", "others", "error", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_told_at_the_call(vary, others, error, message):
    with pytest.raises(error, match=message):
        vs.sweep(task_of(), lrs=LRS, vary=vary, epochs=1, **others)


def test_batches_that_cannot_be_cut_are_told():
    with pytest.raises(ValueError, match=r"Each batch size reads the batches again; got an iterator"):
        vs.sweep(task_of(iter(cut(4))), lrs=LRS, vary={"batch_size": SIZES}, num_steps=1)
    with pytest.raises(TypeError, match=r"nothing but tensors, or arrays.*got shape \(40, 5\), int"):
        vs.sweep(task_of([(INPUTS, 1)]), lrs=LRS, vary={"batch_size": SIZES}, num_steps=1)
    unlike = [(torch.zeros(4, 3), TARGETS[:4]), (torch.zeros(4, 5), TARGETS[:4])]
    with pytest.raises(ValueError, match=r"samples are of one shape; got some of shape \(4, 3\) and shape \(4, 5\)"):
        vs.sweep(task_of(unlike), lrs=LRS, vary={"batch_size": [8]}, num_steps=1)
