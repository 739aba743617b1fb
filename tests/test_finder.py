"""The drop-in against torch-lr-finder itself, seed for seed; and what is mended: everything is put back."""

import copy
import functools
import gc
import importlib
import subprocess
import sys
import types
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import vecsweep as vs
from vecsweep import finder as ours
from vecsweep.suggest import RULES, suggest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its progress bar warns of notebooks
    import torch_lr_finder as peer
    import torch_lr_finder.lr_finder as peer_module

IMAGES, LABELS = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
DIGITS = TensorDataset(IMAGES.float() / 16, LABELS)


def make_model(*, dropout=0.0, has_norm=False):
    layers = [nn.Linear(64, 32), *([nn.BatchNorm1d(32)] if has_norm else []), nn.Tanh(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def make_loader(*, batch_size=32, shuffle=True, dataset=DIGITS, **options):
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)


def make(module, model=None, optimizer=None, criterion=F.cross_entropy, **options):
    """A finder of either library on the digits."""
    model = make_model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9) if optimizer is None else optimizer
    return module.LRFinder(model, optimizer, criterion, **options)


class Tagger(nn.Module):
    """The tagger of PyTorch's tutorial, on batches of a sentence, with the words themselves beside the numbers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(20, 8), nn.LSTM(8, 12), nn.Linear(12, 3)

    def forward(self, sentence):
        hidden, _ = self.lstm(self.embedding(sentence))
        return self.head(hidden)


WORDS = ("the quick brown fox jumps over a lazy dog", "while seven wizards quietly boil their evening tea")
WORDS = [word for line in WORDS for word in line.split()]


class Sentences(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        words = [WORDS[(i * k + k) % len(WORDS)] for k in range(1, 3 + i % 5)]
        return {"words": words, "tags": [["noun", "verb", "other"][len(word) % 3] for word in words]}


class Stream(IterableDataset):
    """Batches that have no length."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        for _ in range(7):
            picks = torch.randint(len(LABELS), (16,), generator=generator)
            yield DIGITS[picks]


def run_tagger(module):
    class Iter(module.TrainDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data):
            words, tags = batch_data[0]["words"], batch_data[0]["tags"]
            numbers = torch.tensor([WORDS.index(word) for word in words])
            return numbers, torch.tensor([["noun", "verb", "other"].index(tag) for tag in tags])

    model = Tagger()
    finder = module.LRFinder(model, torch.optim.SGD(model.parameters(), lr=1e-3), nn.CrossEntropyLoss())
    loader = DataLoader(Sentences(), batch_size=1, shuffle=True, collate_fn=list)
    finder.range_test(Iter(loader), end_lr=10, num_iter=60)
    return finder


def run_two_inputs(module):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(32, 10), nn.Linear(32, 10)

        def forward(self, parts):
            return self.left(parts["left"]) + self.right(parts["right"][0])

    def convert(self, batch_data):
        images, labels = batch_data
        return {"left": images[:, :32], "right": [images[:, 32:], "a note"]}, labels

    train = type("Train", (module.TrainDataLoaderIter,), {"inputs_labels_from_batch": convert})
    val = type("Val", (module.ValDataLoaderIter,), {"inputs_labels_from_batch": convert})
    model = Two()
    finder = make(module, model, torch.optim.Adam(model.parameters(), lr=1e-4))
    validation = make_loader(dataset=Subset(DIGITS, range(100)), batch_size=64)
    finder.range_test(train(make_loader()), val_loader=val(validation), end_lr=1, num_iter=30)
    return finder


def run_warm_adam(module):
    model = make_model(has_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_a_little(model, optimizer)
    finder = make(module, model, optimizer)
    finder.range_test(make_loader(), start_lr=1e-5, end_lr=1, num_iter=40)
    return finder


def run_twice(module):
    finder = make(module)
    finder.range_test(make_loader(), end_lr=1, num_iter=20)
    finder.reset()
    finder.range_test(make_loader(), end_lr=10, num_iter=40, step_mode="linear")
    return finder


def run_groups(module, **options):
    model = make_model()
    groups = [{"params": model[0].parameters(), "lr": 1e-3}, {"params": model[3].parameters()}]
    finder = make(module, model, torch.optim.SGD(groups, lr=1e-5, momentum=0.5))
    finder.range_test(make_loader(), end_lr=5, num_iter=40, **options)
    return finder


def run_amp(module):
    finder = make(
        module,
        amp_backend="torch",
        amp_config={"device_type": "cpu", "dtype": torch.bfloat16},
        grad_scaler=torch.amp.GradScaler("cpu", enabled=False),
    )
    finder.range_test(make_loader(), end_lr=10, num_iter=40, accumulation_steps=2)
    return finder


def run_scaled(module):
    finder = make(
        module,
        amp_backend="torch",
        amp_config={"device_type": "cpu", "dtype": torch.bfloat16},
        grad_scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5),
    )
    finder.range_test(make_loader(), end_lr=10, num_iter=40)
    return finder


def plain(loader=None, finder=None, **options):
    """A program of a few lines."""

    def run(module):
        own = make(module, **(finder() if finder else {}))
        given = {name: value() if callable(value) else value for name, value in options.items()}
        own.range_test(loader() if loader else make_loader(), **given)
        return own

    return run


def small_validation():
    return make_loader(dataset=Subset(DIGITS, range(150)), batch_size=64)


PROGRAMS = {
    "exponential": plain(end_lr=10, num_iter=100),
    "defaults": plain(),
    "linear": plain(end_lr=1, num_iter=50, step_mode="linear"),
    "capitals": plain(end_lr=1, num_iter=20, step_mode="EXP"),
    "two steps": plain(end_lr=1, num_iter=2),
    "several epochs": plain(lambda: make_loader(batch_size=256), end_lr=1, num_iter=30),
    "start_lr": plain(start_lr=1e-6, end_lr=1, num_iter=30),
    "start_lr of zero is the optimizer's": plain(start_lr=0, end_lr=1, num_iter=20),
    "falling": plain(start_lr=1.0, end_lr=1e-4, num_iter=20),
    "no smoothing": plain(end_lr=1, num_iter=40, smooth_f=0),
    "little smoothing": plain(end_lr=1, num_iter=40, smooth_f=0.9),
    "stops early": plain(end_lr=1e5, num_iter=100, smooth_f=0.5),
    "stops very early": plain(end_lr=1e5, num_iter=40, diverge_th=1.05, smooth_f=0.5),
    "validation": plain(end_lr=10, num_iter=30, val_loader=small_validation),
    "validation that is wrapped": plain(
        end_lr=10, num_iter=30, val_loader=lambda: make_loader(dataset=Subset(DIGITS, range(65)), shuffle=False)
    ),
    "accumulation": plain(end_lr=10, num_iter=40, accumulation_steps=3),
    "accumulation and validation": plain(
        end_lr=10, num_iter=20, accumulation_steps=2, val_loader=small_validation, step_mode="linear"
    ),
    "dropout": plain(finder=lambda: {"model": make_model(dropout=0.5)}, end_lr=10, num_iter=70),
    "batch norm": plain(finder=lambda: {"model": make_model(has_norm=True)}, end_lr=10, num_iter=40),
    "stream": plain(lambda: DataLoader(Stream(), batch_size=None), end_lr=1, num_iter=40),
    "sampler with a generator": plain(
        lambda: make_loader(generator=torch.Generator().manual_seed(5)), end_lr=1, num_iter=60
    ),
    "workers": plain(lambda: make_loader(batch_size=512, num_workers=1), end_lr=1, num_iter=8),
    "on files": plain(finder=lambda: {"memory_cache": False}, end_lr=1, num_iter=20),
    "device": plain(finder=lambda: {"device": "cpu"}, end_lr=1, num_iter=20),
    "a criterion with weights": plain(
        finder=lambda: {"criterion": nn.CrossEntropyLoss(weight=torch.linspace(1, 2, 10))}, end_lr=1, num_iter=20
    ),
    "groups": run_groups,
    "groups with a start each": lambda module: run_groups(module, start_lr=[1e-4, 1e-2]),
    "groups with one start": lambda module: run_groups(module, start_lr=1e-4, step_mode="linear"),
    "tagger": run_tagger,
    "two inputs": run_two_inputs,
    "an Adam that has trained": run_warm_adam,
    "two tests": run_twice,
    "bfloat16": run_amp,
    "scaled": run_scaled,
}


def play(program, module, seed=0):
    """Run a program under a seed; return its finder and the state of the generator after it."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        if module is peer:
            warnings.simplefilter("ignore")
        finder = program(module)
    return finder, torch.get_rng_state()


@functools.cache
def played(name, module):
    finder, rng = play(PROGRAMS[name], module)
    if module is peer:
        finder.state_cacher = None  # it complains when the interpreter ends
    return finder, rng


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_gives_the_history_that_torch_lr_finder_gives(name):
    (expected, expected_rng), (found, rng) = played(name, peer), played(name, ours)
    np.testing.assert_allclose(found.history["lr"], expected.history["lr"], rtol=1e-12)
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-6)
    assert found.best_loss == pytest.approx(expected.best_loss, rel=1e-6)
    assert torch.equal(rng, expected_rng), "random numbers after the test"


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("options", [{}, {"skip_start": 0, "skip_end": 0}, {"skip_start": 3, "log_lr": False}])
def test_plot_and_suggestion_are_those_of_torch_lr_finder(name, options):
    expected, found = played(name, peer)[0], played(name, ours)[0]
    pictures = [Figure().add_subplot() for _ in range(2)]
    skips = {name: value for name, value in options.items() if name != "log_lr"}
    if len(expected.history["lr"]) < options.get("skip_start", 10) + options.get("skip_end", 5) + 2:
        for finder, ax in zip((expected, found), pictures, strict=True):
            with pytest.raises(RuntimeError, match="Need at least"):
                finder.plot(ax=ax, **options)
        with pytest.raises(RuntimeError, match="Need at least"):
            found.suggestion(**skips)
        return
    (theirs, their_lr), (own, own_lr) = (
        f.plot(ax=ax, **options) for f, ax in zip((expected, found), pictures, strict=True)
    )
    assert [theirs, own] == pictures
    assert own_lr == pytest.approx(their_lr, rel=1e-12)
    assert found.suggestion(**skips) == own_lr
    for mine, other in zip(own.lines, theirs.lines, strict=True):
        np.testing.assert_allclose(mine.get_xydata(), other.get_xydata(), rtol=1e-6)
    points = [np.asarray(ax.collections[0].get_offsets()) for ax in (own, theirs)]
    np.testing.assert_allclose(*points, rtol=1e-6)
    for read in ("get_xscale", "get_xlabel", "get_ylabel"):
        assert getattr(own, read)() == getattr(theirs, read)()


def test_programs_stop_early_and_run_through():
    """Else the comparisons would prove less than they seem to."""
    assert len(played("several epochs", ours)[0].history["lr"]) == 30
    assert len(played("stops early", ours)[0].history["lr"]) < 100
    assert played("several epochs", ours)[0].stop_reason is None
    assert "the loss diverged" in played("stops early", ours)[0].stop_reason


PROGRAM_FILE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import {name} as torch_lr_finder
from {name} import LRFinder, TrainDataLoaderIter, ValDataLoaderIter
from {name}.lr_finder import DataLoaderIter, ExponentialLR, LinearLR, StateCacher

torch.manual_seed(1)
inputs = torch.randn(128, 4)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True))

class Iter(TrainDataLoaderIter):
    def inputs_labels_from_batch(self, batch_data):
        return batch_data[0] * 2, batch_data[1]

model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
lr_finder = torch_lr_finder.LRFinder(model, optimizer, nn.MSELoss(), device="cpu")
lr_finder.range_test(Iter(DataLoader(data, batch_size=16, shuffle=True)), None, 1e-4, 1, 60, "exp", 0.1, 5, 2)
ax, lr = lr_finder.plot(skip_end=2, show_lr=0.1)
lr_finder.reset()
for group in optimizer.param_groups:
    group["lr"] = lr
for x, y in DataLoader(data, batch_size=32):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
"""


def test_program_file_runs_unchanged_but_for_the_name(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    results = []
    for name in ("torch_lr_finder", "vecsweep.finder"):
        space = {}
        exec(PROGRAM_FILE.format(name=name), space)
        results.append(space)
        assert space["ax"].figure.number in plt.get_fignums()
        plt.close(space["ax"].figure)
    theirs, own = results
    assert own["lr"] == pytest.approx(theirs["lr"], rel=1e-12)
    assert own["loss"].item() == pytest.approx(theirs["loss"].item(), rel=1e-6)
    assert len(own["ax"].lines) == len(theirs["ax"].lines) == 2
    assert own["ax"].lines[1].get_xdata() == theirs["ax"].lines[1].get_xdata()


def test_every_name_of_torch_lr_finder_is_there():
    def public(module):
        return {
            name for name, value in vars(module).items() if getattr(value, "__module__", "") == peer_module.__name__
        }

    assert public(peer) | public(peer_module) <= set(ours.__all__)
    assert set(ours.__all__) == set(importlib.import_module("vecsweep.finder.lr_finder").__all__)
    methods = {name for name, value in vars(peer.LRFinder).items() if isinstance(value, types.FunctionType)}
    assert {name for name in methods if not hasattr(ours.LRFinder, name)} == set()


@pytest.mark.parametrize("name", ["LinearLR", "ExponentialLR"])
def test_schedulers_are_those_of_torch_lr_finder(name):
    rows = []
    for module in (peer_module, ours):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
        scheduler = getattr(module, name)(optimizer, end_lr=2.0, num_iter=7)
        rows.append([])
        for _ in range(7):
            rows[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        with pytest.raises(ValueError, match="num_iter"):
            getattr(module, name)(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 1.0, 1)
    assert rows[1] == rows[0]


def test_subclass_that_overrides_a_step_is_heard():
    def program(module):
        class Weighted(module.LRFinder):
            def _train_batch(self, train_iter, accumulation_steps, non_blocking_transfer=True):
                return 2 * super()._train_batch(train_iter, accumulation_steps, non_blocking_transfer)

        model = make_model()
        finder = Weighted(model, torch.optim.SGD(model.parameters(), lr=1e-4), F.cross_entropy)
        finder.range_test(make_loader(), end_lr=1, num_iter=20)
        return finder

    expected, found = (play(program, module)[0] for module in (peer, ours))
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-6)


def train_a_little(model, optimizer, num_steps=2):
    for images, labels in list(make_loader(shuffle=False))[:num_steps]:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


class Delicate(nn.Module):
    """A model that has one of everything a test could leave changed."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        self.tied = nn.Linear(64, 16)
        self.tied.weight = self.body.weight
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("shape", torch.ones(1, 1).expand(3, 4))
        self.body.bias.requires_grad_(False)
        self.extra = nn.Parameter(torch.ones(1))  # trained by nobody, but used

    def forward(self, images):
        if self.training:
            self.seen += len(images)
            self.replaced = self.replaced + 1
        hidden = self.norm(self.body(images) + self.tied(images)) * self.extra
        return self.head(self.dropout(hidden.tanh()))


class Margin(nn.Module):
    """A criterion that is trained, too."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, outputs, labels):
        return F.cross_entropy(outputs * self.scale, labels)


class Own(torch.optim.SGD):
    """An optimizer with something to remember that only its state_dict tells."""

    num_steps = 0

    def step(self, closure=None):
        self.num_steps += 1
        return super().step(closure)

    def state_dict(self):
        return super().state_dict() | {"num_steps": self.num_steps}

    def load_state_dict(self, state_dict):
        super().load_state_dict({name: value for name, value in state_dict.items() if name != "num_steps"})
        self.num_steps = state_dict["num_steps"]


OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.001, amsgrad=True),
    "tensor lr": lambda params: torch.optim.Adam(params, lr=torch.tensor(0.001), foreach=False, capturable=False),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.01),
    "own": lambda params: Own(params, lr=0.01, momentum=0.5),
}


def flatten(value):
    """All that a value holds, so that it can be compared bit for bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (tuple(value.shape), value.dtype, str(value.device), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {str(key): flatten(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [flatten(own) for own in value]
    return value


def photograph(model, criterion, optimizer):
    """Everything of the caller's, to the bit."""
    parameters = [*model.named_parameters(), *criterion.named_parameters()]
    return {
        "parameters": {name: flatten(p) for name, p in parameters},
        "places": {name: (id(p), p.data_ptr(), p.requires_grad) for name, p in parameters},
        "buffers": {name: (id(b), flatten(b)) for name, b in model.named_buffers()},
        "gradients": {name: (id(p.grad), flatten(p.grad)) for name, p in parameters},
        "optimizer": flatten(optimizer.state_dict()),
        "lrs": [
            (id(g), flatten(g["lr"]), id(g["lr"]) * isinstance(g["lr"], torch.Tensor)) for g in optimizer.param_groups
        ],
        "modes": [module.training for module in [*model.modules(), *criterion.modules()]],
    }


def make_delicate(optimizer="AdamW", **options):
    torch.manual_seed(0)
    model, criterion = Delicate(), Margin()
    groups = [
        {"params": [p for name, p in model.named_parameters() if name not in ("extra", "body.bias")]},
        {"params": list(criterion.parameters()), "weight_decay": 0.0},
    ]
    own = OPTIMIZERS[optimizer](groups)
    train_a_little(model, own)
    model.norm.eval()
    model.dropout.p = 0.25
    return model, criterion, own, ours.LRFinder(model, own, criterion, **options)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("memory_cache", [True, False])
@pytest.mark.parametrize("options", [{}, {"val_loader": True}, {"accumulation_steps": 2}, {"end_lr": 1e6}])
def test_everything_is_as_it_was_after_a_test(optimizer, memory_cache, options):
    model, criterion, own, finder = make_delicate(optimizer, memory_cache=memory_cache)
    before = photograph(model, criterion, own)
    options = {"end_lr": 1.0} | options | ({"val_loader": small_validation()} if "val_loader" in options else {})
    finder.range_test(make_loader(), num_iter=12, **options)
    assert photograph(model, criterion, own) == before
    finder.reset()
    after = photograph(model, criterion, own)
    assert after == before


class Explodes(Exception):  # noqa: N818 - it is no error of ours
    pass


def break_at(step, error):
    """A criterion, or what else, that raises after some calls."""
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1
        if calls == step:
            raise error

    return count


@pytest.mark.parametrize("error", [Explodes, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["forward", "backward", "step", "loader", "validation"])
@pytest.mark.parametrize("memory_cache", [True, False])
def test_everything_is_as_it_was_after_an_exception(error, where, memory_cache):
    model, criterion, own, finder = make_delicate(memory_cache=memory_cache)
    raising = break_at(4, error)

    class Data(TensorDataset):
        def __getitem__(self, i):
            if where == "loader":
                raising()
            return super().__getitem__(i)

    def hook(module, *_):
        if module.training == (where == "forward"):
            raising()

    handle = {
        "forward": lambda: model.register_forward_pre_hook(hook),
        "validation": lambda: model.register_forward_pre_hook(hook),
        "backward": lambda: model.head.weight.register_hook(raising),
        "step": lambda: own.register_step_post_hook(raising),
        "loader": lambda: None,
    }[where]()
    before = photograph(model, criterion, own)
    loader = DataLoader(Data(*DIGITS.tensors), batch_size=2 if where == "loader" else 32)
    with pytest.raises(error):
        finder.range_test(
            loader, val_loader=small_validation() if where == "validation" else None, end_lr=1, num_iter=12
        )
    assert photograph(model, criterion, own) == before
    if handle is not None:
        handle.remove()
    finder.range_test(make_loader(), end_lr=1, num_iter=12)  # the unfinished one is not in its way
    assert len(finder.history["lr"]) == 12
    assert photograph(model, criterion, own) == before


def test_loss_scale_is_as_it_was():
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=3)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    finder = make(ours, model, optimizer, amp_backend="torch", amp_config={"dtype": torch.bfloat16}, grad_scaler=scaler)
    before = scaler.state_dict()
    optimizer.register_step_post_hook(break_at(10, Explodes))
    with pytest.raises(Explodes):
        finder.range_test(make_loader(), end_lr=1, num_iter=20)
    assert scaler.state_dict() == before
    F.cross_entropy(model(IMAGES.float()), LABELS).backward()
    scaler.scale(torch.zeros(()))
    scaler.unscale_(optimizer)  # raises if a step had been left half done


def test_weights_are_put_back_into_tensors_that_the_model_replaced():
    class Clamps(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, images):
            self.linear.weight.data = self.linear.weight.data.clamp(-0.05, 0.05)
            return self.linear(images)

    model = Clamps()
    weight, place = model.linear.weight.detach().clone(), model.linear.weight.data_ptr()
    make(ours, model).range_test(make_loader(), end_lr=1, num_iter=5)
    assert torch.equal(model.linear.weight, weight)
    assert model.linear.weight.data_ptr() == place


def test_negative_zero_and_nan_are_put_back():
    model = nn.Linear(64, 10)
    with torch.no_grad():
        model.weight[0, 0], model.weight[0, 1] = -0.0, float("nan")
    before = flatten(model.weight)
    make(ours, model).range_test(make_loader(), end_lr=1, num_iter=5)
    assert flatten(model.weight) == before


def test_model_that_is_not_restored_stays_until_reset():
    model, criterion, own, finder = make_delicate()
    before = photograph(model, criterion, own)
    finder.range_test(make_loader(), end_lr=1, num_iter=12, restore=False)
    left = photograph(model, criterion, own)
    for what in ("parameters", "buffers", "gradients", "optimizer", "modes"):
        assert left[what] != before[what]
    with pytest.raises(RuntimeError, match="Call `reset` first"):
        finder.range_test(make_loader(), end_lr=1, num_iter=12)
    assert photograph(model, criterion, own) == left
    finder.reset()
    assert photograph(model, criterion, own) == before
    finder.range_test(make_loader(), end_lr=1, num_iter=12)
    assert photograph(model, criterion, own) == before


@pytest.mark.parametrize("name", ["exponential", "validation", "batch norm", "groups", "two inputs"])
def test_unrestored_model_is_left_where_torch_lr_finder_leaves_it(name, monkeypatch):
    expected, _ = play(PROGRAMS[name], peer)
    plain_test = ours.LRFinder.range_test
    monkeypatch.setattr(ours.LRFinder, "range_test", lambda *a, **k: plain_test(*a, **k, restore=False))
    found, _ = play(PROGRAMS[name], ours)
    for (key, own), theirs in zip(found.model.state_dict().items(), expected.model.state_dict().values(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6, msg=key)
    assert found.model.training == expected.model.training


def test_reset_goes_back_as_often_as_one_likes():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_a_little(model, optimizer)
    finder = make(ours, model, optimizer)
    before = flatten([model.state_dict(), optimizer.state_dict()])
    for _ in range(3):
        finder.reset()
        assert flatten([model.state_dict(), optimizer.state_dict()]) == before
        train_a_little(model, optimizer)
        assert flatten([model.state_dict(), optimizer.state_dict()]) != before


def test_torch_lr_finder_does_not_go_back_twice():
    """The trap behind the test before this one: its second reset gives an optimizer state that was trained on."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_a_little(model, optimizer)
    finder = make(peer, model, optimizer)
    before = flatten(optimizer.state_dict())
    finder.reset()
    train_a_little(model, optimizer)
    finder.reset()
    assert flatten(optimizer.state_dict()) != before


def test_reset_after_a_test_goes_back_to_its_beginning_not_to_before_it():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    finder = make(ours, model, optimizer)
    train_a_little(model, optimizer)
    trained = flatten([model.state_dict(), optimizer.state_dict()])
    finder.range_test(make_loader(), end_lr=1, num_iter=5)
    train_a_little(model, optimizer)
    finder.reset()
    assert flatten([model.state_dict(), optimizer.state_dict()]) == trained


def test_scheduler_can_be_made_after_a_test():
    finder = make(ours)
    finder.range_test(make_loader(), end_lr=1, num_iter=5)
    torch.optim.lr_scheduler.StepLR(finder.optimizer, step_size=1)


def test_files_have_no_name_and_go_with_the_finder(tmp_path):
    def count_open():
        return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0

    gc.collect()  # of what earlier tests have left
    num_open = count_open()
    finder = make(ours, memory_cache=False, cache_dir=tmp_path)
    finder.range_test(make_loader(), end_lr=1, num_iter=5)
    assert list(tmp_path.iterdir()) == []
    del finder
    gc.collect()
    assert count_open() == num_open


def test_folder_that_cannot_be_written_to_is_told_before_any_work(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    model = make_model()
    before = flatten(model.state_dict())
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(
        PermissionError, match=r"`cache_dir` must be a folder that can be written to \(Permission denied"
    ):
        make(ours, model, memory_cache=False, cache_dir=tmp_path)
    assert flatten(model.state_dict()) == before


def test_full_disk_stops_a_test_before_any_work(tmp_path, monkeypatch):
    model = make_model()
    finder = make(ours, model, memory_cache=False, cache_dir=tmp_path)
    before = flatten(model.state_dict())

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse)
        with pytest.raises(OSError, match="No space left"):
            finder.range_test(make_loader(), end_lr=1, num_iter=5)
    assert flatten(model.state_dict()) == before
    assert finder.optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("in_memory", [True, False])
def test_cacher_keeps_copies_and_gives_copies(in_memory):
    cacher = ours.StateCacher(in_memory)
    weights = torch.ones(3)
    cacher.store("own", {"weights": weights})
    weights.zero_()
    cacher.retrieve("own")["weights"].zero_()
    assert torch.equal(cacher.retrieve("own")["weights"], torch.ones(3))
    with pytest.raises(KeyError, match="Target other was not cached"):
        cacher.retrieve("other")


def loss_sequence(values):
    """A criterion whose losses are given, whatever the model does."""
    left = iter(values)
    return lambda outputs, _: outputs.sum() * 0 + next(left)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [0, 1, 25])
def test_loss_that_is_not_finite_ends_the_test(value, step):
    finder = make(ours, criterion=loss_sequence([2.0 - 0.01 * k for k in range(step)] + [value] * 50))
    finder.range_test(make_loader(), end_lr=10, num_iter=50)
    assert len(finder.history["loss"]) == step + 1
    assert np.isfinite(finder.history["loss"][:-1]).all()
    assert not np.isfinite(finder.history["loss"][-1])
    assert "the loss was" in finder.stop_reason
    assert all(p.isfinite().all() for p in finder.model.parameters())
    if step == 0:
        assert finder.best_loss is None
        with pytest.raises(RuntimeError, match="Got 1, because the loss was"):
            finder.suggestion()
    if step == 25:
        assert finder.suggestion(skip_end=0) in finder.history["lr"][:-2]
        assert finder.suggestion() == finder.plot(ax=Figure().add_subplot())[1]


def test_torch_lr_finder_goes_on_after_nan():
    finder, _ = play(lambda module: make(module, criterion=loss_sequence([2.0] * 5 + [float("nan")] * 50)), peer)
    finder.range_test(make_loader(), end_lr=10, num_iter=50)
    assert len(finder.history["loss"]) == 50


def test_curve_without_two_finite_neighbours_has_no_suggestion():
    finder = make(ours, criterion=loss_sequence([1.0, float("inf")]))
    finder.range_test(make_loader(), end_lr=10, num_iter=50)
    with pytest.raises(RuntimeError, match="neighbouring losses that are finite"):
        finder.suggestion(skip_start=0, skip_end=0)


def test_negative_losses_do_not_end_the_test_at_once():
    losses = [-1.0 - 0.1 * k for k in range(30)] + [20.0] * 10
    lengths = {}
    for module in (peer, ours):
        finder = make(module, criterion=loss_sequence(losses))
        finder.range_test(make_loader(), end_lr=10, num_iter=40, smooth_f=0)
        lengths[module] = len(finder.history["loss"])
    assert lengths == {peer: 1, ours: 31}
    assert finder.best_loss == pytest.approx(-3.9)


def mean_loss_of_untrained(model, pairs):
    model.eval()
    with torch.no_grad():
        losses = torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in pairs])
    return losses.mean().item()


@pytest.mark.parametrize(
    ("loader", "is_right_there"),
    [
        (lambda: make_loader(dataset=Subset(DIGITS, range(70)), shuffle=False), True),
        (lambda: make_loader(dataset=Subset(DIGITS, range(70)), shuffle=False, drop_last=True), False),
        (lambda: make_loader(sampler=range(40), shuffle=None), False),
    ],
)
def test_validation_loss_is_the_mean_over_the_samples_seen(loader, is_right_there):
    """The lr is tiny, so that the weights are those at the start."""
    expected = mean_loss_of_untrained(copy.deepcopy(model := make_model()), loader())
    found = {}
    for module in (peer, ours):
        finder = make(module, copy.deepcopy(model), None)
        finder.range_test(make_loader(), val_loader=loader(), start_lr=1e-12, end_lr=1e-11, num_iter=2)
        found[module] = finder.history["loss"][0]
    assert found[ours] == pytest.approx(expected, rel=1e-5)
    assert (found[peer] == pytest.approx(expected, rel=1e-5)) == is_right_there


def test_validation_takes_a_stream_without_length():
    finder = make(ours)
    finder.range_test(make_loader(), val_loader=DataLoader(Stream(), batch_size=None), end_lr=1, num_iter=20)
    assert len(finder.history["loss"]) == 20


def test_validation_iterator_that_was_left_half_way_starts_over():
    own = ours.ValDataLoaderIter(small_validation())
    next(own)
    assert sum(len(labels) for _, labels in own) == 150
    assert sum(len(labels) for _, labels in own) == 150


def test_labels_in_several_tensors_count_their_samples():
    """torch-lr-finder counts the tensors."""

    class Twice(ours.ValDataLoaderIter):
        def inputs_labels_from_batch(self, batch_data):
            return batch_data[0], (batch_data[1], batch_data[1])

    class TrainTwice(ours.TrainDataLoaderIter):
        inputs_labels_from_batch = Twice.inputs_labels_from_batch

    model = make_model()
    expected = mean_loss_of_untrained(copy.deepcopy(model), small_validation())
    finder = make(ours, model, criterion=lambda outputs, labels: F.cross_entropy(outputs, labels[0]))
    finder.range_test(
        TrainTwice(make_loader()), val_loader=Twice(small_validation()), start_lr=1e-12, end_lr=1e-11, num_iter=2
    )
    assert finder.history["loss"][0] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def tested():
    torch.manual_seed(0)
    finder = make(ours)
    finder.range_test(make_loader(), start_lr=1e-5, end_lr=10, num_iter=100)
    return finder


@pytest.mark.parametrize("rule", RULES)
def test_other_rules_are_applied_to_the_points_that_are_left(tested, rule):
    expected = suggest(tested.history["lr"][10:-5], tested.history["loss"][10:-5], rule=rule).lr
    assert tested.suggestion(rule) == expected
    assert tested.suggestion(lambda lrs, losses: lrs[0], skip_start=3) == tested.history["lr"][3]


def test_unknown_rule_is_refused(tested):
    with pytest.raises(ValueError, match="Did you mean 'valley'"):
        tested.suggestion("vally")


def test_first_lr_of_the_history_is_not_the_suggestion(tested):
    assert tested.history["lr"][0] == 1e-5
    assert tested.suggestion() > 1e-4


def test_plot_without_suggestion_returns_the_axes_alone(tested):
    ax = Figure().add_subplot()
    assert tested.plot(ax=ax, suggest_lr=False, show_lr=0.5) is ax
    assert ax.lines[-1].get_xdata() == [0.5, 0.5]
    assert ax.get_legend() is None


def test_plot_shows_a_figure_of_its_own_only(tested, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    tested.plot(ax=Figure().add_subplot())
    assert shown == []
    ax, _ = tested.plot()
    assert shown == [ax.figure]
    plt.close(ax.figure)


def test_nothing_is_printed(tested, capsys):
    finder = make(ours)
    finder.range_test(make_loader(), end_lr=1e6, num_iter=60)
    finder.plot(ax=Figure().add_subplot(), skip_start=1, skip_end=1)
    assert capsys.readouterr() == ("", "")
    assert finder.stop_reason.startswith(("the loss diverged, to", "the loss was"))
    assert tested.stop_reason is None or "diverged" in tested.stop_reason


def test_import_of_the_finder_does_not_import_matplotlib():
    code = "import sys, vecsweep.finder; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0


def task_of(model, optimizer, loader, val=None):
    return vs.Task(model, loader, F.cross_entropy, optimizer=optimizer, val_batches=val)


@pytest.mark.parametrize("mode", ["exp", "linear"])
def test_seeds_are_the_ramps_of_range_test(float64, mode):
    torch.manual_seed(0)
    data = TensorDataset(IMAGES.double() / 16, LABELS)
    model = make_model(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    finder = make(ours, model, optimizer)
    rng = torch.get_rng_state()
    before = flatten([model.state_dict(), optimizer.state_dict()])
    options = {"end_lr": 0.5, "num_iter": 25, "step_mode": mode}
    finder.range_test(make_loader(dataset=data), **options, smooth_f=0, diverge_th=float("inf"), seeds=3)
    assert torch.equal(torch.get_rng_state(), rng)
    assert flatten([model.state_dict(), optimizer.state_dict()]) == before
    spacing = {"exp": "exponential", "linear": "linear"}[mode]
    curves = []
    for seed in range(3):
        task = task_of(model, optimizer, make_loader(dataset=data))
        options = {"start_lr": 1e-4, "end_lr": 0.5, "num_steps": 25, "seeds": [seed], "spacing": spacing}
        single = vs.range_test(task, method="ramp", divergence_factor=None, **options)
        np.testing.assert_allclose(finder.history_by_seed[seed], single.train_loss[:, 0], rtol=1e-9)
        curves.append(single.train_loss[:, 0])
    np.testing.assert_allclose(finder.history["lr"], single.lrs, rtol=1e-12)
    np.testing.assert_allclose(finder.history["loss"], np.mean(curves, axis=0), rtol=1e-9)
    assert len({tuple(curve) for curve in finder.history_by_seed.values()}) == 3, "each has its own batches"


def test_seeds_are_smoothed_and_stopped_like_one_test():
    torch.manual_seed(0)
    finder = make(ours)
    finder.range_test(make_loader(), start_lr=1e-4, end_lr=1e6, num_iter=60, smooth_f=0.5, seeds=[4, 7])
    raw = make(ours, finder.model)
    raw.range_test(
        make_loader(), start_lr=1e-4, end_lr=1e6, num_iter=60, smooth_f=0, diverge_th=float("inf"), seeds=[4, 7]
    )
    num_noted = len(finder.history["loss"])
    assert num_noted < 60
    assert finder.stop_reason
    expected = [raw.history["loss"][0]]
    for loss in raw.history["loss"][1:num_noted]:
        expected.append(0.5 * loss + 0.5 * expected[-1])
    np.testing.assert_allclose(finder.history["loss"], expected, rtol=1e-6)
    assert list(finder.history_by_seed) == [4, 7]
    np.testing.assert_allclose(np.mean(list(finder.history_by_seed.values()), axis=0), expected, rtol=1e-6)
    assert expected[-1] > 5 * min(expected)
    assert all(loss <= 5 * min(expected[: k + 1]) for k, loss in enumerate(expected[:-1]))


def test_seeds_are_validated_after_each_step(float64):
    torch.manual_seed(0)
    data = TensorDataset(IMAGES.double() / 16, LABELS)
    val = make_loader(dataset=Subset(data, range(100)), shuffle=False)
    model = make_model()
    loader = [data[:50], data[50:100]]

    class Fixed(ours.TrainDataLoaderIter):
        pass

    finder = make(ours, model)
    finder.range_test(Fixed(loader), val_loader=val, end_lr=1, num_iter=10, seeds=2)
    single = make(ours, model)
    single.range_test(Fixed(loader), val_loader=val, end_lr=1, num_iter=10)
    for losses in finder.history_by_seed.values():  # the batches are in order, and nothing is random
        np.testing.assert_allclose(losses, single.history["loss"], rtol=1e-9)
    np.testing.assert_allclose(finder.history["lr"], single.history["lr"], rtol=1e-12)


def test_seeds_train_what_one_test_trains(float64):
    """A body in eval mode, groups that begin at one lr, accumulation, bfloat16, batches with more than two parts."""
    torch.manual_seed(0)
    model = make_model(has_norm=True)
    model[1].eval()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD([{"params": model[1].parameters()}, *groups], lr=0.2)
    images = IMAGES.double() / 16
    loader = [(images[k : k + 20], LABELS[k : k + 20], "note") for k in range(0, 100, 20)]
    histories = []
    for seeds in (None, 1):
        finder = make(ours, model, optimizer)
        options = {"start_lr": 1e-3, "end_lr": 1, "num_iter": 10, "accumulation_steps": 2}
        finder.range_test(ours.TrainDataLoaderIter(loader), **options, seeds=seeds)
        histories.append(finder.history)
        assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.5, 0.1]
        assert [module.training for module in model] == [True, False, True, True, True]
    np.testing.assert_allclose(histories[1]["loss"], histories[0]["loss"], rtol=1e-9)


def test_seeds_in_bfloat16_are_near_one_test_in_bfloat16():
    torch.manual_seed(0)
    model = make_model()
    options = {
        "amp_backend": "torch",
        "amp_config": {"dtype": torch.bfloat16},
        "grad_scaler": torch.amp.GradScaler(enabled=False),
    }
    loader = ours.TrainDataLoaderIter([DIGITS[:64], DIGITS[64:128]])
    histories = []
    for seeds in (None, 2):
        finder = make(ours, model, **options)
        finder.range_test(ours.TrainDataLoaderIter(loader.data_loader), end_lr=1, num_iter=10, seeds=seeds)
        histories.append(finder.history["loss"])
    np.testing.assert_allclose(histories[1], histories[0], rtol=2e-2)


def test_plot_of_seeds_has_a_band_from_lowest_to_highest():
    torch.manual_seed(0)
    finder = make(ours)
    finder.range_test(make_loader(), end_lr=0.5, num_iter=30, seeds=3)
    ax, lr = finder.plot(ax=Figure().add_subplot())
    assert lr == finder.suggestion()
    band = next(own for own in ax.collections if own.get_label() == "lowest to highest of 3 seeds")
    heights = band.get_paths()[0].vertices[:, 1]
    curves = np.array(list(finder.history_by_seed.values()))[:, 10:-5]
    assert heights.max() == pytest.approx(curves.max())
    assert heights.min() == pytest.approx(curves.min())
    np.testing.assert_allclose(ax.lines[0].get_ydata(), curves.mean(axis=0), rtol=1e-9)


def test_failed_seeds_change_nothing():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    model[2].eval()

    def explode(outputs, labels):
        raise Explodes

    finder = make(ours, model, optimizer, explode)
    with pytest.raises(Explodes):
        finder.range_test(make_loader(), start_lr=0.1, end_lr=1, num_iter=5, seeds=2)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert [module.training for module in model] == [True, True, False, True]


def scheduled():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {"model": model, "optimizer": optimizer}


def lbfgs():
    model = make_model()
    return {"model": model, "optimizer": torch.optim.LBFGS(model.parameters())}


BAD_FINDERS = {
    "scheduler": (scheduled, RuntimeError, "already has a scheduler attached"),
    "apex": (lambda: {"amp_backend": "apex"}, ValueError, "Unknown amp backend: apex"),
    "unknown backend": (lambda: {"amp_backend": "tensorrt"}, ValueError, "Unknown amp backend: tensorrt"),
    "no scaler": (lambda: {"amp_backend": "torch"}, ValueError, "`grad_scaler` is required"),
    "missing folder": (
        lambda: {"memory_cache": False, "cache_dir": "/nowhere/at/all"},
        ValueError,
        "not a valid directory. There is no folder '/nowhere/at/all'",
    ),
    "missing folder in memory": (lambda: {"cache_dir": "/nowhere"}, ValueError, "not a valid directory"),
}
OWN_BAD_FINDERS = {  # where torch-lr-finder fails later, or by accident
    "device": (lambda: {"device": "nowhere"}, RuntimeError, "nowhere"),
    "closure": (lbfgs, TypeError, "LBFGS needs one"),
    "swapped": (lambda: {"optimizer": nn.MSELoss()}, TypeError, "The order is model, optimizer, criterion"),
    "class": (lambda: {"criterion": nn.MSELoss}, TypeError, "an instance such as"),
    "no model": (lambda: {"model": F.relu, "optimizer": scheduled()["optimizer"]}, TypeError, "`model` must be"),
    "no parameters": (
        lambda: {"model": nn.ReLU(), "optimizer": torch.optim.SGD(make_model().parameters())},
        ValueError,
        "`model` must have parameters",
    ),
    "lazy": (lambda: {"model": nn.LazyLinear(3)}, ValueError, "`model` must be initialised"),
    "amp keyword": (
        lambda: {"amp_backend": "torch", "grad_scaler": torch.amp.GradScaler(enabled=False), "amp_config": {"dype": 1}},
        TypeError,
        "got 'dype'",
    ),
}


@pytest.mark.parametrize("name", BAD_FINDERS | OWN_BAD_FINDERS)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_bad_argument_of_the_finder_is_refused(name):
    make_options, error, match = (BAD_FINDERS | OWN_BAD_FINDERS)[name]
    with pytest.raises(error, match=match):
        make(ours, **make_options())


@pytest.mark.parametrize("name", BAD_FINDERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from its `__del__`
def test_bad_argument_of_the_finder_is_refused_by_torch_lr_finder_likewise(name):
    make_options, error, _ = BAD_FINDERS[name]
    with pytest.raises(error):
        make(peer, **make_options())


BAD_TESTS = {
    "step_mode": ({"step_mode": "cosine"}, ValueError, "expected one of"),
    "smooth_f of one": ({"smooth_f": 1}, ValueError, "smooth_f is outside"),
    "negative smooth_f": ({"smooth_f": -0.1}, ValueError, "smooth_f is outside"),
    "one step": ({"num_iter": 1}, ValueError, "`num_iter` must be larger than 1"),
    "list": ({"train_loader": [(1, 2)]}, ValueError, "`train_loader` has unsupported type"),
    "list to validate": ({"val_loader": [(1, 2)]}, ValueError, "`val_loader` has unsupported type"),
    "too many start lrs": (
        {"start_lr": [0.1, 0.2]},
        ValueError,
        "number of parameter groups in the given optimizer; `start_lr` has 2 for 1",
    ),
    "dict batches": (
        {"train_loader": lambda: DataLoader([{"x": torch.ones(1)}])},
        ValueError,
        "Your batch type is not supported: <class 'dict'>",
    ),
    "single batches": (
        {"train_loader": lambda: DataLoader(TensorDataset(IMAGES.float()))},
        ValueError,
        "got a list of 1",
    ),
    "no mode": ({"step_mode": ""}, ValueError, "expected one of"),
}
OWN_BAD_TESTS = {  # where torch-lr-finder fails by accident, or not at all
    "mode that is no name": ({"step_mode": None}, ValueError, "expected one of"),
    "no whole steps": ({"num_iter": 2.5}, ValueError, "`num_iter` must be a whole number"),
    "accumulation": ({"accumulation_steps": 0}, ValueError, "`accumulation_steps` must be a whole number"),
    "diverge_th": ({"diverge_th": 0.5}, ValueError, "`diverge_th` must be at least 1"),
    "NaN smooth_f": ({"smooth_f": float("nan")}, ValueError, "smooth_f is outside"),
    "negative start": ({"start_lr": -0.1}, ValueError, "must be positive and finite; got -0.1"),
    "negative end": ({"end_lr": -1}, ValueError, "`end_lr` must be positive and finite; got -1"),
    "infinite end": ({"end_lr": float("inf"), "step_mode": "linear"}, ValueError, "`end_lr` must be at least 0"),
    "no batches": (
        {"train_loader": lambda: DataLoader(Subset(DIGITS, range(3)), batch_size=8, drop_last=True)},
        ValueError,
        "`train_loader` must yield at least one batch",
    ),
    "no validation batches": (
        {"val_loader": lambda: DataLoader(Subset(DIGITS, range(3)), batch_size=8, drop_last=True)},
        ValueError,
        "`val_loader` must yield at least one sample",
    ),
    "no restoring with seeds": ({"seeds": 2, "restore": False}, ValueError, "`restore` must be True"),
    "no seeds": ({"seeds": 0}, ValueError, "`seeds` must be a whole number"),
}


def run_bad(module, given):
    model = make_model()
    before = flatten(model.state_dict())
    finder = make(module, model)
    arguments = {"train_loader": make_loader(), "end_lr": 1, "num_iter": 10} | given
    arguments = {name: value() if callable(value) else value for name, value in arguments.items()}
    try:
        finder.range_test(arguments.pop("train_loader"), **arguments)
    finally:
        if module is ours:
            assert flatten(model.state_dict()) == before
            assert finder.optimizer.param_groups[0]["lr"] == 1e-4


@pytest.mark.parametrize("name", BAD_TESTS | OWN_BAD_TESTS)
def test_bad_argument_of_a_test_is_refused(name):
    given, error, match = (BAD_TESTS | OWN_BAD_TESTS)[name]
    with pytest.raises(error, match=match):
        run_bad(ours, given)


@pytest.mark.parametrize("name", BAD_TESTS)
def test_bad_argument_of_a_test_is_refused_by_torch_lr_finder_likewise(name):
    given, error, _ = BAD_TESTS[name]
    with pytest.raises(error):
        run_bad(peer, given)


@pytest.mark.parametrize(
    ("criterion", "error", "match"),
    [
        (
            lambda o, y: F.cross_entropy(o, y, reduction="none"),
            ValueError,
            r"got a tensor of shape \(32,\). Average it",
        ),
        (lambda o, y: 1.0, TypeError, "`criterion` must return a tensor; got float"),
    ],
)
def test_criterion_that_gives_no_number_is_refused(criterion, error, match):
    model = make_model()
    before = flatten(model.state_dict())
    with pytest.raises(error, match=match):
        make(ours, model, criterion=criterion).range_test(make_loader(), end_lr=1)
    assert flatten(model.state_dict()) == before


def test_loss_with_one_element_is_taken():
    finder = make(ours, criterion=lambda o, y: F.cross_entropy(o, y)[None])
    finder.range_test(make_loader(), end_lr=1, num_iter=5)
    assert len(finder.history["loss"]) == 5


def test_loss_may_be_needed_by_its_own_gradient():
    """torch-lr-finder divides it in place, which autograd refuses for such a loss."""
    finders = {module: make(module, criterion=lambda o, y: F.cross_entropy(o, y).exp()) for module in (peer, ours)}
    with pytest.raises(RuntimeError, match="inplace"):
        finders[peer].range_test(make_loader(), end_lr=1, num_iter=5, accumulation_steps=2)
    finders[ours].range_test(make_loader(), end_lr=1, num_iter=5, accumulation_steps=2)


def test_lr_of_zero_is_refused_where_ratios_rise():
    model = make_model()
    finder = make(ours, model, torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(ValueError, match="No ratio leads to or from 0"):
        finder.range_test(make_loader(), end_lr=1)
    finder.range_test(make_loader(), end_lr=1, num_iter=5, step_mode="linear")
    assert finder.history["lr"] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_groups_that_begin_apart_have_no_seeds():
    with pytest.raises(ValueError, match="all parameter groups must begin at one lr"):
        run_groups(ours, seeds=2)


def test_training_iterator_that_is_not_to_start_over_ends_the_test():
    model = make_model()
    before = flatten(model.state_dict())
    finder = make(ours, model)
    own = ours.TrainDataLoaderIter(make_loader(dataset=Subset(DIGITS, range(100))), auto_reset=False)
    with pytest.raises(StopIteration):
        finder.range_test(own, end_lr=1, num_iter=10)
    assert len(finder.history["loss"]) == 4
    assert flatten(model.state_dict()) == before


BAD_PLOTS = {
    "skip_start": ({"skip_start": -1}, ValueError, "skip_start cannot be negative"),
    "skip_end": ({"skip_end": -1}, ValueError, "skip_end cannot be negative"),
    "show_lr": ({"show_lr": 1}, ValueError, "show_lr must be float; got 1"),
    "too few": ({"skip_start": 30}, RuntimeError, "Need at least 37 iterations"),
}


@pytest.mark.parametrize("name", BAD_PLOTS)
def test_bad_argument_of_a_plot_is_refused(name):
    given, error, match = BAD_PLOTS[name]
    for module, words in ((peer, None), (ours, match)):
        finder = make(module)
        finder.range_test(make_loader(), end_lr=1, num_iter=25)
        with pytest.raises(error, match=words):
            finder.plot(ax=Figure().add_subplot(), **given)


def test_plot_before_a_test_is_refused():
    for module in (peer, ours):
        with pytest.raises(RuntimeError, match=r"Got 0|Call `range_test` first"):
            make(module).plot(ax=Figure().add_subplot())
    with pytest.raises(RuntimeError, match="Call `range_test` first"):
        make(ours).suggestion()


def test_refused_test_keeps_the_history_of_the_one_before(tested):
    before = copy.deepcopy(tested.history)
    with pytest.raises(ValueError, match="expected one of"):
        tested.range_test(make_loader(), step_mode="cosine")
    assert tested.history == before


def test_native_is_the_mixed_precision_of_torch_where_there_is_a_scaler():
    def find(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        loader = DataLoader(TensorDataset(torch.randn(32, 4), torch.arange(32) % 2), 8)
        finder = vs.LRFinder(model, torch.optim.SGD(model.parameters(), lr=1e-3), nn.CrossEntropyLoss(), **options)
        finder.range_test(loader, end_lr=0.1, num_iter=8)
        return finder.history["loss"]

    scaled = {"amp_config": {"dtype": torch.bfloat16}, "grad_scaler": torch.amp.GradScaler("cpu", enabled=False)}
    assert find(amp_backend="native") == find()
    assert find(amp_backend="native", **scaled) == find(amp_backend="torch", **scaled) != find()


def test_find_answers_for_a_run_and_leaves_the_finder_as_it_is(tested):
    history, before = copy.deepcopy(tested.history), [p.clone() for p in tested.model.parameters()]
    loader = make_loader(shuffle=False)
    options = {"num_steps": 48, "schedule": "cosine", "budget": 2.5, "progress": False}
    answer = tested.find(loader, val_loader=make_loader(shuffle=False), **options)
    assert (answer.metric, answer.num_steps, answer.schedule) == ("val_loss", 48, "cosine")
    task = task_of(tested.model, tested.optimizer, loader, make_loader(shuffle=False))
    assert answer.lr == vs.find_lr(task, **options).lr
    assert tested.find(loader, **options).metric == "train_loss"
    assert tested.history == history
    assert all(torch.equal(own, old) for own, old in zip(tested.model.parameters(), before, strict=True))
