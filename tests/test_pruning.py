"""Members that are compared part-way: who goes on, and that it changes nothing for those who do."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep.pruning import halve

pytestmark = pytest.mark.usefixtures("float64")

ENGINES = [
    "vectorized",
    "sequential",
    pytest.param("parallel", marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="needs no GPU")),
]
LRS = [0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 1e3]
EPOCHS, STEPS_PER_EPOCH = 8, 4


@pytest.fixture(autouse=True)
def two_threads():
    """Two processes whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def data(num_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 6, generator=generator)
    return inputs, (inputs @ torch.arange(18.0).reshape(6, 3).sin()).argmax(dim=1)


def make_task(model=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))
    inputs, targets = data(8 * STEPS_PER_EPOCH, 1)
    how = {
        "loss_fn": F.cross_entropy,
        "optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
        "val_batches": [data(21, 2)],
    }
    batches = options.pop("batches", list(zip(inputs.split(8), targets.split(8), strict=True)))
    return vs.Task(model, batches, **(how | options))


def sweep(task=None, **options):
    how = {"lrs": LRS, "schedules": ["cosine"], "epochs": EPOCHS, "progress": False} | options
    return vs.sweep(task or make_task(), **how)


def halved_by_hand(values, num_groups=1):
    """Successive halving of whole curves `[rung, setting]`: after which rung each setting ends, -1 for never."""
    left, ends = list(range(values.shape[1])), np.full(values.shape[1], -1)
    for rung, row in enumerate(np.where(np.isfinite(values), values, np.inf)):
        left.sort(key=row.__getitem__)
        kept = left[: (len(left) + 1) // 2]
        for setting in left[len(kept) :]:
            ends[setting] = rung
        left = kept
    return ends


@pytest.mark.parametrize("engine", ENGINES)
def test_halving_stops_the_worse_half_and_changes_nothing_for_the_others(engine):
    whole, pruned = sweep(engine=engine), sweep(engine=engine, prune="halving")
    rungs = [EPOCHS * STEPS_PER_EPOCH // 8, EPOCHS * STEPS_PER_EPOCH // 4, EPOCHS * STEPS_PER_EPOCH // 2]
    at_rungs = whole.metrics["val_loss"][[list(whole.evaluated_at).index(step) for step in rungs]]
    ends = halved_by_hand(at_rungs)
    for i, end in enumerate(ends):
        if whole.members[i].diverged_at is None:
            assert pruned.members[i].stopped_at == (None if end < 0 else rungs[end])
        trained = ~np.isnan(pruned.train_loss[:, i])
        np.testing.assert_allclose(pruned.train_loss[trained, i], whole.train_loss[trained, i], rtol=1e-9)
    (winner,) = [i for i, end in enumerate(ends) if end < 0]
    for own, expected in zip(pruned.model(winner).parameters(), whole.model(winner).parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)


def test_halving_keeps_or_stops_all_seeds_of_a_setting():
    runs = sweep(prune="halving", seeds=3)
    ends = {}
    for member in runs.members:
        if member.diverged_at is None:
            ends.setdefault(member.setting, set()).add(member.stopped_at)
    assert all(len(own) == 1 for own in ends.values())
    assert sum(own == {None} for own in ends.values()) == 1


def test_setting_of_which_a_seed_diverged_comes_last():
    runs = sweep(lrs=[0.01, 0.1, 0.2, 0.3], seeds=2, epochs=1)
    values = np.array([[0.5, 0.5, 0.1, np.nan, 0.4, 0.4, 0.3, 0.9]])
    members = tuple(m._replace(diverged_at=2 if i == 3 else None) for i, m in enumerate(runs.members))
    so_far = dataclasses.replace(runs, members=members, metrics={"val_loss": values})
    assert sorted(halve(so_far, "val_loss", "min")) == [0, 1, 4, 5]
    assert sorted(halve(so_far, "val_loss", "max")) == [0, 1, 6, 7]


@pytest.mark.parametrize("engine", ENGINES)
def test_function_says_who_goes_on_at_each_evaluation_but_the_last(engine):
    seen = []

    def best_three(runs):
        seen.append((len(runs.train_loss), runs.evaluated_at[-1], len(runs.metrics["val_loss"])))
        assert not runs.is_complete
        values = np.nan_to_num(runs.metrics["val_loss"][-1], nan=np.inf)
        return np.argsort(values)[:3]

    runs = sweep(engine=engine, prune=best_three)
    assert seen == [(4 * k, 4 * k, k) for k in range(1, EPOCHS)]
    assert sum(m.stopped_at is None and m.diverged_at is None for m in runs.members) == 3
    assert {m.stopped_at for m in runs.members if m.stopped_at is not None} == {4}


def test_function_that_keeps_nobody_ends_the_run():
    runs = sweep(prune=lambda runs: [])
    assert np.isnan(runs.train_loss[4:]).all()
    assert all(member.stopped_at == 4 or member.diverged_at is not None for member in runs.members)


def test_halving_goes_by_the_training_loss_without_validation():
    task = make_task(val_batches=None)
    whole, pruned = sweep(task), sweep(task, prune="halving")
    means = np.stack([whole.train_loss[:4].mean(0), whole.train_loss[4:8].mean(0), whole.train_loss[8:16].mean(0)])
    ends = halved_by_hand(means)
    for i, member in enumerate(pruned.members):
        if member.diverged_at is None:
            assert member.stopped_at == (None if ends[i] < 0 else (4, 8, 16)[ends[i]])


def test_chunks_that_are_left_are_put_together():
    runs = sweep(engine="vectorized", chunk_size=2, prune="halving")
    whole = sweep(engine="vectorized", prune="halving")
    np.testing.assert_allclose(runs.train_loss, whole.train_loss, rtol=1e-9)
    assert [m.stopped_at for m in runs.members] == [m.stopped_at for m in whole.members]


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("schedule", ["cosine", vs.schedules.from_torch(lambda o: ExponentialLR(o, gamma=0.8))])
def test_sweep_that_stops_part_way_goes_on_in_its_schedules(engine, schedule):
    options = {"lrs": LRS[1:5], "schedules": {"own": schedule}, "engine": engine}
    whole, part = sweep(**options), sweep(**options, until=3)
    assert len(part.train_loss) == 3 * STEPS_PER_EPOCH
    for gone_on in (part.extend(), part.extend(epochs=1).extend(), part.extend(num_steps=2).extend()):
        np.testing.assert_array_equal(gone_on.lr, whole.lr)
        np.testing.assert_allclose(gone_on.train_loss, whole.train_loss, rtol=1e-9)
    chosen = part.select(member=[1, 2]).extend()
    np.testing.assert_allclose(chosen.train_loss, whole.train_loss[:, 1:3], rtol=1e-9)


@pytest.mark.parametrize("until", [1, 2, 3, 4])  # of 8 epochs: an eighth, a quarter, between two rungs, a half
def test_halving_goes_on_where_a_sweep_stopped_part_way(until):
    whole, part = sweep(prune="halving"), sweep(prune="halving", until=until)
    gone_on = part.extend()
    assert [m.stopped_at for m in gone_on.members] == [m.stopped_at for m in whole.members]
    np.testing.assert_allclose(gone_on.train_loss, whole.train_loss, rtol=1e-9)


def test_function_sees_the_whole_history_after_an_extension():
    lengths = []

    def everybody(runs):
        lengths.append((len(runs.members), len(runs.train_loss)))
        return range(len(runs.members))

    sweep(prune=everybody, until=2).extend()
    assert lengths == [(8, 4 * k) for k in range(1, EPOCHS)]


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"prune": "half"}, ValueError, "`prune` must be"),
        ({"prune": lambda runs: 3}, TypeError, "must return the members"),
        ({"prune": lambda runs: [8]}, ValueError, "indices of the 8 members"),
        ({"prune": "halving", "monitor": "val_acuracy", "mode": "max"}, ValueError, "not measured"),
        ({"until": 0}, ValueError, "`until`"),
        ({"until": 9}, ValueError, "within `epochs`"),
        ({"until": 2.5}, ValueError, "`until`"),
    ],
)
def test_wrong_argument_is_told(options, error, what):
    with pytest.raises(error, match=what):
        sweep(**options)


def test_schedules_that_have_ended_need_a_length_to_go_on():
    with pytest.raises(ValueError, match="come to their end"):
        sweep(lrs=[0.1]).extend()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_seeds_that_cannot_train_at_the_same_time_cannot_be_compared():
    loader = DataLoader(TensorDataset(*data(32, 1)), batch_size=8, num_workers=9)
    with pytest.raises(ValueError, match="too many workers"):
        sweep(make_task(batches=loader), lrs=[0.1, 0.2], seeds=2, epochs=2, prune="halving")


def test_step_at_which_an_extension_meets_bad_data_is_that_of_the_whole_run():
    inputs = torch.randn(8, 4, 3)
    inputs[6] = torch.nan
    batches = [(own, own[:, :1]) for own in inputs]
    task = vs.Task(nn.Linear(3, 1), batches, F.mse_loss, optimizer=lambda params: torch.optim.SGD(params, lr=0.1))
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=8, until=5, progress=False)
    with pytest.warns(RuntimeWarning, match="All 2 members of seed 0 diverged at step 6, whose batch holds NaN"):
        gone_on = runs.extend()
    assert [member.diverged_at for member in gone_on.members] == [6, 6]


def test_halving_by_the_training_loss_leaves_patience_and_plateaus_their_evaluations():
    task, watched = make_task(val_batches=None), "mean_train_loss"
    how = {"prune": "halving", "monitor": watched}
    stopped = sweep(task, **how, mode="max", patience=1)
    means = stopped.metrics[watched]
    at = {step: row for row, step in enumerate(stopped.evaluated_at.tolist())}
    for i, member in enumerate(stopped.members):
        own = [means[at[step], i] for step in range(STEPS_PER_EPOCH, 1 + EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH)]
        falls = next((k for k in range(1, EPOCHS) if own[k] <= max(own[:k])), None)
        if member.diverged_at is None and falls is not None:
            assert member.stopped_at <= (falls + 1) * STEPS_PER_EPOCH

    options = {"mode": "max", "patience": 0, "factor": 0.5}
    runs = sweep(task, **how, schedules=[vs.schedules.plateau(watched, **options)])
    alive = next(i for i, member in enumerate(runs.members) if member.stopped_at is member.diverged_at is None)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=LRS[alive])
    scheduler = ReduceLROnPlateau(optimizer, **options)
    at = {step: row for row, step in enumerate(runs.evaluated_at.tolist())}
    for step in range(STEPS_PER_EPOCH, EPOCHS * STEPS_PER_EPOCH, STEPS_PER_EPOCH):
        scheduler.step(runs.metrics[watched][at[step], alive])
        assert runs.lr[step, alive] == optimizer.param_groups[0]["lr"]
    assert runs.lr[-1, alive] < runs.lr[0, alive]
