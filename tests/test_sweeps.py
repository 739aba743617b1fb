"""The verbs: what people pass in, what they get, and what they are told when it is wrong."""

import queue

import numpy as np
import pytest
import stock
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import vecsweep as vs

X, Y = torch.randn(44, 6, generator=torch.Generator().manual_seed(0)), torch.arange(44) % 3


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def taken_from(notes):
    """What was put into a queue."""
    return [notes.get() for _ in range(notes.qsize())]


def linear_task(batches=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    how = {"loss_fn": F.cross_entropy, "optimizer": sgd} | options
    if "training_step" in how:
        how.pop("loss_fn")
    return vs.Task(how.pop("model", model), [(X[:8], Y[:8])] if batches is None else batches, **how)


class Rows(IterableDataset):
    """A stream of rows, without a length."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class SlowRows(Dataset):
    """Rows that a worker loads."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(6), Y[i]


def generator_function():
    for start in range(0, 44, 8):
        yield X[start : start + 8], Y[start : start + 8]


def of_seed(seed):
    order = torch.randperm(44, generator=torch.Generator().manual_seed(seed))
    return [(X[part], Y[part]) for part in order.split(8)]


BATCHES = {
    "list": lambda: list(generator_function()),
    "list-of-lists": lambda: [list(batch) for batch in generator_function()],
    "loader": lambda: DataLoader(TensorDataset(X, Y), 8, shuffle=True),
    "loader-with-workers": lambda: DataLoader(SlowRows(), 8, shuffle=True, num_workers=2),
    "iterable-dataset": lambda: DataLoader(Rows(), 8),
    "generator-function": lambda: generator_function,
    "function-of-a-seed": lambda: of_seed,
    "lambda": lambda: lambda: iter([(X[:8], Y[:8])]),
}


@pytest.mark.parametrize("engine", ["vectorized", "sequential"])
@pytest.mark.parametrize("batches", BATCHES)
def test_batches_of_every_kind_train_and_start_over(batches, engine):
    task = linear_task(BATCHES[batches]())
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=13, seeds=2, engine=engine)
    assert runs.train_loss.shape == (13, 4)
    assert np.isfinite(runs.train_loss).all()
    assert runs.train_loss[-1, 3] < runs.train_loss[0, 3]


@pytest.mark.parametrize("batches", ["list", "loader", "iterable-dataset", "generator-function"])
def test_epoch_is_one_pass_over_the_batches(batches):
    runs = vs.sweep(linear_task(BATCHES[batches]()), lrs=[0.1], epochs=3)
    assert len(runs.train_loss) == 18  # six batches, the last with 4 rows
    assert [row["epoch"] for row in runs.records() if row["metric"] == "train_loss"] == [0] * 6 + [1] * 6 + [2] * 6


def test_loader_reshuffles_when_it_starts_over():
    loader = DataLoader(TensorDataset(X[:, :1], X), 44, shuffle=True)
    seen = queue.SimpleQueue()  # of which a sweep keeps what is put into it

    def step(model, batch):
        if not torch._C._functorch.is_batchedtensor(model.weight):
            seen.put(batch[0].detach().clone())
        return model(batch[1]).square().mean()

    vs.sweep(linear_task(loader, training_step=step), lrs=[0.1], num_steps=3, engine="sequential")
    *_, before, last = taken_from(seen)
    assert not torch.equal(last, before)


def test_function_of_a_seed_is_called_with_each_seed():
    asked = []

    def batches(seed):
        asked.append(seed)
        return of_seed(seed)

    vs.sweep(linear_task(batches), lrs=[0.1], num_steps=6, seeds=[5, 11])
    assert set(asked) == {5, 11}


def test_iterator_trains_until_it_runs_out():
    task = linear_task(generator_function())
    assert len(vs.sweep(task, lrs=[0.1], num_steps=6).train_loss) == 6
    with pytest.raises(ValueError, match="an iterator cannot start over"):
        vs.sweep(linear_task(generator_function()), lrs=[0.1], num_steps=7)


def test_iterator_serves_one_seed_once():
    with pytest.raises(ValueError, match="An iterator serves one seed"):
        vs.sweep(linear_task(generator_function()), lrs=[0.1], num_steps=2, seeds=2)
    with pytest.raises(ValueError, match="`check` trains several times"):
        vs.check(linear_task(generator_function()))
    with pytest.raises(ValueError, match="`epochs` needs batches that can be read again"):
        vs.sweep(linear_task(generator_function()), lrs=[0.1], epochs=1)


def test_loader_with_persistent_workers_serves_each_seed_and_the_caller():
    loader = DataLoader(SlowRows(), 8, shuffle=True, num_workers=1, persistent_workers=True)
    callers = iter(loader)
    next(callers)
    alone = vs.sweep(linear_task(loader), lrs=[0.1], num_steps=8).train_loss
    both = vs.sweep(linear_task(loader), lrs=[0.1], num_steps=8, seeds=2).train_loss
    np.testing.assert_allclose(both[:, 0], alone[:, 0], rtol=1e-6)
    assert len(list(callers)) == 5


def test_noise_in_the_batches_is_not_the_noise_in_the_model():
    def batches():
        while True:
            yield torch.randn(8, 6)

    def step(model, x):
        return (model(x).sum() * 0.0) + (x - torch.randn_like(x)).abs().mean()

    runs = vs.sweep(linear_task(batches, training_step=step), lrs=[0.1], num_steps=3)
    assert (runs.train_loss > 0.5).all()


def test_class_weights_of_a_loss_module_are_cast_and_left_alone():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    report = vs.check(linear_task(loss_fn=loss))
    assert report.is_equal
    assert {d.dtype for d in report.deviations} == {"float64", "float32"}
    assert loss.weight.dtype == torch.float32


def test_check_compares_a_model_in_bf16():
    batches = [(X[:8].bfloat16(), Y[:8])]
    report = vs.check(linear_task(batches, model=nn.Linear(6, 3).bfloat16()))
    assert report.is_equal
    assert {d.dtype for d in report.deviations} == {"float64", "bfloat16"}


def test_counts_come_from_numpy_too():
    assert len(vs.sweep(linear_task(), lrs=[0.1], num_steps=np.int64(2), seed=np.int64(1)).train_loss) == 2


def test_nested_batches_with_entries_that_are_no_tensors():
    batches = [
        {"rows": {"x": x, "names": ["a", "b"]}, "targets": [y, None], "scale": 0.5, "id": i}
        for i, (x, y) in enumerate(generator_function())
    ]

    def step(model, batch):
        return batch["scale"] * F.cross_entropy(model(batch["rows"]["x"]), batch["targets"][0])

    task = linear_task(batches, training_step=step)
    a = vs.sweep(task, lrs=[0.01, 0.1], num_steps=20)
    b = vs.sweep(task, lrs=[0.01, 0.1], num_steps=20, engine="sequential")
    assert a.engine.startswith("vectorized")
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-5)


class Opaque:
    """A batch that no pytree knows."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Opaque(self.x.to(device), self.y.to(device))


def test_batches_of_a_class_of_ones_own_are_taken_apart_and_never_frozen_into_a_trace():
    task = linear_task(
        [Opaque(x, y) for x, y in generator_function()],
        training_step=lambda model, batch: F.cross_entropy(model(batch.x), batch.y),
    )
    a = vs.sweep(task, lrs=[0.01, 0.1], num_steps=20, seeds=2)
    b = vs.sweep(task, lrs=[0.01, 0.1], num_steps=20, seeds=2, engine="sequential")
    assert a.engine.startswith("vectorized, traced")
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-5)


def test_seeds_whose_batches_differ_in_shape_train_all_the_same():
    def batches(seed):
        return [(x[: 8 - seed], y[: 8 - seed]) for x, y in of_seed(seed)[:5]]

    a = vs.sweep(linear_task(batches), lrs=[0.01, 0.1], num_steps=12, seeds=3)
    b = vs.sweep(linear_task(batches), lrs=[0.01, 0.1], num_steps=12, seeds=3, engine="sequential")
    assert a.engine.startswith("vectorized")
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-5)


def skipping_a_layer_at_random(model, batch):
    inputs, targets = batch
    if torch.rand(()) > 0.5:
        inputs = torch.tanh(model[0](inputs))
    return F.cross_entropy(model[1](inputs), targets)


def of_those_that_are_masked(model, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs)[targets > 0], targets[targets > 0])


def with_a_sample(model, batch):
    outputs = model(batch[0])
    sample = torch.distributions.Normal(outputs, 0.1, validate_args=False).rsample()
    return F.cross_entropy(sample, batch[1])


@pytest.mark.parametrize("step", [skipping_a_layer_at_random, of_those_that_are_masked, with_a_sample])
def test_what_differs_between_seeds_and_not_between_members_of_one_keeps_nobody_from_being_batched(step):
    def batches(seed):
        generator = torch.Generator().manual_seed(seed)
        shuffled = [torch.randperm(44, generator=generator)[:8] for _ in range(5)]
        return [(X[rows].double(), Y[rows]) for rows in shuffled]

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)).double()
    task = vs.Task(model, batches, training_step=step, optimizer=sgd)
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=12, seeds=2)
    assert runs.engine.startswith("vectorized")
    for i, member in enumerate(runs.members):
        expected = stock.train(task, member.lr, 12, seed=member.seed, batches=batches(member.seed))
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_class_of_an_optimizer_is_a_function_from_parameters_to_one(optimizer):
    task = linear_task([(X.double(), Y)], model=nn.Linear(6, 3).double(), optimizer=optimizer)
    runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=12)
    for i, member in enumerate(runs.members):
        np.testing.assert_allclose(runs.train_loss[:, i], stock.train(task, member.lr, 12).losses, rtol=1e-9)


def test_the_class_of_a_model_is_a_function_that_builds_one():
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(6, 3, dtype=torch.float64)

    runs = vs.sweep(linear_task([(X.double(), Y)], model=Net), lrs=[0.01, 0.1], num_steps=12, seeds=2)
    for i, member in enumerate(runs.members):
        torch.manual_seed(member.seed)
        expected = stock.train(linear_task([(X.double(), Y)], model=Net()), member.lr, 12)
        np.testing.assert_allclose(runs.train_loss[:, i], expected.losses, rtol=1e-9)


@pytest.mark.parametrize("lrs", [[0.01, 1], (0.01, 1.0), np.array([0.01, 1]), torch.tensor([0.01, 1.0])], ids=str)
def test_lrs_come_as_list_array_or_tensor(lrs):
    runs = vs.sweep(linear_task(), lrs=lrs, num_steps=2)
    np.testing.assert_allclose([m.lr for m in runs.members], [0.01, 1.0])


def test_lazily_initialised_model_trains_once_it_is_initialised():
    model = nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="Run one batch through the model first"):
        vs.sweep(linear_task(model=model), lrs=[0.1], num_steps=2)
    model(X[:8])
    assert np.isfinite(vs.sweep(linear_task(model=model), lrs=[0.1], num_steps=2).train_loss).all()


def test_model_in_eval_mode_is_trained_in_training_mode_and_frozen_parts_keep_theirs():
    modes = queue.SimpleQueue()

    class Watch(nn.Module):
        def forward(self, x):
            modes.put(self.training)
            return x

    model = nn.Sequential(Watch(), nn.Linear(6, 3)).eval()
    vs.sweep(linear_task(model=model), lrs=[0.1], num_steps=1)
    assert set(taken_from(modes)) == {True}
    model.train()
    model[0].eval()
    vs.sweep(linear_task(model=model), lrs=[0.1], num_steps=1)
    assert set(taken_from(modes)) == {False}


def test_frozen_and_tied_parameters_stay_so():
    class TwoViews(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.b.weight = self.a.weight
            self.c.bias.requires_grad_(False)

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))

    model = TwoViews()
    runs = vs.sweep(linear_task(model=model), lrs=[0.1, 0.2], num_steps=5)
    trained = runs.model(1)
    assert trained.a.weight is trained.b.weight
    assert torch.equal(trained.c.bias, model.c.bias)
    assert not torch.equal(trained.a.weight, model.a.weight)


@pytest.mark.parametrize("spacing", ["exponential", "linear"])
def test_grid_and_ramp_hit_both_ends_exactly(spacing):
    how = {"start_lr": 1.1e-3, "end_lr": 0.7, "num_steps": 17, "spacing": spacing}
    grid = vs.range_test(linear_task(), num_lrs=13, **how)
    ramp = vs.range_test(linear_task(), method="ramp", **how)
    between = np.geomspace if spacing == "exponential" else np.linspace
    for found, count in ((grid, 13), (ramp, 17)):
        assert found.lrs[0] == 1.1e-3
        assert found.lrs[-1] == 0.7
        np.testing.assert_allclose(found.lrs, between(1.1e-3, 0.7, count))
    assert grid.lr.shape == (17, 13)
    assert ramp.lr.shape == (17, 1)


def test_ramp_records_the_loss_before_the_update_and_the_lr_of_that_update():
    """Against an ordinary loop that sets the lr by hand."""
    task = linear_task(list(generator_function()))
    found = vs.range_test(task, method="ramp", start_lr=1e-3, end_lr=1.0, num_steps=12)
    model = nn.Linear(6, 3)
    model.load_state_dict(task.model.state_dict())
    losses = []
    for step, lr in enumerate(found.lrs):
        x, y = task.batches[step % 6]
        loss = F.cross_entropy(model(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= lr * g
        losses.append(loss.item())
    np.testing.assert_allclose(found.train_loss[:, 0], losses, rtol=1e-5)


def test_ramp_runs_several_seeds_at_once():
    task = linear_task(of_seed, model=lambda: nn.Linear(6, 3))
    found = vs.range_test(task, method="ramp", start_lr=1e-4, end_lr=1.0, num_steps=10, seeds=4)
    assert found.train_loss.shape == (10, 4)
    assert found.scores.shape == (10,)
    assert len(np.unique(found.train_loss[0])) == 4


def test_grid_trains_every_lr_on_the_same_batches_from_the_same_weights():
    found = vs.range_test(linear_task(list(generator_function())), num_lrs=9, num_steps=6, start_lr=1e-5)
    assert len(np.unique(found.train_loss[0])) == 1


def test_grid_with_seeds_averages_scores_over_them():
    found = vs.range_test(linear_task(of_seed), num_lrs=5, start_lr=1e-3, end_lr=1.0, num_steps=20, seeds=3)
    assert found.scores_by_seed.shape == (5, 3)
    expected = found.train_loss[-2:].mean(0).reshape(5, 3).mean(1)
    np.testing.assert_allclose(found.scores, expected)


def test_num_steps_counts_updates_when_accumulating():
    taken = []

    def batches():
        while True:
            taken.append(None)
            yield X[:8], Y[:8]

    runs = vs.sweep(linear_task(batches), lrs=[0.1], num_steps=5, accumulation_steps=3)
    assert len(runs.train_loss) == 5
    assert len(taken) == 15


def test_epochs_count_the_batches_of_accumulated_steps():
    runs = vs.sweep(linear_task(list(generator_function())), lrs=[0.1], epochs=2, accumulation_steps=4)
    assert len(runs.train_loss) == 3  # twelve batches, four a step


def test_best_is_the_member_with_the_lowest_last_losses():
    runs = vs.sweep(linear_task(), lrs=[1e-4, 0.5, 1e-3], num_steps=30)
    assert runs.best() == 1
    assert F.cross_entropy(runs.model(1)(X[:8]), Y[:8]).item() < runs.train_loss[-1, 1]


def never():
    raise AssertionError("the error must come before any work")
    yield


@pytest.mark.parametrize(
    ("lrs", "error", "message"),
    [
        ([], ValueError, "at least one learning rate; got none"),
        ([0.1, -0.01], ValueError, r"positive and finite; got -0.01 at index 1. Drop it, or pass 0.01"),
        ([0.0], ValueError, "positive and finite; got 0.0"),
        ([0.1, float("nan")], ValueError, "positive and finite; got nan at index 1"),
        ([float("inf")], ValueError, "positive and finite; got inf"),
        (["a"], TypeError, "must be numbers"),
        ([None], TypeError, "must be numbers"),
        (0.1, TypeError, r"flat list of learning rates; got shape \(\)"),
        ([[0.1]], TypeError, r"got shape \(1, 1\)"),
    ],
)
def test_bad_lrs_are_refused_before_any_work(lrs, error, message):
    with pytest.raises(error, match=message):
        vs.sweep(linear_task(never), lrs=lrs, num_steps=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "Exactly one of `num_steps` and `epochs` must be given; got neither"),
        ({"num_steps": 1, "epochs": 1}, ValueError, "got both"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be a whole number of at least 1; got 0"),
        ({"num_steps": 2.5}, ValueError, "`num_steps` must be a whole number"),
        ({"epochs": -1}, ValueError, "`epochs` must be a whole number of at least 1; got -1"),
        ({"num_steps": 1, "seeds": 0}, ValueError, "`seeds` must be a whole number of at least 1"),
        ({"num_steps": 1, "seeds": [1, 1]}, ValueError, "`seeds` must differ"),
        ({"num_steps": 1, "seeds": []}, TypeError, "`seeds` must be how many"),
        ({"num_steps": 1, "seeds": [-1]}, ValueError, "at least 0"),
        ({"num_steps": 1, "seed": -1}, ValueError, "`seed` must be a whole number"),
        ({"num_steps": 1, "engine": "vectorised"}, ValueError, "Did you mean 'vectorized'"),
        ({"num_steps": 1, "device": "abacus"}, ValueError, "`device` must be one that PyTorch knows"),
        ({"num_steps": 1, "device": "mps"}, ValueError, "`device` must have float64"),
        ({"num_steps": 1, "precision": "fp8"}, ValueError, "`precision` must be one of 'bf16', 'fp16', or None"),
        ({"num_steps": 1, "compile": "yes"}, TypeError, "`compile` must be True, False or"),
        ({"num_steps": 1, "chunk_size": 0}, ValueError, "`chunk_size` must be a whole number"),
        ({"num_steps": 1, "accumulation_steps": 0}, ValueError, "`accumulation_steps` must be"),
        ({"num_steps": 1, "max_grad_norm": 0}, ValueError, "`max_grad_norm` must be a positive number"),
        ({"num_steps": 1, "divergence_factor": 1}, ValueError, "`divergence_factor` must be a number above 1"),
        ({"num_steps": 1, "chunksize": 3}, TypeError, "'chunksize' is not an option. Did you mean 'chunk_size'"),
        ({"max_steps": 1}, TypeError, "'max_steps' is not an option. Did you mean 'num_steps'"),
        ({"num_steps": 1, "dampening": [0]}, TypeError, r"goes into `vary={'dampening': \[...\]}`"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, error, message):
    with pytest.raises(error, match=message):
        vs.sweep(linear_task(never), lrs=[0.1], **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start_lr": 1.0, "end_lr": 1.0}, ValueError, "`start_lr` must be below `end_lr`"),
        ({"start_lr": 2.0, "end_lr": 1.0}, ValueError, "`start_lr` must be below `end_lr`"),
        ({"start_lr": -1.0}, ValueError, "`start_lr` must be positive and finite; got -1.0"),
        ({"end_lr": float("nan")}, ValueError, "`end_lr` must be positive and finite"),
        ({"start_lr": "small"}, TypeError, "`start_lr` must be numbers"),
        ({"method": "ramps"}, ValueError, "Did you mean 'ramp'"),
        ({"spacing": "log"}, ValueError, "`spacing` must be one of 'exponential', 'linear'"),
        ({"start_lr": 0.1, "end_lr": 0.10000000000000005}, ValueError, "must hold `num_lrs` different learning rates"),
        ({"num_lrs": 1}, ValueError, "`num_lrs` must be a whole number of at least 2"),
        ({"num_steps": -3}, ValueError, "`num_steps` must be"),
        ({"method": "ramp", "num_steps": 1}, ValueError, "at least 2"),
        ({"method": "ramp", "num_lrs": 5}, ValueError, '`num_lrs` belongs to the method "grid"'),
    ],
)
def test_bad_ranges_are_refused_before_any_work(options, error, message):
    with pytest.raises(error, match=message):
        vs.range_test(linear_task(never), **options)


@pytest.mark.parametrize("number", [np.float32(1.5), np.float16(1.5), np.float64(1.5)])
def test_numbers_of_numpy_are_options_too(number):
    how = {"lrs": [0.1], "num_steps": 3}
    runs = vs.sweep(linear_task(), max_grad_norm=number, divergence_factor=number, **how)
    plain = vs.sweep(linear_task(), max_grad_norm=1.5, divergence_factor=1.5, **how)
    np.testing.assert_array_equal(runs.train_loss, plain.train_loss)
    with pytest.raises(ValueError, match="`max_grad_norm` must be a positive number"):
        vs.sweep(linear_task(never), max_grad_norm=10**400, **how)


def test_last_seed_that_generators_take_is_one():
    runs = vs.sweep(linear_task(), lrs=[0.1], num_steps=1, seed=2**63 - 1)
    assert [member.seed for member in runs.members] == [2**63 - 1]
    with pytest.raises(
        ValueError, match="`seed` must be no more than 9,223,372,036,854,775,807; got 9223372036854775808"
    ):
        vs.sweep(linear_task(never), lrs=[0.1], num_steps=1, seeds=2, seed=2**63 - 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="PyTorch sees no GPU"):
        vs.sweep(linear_task(never), lrs=[0.1], num_steps=1, device="cuda")


MODEL = nn.Linear(6, 3)


class NeedsMore(torch.optim.SGD):
    """An optimizer that has no default for its learning rate."""

    def __init__(self, params, lr):
        super().__init__(params, lr)


class Learner:
    """Like fastai's, which can be called."""

    model = nn.Linear(2, 2)

    def __call__(self, event):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": nn.Linear}, TypeError, "got the class Linear. .* wrap a class that takes arguments"),
        ({"model": torch.optim.SGD}, TypeError, "got the class SGD"),
        ({"model": 3}, TypeError, "`model` must be an nn.Module"),
        ({"model": Learner()}, TypeError, "got Learner, which has one. Pass its `.model`"),
        ({"batches": 3}, TypeError, "`batches` must be an iterable of batches"),
        ({"batches": X}, TypeError, "`batches` must be an iterable of batches"),
        ({"loss_fn": None}, ValueError, "Exactly one of `loss_fn` and `training_step` must be given; got neither"),
        ({"training_step": lambda model, batch: 0}, ValueError, "got both"),
        ({"loss_fn": "mse"}, TypeError, "`loss_fn` must be a function"),
        ({"loss_fn": nn.CrossEntropyLoss}, TypeError, "got the class CrossEntropyLoss"),
        ({"optimizer": None}, TypeError, "`optimizer` must be given"),
        ({"optimizer": nn.Linear}, TypeError, "got the class Linear. A class must be one of torch.optim.Optimizer"),
        ({"optimizer": NeedsMore}, TypeError, "got the class NeedsMore. .* takes parameters alone; wrap any other"),
        ({"optimizer": "sgd"}, TypeError, "`optimizer` must be a torch.optim optimizer"),
        (
            {"model": lambda: nn.Linear(6, 3), "optimizer": torch.optim.SGD(MODEL.parameters())},
            TypeError,
            "must be a function from parameters",
        ),
    ],
)
def test_bad_tasks_are_refused_when_they_are_made(options, error, message):
    how = {"model": MODEL, "batches": [(X, Y)], "loss_fn": F.cross_entropy, "optimizer": sgd} | options
    with pytest.raises(error, match=message):
        vs.Task(**how)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batches": []}, ValueError, "`batches` must yield at least one batch; got none"),
        ({"batches": lambda: iter(())}, ValueError, "`batches` must yield at least one batch"),
        ({"batches": [X]}, TypeError, r"pairs \(inputs, targets\); got a tensor of shape \(44, 6\)"),
        ({"batches": [{"x": X}]}, TypeError, r"got a dict with keys \['x'\]"),
        ({"batches": [(X, Y, Y)]}, TypeError, "got a tuple of 3"),
        ({"loss_fn": lambda o, t: (o - 1) ** 2}, ValueError, r"The loss must be a scalar; got shape \(44, 3\)"),
        ({"loss_fn": lambda o, t: 0.5}, TypeError, "The loss must be a scalar tensor; got float"),
        ({"loss_fn": lambda o, t: o.sum().detach()}, ValueError, "does not require grad"),
        ({"model": nn.Linear(6, 3).requires_grad_(False)}, ValueError, "`model` must have parameters to train"),
        ({"model": nn.Flatten()}, ValueError, "`model` must have parameters to train"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(6, 3).parameters())},
            ValueError,
            "must be built on the parameters of",
        ),
        ({"optimizer": lambda p: [1]}, TypeError, "`optimizer` must be a list of optimizers .* got a list of 1"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, TypeError, "LBFGS evaluates a closure"),
        ({"optimizer": torch.optim.LBFGS(MODEL.parameters())}, TypeError, "LBFGS evaluates a closure"),
        ({"model": lambda: 3}, TypeError, "`model` must return an nn.Module"),
    ],
)
def test_task_that_cannot_be_trained_is_refused_before_any_step(options, error, message):
    how = {"model": MODEL, "batches": [(X, Y)], "loss_fn": F.cross_entropy, "optimizer": sgd} | options
    task = vs.Task(**how)
    for engine in ("vectorized", "sequential"):
        with pytest.raises(error, match=message):
            vs.range_test(task, num_lrs=2, num_steps=2, engine=engine)
    with pytest.raises(error, match=message):
        vs.check(task)


def test_optimizer_whose_groups_have_no_common_scale_is_refused():
    groups = [{"params": [MODEL.weight], "lr": 0.0}, {"params": [MODEL.bias], "lr": 0.1}]
    task = linear_task(model=MODEL, optimizer=torch.optim.SGD(groups))
    with pytest.raises(ValueError, match="lr of the first parameter group must be positive"):
        vs.sweep(task, lrs=[0.1], num_steps=1)


def test_what_is_no_task_is_refused():
    with pytest.raises(TypeError, match=r"`task` must be a vecsweep.Task; got Linear"):
        vs.range_test(MODEL)


def test_error_in_the_users_code_comes_through_as_it_is():
    def broken(outputs, targets):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        vs.range_test(linear_task(loss_fn=broken))


@pytest.mark.parametrize(
    ("optimizer", "method", "expected"),
    [
        (torch.optim.SGD, "grid", (1e-4, 100)),
        (torch.optim.Adagrad, "grid", (1e-4, 100)),
        (torch.optim.AdamW, "grid", (1e-5, 10)),
        (torch.optim.RMSprop, "grid", (1e-5, 10)),
        (torch.optim.SGD, "ramp", (1e-7, 10)),
        (torch.optim.AdamW, "ramp", (1e-7, 10)),
    ],
)
def test_range_that_nobody_names_is_usual_for_the_optimizer(optimizer, method, expected):
    model = nn.Linear(2, 1)
    batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=optimizer(model.parameters()))
    lrs = vs.range_test(task, method=method, num_steps=4, progress=False).lrs
    assert (lrs[0], lrs[-1]) == expected
    lrs = vs.range_test(task, method=method, num_steps=4, start_lr=1e-3, progress=False).lrs
    assert (lrs[0], lrs[-1]) == (1e-3, expected[1])
