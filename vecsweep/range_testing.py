"""The verb range_test: a member at each learning rate, or Smith's ramps, read as one curve of loss against lr."""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Unpack, get_args

import numpy as np
from torch.optim import SGD, Adadelta, Adagrad, Optimizer

from vecsweep._arguments import check_callbacks, check_lrs, check_seeds, check_task
from vecsweep._interrupts import held
from vecsweep._types import Method, Seeds, Spacing
from vecsweep.checkpoint.arguments import journal_of
from vecsweep.evaluation import Evaluation
from vecsweep.execution import MOST_MEMBERS, ExecutionOptions, check_choice, check_count, check_flag
from vecsweep.observers.observer import Observer
from vecsweep.origin import tell_origin
from vecsweep.plan import Plan, Span, spaced
from vecsweep.request import Request
from vecsweep.results import RangeTest
from vecsweep.several import parts_of
from vecsweep.task import Task
from vecsweep.training import carry_out, finished


@held()
def range_test(
    task: Task,
    *,
    start_lr: float | None = None,
    end_lr: float | None = None,
    num_lrs: int | None = None,
    num_steps: int = 100,
    seeds: Seeds = 1,
    method: Method = "grid",
    spacing: Spacing = "exponential",
    evaluate: bool = False,
    callbacks: Sequence[Observer] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: str | None = "5min",
    restart: bool = False,
    **execution: Unpack[ExecutionOptions],
) -> RangeTest:
    """Find out which learning rates train, by one batched pass over a range of them.

    The method "grid" trains a member at each of `num_lrs` constant learning rates for `num_steps`, from the same
    weights and on the same batches, so that the curve compares learning rates and nothing else. The method "ramp" is
    Smith's: the learning rate of one member rises step by step over the whole range; with `seeds=R`, R of them at once.

    Args:
        task: what is trained; nothing of it is changed. On a cluster it may be a function that makes one, which each
            process calls for itself: what it opens does not travel.
        start_lr: the smallest learning rate, positive; tried exactly. None for 1e-4 with a grid of SGD, Adagrad or
            Adadelta, 1e-5 with one of another optimizer, and 1e-7 with a ramp, as finders have it.
        end_lr: the largest, above `start_lr`; tried exactly. None for 100, 10 and 10.
        num_lrs: how many learning rates a grid has; None for 64. A ramp has `num_steps` of them.
        num_steps: optimizer updates of each member.
        seeds: how many seeds, or the seeds themselves.
        method: "grid" or "ramp".
        spacing: "exponential" for equal ratios between learning rates, "linear" for equal differences.
        evaluate: whether to evaluate each member of a grid at its end on the task's `val_batches`: the result's
            `metrics`, against its learning rates.
        callbacks: who is told what members do; see `vecsweep.observers`.
        checkpoint: a folder in which the run is kept as it goes, so that it goes on where it stood, to the last bit,
            when this is called again after its process has ended, or by `vecsweep.resume`. None for none.
        checkpoint_every: how often, a time or a number of steps as in "90s", "5min", "1h" or "1000 steps"; None to keep
            it when it ends, and when a signal asks for it (SIGTERM, SIGUSR1, Ctrl-C).
        restart: begin anew where the folder holds a run already, in place of going on with it.
        **execution: `device`, `precision`, `engine`, `compile`, `chunk_size`, `accumulation_steps`, `max_grad_norm`,
            `divergence_factor`, `progress`, `seed`, `cluster`; see `Execution`.

    Returns:
        The curve of loss against learning rate, `[lr]`, with those of each member, `[step, member]`.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
        OSError: `checkpoint` cannot be written to.
        Interrupted: Ctrl-C; its `result` holds what was computed. So does the attribute `result` of whatever error the
            task's own code raises after the first steps.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> found = vs.range_test(task, start_lr=1e-4, end_lr=10, num_lrs=16, num_steps=10)
        >>> found.scores.shape
        (16,)

    Reference:
        Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
    """
    given = locals()
    task, options = check_task(task, execution, range_test)
    about = tell_origin(range_test, given, task, options)
    request = Request(task, options, audience=check_callbacks(callbacks), about=about)
    check_choice("method", method, get_args(Method))
    check_choice("spacing", spacing, get_args(Spacing))
    seed_list = check_seeds(seeds, options, task)
    if start_lr is None or end_lr is None:
        least, most = _usual_range(request.template(seed_list[0]), method)
        start_lr, end_lr = least if start_lr is None else start_lr, most if end_lr is None else end_lr
    low, high = (float(check_lrs([lr], name)[0]) for name, lr in (("start_lr", start_lr), ("end_lr", end_lr)))
    if low >= high:
        raise ValueError(f"`start_lr` must be below `end_lr`; got {low:.3g} and {high:.3g}. Swap them?")
    num_steps = check_count("num_steps", num_steps, least=2 if method == "ramp" else 1)
    check_flag("evaluate", evaluate)
    if evaluate and task.val_batches is None:
        raise ValueError("`evaluate` needs `val_batches` in the task; got none.")
    if method == "ramp":
        if num_lrs is not None:
            raise ValueError(
                f'`num_lrs` belongs to the method "grid"; got {num_lrs} with "ramp", which tries a learning rate a '
                "step. Pass `num_steps`."
            )
        if evaluate:
            raise ValueError('`evaluate` belongs to the method "grid": a ramp has one member for all learning rates.')
        plan = Plan.ramp(spaced(low, high, num_steps, spacing), seed_list)
    else:
        num_lrs = 64 if num_lrs is None else num_lrs
        num_lrs = check_count("num_lrs", num_lrs, least=2, most=MOST_MEMBERS)
        rates = spaced(low, high, num_lrs, spacing)
        if len(np.unique(rates)) < num_lrs:
            raise ValueError(
                f"`start_lr` and `end_lr` must hold `num_lrs` different learning rates between them; got {low!r} and "
                f"{high!r} for {num_lrs}. Widen the range."
            )
        plan = Plan.constant(rates, seed_list, num_steps)
    evaluation = Evaluation((plan.num_steps,) if evaluate else ())
    with journal_of(range_test, options, given) as journal:
        request = replace(request, journal=journal)
        runs, record = carry_out(request, plan, Span(0, plan.num_steps, None), evaluation, keeps_states=False)
        found = RangeTest(**{f.name: getattr(runs, f.name) for f in fields(runs)}, method=method)
        return finished(found, record, journal)


def _usual_range(template: Optimizer, method: Method) -> tuple[float, float]:
    """The learning rates from which to which it is tested where nobody says: six decades around what is usual."""
    if method == "ramp":
        return 1e-7, 10.0
    return (1e-4, 100.0) if isinstance(parts_of(template)[0], SGD | Adagrad | Adadelta) else (1e-5, 10.0)
