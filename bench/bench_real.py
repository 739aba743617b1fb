"""Short sweeps of models as people bring them, with nothing set: what a first try takes.

Each arm runs in a process of its own, twice: the first call includes what the arm loads, the second does not. The loops
train some of the members, and the time of the others is theirs multiplied. No variable of the environment is set, and
no thread pinned; imports of torch and of the model's library are in no arm's time.

Two loops stand beside ours: with torch.optim's default settings, as people write it, and with the fastest of its
kernels, of which `fused=True` is that of a CPU.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Record
from real_models import MODELS
from torch.utils import _pytree as pytree

import vecsweep as vs

ARMS = ("ours", "loop", "fastest")
NUM_LOOPED = 2  # members that a loop trains
SHAPES = [(2, 20), (8, 20), (8, 100)]  # members and steps
FULL_SHAPES = [(2, 100), (32, 20), (32, 100)]
# What 100 steps aim at against the loop with torch's defaults.
_CONVOLUTIONAL = ("resnet18", "efficientnet", "convnext", "unet")
_SMALL = ("mlp_small",)


def _lrs(num_members: int) -> Any:
    return np.geomspace(1e-5, 1e-3, num_members)  # none diverges, which would save time


def _ours(task: vs.Task, num_members: int, num_steps: int) -> tuple[float, list[float], str]:
    started = time.perf_counter()
    runs = vs.sweep(task, lrs=_lrs(num_members), num_steps=num_steps, progress=False)
    return time.perf_counter() - started, runs.train_loss[-1].tolist(), runs.engine


def _range_test(task: vs.Task, num_members: int, num_steps: int) -> float:
    started = time.perf_counter()
    vs.range_test(task, start_lr=1e-5, end_lr=1e-3, num_lrs=num_members, num_steps=num_steps, progress=False)
    return time.perf_counter() - started


def _loop(task: vs.Task, num_members: int, num_steps: int, *, is_fused: bool) -> tuple[float, list[float], str]:
    """Train one member after another; the seconds are those that all of them would take."""
    seconds, last = [], []
    for lr in _lrs(num_members)[:NUM_LOOPED]:
        started = time.perf_counter()
        torch.manual_seed(0)
        model = copy.deepcopy(task.model)
        optimizer = _optimizer(task, model, float(lr), is_fused=is_fused)
        for step in range(num_steps):
            optimizer.zero_grad()
            loss = task.loss(model, task.batches[step % len(task.batches)])
            loss.backward()
            optimizer.step()
            value = loss.item()
        last.append(value)
        seconds.append(time.perf_counter() - started)
    return sum(seconds) + (num_members - len(seconds)) * float(np.mean(seconds[1:])), last, ""


def _optimizer(task: vs.Task, model: torch.nn.Module, lr: float, *, is_fused: bool) -> torch.optim.Optimizer:
    optimizer = task.optimizer(model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["fused"] = is_fused or None
    return optimizer


def _measure(arm: str, name: str, num_members: int, num_steps: int) -> dict[str, Any]:
    """Call an arm twice; see the module."""
    torch.manual_seed(0)
    task = _placed(MODELS[name]())
    call: Callable[[], tuple[float, list[float], str]] = {
        "ours": lambda: _ours(task, num_members, num_steps),
        "loop": lambda: _loop(task, num_members, num_steps, is_fused=False),
        "fastest": lambda: _loop(task, num_members, num_steps, is_fused=True),
    }[arm]
    first_s, _, _ = call()
    second_s, losses, engine = call()
    row: dict[str, Any] = {"first_s": first_s, "second_s": second_s, "losses": losses, "engine": engine}
    if arm == "ours" and num_steps < 100:
        row["range_test_s"] = _range_test(task, num_members, num_steps)
    return row


def _placed(task: vs.Task) -> vs.Task:
    """The task on a GPU, if there is one, with batches that lie there."""
    if not torch.cuda.is_available():
        return task
    batches = pytree.tree_map(lambda leaf: leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf, task.batches)
    return replace(task, model=task.model.cuda(), batches=batches)


def _in_a_process(arm: str, name: str, num_members: int, num_steps: int) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    arguments = [arm, name, num_members, num_steps, torch.get_num_threads()]
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _aim(name: str, num_members: int, num_steps: int) -> float:
    """How many times the time of the loop with default settings ours is to be faster by."""
    if num_steps < 100:
        return 1.0
    if name in _SMALL:
        return 4.0
    return 1.2 if name in _CONVOLUTIONAL else 1.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [*SHAPES, *FULL_SHAPES], ids=lambda shape: "x".join(map(str, shape)))
def bench_real(record: Record, tiny: bool, request: pytest.FixtureRequest, name: str, shape: tuple[int, int]) -> None:
    """A sweep of a model, with nothing set."""
    pytest.importorskip("transformers", reason="it comes with the extra bench")
    if shape != SHAPES[0] if tiny else shape in FULL_SHAPES and not request.config.option.full:
        pytest.skip("asked for by --full")
    num_members, num_steps = (2, 2) if tiny else shape
    measure = _measure if tiny else _in_a_process
    found = {arm: measure(arm, name, num_members, num_steps) for arm in ARMS}
    ours, loop, fastest = (found[arm] for arm in ARMS)
    pairs = zip(ours["losses"], loop["losses"], strict=False)
    ratios = {
        "loop": loop["second_s"] / ours["second_s"],
        "fastest": fastest["second_s"] / ours["second_s"],
        "loop, first call": loop["first_s"] / ours["first_s"],
        "fastest, first call": fastest["first_s"] / ours["first_s"],
    }
    if "range_test_s" in ours:
        ratios["fastest to a range test"] = fastest["second_s"] / ours["range_test_s"]
    record(
        name=f"{name} {num_members} x {num_steps}",
        **{f"{arm}_ms": 1e3 * found[arm]["second_s"] for arm in ARMS},
        ratios=ratios,
        against="loop",
        target=_aim(name, num_members, num_steps),
        first_s=ours["first_s"],
        loss=ours["losses"][0],
        deviation=max(abs(a - b) / abs(b) for a, b in pairs),
        engine=ours["engine"],
    )


def _main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=ARMS)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("numbers", type=int, nargs=3, help="members, steps, threads")
    given = parser.parse_args()
    *shape, num_threads = given.numbers
    torch.set_num_threads(num_threads)
    print(json.dumps(_measure(given.arm, given.name, *shape)))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    _main()
