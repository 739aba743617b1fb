"""What a member's step costs as members grow from 64 to 4,096: whole sweeps of a tiny model, start and end included.

The model is so small that what the host does for each member shows. The rows have `member_step_us`, which must not grow
with the members. The plain loop trains some of the members, and its time is multiplied.

`bench_many_members` goes on to 100,000, ours alone, each in a process of its own: processor time and memory.
"""

import copy
from collections.abc import Callable
from typing import Any

import apart
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Interleave, Record
from measure import summary
from torch import nn

import vecsweep as vs

NUM_STEPS = 50
NUM_MANY_STEPS = 10
NUM_LOOPED = 8  # members that the plain loop trains
ROUNDS = 5
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "patience": {"val_every": 10, "patience": 5},
    "feedback": {"val_every": 10, "schedules": {"plateau": vs.schedules.plateau()}},
    "seeds": {"seeds": 4},
}


def _task() -> vs.Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    batches = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(10)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=_momentum, val_batches=batches[:2])


def _momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def _loop(task: vs.Task, lrs: np.ndarray) -> np.ndarray:
    """Train one member after another, as people do; return their last losses."""
    last = []
    for lr in lrs:
        model = copy.deepcopy(task.model)
        optimizer = _momentum(model.parameters())
        optimizer.param_groups[0]["lr"] = float(lr)
        for step in range(NUM_STEPS):
            inputs, targets = task.batches[step % len(task.batches)]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            value = loss.item()
        last.append(value)
    return np.array(last)


def _deviation(task: vs.Task, runs: vs.Sweep, lrs: np.ndarray, looped: np.ndarray) -> float:
    """The largest relative difference between the last losses of both."""
    ours = runs.train_loss[-1, np.isin(lrs, looped)]
    return float(np.abs(ours / _loop(task, looped) - 1).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_members", [64, 256, 512, 1024, 2048, 4096])
def bench_members(num_members: int, kind: str, interleave: Interleave, record: Record, tiny: bool) -> None:
    """Train tiny models; evaluations, patience and schedules that follow a metric are work of ours alone."""
    num_members = min(num_members, 64) if tiny else num_members
    task, how = _task(), KINDS[kind]
    lrs = np.geomspace(1e-3, 1e-1, num_members // how.get("seeds", 1))
    looped = lrs[:: len(lrs) // NUM_LOOPED]
    arms: dict[str, Callable[[], Any]] = {
        "ours": lambda: vs.sweep(task, lrs=lrs, num_steps=NUM_STEPS, engine="vectorized", compile=False, **how),
        "loop": lambda: _loop(task, looped),
    }
    row = summary(interleave(arms, rounds=ROUNDS, scales={"loop": num_members / len(looped)}))
    record(
        num_members=num_members,
        member_step_us=1e3 * row["ours_ms"] / num_members / NUM_STEPS,
        **row,
        num_steps=NUM_STEPS,
        stock_members_timed=len(looped),
        deviation=_deviation(task, arms["ours"](), lrs, looped) if kind == "plain" else None,
    )


@pytest.mark.parametrize("num_members", [1_000, 10_000, 100_000])
def bench_many_members(num_members: int, record: Record, tiny: bool) -> None:
    """Train a still smaller model for few steps: neither time nor memory may grow faster than the members."""
    num_members = min(num_members, 20) if tiny else num_members
    own = apart.run("members", num_members, NUM_MANY_STEPS, here=tiny)
    record(
        num_members=num_members,
        num_steps=NUM_MANY_STEPS,
        **own,
        member_us=1e6 * own["cpu_s"] / num_members,
        member_kb=1e3 * own["peak_mb"] / num_members,
    )
