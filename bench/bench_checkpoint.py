"""What keeping a run costs: the processor's seconds of a snapshot, as it is copied and as a thread writes it.

64 members of 0.5 M parameters with AdamW are 384 MB of states. The share of the interval counts the thread's seconds as
if no other core was there to take them.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import Record
from torch import nn

import vecsweep as vs
from vecsweep._engine import loop
from vecsweep.checkpoint.keeper import FolderKeeper

INTERVAL_S = 300.0  # the default


def bench_checkpoint(record: Record, tiny: bool) -> None:
    """Sweep, and time each snapshot."""
    num_members, num_steps = (2, 17) if tiny else (64, 65)
    torch.manual_seed(0)
    widths = (784, 500, 256)
    body = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    model = nn.Sequential(*body, nn.Linear(256, 10))
    batches = [(torch.randn(16, 784), torch.randint(10, (16,))) for _ in range(8)]
    task = vs.Task(model, batches, nn.functional.cross_entropy, optimizer=torch.optim.AdamW(model.parameters()))
    with (
        tempfile.TemporaryDirectory() as folder,
        _timed(loop, "take_snapshot") as copied_s,
        _timed(FolderKeeper, "_write") as written_s,
    ):
        vs.sweep(
            task,
            lrs=torch.logspace(-5, -3, num_members),
            num_steps=num_steps,
            engine="vectorized",
            compile=False,
            checkpoint=Path(folder) / "kept",
            checkpoint_every="16 steps",
        )
        last = max((Path(folder) / "kept" / "run-000").glob("step-*"))
        size = sum(file.stat().st_size for file in last.iterdir())
    copying, writing = statistics.median(copied_s), statistics.median(written_s)
    record(
        num_members=num_members,
        snapshot_mb=size / 1e6,
        num_snapshots=len(written_s),
        copying_s=copying,
        writing_s=writing,
        share_of_interval=(copying + writing) / INTERVAL_S,
        target=0.02,
    )


@contextmanager
def _timed(owner: Any, name: str) -> Iterator[list[float]]:
    """Note the processor's seconds of each call of a function, those of its thread alone."""
    seconds, function = list[float](), getattr(owner, name)

    def timed(*arguments: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.thread_time() - started)

    with mock.patch.object(owner, name, timed):
        yield seconds
