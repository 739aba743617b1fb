"""The truth of each problem: every learning rate of a fine grid, trained in full with three seeds.

    python bench/quality/truth.py                 # those that truth.json lacks; an hour on two cores
    python bench/quality/truth.py --only mnist    # of tasks with this in their name

Five seeds of a suggestion are judged by these three: what is asked is which lr is good for the task, not for a seed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from problems import Problem, problems

import vecsweep as vs

FILE = Path(__file__).parent / "truth.json"
NUM_SEEDS = 3
_DECADES = {"sgd": (-5.0, 2.0), "momentum": (-5.0, 2.0)}  # of the grid; of others, one lower
_SPACING = 0.2


def lrs_of(problem: Problem) -> np.ndarray:
    """The grid of learning rates, `[lr]`."""
    low, high = _DECADES.get(problem.optimizer, (-6.0, 1.0))
    return 10 ** np.arange(low, high + _SPACING / 2, _SPACING)


def train(problem: Problem) -> dict[str, object]:
    """Train a problem's learning rates in full; nobody is ended early."""
    lrs = lrs_of(problem)
    runs = vs.sweep(
        problem.make(),
        lrs=lrs,
        schedules=[problem.schedule],
        seeds=NUM_SEEDS,
        num_steps=problem.num_steps,
        val_every=max(8, problem.num_steps // 64),
        divergence_factor=None,
    )
    values = runs.metrics["val_loss"].reshape(-1, len(lrs), NUM_SEEDS)
    return {
        "lrs": [float(f"{lr:.6g}") for lr in lrs],
        "start": float(f"{np.nanmean(values[0, :2]):.6g}"),  # the least learning rates move nothing at first
        "final": [[float(f"{v:.5g}") if np.isfinite(v) else None for v in of_lr] for of_lr in values[-1]],
    }


def main() -> None:
    """Add what the file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT")
    wanted = parser.parse_args().only
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for problem in problems():
        if wanted in problem.task and problem.name not in found:
            print(problem.name, flush=True)
            found[problem.name] = train(problem)
            rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(own)}" for name, own in found.items())
            FILE.write_text(f"{{\n{rows}\n}}\n")


if __name__ == "__main__":
    main()
