"""The verb check, and what it reports: how far the batched pass and stock PyTorch part."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch

from vecsweep._arguments import RESTARTABLE, check_lrs, check_seeds, check_task
from vecsweep._engine.record import Record
from vecsweep._engine.run import template_of, train
from vecsweep._errors import FallbackWarning
from vecsweep._types import FloatArray, Lrs, Seeds
from vecsweep.execution import Execution, ExecutionOptions, check_count
from vecsweep.plan import Plan
from vecsweep.task import Task

_NUM_SHOWN = 12  # deviations that are worth reading


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the two engines part on one tensor of one member.

    Attributes:
        dtype: in which they trained.
        member: its position.
        lr: its learning rate.
        name: of the parameter; "loss" for the curve.
        value: the largest absolute difference over the largest absolute value.
    """

    dtype: str
    member: int
    lr: float
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The batched pass against stock PyTorch.

    Attributes:
        deviations: of every member and parameter, largest first; none if nothing could be compared.
        tolerances: the largest deviation accepted, by dtype.
        engine: how the members were stepped, in words.
        notes: what could not be compared, and why.
        num_steps: how many updates were compared.
    """

    deviations: tuple[Deviation, ...]
    tolerances: dict[str, float]
    engine: str
    notes: tuple[str, ...]
    num_steps: int

    @property
    def is_equal(self) -> bool:
        """Whether something was compared, and every deviation is within its tolerance."""
        return bool(self.deviations) and all(d.value <= self.tolerances[d.dtype] for d in self.deviations)

    @property
    def verdict(self) -> str:
        """What the numbers mean, in a sentence or two."""
        parts = []
        for dtype, tolerance in self.tolerances.items():
            worst = max((d for d in self.deviations if d.dtype == dtype), key=lambda d: d.value)
            relation = "equals" if worst.value <= tolerance else "DIFFERS from"
            parts.append(
                f"In {dtype} the batched pass {relation} stock PyTorch over {self.num_steps} steps: the largest "
                f"relative deviation is {worst.value:.1e} (member {worst.member}, lr {worst.lr:.3g}, {worst.name}), "
                f"and up to {tolerance:.0e} is rounding."
            )
        return " ".join((*parts, *self.notes))

    def __str__(self) -> str:
        if not self.deviations:
            return self.verdict
        rows = [f"{'dtype':<10}{'member':>7}{'lr':>11}  {'deviation':>10}  name"]
        rows += [
            f"{d.dtype:<10}{d.member:>7}{d.lr:>11.3g}  {d.value:>10.1e}  {d.name}" for d in self.deviations[:_NUM_SHOWN]
        ]
        if len(self.deviations) > _NUM_SHOWN:
            rows.append(f"... and {len(self.deviations) - _NUM_SHOWN} smaller ones")
        return "\n".join((*rows, self.verdict))


def check(
    task: Task,
    *,
    lrs: Lrs | None = None,
    num_steps: int = 5,
    seeds: Seeds = 1,
    **execution: Unpack[ExecutionOptions],
) -> CheckReport:
    """Compare the batched pass with stock PyTorch on this task, member by member.

    A few members are trained for a few steps in both engines, once in float64, where they must agree to rounding, and
    once as the task stands, where rounding grows with each step.

    Args:
        task: what is trained; nothing of it is changed.
        lrs: the learning rates of the members; None for a tenth, half and all of the optimizer's own.
        num_steps: optimizer updates that are compared.
        seeds: how many seeds, or the seeds themselves.
        **execution: as in `sweep`; see `Execution`. `engine` has no say here.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
    """
    options = replace(check_task(task, execution), progress=False)
    check_count("num_steps", num_steps)
    if task.is_one_pass:
        raise ValueError(f"`check` trains several times over the same batches; got an iterator. {RESTARTABLE}")
    seed_list = check_seeds(seeds, options, task)
    if lrs is None:
        lrs = template_of(task, seed_list[0], options).param_groups[0]["lr"] * np.array([0.1, 0.5, 1.0])
    rates = check_lrs(lrs)
    plan = Plan.constant(rates, seed_list, num_steps)
    passes: list[tuple[float, Execution, torch.dtype | None]] = [
        (1e-9, replace(options, precision=None), torch.float64),
        (1e-3, options, None),
    ]
    deviations: list[Deviation] = []
    tolerances: dict[str, float] = {}
    notes: list[str] = []
    engine = ""
    for tolerance, how, dtype in passes:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FallbackWarning)
                batched = train(task, plan, replace(how, engine="vectorized"), dtype=dtype)
            stock = train(task, plan, replace(how, engine="sequential"), dtype=dtype)
        except (RuntimeError, TypeError) as error:
            if dtype is None:
                raise
            notes.append(f"In float64 the task does not run, so nothing was compared there: {str(error).rstrip('.')}.")
            continue
        engine = batched.engine
        if not batched.is_batched:
            continue
        own = next(iter(stock.states[0].parameters.values())).dtype
        name = how.precision or str(own).removeprefix("torch.")
        if name in tolerances:
            continue  # the task's own dtype is float64
        tolerances[name] = 5e-2 if how.precision or own in (torch.bfloat16, torch.float16) else tolerance
        deviations += _deviations(name, plan, batched, stock)
    if not deviations:
        notes.append(f"There was no batched pass to compare with stock PyTorch: {engine}.")
    ordered = tuple(sorted(deviations, key=lambda d: -d.value))
    return CheckReport(ordered, tolerances, engine, tuple(notes), num_steps)


def _deviations(dtype: str, plan: Plan, batched: Record, stock: Record) -> list[Deviation]:
    """Compare losses and parameters of each member."""
    rows = []
    for i, member in enumerate(plan.members):
        pairs: list[tuple[str, Any, Any]] = [("loss", batched.loss[:, i], stock.loss[:, i])]
        pairs += [
            (name, p.double().cpu().numpy(), stock.states[i].parameters[name].double().cpu().numpy())
            for name, p in batched.states[i].parameters.items()
        ]
        rows += [Deviation(dtype, i, member.lr, name, _relative(a, b)) for name, a, b in pairs]
    return rows


def _relative(a: FloatArray, b: FloatArray) -> float:
    """The largest difference over the largest value; infinite where only one of them is NaN."""
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    scale = np.nanmax(np.abs(b), initial=0.0)
    difference = float(np.nanmax(np.abs(a - b), initial=0.0))
    return difference / float(scale) if scale > 0 else difference
