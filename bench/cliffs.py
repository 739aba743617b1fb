"""Small problems, trained across the cliff beyond which learning rates no longer train, with no rule to end members.

Not here: the rules that are held against these curves (`bench_divergence.py`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import vecsweep as vs
from vecsweep.tasks import builtin, data
from vecsweep.tasks.batches import RandomCrops, ShuffledBatches, batches_in_order, crops_in_order
from vecsweep.tasks.models import CharGPT, mlp, tanh_net

FloatArray = NDArray[np.float64]

SEEDS = 3
_UNTRAINED = 1e-30  # a learning rate that moves no weight
_ADAPTIVE = (1e-4, 10.0)
_PLAIN = (1e-3, 100.0)
_SCHEDULES = {"constant": vs.schedules.constant(), "cosine": vs.schedules.cosine(1.0, 0.0)}


@dataclass(frozen=True)
class Problem:
    """A task, and what its members differ in.

    Attributes:
        make: builds the task.
        schedule: of the learning rate.
        num_steps: of each member.
        span: from the smallest to the largest learning rate; the grid is of quarter decades.
        metric: what is wanted at the end; an accuracy, or a loss.
    """

    make: Callable[[], vs.Task]
    schedule: str
    num_steps: int
    span: tuple[float, float]
    metric: str = "val_accuracy"


@dataclass(frozen=True)
class Curves:
    """What came of a problem.

    Attributes:
        lrs: `[lr]`.
        loss: `[step, lr, seed]`, not finite from where a member's loss was not.
        untrained: `[step, seed]`, of weights that do not move, on the same batches.
        regret: `[lr, seed]`, how much worse a member ended than the best lr's seeds on average: of an accuracy the
            difference, of a loss the share of what the best lr gained on the untrained weights. Infinite where it
            ended without a number.
        gain: `[lr, seed]`, by how much a member's last tenth of losses lies below the untrained weights' on average.
    """

    lrs: FloatArray
    loss: FloatArray
    untrained: FloatArray
    regret: FloatArray
    gain: FloatArray


def train(problem: Problem) -> Curves:
    """Train a problem's members to the end, whatever becomes of them."""
    low, high = np.log10(problem.span)
    lrs = np.logspace(low, high, round(4 * (high - low)) + 1)
    how: dict[str, Any] = {"num_steps": problem.num_steps, "seeds": SEEDS, "divergence_factor": None, "progress": False}
    runs = vs.sweep(
        problem.make(),
        lrs=[_UNTRAINED, *lrs.tolist()],
        schedules={problem.schedule: _SCHEDULES[problem.schedule]},
        val_every=problem.num_steps,
        **how,
    )
    loss = np.full((problem.num_steps, len(lrs) + 1, SEEDS), np.nan)
    final = np.full((len(lrs) + 1, SEEDS), np.nan)
    places = {lr: i for i, lr in enumerate([_UNTRAINED, *lrs.tolist()])}
    for k, member in enumerate(runs.members):
        loss[:, places[member.lr], member.seed] = runs.train_loss[:, k]
        final[places[member.lr], member.seed] = runs.metrics[problem.metric][-1, k]
    tail = max(1, problem.num_steps // 10)
    means = np.where(np.isfinite(final).all(axis=1), final.mean(axis=1), np.nan)
    if problem.metric == "val_accuracy":
        regret = np.nanmax(means[1:]) - final[1:]
    else:
        regret = (final[1:] - np.nanmin(means[1:])) / (means[0] - np.nanmin(means[1:]))
    return Curves(
        lrs=lrs,
        loss=loss[:, 1:],
        untrained=loss[:, 0],
        regret=np.where(np.isfinite(regret) & np.isfinite(loss[-1, 1:]), regret, np.inf),
        gain=loss[:, 0].mean(axis=0) - loss[-tail:, 1:].mean(axis=0),
    )


def _digits(batch_size: int = 64, **fields: Any) -> vs.Task:
    """The digits, standardised, in batches of this size."""
    own = data.digits_data()
    mean, std = own.train_inputs.mean(0), own.train_inputs.std(0) + 1e-6
    train, test = ((inputs - mean) / std for inputs in (own.train_inputs, own.test_inputs))
    return replace(
        builtin.digits(),
        batches=ShuffledBatches(train, own.train_targets, batch_size=batch_size),
        val_batches=batches_in_order(test, own.test_targets, batch_size=360),
        **fields,
    )


def _norm_mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def _polynomial(model: Callable[[], nn.Module], **fields: Any) -> vs.Task:
    return replace(builtin.tanh_regression(), model=model, **fields)


def _samples() -> ShuffledBatches:
    own = data.polynomial_data()
    return ShuffledBatches(own.train_inputs, own.train_targets, batch_size=1)


def _normal_nll(outputs: Tensor, targets: Tensor) -> Tensor:
    """What a normal distribution loses whose mean and log variance are put out; falls below zero."""
    mean, log_var = outputs.unbind(-1)
    return 0.5 * (log_var + (targets.squeeze(-1) - mean) ** 2 * (-log_var).exp()).mean()


def _letters(num_symbols: int = 30) -> Tensor:
    """A made text: each letter follows from the two before it, but for one in ten."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(num_symbols, (num_symbols, num_symbols), generator=generator)
    noise = torch.randint(num_symbols, (30_000,), generator=generator).tolist()
    is_noise = (torch.rand(30_000, generator=generator) < 0.1).tolist()
    text = [0, 1]
    for own, is_random in zip(noise, is_noise, strict=True):
        text.append(own if is_random else int(table[text[-2], text[-1]]))
    return torch.tensor(text)


def _gpt(optimizer: Callable[..., torch.optim.Optimizer], batch_size: int = 16) -> vs.Task:
    text = _letters()
    return vs.Task(
        model=lambda: CharGPT(30, 16, width=32),
        batches=RandomCrops(text[:27_000], 16, batch_size=batch_size),
        loss_fn=F.cross_entropy,
        optimizer=optimizer,
        val_batches=crops_in_order(text[27_000:], 16, batch_size=64, num_batches=2),
        metrics={"accuracy": builtin.accuracy},
    )


def _shakespeare() -> vs.Task:
    own = data.shakespeare_data()
    return replace(builtin.shakespeare(), batches=RandomCrops(own.train_symbols, 32, batch_size=8))


_sgd = functools.partial(torch.optim.SGD, lr=0.1)
_momentum = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
_nesterov = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
_rmsprop = functools.partial(torch.optim.RMSprop, lr=0.01)
_adam = functools.partial(torch.optim.Adam, lr=0.01)
_adamw = functools.partial(torch.optim.AdamW, lr=0.01)

PROBLEMS: dict[str, Problem] = {
    "digits rmsprop cosine": Problem(lambda: _digits(optimizer=_rmsprop), "cosine", 400, _ADAPTIVE),
    "digits rmsprop constant": Problem(lambda: _digits(optimizer=_rmsprop), "constant", 200, _ADAPTIVE),
    "digits sgd constant": Problem(lambda: _digits(optimizer=_sgd), "constant", 300, _PLAIN),
    "digits momentum cosine": Problem(lambda: _digits(optimizer=_momentum), "cosine", 300, _PLAIN),
    "digits adam constant": Problem(lambda: _digits(optimizer=_adam), "constant", 300, _ADAPTIVE),
    "digits adam cosine, short": Problem(lambda: _digits(optimizer=_adam), "cosine", 100, _ADAPTIVE),
    "digits norm adam cosine": Problem(lambda: _digits(model=_norm_mlp, optimizer=_adam), "cosine", 300, _ADAPTIVE),
    "digits norm nesterov constant": Problem(
        lambda: _digits(model=_norm_mlp, optimizer=_nesterov), "constant", 300, _PLAIN
    ),
    "digits deep momentum cosine": Problem(
        lambda: _digits(model=lambda: mlp(64, 64, 64, 64, 64, 64, 64, 10), optimizer=_momentum), "cosine", 400, _PLAIN
    ),
    "digits-cnn adamw cosine": Problem(
        lambda: replace(builtin.digits_cnn(), optimizer=_adamw), "cosine", 200, _ADAPTIVE
    ),
    "digits-cnn momentum constant": Problem(
        lambda: replace(builtin.digits_cnn(), optimizer=_momentum), "constant", 200, _PLAIN
    ),
    "digits one at a time sgd constant": Problem(lambda: _digits(1, optimizer=_sgd), "constant", 600, _PLAIN),
    "digits one at a time adam cosine": Problem(lambda: _digits(1, optimizer=_adam), "cosine", 600, _ADAPTIVE),
    "polynomial norm adam constant": Problem(
        lambda: _polynomial(lambda: tanh_net(num_features=5, width=32)), "constant", 300, _ADAPTIVE, "val_loss"
    ),
    "polynomial momentum cosine": Problem(
        lambda: _polynomial(lambda: mlp(5, 64, 64, 1), optimizer=_momentum), "cosine", 300, _PLAIN, "val_loss"
    ),
    "polynomial one at a time sgd constant": Problem(
        lambda: _polynomial(lambda: mlp(5, 64, 64, 1), optimizer=_sgd, batches=_samples()),
        "constant",
        600,
        _PLAIN,
        "val_loss",
    ),
    "polynomial one at a time adam cosine": Problem(
        lambda: _polynomial(lambda: mlp(5, 64, 64, 1), optimizer=_adam, batches=_samples()),
        "cosine",
        600,
        _ADAPTIVE,
        "val_loss",
    ),
    "digits rmsprop cosine, long": Problem(lambda: _digits(optimizer=_rmsprop), "cosine", 3000, _ADAPTIVE),
    "polynomial adam cosine, long": Problem(
        lambda: _polynomial(lambda: mlp(5, 64, 64, 1), optimizer=_adam), "cosine", 3000, _ADAPTIVE, "val_loss"
    ),
    "polynomial nll adam cosine": Problem(
        lambda: _polynomial(lambda: mlp(5, 64, 64, 2), loss_fn=_normal_nll, metrics={}, optimizer=_adam),
        "cosine",
        300,
        _ADAPTIVE,
        "val_loss",
    ),
    "letters gpt adamw cosine": Problem(lambda: _gpt(_adamw), "cosine", 400, _ADAPTIVE, "val_loss"),
    "letters gpt momentum constant": Problem(lambda: _gpt(_momentum), "constant", 300, _PLAIN, "val_loss"),
    "mnist adam constant": Problem(builtin.mnist, "constant", 200, _ADAPTIVE),
    "mnist momentum cosine": Problem(
        lambda: replace(builtin.mnist(), optimizer=_momentum), "cosine", 200, (1e-2, 10.0)
    ),
    "shakespeare adamw cosine": Problem(_shakespeare, "cosine", 200, (1e-3, 10.0), "val_loss"),
}
