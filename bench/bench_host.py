"""What the host does for a step that is captured: everything around a graph that does nothing, of a small MLP.

On a GPU this goes on beside the kernels, as long as they take longer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from arms import BRIEF, PausedSweep
from conftest import Record
from torch import Tensor, nn

import vecsweep as vs
from vecsweep._engine.graphs import staging
from vecsweep._engine.ways import program, vectorized

WINDOW_STEPS = 16


class _Nothing:
    """In place of a captured step."""

    def __init__(self, *_: object) -> None:
        pass

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return []


class _Staged(staging.Staged):
    """Steps of which all members come out alive."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        for found in self._found:
            found.fill_(1)


@contextmanager
def _captured_to_nothing() -> Iterator[None]:
    patches: list[Any] = [
        mock.patch.object(staging, "Captured", _Nothing),
        mock.patch.object(staging, "Staged", _Staged),
        mock.patch.object(staging, "aside", nullcontext),
        mock.patch.object(program, "CHECKED_CALLS", (3,)),
        mock.patch.object(vectorized, "Pool", mock.Mock),
        mock.patch.object(vectorized, "is_capturable", bool),
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


@pytest.mark.parametrize("num_members", [16, 1024, 4096])
def bench_host(num_members: int, record: Record, tiny: bool) -> None:
    """Train with a graph that does nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(64)]
    task = vs.Task(model, batches, F.cross_entropy, optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3))
    lrs = np.geomspace(1e-4, 1e-2, 2 if tiny else num_members)
    how: dict[str, Any] = {"engine": "vectorized", "chunk_size": len(lrs), "compile": False}
    with _captured_to_nothing():
        sweep = PausedSweep(task, lrs, WINDOW_STEPS, **(BRIEF if tiny else {"patience_s": 5.0}), **how)
        step_s, _ = sweep.settle()
        sweep.stop()
    record(num_members=num_members, host_us=1e6 * step_s, target_us=10)
