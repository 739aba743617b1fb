"""Ordinary stumbles, and what is said about each: the remedy is in the message."""

import copy
import os
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep._engine.data import sources

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


def batches_of(targets=Y, inputs=X):
    return [(inputs[start : start + 8], targets[start : start + 8]) for start in range(0, 64, 8)]


def task_of(batches=None, model=None, **options):
    torch.manual_seed(0)
    how = {"loss_fn": F.cross_entropy, "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)} | options
    return vs.Task(model or nn.Linear(6, 3), batches_of() if batches is None else batches, **how)


def notes(error):
    return " ".join(error.value.__notes__)


class CorrectedSGD(torch.optim.SGD):
    """With a weight decay like that of timm's SGDW, which goes by the largest lr."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            group.update(corrected_weight_decay=True, max_lr_snapshot=lr)


@pytest.mark.parametrize("is_template", [True, False])
def test_weight_decay_by_the_lr_that_an_optimizer_was_made_with_is_told_of(is_template):
    model = nn.Linear(6, 3)
    optimizer = CorrectedSGD(model.parameters(), 0.1) if is_template else lambda params: CorrectedSGD(params, 0.1)
    with pytest.warns(UserWarning, match=r"CorrectedSGD .* was made with, 0\.1: .* Leave the correction off"):
        vs.sweep(task_of(model=model, optimizer=optimizer), lrs=[0.01], num_steps=1)


def test_model_that_is_trained_already_is_a_doubt():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    fresh = vs.range_test(task_of(model=model), num_lrs=12, num_steps=40).suggest()
    assert not any("trained already" in doubt for doubt in fresh.doubts)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    found = vs.range_test(task_of(model=model), start_lr=1e-5, end_lr=10, num_lrs=12, num_steps=40)
    assert any("The model may be trained already" in doubt for doubt in found.suggest().doubts)


def test_data_that_are_sorted_and_not_shuffled_are_told_of():
    data = TensorDataset(X, Y.sort()[0])
    with pytest.warns(
        UserWarning, match=r"All 8 targets of the first batch are 0, as in data that are sorted.*shuffle="
    ):
        vs.sweep(task_of(DataLoader(data, 8)), lrs=[0.1], epochs=1)
    vs.sweep(task_of(DataLoader(data, 8, shuffle=True)), lrs=[0.1], epochs=1)


def test_validation_in_training_mode_is_told_of():
    def step(model, batch):
        model.train()
        return F.cross_entropy(model(batch[0]), batch[1])

    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
    task = task_of(model=model, loss_fn=None, training_step=step, val_batches=batches_of())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vs.sweep(task, lrs=[0.1], epochs=3)
    told = [str(warning.message) for warning in caught if "into training mode, also while" in str(warning.message)]
    assert told
    assert "Leave `model.train()` out" in told[0]


def test_scheduler_of_the_template_is_told_of():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    with pytest.warns(UserWarning, match=r"A scheduler is attached to `optimizer`; no member follows it.*from_torch"):
        vs.sweep(task_of(model=model, optimizer=optimizer), lrs=[0.1], num_steps=2)


def test_loss_that_is_a_sum_is_told_of():
    for verb, how in ((vs.sweep, {"lrs": [0.1], "num_steps": 2}), (vs.range_test, {"num_lrs": 4, "num_steps": 2})):
        with pytest.warns(UserWarning, match='`loss_fn` sums over the batch.*`reduction="mean"`'):
            verb(task_of(loss_fn=nn.CrossEntropyLoss(reduction="sum")), **how)


def test_model_of_which_everything_is_frozen_is_refused():
    with pytest.raises(ValueError, match=r"`model` must have parameters to train.*Unfreeze some"):
        vs.sweep(task_of(model=nn.Linear(6, 3).requires_grad_(False)), lrs=[0.1], num_steps=2)


def test_range_of_learning_rates_that_is_too_low_is_a_doubt():
    doubts = vs.range_test(task_of(), start_lr=1e-9, end_lr=1e-6, num_lrs=12, num_steps=20).suggest().doubts
    assert any(
        "No learning rate does better than the smallest" in doubt and "test larger learning rates" in doubt
        for doubt in doubts
    )


@pytest.mark.parametrize("engine", ["auto", "vectorized", "sequential"])
def test_labels_that_are_floats_are_named(engine):
    with pytest.raises(RuntimeError, match=r"dtype|scalar type") as error:
        vs.sweep(task_of(batches_of(Y.float())), lrs=[0.1], num_steps=2, engine=engine)
    assert "The targets of the batch are torch.float32; classes are whole numbers. Pass `targets.long()`." in notes(
        error
    )


def test_labels_with_an_axis_too_many_are_named():
    with pytest.raises(RuntimeError, match="target") as error:
        vs.sweep(task_of(batches_of(Y[:, None])), lrs=[0.1], num_steps=2)
    assert "have shape (8, 1); classes are one number for each sample" in notes(error)


def test_labels_that_are_too_large_are_named():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds") as error:
        vs.sweep(task_of(batches_of(Y + 5)), lrs=[0.1], num_steps=2)
    assert "targets of the batch are from 5 to 7; with k outputs, classes are 0 to k - 1" in notes(error)


def test_step_that_steps_itself_is_told_what_to_leave_out():
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(model, batch):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss

    with pytest.raises(RuntimeError, match=r"second time|does not require grad") as error:
        vs.sweep(task_of(model=model, loss_fn=None, training_step=step, optimizer=optimizer), lrs=[0.1], num_steps=2)
    assert "leave `loss.backward()`, `optimizer.step()` and `optimizer.zero_grad()` out" in notes(error)


def test_loader_that_does_not_end_is_told_of_while_it_is_counted(monkeypatch):
    monkeypatch.setattr(sources, "_PATIENCE_S", 0.0)
    with pytest.warns(
        UserWarning, match=r"no length.*1 so far\. If they never end, stop this, and give `num_steps`"
    ) as told:
        vs.sweep(task_of(lambda: iter(batches_of() * 5)), lrs=[0.1], epochs=1)
    assert len(told) == 1


def test_loader_without_batches_is_refused_also_where_epochs_are_counted():
    with pytest.raises(ValueError, match=r"`batches` must yield at least one batch; got none.*`drop_last`"):
        vs.sweep(task_of(DataLoader(TensorDataset(X, Y), 65, drop_last=True)), lrs=[0.1], epochs=1)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("gpu", "must be one that PyTorch knows, such as 'cpu' or 'cuda'; got 'gpu'"),
        ("mps", "must have float64.*'mps' has not. Pass 'cpu'"),
    ],
)
def test_wrong_device_is_refused_at_the_call(place, message):
    with pytest.raises(ValueError, match=message):
        vs.sweep(task_of(), lrs=[0.1], num_steps=2, device=place)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there_is_refused_at_the_call():
    with pytest.raises(ValueError, match=r"got 'cuda', and PyTorch sees no GPU. Pass 'cpu'"):
        vs.find_lr(task_of(), num_steps=64, device="cuda")


class OnMPS(nn.Parameter):
    """What a parameter says of itself on Apple's GPUs, which none of the tests has."""

    device = property(lambda self: torch.device("mps"))


@pytest.mark.parametrize("is_built", [False, True])
def test_model_on_mps_is_refused_at_the_call(is_built):
    model = nn.Linear(4, 3)
    model.weight = OnMPS(model.weight.detach())
    task = task_of(
        model=(lambda: model) if is_built else model, optimizer=lambda params: torch.optim.SGD(params, lr=0.1)
    )
    with pytest.raises(ValueError, match=r"`model` must be where there is float64.*it is on 'mps'.*`device='cpu'`"):
        vs.sweep(task, lrs=[0.1], num_steps=2)


@pytest.mark.parametrize(
    ("load", "num_threads", "chosen", "is_told"),
    [(8.5, 2, {}, True), (7.5, 2, {}, False), (8.5, 1, {}, False), (8.5, 2, {"OMP_WAIT_POLICY": "PASSIVE"}, False)],
)
def test_threads_that_will_spin_on_busy_cores_are_told_of(monkeypatch, load, num_threads, chosen, is_told):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        vs.sweep(task_of(), lrs=[0.1], num_steps=2)
    messages = [str(own.message) for own in told if "cores are busy with other work" in str(own.message)]
    assert len(messages) == is_told
    assert all("OMP_WAIT_POLICY=PASSIVE before Python starts" in message for message in messages)


def test_batches_of_very_many_shapes_are_to_be_padded(recwarn):
    batches = [(torch.randn(2, length, 4), torch.randn(2, 1)) for length in range(1, 20)]
    model = nn.Linear(4, 1)
    task = vs.Task(
        model,
        batches,
        lambda outputs, targets: F.mse_loss(outputs.mean(1), targets),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )
    vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=32, engine="vectorized")
    assert not [w for w in recwarn if "shapes" in str(w.message)], "most came once, and were not traced"
    with pytest.warns(UserWarning, match="more than 16 shapes") as told:
        vs.sweep(task, lrs=[1e-3, 1e-2], num_steps=80, engine="vectorized")
    assert len([w for w in told if "shapes" in str(w.message)]) == 1


def binary(**options):
    return task_of(model=nn.Linear(6, 1), loss_fn=nn.BCEWithLogitsLoss(), **options)


@pytest.mark.parametrize("engine", ["auto", "sequential"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: task_of(batches_of(inputs=X.double())), "inputs of the batch are torch.float64.*`inputs.to"),
        (
            lambda: task_of(batches_of(torch.randn(64, 3).double(), X.double()), loss_fn=F.mse_loss),
            "inputs of the batch are torch.float64, the model's parameters torch.float32",
        ),
        (lambda: task_of([(X.numpy(), Y.numpy())]), "The batches hold NumPy arrays.*from_numpy"),
        (lambda: task_of(batches_of(F.one_hot(Y))), r"torch.int64 of shape \(8, 3\).*`targets.argmax\(1\)`"),
        (lambda: binary(batches=batches_of((Y > 0).float())), r"have shape \(8,\), and the model's outputs another"),
        (
            lambda: task_of([(X[:1], Y[:1])], model=nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))),
            "cannot train on one sample.*drop_last=True",
        ),
    ],
)
def test_data_that_do_not_fit_the_model_are_named(make, said, engine):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
        vs.sweep(make(), lrs=[0.1, 0.2], num_steps=2, engine=engine)
    assert re.search(said, notes(error))


def test_data_set_in_place_of_batches_is_told_of():
    with pytest.warns(UserWarning, match="first batch is a single sample.*DataLoader"):
        vs.sweep(task_of(TensorDataset(X, Y)), lrs=[0.1], num_steps=2)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (
            {"loss_fn": lambda outputs: outputs.mean()},
            r"`loss_fn` must take two.*\(outputs, targets\).*got one of \(outputs\)",
        ),
        (
            {"loss_fn": None, "training_step": lambda model, batch, index: None},
            r"`training_step` must take two.*partial",
        ),
    ],
)
def test_functions_of_other_arguments_are_refused(how, told):
    with pytest.raises(TypeError, match=told):
        task_of(**how)


@pytest.mark.parametrize("loss_fn", [nn.CrossEntropyLoss(), F.cross_entropy, torch.dist, lambda *both, scale=1: both])
def test_functions_of_two_arguments_are_taken_however_they_say_so(loss_fn):
    task_of(loss_fn=loss_fn)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_loss_that_looks_at_the_model_of_the_task_is_told_of(engine):
    model = nn.Linear(6, 3)

    def scaled(outputs, targets):
        with torch.no_grad():
            scale = model.weight.norm()
        return F.cross_entropy(outputs / scale, targets)

    with pytest.warns(UserWarning, match="reads 'weight' of the model that the task was given, which no member trains"):
        vs.sweep(task_of(model=model, loss_fn=scaled), lrs=[0.1], num_steps=2, engine=engine)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_metric_of_the_model_of_the_task_is_told_of(engine):
    model = nn.Linear(6, 3)
    accuracy = lambda outputs, targets: (model(X).argmax(1) == Y).float().mean()  # noqa: E731
    task = task_of(model=model, val_batches=batches_of(), metrics={"accuracy": accuracy})
    with pytest.warns(UserWarning, match="or a metric reads 'weight' of the model that the task was given"):
        vs.sweep(task, lrs=[0.1], epochs=1, engine=engine)


@pytest.mark.parametrize("engine", ["auto", "sequential"])
def test_loss_that_writes_into_the_batches_of_a_list_is_told_of(engine):
    def scaled(model, batch):
        inputs, targets = batch
        inputs *= 0.5
        return F.mse_loss(model(inputs), targets)

    batches = [(torch.randn(4, 2), torch.randn(4, 1)) for _ in range(2)]
    before = copy.deepcopy(batches)
    model = nn.Linear(2, 1)

    def task(source):
        return vs.Task(model, source, training_step=scaled, optimizer=torch.optim.SGD(model.parameters()))

    with pytest.warns(UserWarning, match=r"The loss writes into its batch.*inputs.clone"):
        runs = vs.sweep(task(batches), lrs=[0.1, 0.2], num_steps=4, engine=engine)
    torch.testing.assert_close(batches, before, rtol=0, atol=0)
    same = vs.sweep(task(lambda: copy.deepcopy(before)), lrs=[0.1, 0.2], num_steps=4, engine=engine)  # and no warning
    np.testing.assert_array_equal(runs.train_loss, same.train_loss)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_last_batch_of_one_sample_is_named_where_batch_norm_cannot_train_on_it(engine):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    batches = DataLoader(TensorDataset(X[:33], Y[:33]), batch_size=8)
    task = vs.Task(model, batches, F.cross_entropy, optimizer=torch.optim.SGD(model.parameters()))
    for divergence_factor in (None, 10):  # whether the first batches are looked at before the steps
        with pytest.raises(ValueError, match="more than 1 value per channel") as failed:
            vs.sweep(task, lrs=[0.1, 0.2], epochs=8, engine=engine, divergence_factor=divergence_factor)
        assert "drop_last=True" in notes(failed)


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
def test_loss_that_is_complex_is_refused_as_backward_would(engine):
    model = nn.Linear(6, 3)
    task = vs.Task(
        model, batches_of(), lambda o, y: F.cross_entropy(o, y) + 0j, optimizer=torch.optim.SGD(model.parameters())
    )
    with pytest.raises(TypeError, match=r"real number; got torch.complex64. Take its `.real`"):
        vs.sweep(task, lrs=[0.1], num_steps=2, engine=engine)


def test_loss_may_look_at_other_models_and_at_kept_weights():
    model, teacher = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
    before = model.weight.detach().clone()

    def step(own, batch):
        outputs = own(batch[0])
        return F.mse_loss(outputs, teacher(batch[0])) + (own.weight - before).square().sum()

    vs.sweep(task_of(model=model, loss_fn=None, training_step=step), lrs=[0.1], num_steps=2)
