"""The ways that members can be stepped on, each by itself, beside the one that is taken with nothing set.

A default that is slower than the best way by more than a tenth was chosen badly. Small models, where it matters: what
batched members gain hangs on how much of a step is overhead, and not on the kind of the model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from real_models import mlp784_adamw, mlp_small, unet, vae
from torch import Tensor, nn

import vecsweep as vs

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "sequential": {"engine": "sequential"},
    "parallel": {"engine": "parallel"},
    "vectorized": {"engine": "vectorized", "compile": False},
}
SHAPES = [(2, 20), (8, 20), (8, 100)]  # members and steps
FULL_SHAPES = [(32, 20), (32, 100)]
NUM_SYMBOLS = 200


class Translator(nn.Module):
    """A transformer that reads one sequence and writes another."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_SYMBOLS, width)
        self.transformer = nn.Transformer(width, 2, 1, 1, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, NUM_SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict the next tokens of `[sequence, token]`: `[sequence, symbol, token]`."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        read = self.embedding(tokens)
        return self.head(self.transformer(read, read, tgt_mask=mask)).transpose(1, 2)


class Writer(nn.Module):
    """A transformer's encoder with a causal mask."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_SYMBOLS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, NUM_SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Translator.forward`."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.encoder(self.embedding(tokens), mask=mask, is_causal=True)).transpose(1, 2)


class Reader(nn.Module):
    """A recurrent net."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(NUM_SYMBOLS, width // 2)
        self.recurrent = nn.LSTM(width // 2, width, batch_first=True)
        self.head = nn.Linear(width, NUM_SYMBOLS)

    def forward(self, tokens: Tensor) -> Tensor:
        """As `Translator.forward`."""
        return self.head(self.recurrent(self.embedding(tokens))[0]).transpose(1, 2)


def _of_tokens(model: nn.Module, num_tokens: int) -> vs.Task:
    tokens = [torch.randint(NUM_SYMBOLS, (8, num_tokens)) for _ in range(4)]
    return vs.Task(model, [(own, own) for own in tokens], F.cross_entropy, optimizer=_adamw)


def _adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-3)


def translator() -> vs.Task:
    """A transformer of one layer each way, width 16, on 7 tokens: nearly all of a step is overhead."""
    return _of_tokens(Translator(), 7)


def writer() -> vs.Task:
    """A transformer's encoder of two layers, width 64, on 32 tokens."""
    return _of_tokens(Writer(), 32)


def reader() -> vs.Task:
    """An LSTM of 64 on 20 tokens."""
    return _of_tokens(Reader(), 20)


def deep() -> vs.Task:
    """30 blocks of Linear, LayerNorm and GELU, width 32."""
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()) for _ in range(30)]
    batches = [(torch.randn(32, 32), torch.randint(10, (32,))) for _ in range(4)]
    return vs.Task(nn.Sequential(*blocks, nn.Linear(32, 10)), batches, F.cross_entropy, optimizer=_adamw)


def convolutional() -> vs.Task:
    """Two convolutions with batch norms on images of 28x28."""
    blocks = [
        nn.Sequential(nn.Conv2d(a, b, 3), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)) for a, b in ((1, 16), (16, 32))
    ]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(800, 10))
    batches = [(torch.randn(32, 1, 28, 28), torch.randint(10, (32,))) for _ in range(4)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=_adamw)


MODELS: dict[str, Callable[[], vs.Task]] = {
    make.__name__: make
    for make in (translator, writer, reader, deep, convolutional, mlp_small, mlp784_adamw, vae, unet)
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [*SHAPES, *FULL_SHAPES], ids=lambda shape: "x".join(map(str, shape)))
def bench_ways(compare: Compare, tiny: bool, request: pytest.FixtureRequest, name: str, shape: tuple[int, int]) -> None:
    """A sweep on each of the ways, a process's later calls."""
    if shape != SHAPES[0] if tiny else shape in FULL_SHAPES and not request.config.option.full:
        pytest.skip("asked for by --full")
    num_members, num_steps = (2, 2) if tiny else shape
    torch.manual_seed(0)
    task, lrs = MODELS[name](), np.geomspace(1e-5, 1e-3, num_members)

    def sweep(**how: Any) -> str:
        return vs.sweep(task, lrs=lrs, num_steps=num_steps, progress=False, **how).engine

    taken = sweep()
    arms = {way: partial(sweep, **how) for way, how in WAYS.items()}
    compare(arms, rounds=3, name=f"{name} {num_members} x {num_steps}", target=0.9, engine=taken)
