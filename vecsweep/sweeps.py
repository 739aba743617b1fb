"""The verbs: range_test, sweep and check. Each validates, plans, runs and wraps what came of it."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args

import numpy as np
import torch
from torch import Tensor, nn

from vecsweep._engine.run import Record, count_batches, template_lr, train
from vecsweep._errors import FallbackWarning, Interrupted
from vecsweep._types import FloatArray, Lrs, Method, Seeds, Spacing
from vecsweep.deviations import CheckReport, Deviation
from vecsweep.execution import Execution, ExecutionOptions, check_choice, check_count
from vecsweep.plan import Plan, spaced
from vecsweep.results import MemberRecord, RangeTest, Sweep
from vecsweep.task import Task

_RESTARTABLE = "Pass a list, a DataLoader, or the generator function itself."


def sweep(
    task: Task,
    *,
    lrs: Lrs,
    seeds: Seeds = 1,
    num_steps: int | None = None,
    epochs: int | None = None,
    **execution: Unpack[ExecutionOptions],
) -> Sweep:
    """Train a member for each learning rate and seed, all in one batched pass.

    Args:
        task: what is trained; nothing of it is changed.
        lrs: the learning rates, positive; a list, an array or a tensor.
        seeds: how many seeds, or the seeds themselves. All members of a seed see the same initial weights, batches and
            dropout masks.
        num_steps: optimizer updates of each member.
        epochs: passes over the batches, in place of `num_steps`; steps are rounded down where `accumulation_steps`
            does not divide them. A source without a length is read through once, to count its batches.
        **execution: `device`, `precision`, `engine`, `compile`, `chunk_size`, `accumulation_steps`, `max_grad_norm`,
            `divergence_factor`, `progress`, `seed`; see `Execution`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
        Interrupted: Ctrl-C; its `result` holds what was computed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> runs = sweep(task, lrs=[0.01, 0.1], num_steps=5)
        >>> runs.train_loss.shape
        (5, 2)
    """
    options = _checked(task, execution)
    rates, seed_list = _check_lrs(lrs), _check_seeds(seeds, options)
    _check_one_pass(task, seed_list)
    if (num_steps is None) == (epochs is None):
        raise ValueError(
            f"Exactly one of `num_steps` and `epochs` must be given; got {'neither' if epochs is None else 'both'}."
        )
    steps_per_epoch = None
    if num_steps is not None:
        check_count("num_steps", num_steps)
    else:
        check_count("epochs", epochs)
        if task.is_one_pass:
            raise ValueError(f"`epochs` needs batches that can be counted; got an iterator. {_RESTARTABLE}")
        assert epochs is not None
        num_batches = count_batches(task, seed_list[0], options)
        steps_per_epoch = num_batches / options.accumulation_steps
        num_steps = int(epochs * steps_per_epoch)
        if num_steps == 0:
            raise ValueError(
                f"`epochs` must cover at least one step; got {epochs} of {num_batches} batches, with "
                f"`accumulation_steps={options.accumulation_steps}` batches a step."
            )
    plan = Plan.constant(rates, seed_list, num_steps)
    started = time.perf_counter()
    record = train(task, plan, options)
    return _wrap(Sweep, plan, record, time.perf_counter() - started, steps_per_epoch)


def range_test(
    task: Task,
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_lrs: int | None = None,
    num_steps: int = 100,
    seeds: Seeds = 1,
    method: Method = "grid",
    spacing: Spacing = "exponential",
    **execution: Unpack[ExecutionOptions],
) -> RangeTest:
    """Find out which learning rates train, by one batched pass over a range of them.

    The method "grid" trains a member at each of `num_lrs` constant learning rates for `num_steps`, from the same
    weights and on the same batches, so that the curve compares learning rates and nothing else. The method "ramp" is
    Smith's: the learning rate of one member rises step by step over the whole range; with `seeds=R`, R of them at once.

    Args:
        task: what is trained; nothing of it is changed.
        start_lr: the smallest learning rate, positive; tried exactly.
        end_lr: the largest, above `start_lr`; tried exactly.
        num_lrs: how many learning rates a grid has; None for 64. A ramp has `num_steps` of them.
        num_steps: optimizer updates of each member.
        seeds: how many seeds, or the seeds themselves.
        method: "grid" or "ramp".
        spacing: "exponential" for equal ratios between learning rates, "linear" for equal differences.
        **execution: `device`, `precision`, `engine`, `compile`, `chunk_size`, `accumulation_steps`, `max_grad_norm`,
            `divergence_factor`, `progress`, `seed`; see `Execution`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
        Interrupted: Ctrl-C; its `result` holds what was computed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> found = range_test(task, start_lr=1e-4, end_lr=10, num_lrs=16, num_steps=10)
        >>> found.scores.shape
        (16,)

    Reference:
        Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
    """
    options = _checked(task, execution)
    check_choice("method", method, get_args(Method))
    check_choice("spacing", spacing, get_args(Spacing))
    low, high = (float(_check_lrs([lr], name)[0]) for name, lr in (("start_lr", start_lr), ("end_lr", end_lr)))
    if low >= high:
        raise ValueError(f"`start_lr` must be below `end_lr`; got {low:.3g} and {high:.3g}. Swap them?")
    check_count("num_steps", num_steps, least=2 if method == "ramp" else 1)
    seed_list = _check_seeds(seeds, options)
    _check_one_pass(task, seed_list)
    if method == "ramp":
        if num_lrs is not None:
            raise ValueError(
                f'`num_lrs` belongs to the method "grid"; got {num_lrs} with "ramp", which tries a learning rate a '
                "step. Pass `num_steps`."
            )
        plan = Plan.ramp(spaced(low, high, num_steps, spacing), seed_list)
    else:
        num_lrs = 64 if num_lrs is None else num_lrs
        check_count("num_lrs", num_lrs, least=2)
        rates = spaced(low, high, num_lrs, spacing)
        if len(np.unique(rates)) < num_lrs:
            raise ValueError(
                f"`start_lr` and `end_lr` must hold `num_lrs` different learning rates between them; got {low!r} and "
                f"{high!r} for {num_lrs}. Widen the range."
            )
        plan = Plan.constant(rates, seed_list, num_steps)
    started = time.perf_counter()
    record = train(task, plan, options, keeps_states=False)
    return _wrap(RangeTest, plan, record, time.perf_counter() - started, None, method=method)


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
    options = replace(_checked(task, execution), progress=False)
    check_count("num_steps", num_steps)
    if task.is_one_pass:
        raise ValueError(f"`check` trains several times over the same batches; got an iterator. {_RESTARTABLE}")
    seed_list = _check_seeds(seeds, options)
    rates = _check_lrs(template_lr(task, seed_list[0], options) * np.array([0.1, 0.5, 1.0]) if lrs is None else lrs)
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


def _wrap(
    kind: type[Any], plan: Plan, record: Record, duration_s: float, steps_per_epoch: float | None, **own: Any
) -> Any:
    """Make a result of what a run did; raise Interrupted with it when Ctrl-C stopped the run."""

    def make_model(i: int) -> nn.Module:
        return record.learners[plan.members[i].seed].model_of(record.states[i])

    result = None
    if len(record.loss) > 0:
        result = kind(
            members=tuple(
                MemberRecord(member.lr, member.schedule, member.seed, None if at < 0 else int(at))
                for member, at in zip(plan.members, record.diverged_at, strict=True)
            ),
            lr=plan.lr[: len(record.loss)],
            train_loss=record.loss,
            steps_per_epoch=steps_per_epoch,
            engine=record.engine,
            duration_s=duration_s,
            is_complete=record.is_complete,
            _make_model=make_model if record.states else None,
            **own,
        )
    if not record.is_complete:
        raise Interrupted(result)
    return result


def _checked(task: Task, execution: ExecutionOptions) -> Execution:
    if not isinstance(task, Task):
        raise TypeError(
            f"`task` must be a vecsweep.Task; got {type(task).__name__}. Wrap model, batches and loss in one."
        )
    return Execution.of(execution)


def _check_lrs(lrs: Any, name: str = "lrs") -> FloatArray:
    """Return learning rates as an array `[lr]`."""
    values = lrs.detach().cpu().double().numpy() if isinstance(lrs, Tensor) else np.asarray(lrs)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be numbers; got {lrs!r:.80}.")
    rates = values.astype(np.float64)
    if rates.ndim != 1:
        raise TypeError(
            f"`{name}` must be a flat list of learning rates; got shape {rates.shape}. Pass [0.1], or `.ravel()`."
        )
    if rates.size == 0:
        raise ValueError(f"`{name}` must hold at least one learning rate; got none.")
    for i, rate in enumerate(rates):
        if not (np.isfinite(rate) and rate > 0):
            where = f" at index {i}" if rates.size > 1 else ""
            remedy = f" Drop it, or pass {abs(rate):.3g}." if np.isfinite(rate) and rate < 0 else " Drop it."
            raise ValueError(f"`{name}` must be positive and finite; got {rate}{where}.{remedy}")
    return rates


def _check_one_pass(task: Task, seeds: Sequence[int]) -> None:
    if task.is_one_pass and len(seeds) > 1:
        raise ValueError(f"An iterator serves one seed; got `seeds` {list(seeds)}. {_RESTARTABLE}")


def _check_seeds(seeds: Seeds, execution: Execution) -> list[int]:
    """Return the seeds themselves."""
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        check_count("seeds", seeds)
        return [execution.seed + i for i in range(seeds)]
    if not isinstance(seeds, Sequence | np.ndarray) or isinstance(seeds, str) or len(seeds) == 0:
        raise TypeError(f"`seeds` must be how many, or a list of whole numbers; got {seeds!r}.")
    listed = [int(seed) for seed in seeds]
    if any(own != seed or seed < 0 for own, seed in zip(listed, seeds, strict=True)):
        raise ValueError(f"`seeds` must be whole numbers of at least 0; got {list(seeds)}.")
    if len(set(listed)) < len(listed):
        raise ValueError(f"`seeds` must differ from each other; got {listed}. Drop the repeated ones.")
    return listed
