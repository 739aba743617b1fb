"""Whole steps, and whole range tests: the batched pass against a plain loop over members.

The steps timed are those of a long sweep; what it costs to start is a fact of its own, `start_s`: seconds beyond what
the same steps take once they are steady. The losses of both arms are compared, so that speed is never shown without
correctness: `deviation` is the largest relative difference between them in the first steps. `page_faults` are those of
one step.
"""

import resource
import time
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from arms import BRIEF, GraphedStockLoop, PausedSweep, StockLoop
from conftest import Compare, Interleave, Record, is_tiny
from measure import summary
from roofline import roofline_s
from workloads import WORKLOADS, Workload

import vecsweep as vs

ON_GPU = torch.cuda.is_available()
ROUNDS = 5
SPAN_S = 0.6  # what an arm takes in a round, at least
PATIENCE_S = 10.0 if ON_GPU else 30.0  # until steps are taken to be steady
CHECKED_STEPS = 5
SHARE = 4  # of the members of a range test, one in so many is timed in the plain loop, and its time multiplied
FULL = {"digits-mlp": (1, 2, 4, 8, 16, 32, 64, 128)}  # numbers of members of a plot; of other workloads:
OTHERS = (1, 4, 16)
if ON_GPU:
    FULL = {"digits-mlp": (16, 64, 256, 1024), "mnist-mlp": (16, 64, 256, 1024)}
    OTHERS = (8, 32)
LEVELS: dict[str, dict[str, Any]] = {
    "auto": {},
    "eager": {"engine": "vectorized", "compile": False},
    "traced": {"engine": "vectorized", "compile": False},
    "compiled": {"engine": "vectorized", "compile": True},
    "sequential": {"engine": "sequential"},
}


class Case(NamedTuple):
    """A workload, how many members of it, and at which level."""

    workload: str
    num_members: int
    level: str


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the cases by the options."""
    if "case" in metafunc.fixturenames:
        levels = LEVELS if metafunc.config.option.levels else ["auto"]
        workloads = {name: workload_of(name, tiny=is_tiny(metafunc.config)) for name in WORKLOADS}
        cases = [
            Case(name, num_members, level)
            for name, workload in workloads.items()
            for num_members in sorted(
                {num_members_of(workload), *(FULL.get(name, OTHERS) if metafunc.config.option.full else ())}
            )
            for level in levels
        ]
        metafunc.parametrize("case", cases, ids=["-".join(map(str, case)) for case in cases])


def bench_steps(case: Case, interleave: Interleave, record: Record, tiny: bool) -> None:
    """Time steady steps."""
    workload = workload_of(case.workload, tiny=tiny)
    torch.manual_seed(0)
    task = make(workload)
    lrs = np.geomspace(1e-4, 1e-2, case.num_members)
    # There is no option for a step that is not even traced, because that is a fallback.
    with mock.patch("vecsweep._engine.ways.vectorized._MAX_GRAPHS", 0 if case.level == "eager" else 16):
        how = BRIEF if tiny else {"patience_s": PATIENCE_S}
        sweep = PausedSweep(task, lrs, workload.window_steps, **how, **LEVELS[case.level])
        step_s, start_s = sweep.settle()
        stock, num_trained = _stock(task, lrs, workload.window_steps)
        graphed, note = _graphed(task, lrs[:1]) if ON_GPU and isinstance(task.batches, list) else (None, "")
        num_windows = 1 if tiny else int(np.ceil(SPAN_S / (step_s * workload.window_steps)))
        faults: list[float] = []

        def advance() -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            sweep.advance(num_windows)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            faults.append((after - before) / (num_windows * workload.window_steps))

        seconds = interleave(
            {
                "step": advance,
                "stock": lambda: stock.train(num_trained, workload.window_steps),
            }
            | ({} if graphed is None else {"graphed": lambda: graphed.train(1, workload.window_steps)}),
            rounds=ROUNDS,
            scales={
                "step": 1 / (num_windows * workload.window_steps),
                "stock": len(lrs) / (num_trained * workload.window_steps),
                "graphed": len(lrs) / workload.window_steps,
            },
        )
        runs = sweep.stop()
    expected = StockLoop(task, lrs, sweep.seen).train(len(lrs), CHECKED_STEPS)
    record(
        workload=case.workload,
        num_members=case.num_members,
        level=case.level,
        **aims(workload, case),
        **summary(seconds),
        start_s=start_s,
        roofline_ms=1e3 * roofline_s(task, case.num_members),
        page_faults=float(np.median(faults)),
        loss=float(runs.train_loss[CHECKED_STEPS - 1].mean()),
        stock_loss=float(expected[-1].mean()),
        deviation=float(np.abs(runs.train_loss[:CHECKED_STEPS] / expected - 1).max()),
        stock_members_timed=num_trained,
        window_steps=workload.window_steps,
        engine=runs.engine,
        **({"note": note} if note else {}),
    )


def bench_range_test(compare: Compare, tiny: bool) -> None:
    """Time a whole range test, start included, as it is called again in a process that has called it before."""
    torch.manual_seed(0)
    task = make(WORKLOADS["digits-mlp"])
    how: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 0.1, "num_lrs": 64, "progress": False}
    how["num_steps"] = 5 if tiny else 100
    lrs = np.geomspace(how["start_lr"], how["end_lr"], how["num_lrs"])[::SHARE]
    found: list[vs.RangeTest] = []
    expected: list[np.ndarray] = []
    compare(
        {
            "vecsweep": lambda: found.append(vs.range_test(task, **how)),
            "stock": lambda: expected.append(StockLoop(task, lrs).train(len(lrs), how["num_steps"])),
        },
        rounds=ROUNDS,
        scales={"stock": SHARE},
        num_members=how["num_lrs"],
        num_steps=how["num_steps"],
        stock_members_timed=len(lrs),
    )
    np.testing.assert_allclose(found[0].train_loss[:, ::SHARE], expected[0], rtol=1e-3)


def bench_diverged(compare: Compare, tiny: bool) -> None:
    """Time a sweep of which three members in four diverge at once, and one of which none does: they cost little."""
    task = make(WORKLOADS["digits-mlp"])
    tame = np.geomspace(1e-4, 1e-2, 64)
    wild = np.where(np.arange(64) % 4 == 0, tame, 1e300 * tame)
    num_steps = 20 if tiny else 400
    compare(
        {
            "three_quarters_diverged": lambda: vs.sweep(task, lrs=wild, num_steps=num_steps, progress=False),
            "none_diverged": lambda: vs.sweep(task, lrs=tame, num_steps=num_steps, progress=False),
        },
        rounds=ROUNDS,
        num_members=64,
        num_steps=num_steps,
    )


def workload_of(name: str, *, tiny: bool) -> Workload:
    """A workload by its name, or as little of it as can be trained."""
    return WORKLOADS[name].tiny() if tiny else WORKLOADS[name]


def num_members_of(workload: Workload) -> int:
    """How many members the target is for, on this device."""
    return workload.gpu[0] if ON_GPU else workload.num_members


def aims(workload: Workload, case: Case) -> dict[str, Any]:
    """The ratio to the stock loop that is aimed at on this device, if it is for this case."""
    target = workload.gpu[1] if ON_GPU else workload.target
    is_for_case = (case.num_members, case.level) == (num_members_of(workload), "auto")
    return {"target": target, "against": "stock"} if is_for_case and target is not None else {}


def make(workload: Workload) -> vs.Task:
    """Make the task of a workload, on the GPU if there is one."""
    task = workload.make()
    return replace(task, model=task.model.cuda()) if ON_GPU else task


def _graphed(task: vs.Task, lrs: np.ndarray) -> tuple[GraphedStockLoop | None, str]:
    """A plain loop as CUDA graphs; where it cannot be one, why, lest that keeps the other arms from being timed."""
    try:
        return GraphedStockLoop(task, lrs), ""
    except RuntimeError as error:
        return None, f"not graphed: {str(error).partition(chr(10))[0]}"


def _stock(task: vs.Task, lrs: np.ndarray, num_steps: int) -> tuple[StockLoop, int]:
    """A plain loop that is warm, and how many of its members it is to train in a round."""
    stock = StockLoop(task, lrs)
    stock.train(1, 2)
    started = time.perf_counter()
    stock.train(1, num_steps)
    return stock, min(len(lrs), int(np.ceil(SPAN_S / (time.perf_counter() - started))))
