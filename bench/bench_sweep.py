"""Whole steps: the batched pass against a plain loop over members on stock PyTorch, for each workload.

`python bench/bench_sweep.py [--compile] [WORKLOAD ...]` prints a table and writes a JSON file under bench/results/. The
time of a step is the difference between a long and a short run over their difference in steps, so that what it costs to
start is apart; the losses of both arms are compared, so that speed is never shown without correctness.
"""

import copy
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from measure import interleave, median_ratio, write
from workloads import WORKLOADS, Workload

import vecsweep as vs

ROUNDS = 3
SHORT = 10  # steps of the short run; the compiled step is compiled in it
SPAN_S = 1.0  # what the long run is longer, about
STOCK_STEPS = 4


def stock_losses(task: vs.Task, lrs: np.ndarray, num_steps: int) -> np.ndarray:
    """Train one member after another, as people do; return the losses before each update, `[step, member]`."""
    losses = np.empty((num_steps, len(lrs)))
    for i, lr in enumerate(lrs):
        model = copy.deepcopy(task.model)
        optimizer = task.optimizer(model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = lr
        for step in range(num_steps):
            inputs, targets = task.batches[step % len(task.batches)]
            optimizer.zero_grad()
            loss = task.loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses[step, i] = loss.item()
    return losses


def measure(name: str, workload: Workload, **how: Any) -> dict[str, Any]:
    """Measure one workload; return a row for the table."""
    torch.manual_seed(0)
    task = workload.make()
    lrs = np.geomspace(1e-4, 1e-2, workload.num_members)

    def batched(num_steps: int) -> vs.Sweep:
        return vs.sweep(task, lrs=lrs, num_steps=num_steps, divergence_factor=None, progress=False, **how)

    started = time.perf_counter()
    first = batched(SHORT)
    first_call_s = time.perf_counter() - started
    expected = stock_losses(task, lrs, SHORT)
    # How many steps take about SPAN_S; from two traced runs, for a run that compiles is no measure of its steps.
    traced = [vs.sweep(task, lrs=lrs, num_steps=n, progress=False).duration_s for n in (SHORT, 2 * SHORT)]
    span = max(10, min(400, int(SPAN_S * SHORT / max(traced[1] - traced[0], 1e-3))))
    arms = {
        "short": lambda: batched(SHORT),
        "long": lambda: batched(SHORT + span),
        "stock": lambda: stock_losses(task, lrs, STOCK_STEPS),
    }
    seconds = interleave(arms, ROUNDS)
    step_s = [(a - b) / span for a, b in zip(seconds["long"], seconds["short"], strict=True)]
    stock_step_s = [s / STOCK_STEPS for s in seconds["stock"]]
    return {
        "workload": name,
        "num_members": workload.num_members,
        "engine": first.engine,
        "step_ms": 1e3 * statistics.median(step_s),
        "stock_step_ms": 1e3 * statistics.median(stock_step_s),
        "ratio": median_ratio(stock_step_s, step_s),
        "target": workload.target,
        "first_call_s": first_call_s,
        "loss": float(first.train_loss[-1].mean()),
        "stock_loss": float(expected[-1].mean()),
        "deviation": float(np.abs(first.train_loss / expected - 1).max()),
    }


def main(arguments: list[str]) -> None:
    """Measure the workloads named, or all; with --compile, the compiled step."""
    is_compiled = "--compile" in arguments
    names = [name for name in arguments if not name.startswith("--")] or list(WORKLOADS)
    print(f"{'workload':<17}{'N':>4}{'step ms':>9}{'stock ms':>10}{'ratio':>7}{'target':>8}  deviation  engine")
    rows = []
    for name in names:
        row = measure(name, WORKLOADS[name], compile=is_compiled)
        rows.append(row)
        print(
            f"{name:<17}{row['num_members']:>4}{row['step_ms']:>9.2f}{row['stock_step_ms']:>10.2f}{row['ratio']:>7.2f}"
            f"{row['target']:>8.2f}  {row['deviation']:>9.0e}  {row['engine']}",
            flush=True,
        )
    print(f"Wrote {write('sweep-compiled' if is_compiled else 'sweep', rows)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
