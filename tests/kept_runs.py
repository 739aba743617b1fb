"""Runs that are kept, by what may be lost of them: the tasks, the calls, and what makes two results the same."""

import dataclasses
import faulthandler
import functools
import os
import signal
import traceback

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep.schedules import plateau

SGD = functools.partial(torch.optim.SGD, momentum=0.9)
GENERATOR = torch.Generator().manual_seed(0)
INPUTS, TARGETS = torch.randn(60, 6, generator=GENERATOR), torch.randint(3, (60,), generator=GENERATOR)
BATCHES = [(INPUTS[k : k + 8], TARGETS[k : k + 8]) for k in range(0, 60, 8)]  # the last is smaller


class DiesError(Exception):
    """What stands for the end of a process."""


class Mortal:
    """Batches whose reader dies after some of them, counted over all passes."""

    def __init__(self, source, deaths=()):
        self.source = source
        self.num_read = 0
        self.deaths = set(deaths)

    def __len__(self):
        return len(self.source)

    def __iter__(self):
        for batch in self.source:
            self.num_read += 1
            if self.num_read in self.deaths:
                raise DiesError
            yield batch


def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def noisy():
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))


def shuffled():
    return DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8, shuffle=True)


class Augmented(TensorDataset):
    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return x + 0.1 * torch.randn(x.shape), y


def with_workers():
    return DataLoader(Augmented(INPUTS, TARGETS), batch_size=12, shuffle=True, num_workers=2, persistent_workers=True)


def generator(seed):
    rng = np.random.default_rng(seed)
    for _ in range(7):
        own = rng.permutation(60)[:8]
        yield INPUTS[own], TARGETS[own]


def clipped(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def counting():
    count = [0]

    def step(model, batch):
        count[0] += 1
        return F.cross_entropy(model(batch[0]), batch[1]) * (1 + 0.1 * count[0])

    return step


def better_half(runs):
    alive = [i for i, member in enumerate(runs.members) if member.stopped_at is None]
    return alive[: (len(alive) + 1) // 2]


def make_task(model=mlp, batches=lambda: BATCHES, optimizer=SGD, step=None):
    torch.manual_seed(3)
    built = model()
    return vs.Task(
        built,
        batches(),
        F.cross_entropy if step is None else None,
        optimizer=lambda parameters: optimizer(parameters, lr=0.1),
        training_step=None if step is None else step(),
        val_batches=BATCHES[:2],
    )


CASES = {  # of the task, and of the sweep
    "sgd": ({}, {"engine": "vectorized"}),
    "adamw, seeds and chunks": (
        {"batches": shuffled, "optimizer": torch.optim.AdamW},
        {
            "lrs": [0.01, 30.0],
            "seeds": 2,
            "chunk_size": 2,
            "engine": "vectorized",
            "schedules": ["one-cycle", "cosine"],
        },
    ),
    "fp16": ({}, {"precision": "fp16", "engine": "vectorized", "lrs": [0.01, 0.1, 1e5]}),
    "dropout and batch norm": ({"model": noisy, "batches": shuffled}, {"seeds": 2, "engine": "vectorized"}),
    "one after another": ({"model": noisy, "batches": shuffled}, {"seeds": 2, "engine": "sequential"}),
    "plateau and patience": (
        {"batches": shuffled},
        {"schedules": {"p": plateau(patience=0, factor=0.5), "c": lambda t: 1 - t / 2}, "patience": 2},
    ),
    "prune": ({}, {"prune": better_half, "chunk_size": 2, "lrs": [0.01, 0.1, 0.3, 0.5, 1.0], "engine": "vectorized"}),
    "optimizer of its own class": ({"optimizer": torch.optim.Adafactor}, {"engine": "vectorized"}),
    "optimizer with counters": ({"optimizer": torch.optim.NAdam}, {"max_grad_norm": 0.5, "accumulation_steps": 2}),
    "state in a closure": ({"step": counting}, {"engine": "sequential"}),
    "a generator": ({"batches": lambda: generator}, {"seeds": 2}),
    "workers": ({"batches": with_workers}, {"engine": "vectorized"}),
    "compiled": ({"model": noisy, "batches": shuffled}, {"engine": "vectorized", "compile": True}),
}
_MOST_S = 120  # of a process that is forked


def call(case, folder=None, deaths=(), **options):
    """Make the call of a case; the batches die where it is said."""
    task_options, how = CASES[case]
    task = make_task(**task_options)
    if deaths:
        task = dataclasses.replace(task, batches=Mortal(task.batches, deaths))
    how = {"lrs": [0.01, 0.1, 30.0], "epochs": 5, "compile": False} | how | options
    if folder is not None:
        how |= {"checkpoint": folder, "checkpoint_every": "3 steps"}
    return vs.sweep(task, **how)


def assert_same(a, b):
    """Two results are equal to the last bit, in what was trained as in what is said of it."""
    assert a.members == b.members
    assert a.engine == b.engine
    np.testing.assert_array_equal(a.train_loss, b.train_loss)
    np.testing.assert_array_equal(a.lr, b.lr)
    np.testing.assert_array_equal(a.evaluated_at, b.evaluated_at)
    for name in {*a.metrics, *b.metrics}:
        np.testing.assert_array_equal(a.metrics[name], b.metrics[name], err_msg=name)
    for i in range(len(a.members) if not isinstance(a, vs.RangeTest) else 0):
        states = a.model(i).state_dict(), b.model(i).state_dict()
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, rtol=0, atol=0, equal_nan=True)


def fork(function):
    """Run a function in a forked process, which ends if it hangs, and says where; return its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(_MOST_S)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
