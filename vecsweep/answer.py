"""The verb find_lr: a scan of all learning rates, then a race of those that may be best, under the user's own run.

Not here: what is trained for it and what is read off that (`search.py`); who races, and who goes on (`race.py`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack, get_args

import numpy as np

from vecsweep import batch_sizes
from vecsweep._arguments import (
    RESTARTABLE,
    check_callbacks,
    check_schedules,
    check_seeds,
    check_task,
    check_vary,
    needs_epochs,
)
from vecsweep._engine.run import weights_of
from vecsweep._interrupts import held
from vecsweep._types import Mode, Schedules, Seeds
from vecsweep.checkpoint.arguments import journal_of
from vecsweep.cluster.session import connected_once
from vecsweep.execution import ExecutionOptions, check_choice, check_name, is_number
from vecsweep.observers.observer import Observer
from vecsweep.origin import tell_origin
from vecsweep.plan import cross
from vecsweep.race import budget_for, num_seeds_for
from vecsweep.request import Request
from vecsweep.results import Answer
from vecsweep.results.ranking import Setting, mode_of
from vecsweep.search import Search
from vecsweep.suggest.basin import TOLERANCE
from vecsweep.task import Task


@held()
def find_lr(
    task: Task,
    *,
    epochs: int | None = None,
    num_steps: int | None = None,
    schedule: Any = "constant",
    schedules: Schedules | None = None,
    vary: Mapping[str, Sequence[float]] | None = None,
    seeds: Seeds | None = None,
    budget: float | None = None,
    tolerance: float = TOLERANCE,
    monitor: str | None = None,
    mode: Mode | None = None,
    callbacks: Sequence[Observer] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: str | None = "5min",
    restart: bool = False,
    **execution: Unpack[ExecutionOptions],
) -> Answer:
    """Find the learning rate for a run, and train the model with it on the way.

    It needs no range. A scan of learning rates from 1e-6 to 100, and beyond if need be, trains each for a 32nd of the
    run with the whole schedule squeezed into it. The learning rates that may be best then race under the run itself:
    after an eighth, a quarter and a half of it, the better part goes on. The best is trained to the end.

    Args:
        task: what is trained; nothing of it is changed.
        epochs: how long the run is that the learning rate is for, in passes over the batches.
        num_steps: likewise in optimizer updates, in place of `epochs`.
        schedule: what its learning rate follows, as in `vecsweep.sweep`.
        schedules: several, to be compared, in place of `schedule`.
        vary: values of other hyperparameters of the optimizer, to be compared, as in `vecsweep.sweep`; no batch sizes.
        seeds: how many seeds the race is run with, or the seeds themselves; None for one, for two from a budget of 7
            on, and three from 11.
        budget: the work that may be spent, in runs of one member, 0.5 to 20 or more: it decides how many learning rates
            start, how many go on, and below about 2 that the race ends early, at an eighth or a quarter of the run.
            None for 4, or what 240 steps of one member come to where the run is shorter than 60.
        tolerance: the share of what training gains that does not matter; learning rates within it are as good.
        monitor: the metric to go by, "val_loss" or another `val_<name>`; None for "val_loss" where the task has
            `val_batches`, else the mean of a member's last quarter of losses, "train_loss".
        mode: whether less or more of it is better, "min" or "max"; None to go by its name.
        callbacks: who is told what members do, those of the scan and those of the race; see `vecsweep.observers`.
        checkpoint: a folder in which the run is kept as it goes, so that it goes on where it stood, to the last bit,
            when this is called again after its process has ended, or by `vecsweep.resume`. None for none.
        checkpoint_every: how often, a time or a number of steps as in "90s", "5min", "1h" or "1000 steps"; None to keep
            it when it ends, and when a signal asks for it (SIGTERM, SIGUSR1, Ctrl-C).
        restart: begin anew where the folder holds a run already, in place of going on with it.
        **execution: `device`, `precision`, `engine`, `compile`, `chunk_size`, `accumulation_steps`, `max_grad_norm`,
            `divergence_factor`, `progress`, `seed`, `cluster`; see `Execution`.

    Returns:
        The learning rate, the interval of those that are as good, what is doubtful, and the trained model.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, the task cannot be trained, or no learning rate trains it.
        OSError: `checkpoint` cannot be written to.
        Interrupted: Ctrl-C; its `result` is what was trained of the part that it came in.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> model = nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> answer = vs.find_lr(task, num_steps=64)
        >>> 0.01 < answer.lr < 1
        True
    """
    given = locals()
    task, options = check_task(task, execution, find_lr)
    if schedules is not None and not (isinstance(schedule, str) and schedule == "constant"):
        raise ValueError(
            "`schedule` and `schedules` cannot both be given: the one is a single schedule, the other several."
        )
    named = check_schedules([schedule] if schedules is None else schedules)
    _check_budget(budget)
    asked = check_seeds(1 if seeds is None else seeds, options, task)
    if not is_number(tolerance) or not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be a share between 0 and 1; got {tolerance!r}. Pass {TOLERANCE}.")
    if task.is_one_pass:
        raise ValueError(f"A race reads the batches again and again; got an iterator. {RESTARTABLE}")
    if mode is not None:
        check_choice("mode", mode, get_args(Mode))
    measured = [] if task.val_batches is None else ["val_loss", *(f"val_{name}" for name in task.metrics)]
    check_name("monitor", monitor)
    metric = monitor or [*measured, "train_loss"][0]
    if metric not in (*measured, "train_loss"):
        raise ValueError(
            f"`monitor` must be a metric of the race; {metric!r} is not measured there, but "
            f"{', '.join((*measured, 'train_loss'))}. Give the task `val_batches` and `metrics`, or go by another."
        )
    direction = mode_of(metric, mode)
    about = tell_origin(find_lr, given, task, options)
    request = Request(task, options, audience=check_callbacks(callbacks), about=about)
    span = request.span(num_steps, epochs, seed=asked[0], needs_epochs=needs_epochs(named))
    if isinstance(vary, Mapping) and batch_sizes.NAME in vary:
        raise ValueError(
            "`vary` must not hold the batch size in a race. Find a learning rate for each size, with a task of its "
            'own, or compare sizes at given ones: `sweep(task, lrs=[...], vary={"batch_size": [16, 64]})`.'
        )
    varied = check_vary(vary, request.template(asked[0])) if vary is not None else {}
    allowed = budget_for(span.num_steps) if budget is None else float(budget)
    seed_list = check_seeds(num_seeds_for(allowed), options, task) if seeds is None else asked
    combinations = [
        Setting(1.0, own.schedule, tuple(own.hyper.items())) for own in cross(np.ones(1), list(named), [0], varied)
    ]
    if checkpoint is not None:  # each part begins with them
        given["weights"] = weights_of(task, seed_list, options)
    with connected_once(), journal_of(find_lr, options, given) as journal:
        search = Search(replace(request, journal=journal), named, seed_list, span, metric, direction, allowed)
        scans = search.scan(combinations)
        race = search.race(scans)
        return search.answer(scans, race, tolerance)


def _check_budget(budget: float | None) -> None:
    """Raise if a budget is no positive number of runs."""
    if budget is not None and (not is_number(budget) or budget <= 0):
        raise ValueError(f"`budget` must be a positive number of runs; got {budget!r}. Pass 4, say.")
