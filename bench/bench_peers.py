"""A range test over 64 learning rates, 100 steps each, of the digits MLP, against the LR finders that people use.

They train one learning rate after another: each is timed on a few, and its time is multiplied. All have the same
batches, the initial weights and the losses: `deviation` is the largest relative difference from ours.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from arms import BRIEF, PausedSweep, StockLoop
from conftest import Compare, Record
from fresh import first_call
from measure import summary
from peers import FINDERS, MOMENTUM, Pairs, make_model

import vecsweep as vs
from vecsweep.tasks import digits

NUM_LRS, NUM_STEPS = 64, 100
LRS = np.geomspace(1e-5, 0.1, NUM_LRS)
SHARE = 16  # one learning rate in so many is given to a peer
ROUNDS = 5
FRESH_ROUNDS = 3
TARGET = 10.0  # over torch-lr-finder, the first call in a process included
MODULES = {"torch-lr-finder": "torch_lr_finder", "ignite": "ignite", "lightning": "lightning", "fastai": "fastai"}


@pytest.fixture(scope="module")
def num_steps(tiny: bool) -> int:
    """Of a range test."""
    return 5 if tiny else NUM_STEPS


@pytest.fixture(scope="module")
def batches() -> Pairs:
    """One pass over the digits, in batches of 64."""
    torch.manual_seed(0)
    return list(digits().batches)


@pytest.mark.parametrize("peer", list(MODULES))
def bench_peer(peer: str, batches: Pairs, num_steps: int, compare: Compare) -> None:
    """Time range tests in a process that has made some before."""
    if importlib.util.find_spec(MODULES[peer]) is None:
        pytest.skip(f"{peer} is not installed; see bench/README.md")
    ours, theirs = FINDERS["vecsweep"](batches), FINDERS[peer](batches)
    few = LRS[::SHARE]
    expected = ours(LRS, num_steps)[:, ::SHARE]
    compare(
        {"vecsweep": lambda: ours(LRS, num_steps), "peer": lambda: theirs(few, num_steps)},
        rounds=ROUNDS,
        scales={"peer": NUM_LRS / len(few)},
        deviation=float(np.abs(theirs(few, num_steps) / expected - 1).max()),
        peer_runs_timed=len(few),
        scaled_to=NUM_LRS,
    )


@pytest.mark.parametrize("cache", ["cold", "warm"])
def bench_first_call(cache: str, batches: Pairs, num_steps: int, record: Record, tmp_path: Path, tiny: bool) -> None:
    """Time the first call in a new process, imports included, torch's own apart; on a new machine, or a used one."""
    if importlib.util.find_spec("torch_lr_finder") is None:
        pytest.skip("torch-lr-finder is not installed; see bench/README.md")
    torch.save(batches, tmp_path / "batches.pt")
    np.save(tmp_path / "lrs.npy", LRS)
    np.save(tmp_path / "num_steps.npy", num_steps)
    seconds: dict[str, list[float]] = {"vecsweep": [], "torch-lr-finder": []}
    for i in range(-(cache == "warm" and not tiny), 1 if tiny else FRESH_ROUNDS):
        folder = tmp_path / ("warm" if cache == "warm" else f"cold{i}")
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "VECSWEEP_CACHE": str(folder)}
        is_here = tiny and cache == "warm"
        ours_s = first_call("vecsweep", tmp_path, here=is_here, **caches)
        if i >= 0:
            seconds["vecsweep"].append(ours_s)
            seconds["torch-lr-finder"].append(first_call("torch-lr-finder", tmp_path, here=is_here))
    ours, theirs = (np.load(tmp_path / f"{name}.npy") for name in seconds)
    record(**summary(seconds), deviation=float(np.abs(theirs / ours - 1).max()), target=TARGET)


def bench_jax(batches: Pairs, compare: Compare, tiny: bool) -> None:
    """Time steps alone, against JAX's vmap over members of the same step, compiled."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed; see bench/README.md")
    from jax_arm import jax_steps

    def optimizer(params: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.1, momentum=MOMENTUM)

    task = vs.Task(make_model(), batches, torch.nn.functional.cross_entropy, optimizer=optimizer)
    theirs = jax_steps(batches, LRS)
    expected = StockLoop(task, LRS).train(NUM_LRS, 5)
    deviation = float(np.abs(theirs(5) / expected - 1).max())
    sweep = PausedSweep(task, LRS, 16, **(BRIEF if tiny else {}))
    sweep.settle()
    compare(
        {"step": lambda: sweep.advance(4), "jax": lambda: theirs(64)},
        rounds=ROUNDS,
        scales={"step": 1 / 64, "jax": 1 / 64},
        num_members=NUM_LRS,
        deviation=deviation,
    )
    sweep.stop()
