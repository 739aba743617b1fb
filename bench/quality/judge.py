"""Suggestions of learning rates, ours and the finders', held against the truth: regret, spread and cost.

    python bench/quality/judge.py                     # held-out problems, every method: the table of README
    python bench/quality/judge.py --all --seeds 1     # all problems
    python bench/quality/judge.py --methods "find_lr 4" --problems text
    python bench/quality/judge.py --brief             # runs of 40 and 96 steps

*Regret* is (loss at the suggested lr - best) / (loss untrained - best), by the truth's mean over its seeds, linear in
log lr between its learning rates. *Spread* is the standard deviation of a problem's suggestions over seeds, in decades.
*Cost* is the work in runs of one member, *time* the wall-clock in those of a plain loop over the same run.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from problems import DEFAULT_LR, Problem, problems
from truth import FILE

import vecsweep as vs
from vecsweep.integrations.lightning import FoundLr

RESULTS = Path(__file__).parents[1] / "results"
_RAMP_STEPS = 100  # what the finders take by default
_WORST = 3.0  # regret, at most: how far a loss explodes says nothing more
_BAD = 0.1  # regret
_KINDS = (  # of doubts, by words of theirs: those of find_lr, then those of curves and of what is read off them
    *("hardly gains", "that raced", "diverged later", "sent home", "stands right below", "take turns"),
    *("Too few", "is flat", "lower edge", "upper edge", "edge of stability", "although larger"),
    *("far outside", "is not below", "is higher than"),
)


class Suggested(NamedTuple):
    """What a method says."""

    lr: float
    cost: float
    doubts: tuple[str, ...] = ()


Method = Callable[[Problem, vs.Task, int], Suggested]


def _find_lr(budget: float | None, *, is_raw: bool = False) -> Method:
    """Our answer, or the lr of the winner that it is read off."""

    def method(problem: Problem, task: vs.Task, seed: int) -> Suggested:
        answer = vs.find_lr(
            task, num_steps=problem.num_steps, schedule=problem.schedule, budget=budget, seed=seed, progress=False
        )
        return Suggested(answer.winner.setting.lr if is_raw else answer.lr, answer.cost, answer.doubts)

    return method


def _ramp(
    rule: str | None,
    smoothing: float | None = None,
    seeds: int = 1,
    ends: Callable[[float], dict[str, float]] = lambda default: {},
) -> Method:
    """A rule of ramps; `ends` makes a range of everybody's default."""

    def method(problem: Problem, task: vs.Task, seed: int) -> Suggested:
        found = vs.range_test(
            task,
            method="ramp",
            num_steps=_RAMP_STEPS,
            seeds=seeds,
            seed=seed,
            progress=False,
            **ends(DEFAULT_LR[problem.optimizer]),
        )
        own = found.suggest(rule, smoothing=smoothing)
        return Suggested(own.lr, seeds * np.isfinite(found.train_loss[:, 0]).sum() / problem.num_steps, own.doubts)

    return method


def _grid(rule: str, *, is_for_the_run: bool = False) -> Method:
    def method(problem: Problem, task: vs.Task, seed: int) -> Suggested:
        found = vs.range_test(task, num_lrs=32, num_steps=100, seed=seed, progress=False)
        run = {"horizon": problem.num_steps, "schedule": problem.schedule} if is_for_the_run else {}
        own = found.suggest(rule, **run)
        return Suggested(own.lr, np.isfinite(found.train_loss).sum() / problem.num_steps, own.doubts)

    return method


def _lightning(problem: Problem, task: vs.Task, seed: int) -> Suggested:
    found = vs.range_test(
        task,
        method="ramp",
        start_lr=1e-8,
        end_lr=1.0,
        num_steps=_RAMP_STEPS,
        divergence_factor=4,
        seed=seed,
        progress=False,
    )
    cost = np.isfinite(found.train_loss[:, 0]).sum() / problem.num_steps
    return Suggested(FoundLr(found).suggestion(rule="lightning"), cost)


def _in_full(share: float, position: float | None) -> Method:
    """Eleven learning rates around the default, trained for a share of the run with its whole schedule."""

    def method(problem: Problem, task: vs.Task, seed: int) -> Suggested:
        num_steps = int(share * problem.num_steps)
        runs = vs.sweep(
            task,
            lrs=DEFAULT_LR[problem.optimizer] * 10 ** np.arange(-2.5, 2.6, 0.5),
            schedules=[problem.schedule],
            num_steps=num_steps,
            val_every=num_steps,
            seed=seed,
            progress=False,
        )
        lr = runs.members[runs.best("val_loss")].lr if position is None else runs.basin(position=position).lr
        return Suggested(lr, np.isfinite(runs.train_loss).sum() / problem.num_steps)

    return method


def _default(problem: Problem, task: vs.Task, seed: int) -> Suggested:
    return Suggested(DEFAULT_LR[problem.optimizer], 0.0)


METHODS: dict[str, Method] = {
    "everybody's default": _default,
    "ramp, steepest, smoothing 0.05 (torch-lr-finder)": _ramp("steepest", 0.05),
    "ramp, Lightning's rule": _lightning,
    "ramp, valley (fastai)": _ramp("valley", 0.98),
    "ramp, minimum (fastai)": _ramp("minimum", 0.98),
    "ramp, our default": _ramp(None),
    "ramp, our default, 4 seeds": _ramp(None, seeds=4),
    "ramp, our default, up to everybody's default": _ramp(None, ends=lambda default: {"end_lr": default}),
    "ramp, our default, from ten times everybody's": _ramp(None, ends=lambda default: {"start_lr": 10 * default}),
    "grid 32 x 100, lowest": _grid("lowest"),
    "grid 32 x 100, basin": _grid("basin"),
    "grid 32 x 100, basin, shifted to the run": _grid("basin", is_for_the_run=True),
    "11 lrs, the schedule squeezed into a quarter, lower quarter of the basin": _in_full(0.25, 0.25),
    "11 lrs in full, the best": _in_full(1, None),
    "find_lr 1": _find_lr(1.0),
    "find_lr 2": _find_lr(2.0),
    "find_lr 4": _find_lr(4.0),
    "find_lr 4, the raw winner": _find_lr(4.0, is_raw=True),
    "find_lr 8": _find_lr(8.0),
    "find_lr": _find_lr(None),
}


class Truth:
    """What each lr comes to."""

    def __init__(self, own: dict[str, list]) -> None:
        final = np.array([[np.inf if v is None else v for v in of_lr] for of_lr in own["final"]])
        self._x = np.log(own["lrs"])
        mean = final.mean(axis=1)
        regret = (mean - mean.min()) / (own["start"] - mean.min())
        self._regret = np.minimum(np.nan_to_num(regret, nan=_WORST, posinf=_WORST), _WORST)

    def regret(self, lr: float) -> float:
        """Of a suggestion."""
        return float(np.interp(np.log(lr), self._x, self._regret))


def judge(method: Method, own: list[Problem], truths: dict[str, Truth], num_seeds: int) -> dict[str, object]:
    """Ask a method for each problem and seed."""
    regrets, spreads, costs, seconds, doubted = [], [], [], [], []
    by_kind = {kind: {"bad": 0, "good": 0} for kind in _KINDS}
    worst = (0.0, "")
    for problem in own:
        logs = []
        for seed in range(num_seeds):
            task = problem.make()
            started = time.perf_counter()
            found = method(problem, task, seed)
            seconds.append(time.perf_counter() - started)
            regrets.append(truths[problem.name].regret(found.lr))
            worst = max(worst, (regrets[-1], f"{problem.name}, seed {seed}: {found.lr:.3g}"))
            logs.append(np.log10(found.lr))
            costs.append(found.cost)
            doubted.append(bool(found.doubts))
            for kind in _KINDS:
                is_raised = any(kind in doubt for doubt in found.doubts)
                by_kind[kind]["bad" if regrets[-1] > _BAD else "good"] += is_raised
        spreads.append(np.std(logs, ddof=1) if num_seeds > 1 else np.nan)
    values, is_doubted = np.array(regrets), np.array(doubted)
    bad = values > _BAD
    return {
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p90": float(np.quantile(values, 0.9)),
        "worst": float(values.max()),
        "spread": float(np.mean(spreads)),
        "cost": float(np.mean(costs)),
        "seconds": float(np.mean(seconds)),
        "num_bad": int(bad.sum()),
        "bad_doubted": float(is_doubted[bad].mean()) if bad.any() else None,
        "good_doubted": float(is_doubted[~bad].mean()) if (~bad).any() else None,
        "doubts": {kind: counts for kind, counts in by_kind.items() if any(counts.values())},
        "worst_case": worst[1],
        "num": len(values),
    }


def plain_seconds(own: list[Problem]) -> float:
    """What one run takes in a loop as people write it, the mean over problems."""
    spent = []
    for problem in own:
        task = problem.make()
        model = task.model()
        optimizer = task.optimizer(model.parameters())
        started, done = time.perf_counter(), 0
        while done < problem.num_steps:
            for inputs, targets in task.batches:
                optimizer.zero_grad()
                loss = task.loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                done += 1
                if done == problem.num_steps:
                    break
        spent.append(time.perf_counter() - started)
    return float(np.mean(spent))


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="problems that methods were tuned on, too")
    parser.add_argument("--tuned", action="store_true", help="those alone")
    parser.add_argument("--brief", action="store_true", help="the brief runs in place of the longer ones")
    parser.add_argument("--problems", default="", metavar="TEXT", help="of tasks with this in their name")
    parser.add_argument("--methods", default="", metavar="TEXT", help="with this in their name")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=None, metavar="FILE.json", help="rows that are there stay")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    truths = {name: Truth(own) for name, own in json.loads(FILE.read_text()).items()}
    own = [
        problem
        for problem in problems()
        if options.problems in problem.task
        and problem.name in truths
        and problem.is_brief == options.brief
        and (options.all or problem.is_held_out != options.tuned)
    ]
    plain = plain_seconds(own)
    print(f"{len(own)} problems, {options.seeds} seeds, {options.threads} threads; a plain run takes {plain:.2f} s")
    print(
        "| method | regret: median | mean | p90 | worst | spread | cost | time | bad, of them doubted; good doubted |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = {}
    for name, method in METHODS.items():
        if options.methods not in name:
            continue
        try:
            row = rows[name] = judge(method, own, truths, options.seeds)
        except ValueError as error:  # too little a budget for some of them
            print(f"| {name} | {error} |", flush=True)
            continue
        doubts = ["-" if row[key] is None else f"{row[key]:.0%}" for key in ("bad_doubted", "good_doubted")]
        print(
            f"| {name} | {row['median']:.4f} | {row['mean']:.3f} | {row['p90']:.3f} | {row['worst']:.2f} | "
            f"{row['spread']:.2f} | {row['cost']:.2f} | {row['seconds'] / plain:.1f} | "
            f"{row['num_bad']}, {doubts[0]}; {doubts[1]} |",
            flush=True,
        )
        print(f"    worst: {row['worst_case']}; doubts: {row['doubts']}", flush=True) if row["worst"] > _BAD else None
    if options.output is not None:
        around = {"num_problems": len(own), "num_seeds": options.seeds, "threads": options.threads, "plain_s": plain}
        before = json.loads(options.output.read_text())["rows"] if options.output.exists() else {}
        options.output.write_text(json.dumps({**around, "rows": before | rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
