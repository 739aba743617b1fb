"""What a source of batches keeps for itself, an epoch or a generator: each seed has its own, and goes on with it."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset

import vecsweep as vs

NUM_STEPS, LR = 20, 0.1
X = torch.randn(24, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Noisy(Dataset):
    """Noise from a generator of its own, as MONAI's and Albumentations' transforms have, and a counter."""

    def __init__(self):
        self.rng, self.old_rng, self.num_read = np.random.default_rng(0), np.random.RandomState(0), 0

    def __len__(self):
        return len(X)

    def __getitem__(self, k):
        self.num_read += 1
        noise = self.rng.normal(size=4) + self.old_rng.normal(size=4) + 0.001 * self.num_read
        return X[k] + 0.1 * torch.from_numpy(noise), Y[k]


class OfEpochs(Sampler):
    """Another order in each epoch, as PyTorch's distributed sampler has."""

    def __init__(self):
        self.epoch = 0

    def __iter__(self):
        self.epoch += 1
        return iter(torch.randperm(24, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self):
        return 24


class Buffered(IterableDataset):
    def __init__(self):
        self.rng = random.Random(0)

    def __iter__(self):
        samples = list(zip(X, Y, strict=True))
        self.rng.shuffle(samples)
        yield from samples


class InPlace:
    """Turns its own list of indices in each epoch."""

    def __init__(self):
        self.indices = list(range(24))

    def __iter__(self):
        self.indices.append(self.indices.pop(0))
        for k in range(0, 24, 8):
            yield X[self.indices[k : k + 8]], Y[self.indices[k : k + 8]]


def in_a_closure():
    epoch, rng = 0, torch.Generator().manual_seed(3)

    def batches():
        nonlocal epoch
        epoch += 1
        order = torch.randperm(24, generator=rng)
        for own in order.split(8):
            yield X[own] * (1 + 0.1 * epoch), Y[own]

    return batches


SOURCES = {
    "data set": lambda: DataLoader(Noisy(), 8),
    "subset": lambda: DataLoader(Subset(Noisy(), range(20)), 8),
    "sampler": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=OfEpochs()),
    "stream": lambda: DataLoader(Buffered(), 8),
    "list": InPlace,
    "function": in_a_closure,
}


def task_of(source, model):
    return vs.Task(model, source, F.mse_loss, optimizer=lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9))


def linear():
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


def train_plainly(source, model):
    """The oracle: an ordinary loop."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    epochs = itertools.chain.from_iterable(source() if callable(source) else source for _ in itertools.count())
    losses = []
    for inputs, targets in itertools.islice(epochs, NUM_STEPS):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_source_that_keeps_something_is_read_as_in_a_plain_loop_by_each_seed_and_in_each_run(make):
    model, source = linear(), make()
    expected = train_plainly(make(), model)
    task = task_of(source, model)
    for _ in range(2):
        runs = vs.sweep(task, lrs=[LR], num_steps=NUM_STEPS, seeds=[0, 5])
        for i in range(2):
            np.testing.assert_allclose(runs.train_loss[:, i], expected, rtol=1e-9)
    np.testing.assert_allclose(train_plainly(source, model), expected, rtol=1e-12)  # it is as it was before


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES.keys())
def test_source_that_keeps_something_goes_on_where_it_stood(make, tmp_path):
    model = linear()
    expected = train_plainly(make(), model)
    runs = vs.sweep(task_of(make(), model), lrs=[LR], num_steps=7)
    np.testing.assert_allclose(runs.extend(num_steps=NUM_STEPS - 7).train_loss[:, 0], expected, rtol=1e-9)
    runs.save(tmp_path / "runs")
    loaded = vs.load(tmp_path / "runs", task=task_of(make(), model))
    np.testing.assert_allclose(loaded.extend(num_steps=NUM_STEPS - 7).train_loss[:, 0], expected, rtol=1e-9)


def test_what_a_data_set_opens_and_keeps_in_memory_stays_there():
    class Cached(Dataset):
        def __init__(self):
            self.file, self.kept = None, {}

        def __len__(self):
            return len(X)

        def __getitem__(self, k):
            if self.file is None:
                self.file = object()
            return self.kept.setdefault(k, (X[k], Y[k]))

    dataset = Cached()
    vs.sweep(task_of(DataLoader(dataset, 8), linear()), lrs=[LR], num_steps=5)
    assert len(dataset.kept) == len(X)
    assert dataset.file is not None


def test_loader_that_is_its_own_iterator_starts_over():
    class Own:
        def __iter__(self):
            self.k = 0
            return self

        def __next__(self):
            if self.k == 3:
                raise StopIteration
            self.k += 1
            return X[self.k :: 3], Y[self.k :: 3]

    model = linear()
    runs = vs.sweep(task_of(Own(), model), lrs=[LR], num_steps=NUM_STEPS)
    np.testing.assert_allclose(runs.train_loss[:, 0], train_plainly(Own(), model), rtol=1e-9)


def test_step_may_refer_to_the_iterator_of_a_stream_that_has_no_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(X)

    further = iter(DataLoader(Stream(), 8))

    def step(model, batch):
        assert further is not None
        return F.mse_loss(model(batch[0]), batch[1])

    task = vs.Task(
        linear(), [(X, Y)], training_step=step, optimizer=lambda params: torch.optim.SGD(params, lr=LR, momentum=0.9)
    )
    assert np.isfinite(vs.sweep(task, lrs=[LR], num_steps=3).train_loss).all()
