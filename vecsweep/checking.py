"""The verb check, and what it reports: how far a sweep's members and a plain loop part.

The loop shares nothing with the engines (`_engine/plain.py`), so that a defect of theirs shows here. What counts are
the losses and what the trained models compute. A parameter that nothing depends on - a bias before a batch norm, the
key bias of an attention - has a true gradient of 0; what an optimizer makes of its rounding is no defect.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vecsweep._arguments import RESTARTABLE, check_lrs, check_seeds, check_task
from vecsweep._engine.keeping.record import Record, here
from vecsweep._engine.plain import PlainLoop
from vecsweep._engine.run import plain_loop, template_of
from vecsweep._errors import FallbackWarning, Interrupted
from vecsweep._interrupts import held
from vecsweep._types import FloatArray, Lrs, Seeds
from vecsweep.cluster import train
from vecsweep.execution import Execution, ExecutionOptions, check_count
from vecsweep.plan import Plan
from vecsweep.task import Task

_NUM_SHOWN = 12  # deviations that are worth reading
_COMPUTED = 2  # batches on which the trained models are compared
_TOLERANCE = 1e-9  # in float64, where rounding is all that may differ
_OWN_TOLERANCE = {torch.float32: 1e-3, torch.float64: _TOLERANCE}  # rounding that has grown with each step
_HALF_TOLERANCE = 5e-2
_LOSS, _OUTPUTS, _EVAL_OUTPUTS = "loss", "outputs", "outputs in eval mode"


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a member and its plain loop part on one thing.

    Attributes:
        dtype: in which they trained.
        member: its position.
        lr: its learning rate.
        name: "loss" for the curve; "outputs" for what the trained model computes on the first batches, or, with a
            training step, loses there; else of the parameter or buffer.
        value: the largest absolute difference over the largest absolute value; of a curve, over the largest so far.
        step: of a curve, the first at which the tolerance is exceeded; None if it never is.
    """

    dtype: str
    member: int
    lr: float
    name: str
    value: float
    step: int | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """A sweep's members against plain loops.

    Attributes:
        deviations: of every member's losses and outputs, largest first; none if nothing could be compared.
        parameters: likewise, of its parameters and buffers; they have no say in whether the two are equal.
        tolerances: the largest deviation accepted, by dtype.
        engine: how the members were stepped, in words.
        notes: what could not be compared, and why.
        num_steps: how many updates were compared.
        is_batched: whether the members were stepped in one pass.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> report = vs.check(task, lrs=[0.01, 0.1], num_steps=5)
        >>> report.is_equal, report.num_steps
        (True, 5)
    """

    deviations: tuple[Deviation, ...]
    tolerances: dict[str, float]
    engine: str
    notes: tuple[str, ...]
    num_steps: int
    parameters: tuple[Deviation, ...] = ()
    is_batched: bool = True

    @property
    def is_equal(self) -> bool:
        """Whether something was compared, and every deviation is within its tolerance."""
        return bool(self.deviations) and not any(map(self._is_beyond, self.deviations))

    @property
    def without_effect(self) -> tuple[Deviation, ...]:
        """The parameters and buffers that differ although nothing that their member computes does."""
        affected = {(d.dtype, d.member) for d in self.deviations if self._is_beyond(d)}
        return tuple(d for d in self.parameters if self._is_beyond(d) and (d.dtype, d.member) not in affected)

    @property
    def verdict(self) -> str:
        """What the numbers mean, in a few sentences."""
        return " ".join((*self._verdicts(), *self.notes))

    def __str__(self) -> str:
        if not self.deviations:
            return self.verdict
        rows = [f"{'dtype':<10}{'member':>7}{'lr':>11}  {'deviation':>10}  name", *_lines(self.deviations)]
        if apart := self.without_effect:
            rows += ["without effect:", *_lines(apart)]
        return "\n".join((*rows, self.verdict))

    def _is_beyond(self, deviation: Deviation) -> bool:
        return not deviation.value <= self.tolerances[deviation.dtype]

    def _verdicts(self) -> Iterator[str]:
        what = "the batched pass" if self.is_batched else "the sequential engine"
        for dtype, tolerance in self.tolerances.items():
            own = [d for d in self.deviations if d.dtype == dtype]
            beyond = [d for d in own if self._is_beyond(d)]
            worst = max(own, key=lambda d: d.value)
            yield (
                f"In {dtype} {what} {'DIFFERS from' if beyond else 'equals'} a plain loop on stock PyTorch over "
                f"{self.num_steps} steps: the largest relative deviation is {worst.value:.1e} (member {worst.member}, "
                f"lr {worst.lr:.3g}, {worst.name}), and up to {tolerance:.0e} is rounding."
            )
            if beyond:
                yield _what_differs(beyond)
        if names := dict.fromkeys(d.name for d in self.without_effect):
            listed = ", ".join(list(names)[:_NUM_SHOWN])
            yield f"Without effect on any loss or output, these differ, as parameters do whose gradient is 0: {listed}."


@held()
def check(
    task: Task,
    *,
    lrs: Lrs | None = None,
    num_steps: int = 40,
    seeds: Seeds = 1,
    **execution: Unpack[ExecutionOptions],
) -> CheckReport:
    """Compare what a sweep would do with a plain loop over the task's own batches, member by member.

    A few members are trained, once in float64, where they must agree with the loop to rounding, and once as the task
    stands, where rounding grows with each step. The loop is the one that people write: a copy of the model, the
    optimizer's own class, the caller's batches read afresh; `zero_grad`, `backward`, `step`.

    Args:
        task: what is trained; nothing of it is changed.
        lrs: the learning rates of the members; None for a tenth, half and all of the optimizer's own.
        num_steps: optimizer updates that are compared. With fewer than about 33 some of what a long sweep does, such as
            tracing the step, is not reached.
        seeds: how many seeds, or the seeds themselves.
        **execution: as in `sweep`; see `Execution`. `engine` and `divergence_factor` have no say here. With a `cluster`
            its workers train the members, and the loop runs in this process, where the model is.

    Returns:
        What was compared, and how it came out: `report.is_equal`, `report.verdict`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
        Interrupted: Ctrl-C; its `result` is None.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> vs.check(task, lrs=[0.01, 0.1], num_steps=5).is_equal
        True
    """
    task, options = check_task(task, execution, check)
    options = replace(options, progress=False, engine="vectorized", divergence_factor=None)
    num_steps = check_count("num_steps", num_steps)
    if task.is_one_pass:
        raise ValueError(f"`check` trains several times over the same batches; got an iterator. {RESTARTABLE}")
    seed_list = check_seeds(seeds, options, task)
    if lrs is None:
        lrs = template_of(task, seed_list[0], options).param_groups[0]["lr"] * np.array([0.1, 0.5, 1.0])
    plan = Plan.constant(check_lrs(lrs), seed_list, num_steps)
    return _report(task, plan, options)


def _report(task: Task, plan: Plan, options: Execution) -> CheckReport:
    """Compare in float64, then as the task stands."""
    compared: list[_Compared] = []
    notes: list[str] = []
    for how, dtype in ((replace(options, precision=None), torch.float64), (options, None)):
        try:
            own = _compare(task, plan, how, dtype)
        except (RuntimeError, TypeError) as error:
            if dtype is None:
                raise
            notes.append(f"In float64 the task does not run, so nothing was compared there: {str(error).rstrip('.')}.")
        else:
            if own.dtype not in [other.dtype for other in compared]:  # the task's own may be float64
                compared.append(own)
    if not all(own.record.is_batched for own in compared):
        notes.append(f"There is no batched pass: {next(o.record.engine for o in compared if not o.record.is_batched)}.")
    return CheckReport(
        deviations=_ordered(compared, "deviations"),
        tolerances={own.dtype: own.tolerance for own in compared},
        engine=compared[-1].record.engine,
        notes=tuple(notes),
        num_steps=plan.num_steps,
        parameters=_ordered(compared, "parameters"),
        is_batched=all(own.record.is_batched for own in compared),
    )


@dataclass(frozen=True, slots=True)
class _Compared:
    """What was found in one dtype."""

    dtype: str
    tolerance: float
    record: Record
    deviations: list[Deviation]
    parameters: list[Deviation]


def _compare(task: Task, plan: Plan, how: Execution, dtype: torch.dtype | None) -> _Compared:
    """Train the members of a plan by a sweep and by plain loops, and hold one against the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        record = train(task, plan, how, dtype=dtype)
    if record.error is not None:
        raise record.error
    if not record.is_complete:
        raise Interrupted(None)  # half a comparison would say that the two are equal
    own = next(iter(here(record.states[:1])[0].parameters.values())).dtype.to_real()
    name = how.precision or str(own).removeprefix("torch.")
    tolerance = _HALF_TOLERANCE if how.precision else _OWN_TOLERANCE.get(own, _HALF_TOLERANCE)
    compared = _Compared(name, tolerance, record, [], [])
    with plain_loop(task, replace(how, cluster=None), dtype) as loop:
        for i in range(len(plan.members)):
            _compare_member(compared, plan, i, loop, has_eval=own == torch.float64 and not how.precision)
    return compared


def _compare_member(compared: _Compared, plan: Plan, i: int, loop: PlainLoop, *, has_eval: bool) -> None:
    """Add what is found of a member."""
    member, record = plan.members[i], compared.record
    plain = loop.train(member.lr, member.seed, plan.num_steps)
    at = int(record.diverged_at[i])
    is_whole = at < 0  # where a loss is not finite the sweep ends a member, and the loop does not
    end = plan.num_steps if is_whole else at + 1
    value, step = _curve_deviation(record.loss[:end, i], plain.losses[:end], compared.tolerance)
    compared.deviations.append(Deviation(compared.dtype, i, member.lr, _LOSS, value, step))
    if not is_whole:
        return
    (state,) = here([record.states[i]])
    ours = record.learners[member.seed].model_of(state)
    tensors = ours.state_dict(keep_vars=True)
    compared.parameters.extend(
        Deviation(compared.dtype, i, member.lr, name, _relative(_array(tensors[name]), _array(value)))
        for name, value in plain.model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and not is_traceable_wrapper_subclass(value)  # quantized, and as it was
    )
    # In eval mode a batch norm does not undo what rounding has made of the bias before it; float64 has next to none.
    for name, is_training in ((_OUTPUTS, True), (_EVAL_OUTPUTS, False))[: 2 if has_eval else 1]:
        a, b = (_computed(loop, model, member.seed, is_training=is_training) for model in (ours, plain.model))
        compared.deviations.append(Deviation(compared.dtype, i, member.lr, name, _relative(a, b)))


def _computed(loop: PlainLoop, model: nn.Module, seed: int, *, is_training: bool) -> FloatArray:
    """All numbers that a model computes on the first batches."""
    computed = loop.compute(model, seed, _COMPUTED, is_training=is_training)
    return np.concatenate([_array(value).ravel() for value in computed])


def _array(tensor: Tensor) -> FloatArray:
    plain = tensor.detach().to_dense()
    plain = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    return plain.double().cpu().numpy()


def _curve_deviation(
    a: FloatArray,  # [step]
    b: FloatArray,  # [step]
    tolerance: float,
) -> tuple[float, int | None]:
    """The largest difference, each over the largest loss so far, and the first step that exceeds the tolerance."""
    differences = np.array([_relative(a[t : t + 1], b[t : t + 1], np.abs(b[: t + 1])) for t in range(len(b))])
    beyond = np.flatnonzero(~(differences <= tolerance))
    return float(differences.max(initial=0.0)), int(beyond[0]) if beyond.size else None


def _relative(a: FloatArray, b: FloatArray, magnitudes: FloatArray | None = None) -> float:
    """The largest difference over the largest value; infinite where only one of them is a number."""
    if a.shape != b.shape or (np.isfinite(a) != np.isfinite(b)).any():
        return float("inf")
    is_finite = np.isfinite(b)
    difference = float(np.abs(a[is_finite] - b[is_finite]).max(initial=0.0))
    magnitudes = np.abs(b) if magnitudes is None else magnitudes
    scale = float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))
    return difference / scale if scale > 0 else difference


def _ordered(compared: Sequence[_Compared], name: str) -> tuple[Deviation, ...]:
    """The deviations of all dtypes, largest first."""
    every = [deviation for own in compared for deviation in getattr(own, name)]
    return tuple(sorted(every, key=lambda d: -d.value))


def _what_differs(beyond: Sequence[Deviation]) -> str:
    """Say what differs, and from which step on."""
    parts = []
    if steps := [d.step for d in beyond if d.step is not None]:
        parts.append(f"the losses, from step {min(steps)} on")
    parts += [f"the {name}" for name in (_OUTPUTS, _EVAL_OUTPUTS) if any(d.name == name for d in beyond)]
    members = sorted({d.member for d in beyond})
    listed = f"member {members[0]}" if len(members) == 1 else f"members {', '.join(map(str, members))}"
    return f"Of {listed} these differ: {'; '.join(parts)}."


def _lines(deviations: Sequence[Deviation]) -> list[str]:
    """A row for each of the largest deviations."""
    rows = [f"{d.dtype:<10}{d.member:>7}{d.lr:>11.3g}  {d.value:>10.1e}  {d.name}" for d in deviations[:_NUM_SHOWN]]
    return rows + [f"... and {len(deviations) - _NUM_SHOWN} smaller ones"] * (len(deviations) > _NUM_SHOWN)
