"""What keeping a run costs: seconds for each snapshot, of training that is held up or slowed down, and of the interval.

64 members of 0.5 M parameters with AdamW are 384 MiB of states.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from conftest import Record
from torch import nn

import vecsweep as vs
from vecsweep.checkpoint.keeper import FolderKeeper, Interval

INTERVAL_S = 300.0  # the default
ROUNDS = 2


def bench_checkpoint(record: Record, tiny: bool) -> None:
    """Sweep with and without, in turn."""
    num_members, num_steps, every = (2, 32, 16) if tiny else (64, 64, 16)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    batches = [(torch.randn(64, 1, 28, 28), torch.randint(10, (64,))) for _ in range(8)]
    task = vs.Task(model, batches, nn.functional.cross_entropy, optimizer=torch.optim.AdamW(model.parameters()))
    lrs = torch.logspace(-5, -3, num_members)

    def sweep(folder: Path | None) -> float:
        started = time.perf_counter()
        vs.sweep(
            task,
            lrs=lrs,
            num_steps=num_steps,
            engine="vectorized",
            chunk_size=min(num_members, 8),
            compile=False,
            checkpoint=folder,
            checkpoint_every=f"{every} steps",
        )
        return time.perf_counter() - started

    num_kept, keep = 0, FolderKeeper.keep

    def keep_timed(self: FolderKeeper, snapshot: object) -> None:
        nonlocal num_kept
        num_kept += 1
        keep(self, snapshot)  # type: ignore[arg-type]

    FolderKeeper.keep = keep_timed  # type: ignore[method-assign, assignment]
    extra_s, size = list[float](), 0
    try:
        for _ in range(1 if tiny else ROUNDS):
            plain_s = sweep(None)
            with tempfile.TemporaryDirectory() as folder:
                num_kept = 0
                kept_s = sweep(Path(folder) / "kept")
                extra_s.append((kept_s - plain_s) / max(1, num_kept))
                last = max((Path(folder) / "kept" / "run-000").glob("step-*"))
                size = sum(file.stat().st_size for file in last.iterdir())
    finally:
        FolderKeeper.keep = keep  # type: ignore[method-assign]
    assert Interval.parse("5min").seconds == INTERVAL_S
    median = statistics.median(extra_s)
    record(
        num_members=num_members,
        snapshot_mib=size / 2**20,
        snapshot_s=median,
        share_of_interval=median / INTERVAL_S,
        target=0.02,
    )
