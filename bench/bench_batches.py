"""What it costs that batches of sources which may refill their buffers are copied, and those of others are not.

A stream of batches, as a sweep reads it, from a generator and from a list of the same tensors; and a plain `next`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Compare
from torch import nn

import vecsweep as vs
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.data.batches import BatchStream

NUM_BATCHES = 100


@pytest.mark.parametrize("shape", [(64, 784), (128, 3, 32, 32)], ids=["mnist", "cifar"])
def bench_taken(shape: tuple[int, ...], compare: Compare, tiny: bool) -> None:
    """Take batches of one epoch after another."""
    num_batches = 2 if tiny else NUM_BATCHES
    batches = [(torch.randn(shape), torch.randint(10, shape[:1])) for _ in range(num_batches)]
    device = torch.device("cpu")

    def taking(source: Any) -> Callable[[], None]:
        model = nn.Linear(1, 1)
        task = vs.Task(model, source, F.cross_entropy, optimizer=torch.optim.SGD(model.parameters()))
        stream = BatchStream(task, 0, Streams(device), device)

        def take() -> None:
            for _ in range(num_batches):
                stream.take()

        return take

    def read() -> None:
        for _ in itertools.islice(batches, num_batches):
            pass

    arms = {"list": taking(batches), "generator": taking(lambda: iter(batches)), "next": read}
    row = compare(arms, rounds=15, num_batches=num_batches, batch_mb=batches[0][0].nbytes / 1e6)
    assert set(row["ratios"]) == {"generator", "next"}
