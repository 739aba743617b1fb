"""What LRFinder refuses, it refuses with torch-lr-finder's type of error and opening words, which programs match."""

import gc
import re
import warnings

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from torch_lr_finder import lr_finder as theirs

import vecsweep.finder as ours

OPENING = re.compile(r"[^.;:(]+")  # up to the first stop: what follows names the value and the remedy


def loader(batches=None):
    return DataLoader(batches or [(torch.ones(4, 2), torch.zeros(4, 1))] * 20, batch_size=None)


def make(module, **how):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return module.LRFinder(model, optimizer, nn.MSELoss(), **{"device": "cpu", **how})


def test_range(module, **how):
    make(module).range_test(**{"train_loader": loader(), "num_iter": 5, "end_lr": 1.0, **how})


test_range.__test__ = False


def plot(module, num_iter=20, **how):
    finder = make(module)
    finder.range_test(loader(), num_iter=num_iter, end_lr=1e-2, start_lr=1e-5)
    finder.plot(**how)


def scheduled(module):
    finder = make(module)
    StepLR(finder.optimizer, 1)
    finder.range_test(loader(), num_iter=5, end_lr=1.0)


def ramp(module, name):
    getattr(module, name)(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), end_lr=1.0, num_iter=1)


CASES = {
    "train loader": lambda module: test_range(module, train_loader=[1, 2]),
    "validation loader": lambda module: test_range(module, val_loader=[1, 2]),
    "batch": lambda module: test_range(module, train_loader=loader([{"x": torch.ones(2)}] * 20)),
    "amp backend": lambda module: make(module, amp_backend="mine"),
    "grad scaler": lambda module: make(module, amp_backend="torch"),
    "step mode": lambda module: test_range(module, step_mode="square"),
    "smoothing of 1": lambda module: test_range(module, smooth_f=1.0),
    "smoothing below 0": lambda module: test_range(module, smooth_f=-0.1),
    "start_lr of other groups": lambda module: test_range(module, start_lr=[0.1, 0.2]),
    "num_iter": lambda module: test_range(module, num_iter=1),
    "scheduler": scheduled,
    "skip_start": lambda module: plot(module, skip_start=-1),
    "skip_end": lambda module: plot(module, skip_end=-1),
    "show_lr": lambda module: plot(module, show_lr=1),
    "too few points": lambda module: plot(module, num_iter=5),
    "no points": lambda module: make(module).plot(),
    "linear ramp": lambda module: ramp(module, "LinearLR"),
    "exponential ramp": lambda module: ramp(module, "ExponentialLR"),
    "cache folder": lambda module: make(module, memory_cache=False, cache_dir="/no/such/folder"),
    "key of the cache": lambda module: module.StateCacher(True).retrieve("mine"),
}


def refusal(case, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the question
            CASES[case](module)
    kind, words = type(caught.value), caught.value.args[0]
    del caught
    gc.collect()  # here, where the complaint of their unfinished `StateCacher` that goes is ignored
    return kind, words


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", CASES)
def test_refusal_begins_with_the_words_that_programs_know(case, capsys):
    (kind, words), (own_kind, own_words) = refusal(case, theirs), refusal(case, ours)
    assert own_kind is kind
    assert own_words.startswith(OPENING.match(words)[0])
