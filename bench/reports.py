"""How large a report of a long run is, and what it takes to write: losses that are made up, of more and more members.

python bench/reports.py         # docs/report.md, but for the last column, which the profiler of a browser tells
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from vecsweep.results import MemberRecord, Sweep

NUM_STEPS, VAL_EVERY = 20_000, 500


def make_up(num_members: int) -> Sweep:
    """Make losses that come down with noise, and two metrics."""
    noise = np.random.default_rng(0).random((NUM_STEPS, num_members))
    lrs = np.geomspace(1e-3, 1, num_members)
    loss = np.exp(-np.arange(NUM_STEPS)[:, None] / 5000) + 0.1 * noise
    evaluated_at = np.arange(VAL_EVERY, NUM_STEPS + 1, VAL_EVERY)
    val_loss = loss[evaluated_at - 1]
    return Sweep(
        members=tuple(MemberRecord(float(lr), "constant", 0, None, None, {}) for lr in lrs),
        lr=np.tile(lrs, (NUM_STEPS, 1)),
        train_loss=loss,
        metrics={"val_loss": val_loss, "val_accuracy": 1 - val_loss / 2},
        evaluated_at=evaluated_at,
        steps_per_epoch=float(VAL_EVERY),
        engine="made up",
        duration_s=1.0,
    )


def main() -> None:
    """Write reports, and print how large they are."""
    print("| members | size, MB | to write, CPU seconds |\n| --- | --- | --- |")
    for num_members in (8, 64, 256):
        runs = make_up(num_members)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            path = runs.to_html(Path(folder) / "report.html")
            print(f"| {num_members} | {path.stat().st_size / 1e6:.1f} | {time.process_time() - started:.1f} |")


if __name__ == "__main__":
    main()
