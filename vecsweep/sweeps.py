"""The verb sweep: validate, plan, run, and wrap what came of it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Unpack, get_args

from vecsweep import batch_sizes
from vecsweep._arguments import (
    RESTARTABLE,
    check_callbacks,
    check_lrs,
    check_record,
    check_schedules,
    check_seeds,
    check_task,
    check_vary,
    follow_metrics,
    needs_epochs,
)
from vecsweep._interrupts import held
from vecsweep._types import Lrs, Mode, NormName, Schedules, Seeds
from vecsweep.checkpoint.arguments import journal_of
from vecsweep.evaluation import Stopping
from vecsweep.execution import ExecutionOptions, check_choice, check_count, check_flag, check_name
from vecsweep.folds import by_fold, check_folds
from vecsweep.observers.observer import Observer
from vecsweep.observers.tensorboard import TensorBoard
from vecsweep.origin import tell_origin
from vecsweep.plan import Course, Span, cross
from vecsweep.pruning import RUNGS, Prune, halve
from vecsweep.request import Request
from vecsweep.results import Sweep
from vecsweep.results.ranking import mode_of
from vecsweep.task import Task
from vecsweep.training import begin


@held()
def sweep(
    task: Task,
    *,
    lrs: Lrs,
    schedules: Schedules | None = None,
    seeds: Seeds = 1,
    folds: int | None = None,
    vary: Mapping[str, Sequence[float]] | None = None,
    num_steps: int | None = None,
    epochs: int | None = None,
    until: int | None = None,
    val_every: int | None = None,
    train_metrics: bool = False,
    patience: int | None = None,
    prune: Literal["halving"] | Prune | None = None,
    monitor: str | None = None,
    mode: Mode | None = None,
    record: Sequence[NormName] = (),
    tensorboard: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Observer] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: str | None = "5min",
    restart: bool = False,
    **execution: Unpack[ExecutionOptions],
) -> Sweep:
    """Train a member for each learning rate, schedule and seed, all in one batched pass.

    Args:
        task: what is trained; nothing of it is changed. On a cluster it may be a function that makes one, which each
            process calls for itself: what it opens does not travel.
        lrs: the learning rates, positive; a list, an array or a tensor.
        schedules: what learning rates follow: a dict from names to schedules, or a list of schedules or of names as in
            `vecsweep.schedules.SCHEDULES`; None for constant ones. A schedule is one of `vecsweep.schedules`, or a
            function from an array of progress in [0, 1] to multiples of the learning rate.
        seeds: how many seeds, or the seeds themselves. All members of a seed see the same initial weights, batches and
            dropout masks.
        folds: how many folds of cross-validation each setting is trained on; None for none. The task's `batches` and
            `val_batches` are functions of the fold then, 0 to `folds - 1`. A fold is to results what a seed is: of a
            member's `seed`, `seed % folds` is the fold, and `seed // folds` the seed. Means are taken over all of them.
        vary: values of other hyperparameters of the optimizer by name, such as `{"weight_decay": [0, 1e-2]}`, with
            "beta1" and "beta2" for the two of `betas`; there are members for each combination. Parameter groups with a
            value of their own keep it. Also "batch_size": the task's batches are cut anew, to sizes that divide the
            largest, on the same samples; a step, wherever steps are counted, is as many samples as the largest has.
        num_steps: optimizer updates of each member.
        epochs: passes over the batches, in place of `num_steps`; steps are rounded down where `accumulation_steps`
            does not divide them. A source without a length is read through once, to count its batches, and refused
            after a million of them: give `num_steps` there, and no more batches are read than those steps take.
        until: stop there, part-way through the schedules, in the unit of the length that is given: of 30 epochs, after
            4, say. `extend` goes on in them, with no argument to their end. None for the end.
        val_every: updates between evaluations on the task's `val_batches`; None for each epoch, or for the end alone
            where the batches have no length and an epoch is longer than the run. There is always one at the end.
        train_metrics: whether to measure the task's metrics on one pass over the training batches, too, in eval mode,
            as `train_<name>`.
        patience: stop a member after so many evaluations without a new best `monitor`; None for never. It keeps the
            weights at which it stopped.
        prune: compare members part-way, and stop some. "halving" stops the worse half of the settings, by the mean
            over their seeds, after an eighth, a quarter and a half of the schedules' length. A function is asked at
            each evaluation but the last: given the sweep so far, it returns the members that go on, as indices.
        monitor: the metric that `patience` and "halving" go by: "val_loss", another `val_<name>`, or
            "mean_train_loss", the mean of the losses since the last evaluation; None for "val_loss", and for "halving"
            without `val_batches` "mean_train_loss".
        mode: whether less or more of `monitor` is better, "min" or "max"; None to go by its name.
        record: what else to note of each member at each step, in the result's `norms`: "grad_norm", the norm of its
            gradient before clipping, and "update_norm", that of the change of its parameters.
        tensorboard: a folder to which each member is written while it trains, to be watched there.
        callbacks: who is told what members do, such as `vecsweep.observers.MLflow("digits")`, or one of your own.
        checkpoint: a folder in which the run is kept as it goes, so that it goes on where it stood, to the last bit,
            when this is called again after its process has ended, or by `vecsweep.resume`. None for none.
        checkpoint_every: how often, a time or a number of steps as in "90s", "5min", "1h" or "1000 steps"; None to keep
            it when it ends, and when a signal asks for it (SIGTERM, SIGUSR1, Ctrl-C).
        restart: begin anew where the folder holds a run already, in place of going on with it.
        **execution: `device`, `precision`, `engine`, `compile`, `chunk_size`, `accumulation_steps`, `max_grad_norm`,
            `divergence_factor`, `progress`, `seed`, `cluster`; see `Execution`.

    Returns:
        The sweep: curves `[step, member]`, metrics `[evaluation, member]`, and the trained weights.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or the task cannot be trained.
        ImportError: `tensorboard` is given, and TensorBoard is not installed.
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
        >>> runs = vs.sweep(task, lrs=[0.01, 0.1], schedules=["constant", "cosine"], num_steps=5)
        >>> runs.train_loss.shape
        (5, 4)
    """
    given = locals()
    task, options = check_task(task, execution, sweep)
    rates, named = check_lrs(lrs), check_schedules(schedules)
    seed_list = check_seeds(seeds, options, task)
    if folds is not None:
        folds = check_folds(task, folds)
    if isinstance(vary, Mapping) and batch_sizes.NAME in vary:
        own = {name: value for name, value in given.items() if name not in ("task", "execution")} | dict(execution)
        joined = batch_sizes.sweep_sizes(sweep, task, own | {"seeds": seed_list})
        return replace(joined, about=tell_origin(sweep, given, task, options))
    if folds is not None:
        task, seed_list = by_fold(task, seed_list, folds)
    check_flag("train_metrics", train_metrics)
    check_name("monitor", monitor)
    if val_every is not None:
        val_every = check_count("val_every", val_every)
    if mode is not None:
        check_choice("mode", mode, get_args(Mode))
    if train_metrics and not task.metrics:
        raise ValueError("`train_metrics` needs `metrics` in the task; got none.")
    if train_metrics and task.is_one_pass:
        raise ValueError(f"`train_metrics` reads the training batches again; got an iterator. {RESTARTABLE}")
    request = Request(
        task,
        options,
        val_every,
        train_metrics,
        recorded=check_record(record),
        about=tell_origin(sweep, given, task, options),
    )
    request = _watched(request, patience, prune, monitor, mode)
    request = replace(request, audience=check_callbacks(_with_tensorboard(callbacks, tensorboard)))
    if val_every is not None and not request.evaluates and not follow_metrics(named, request.template(seed_list[0])):
        raise ValueError(f"`val_every` needs `val_batches` in the task; got {val_every} and none of them.")
    whole = request.span(num_steps, epochs, seed=seed_list[0], needs_epochs=needs_epochs(named))
    span = whole if until is None else _part(request, whole, until, is_in_epochs=epochs is not None)
    varied = check_vary(vary, request.template(seed_list[0])) if vary is not None else {}
    members = cross(rates, list(named), seed_list, varied)
    courses = tuple(Course(named[m.schedule], m.schedule, whole.begin, whole.num_steps) for m in members)
    with journal_of(sweep, options, given) as journal:
        return begin(replace(request, journal=journal), members, courses, span)


def _watched(
    request: Request,
    patience: int | None,
    prune: Literal["halving"] | Prune | None,
    monitor: str | None,
    mode: Mode | None,
) -> Request:
    """The request with who is stopped part-way, and by which metric."""
    is_halving = isinstance(prune, str) and prune == "halving"
    if prune is not None and not is_halving and not callable(prune):
        raise ValueError(f'`prune` must be "halving" or a function of the sweep so far; got {prune!r:.80}.')
    if monitor is not None and patience is None and not is_halving:
        raise ValueError(
            f'`monitor` is what `patience` and "halving" go by; got {monitor!r} and neither of them. Leave it out; '
            f"`runs.ranking({monitor!r})` orders by it."
        )
    if patience is not None:
        metric = monitor or "val_loss"
        stopping = Stopping(metric, mode_of(metric, mode), check_count("patience", patience))
        request = replace(request, stopping=stopping)
    if callable(prune):
        request = replace(request, prune=prune)
    if not is_halving:
        return request
    metric = monitor or ("mean_train_loss" if request.task.val_batches is None else "val_loss")
    halving = partial(halve, metric=metric, mode=mode_of(metric, mode))
    return replace(request, prune=halving, rungs=RUNGS, rung_metric=metric)


def _with_tensorboard(
    callbacks: Sequence[Observer] | None, folder: str | os.PathLike[str] | None
) -> Sequence[Observer] | None:
    """The observers, and one that writes to a folder for TensorBoard, if there is one."""
    if folder is None:
        return callbacks
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"`tensorboard` must be the path of a folder, or None; got {folder!r:.80}.")
    check_callbacks(callbacks)
    return [*(callbacks or ()), TensorBoard(folder)]


def _part(request: Request, whole: Span, until: int, *, is_in_epochs: bool) -> Span:
    """The first steps of a span, up to a step or an epoch of it."""
    until = check_count("until", until)
    part = request.span(
        *((None, until) if is_in_epochs else (until, None)), seed=0, steps_per_epoch=whole.steps_per_epoch
    )
    if part.num_steps > whole.num_steps:
        name, length = ("epochs", "epochs") if is_in_epochs else ("num_steps", "steps")
        raise ValueError(f"`until` must be within `{name}`; got {until} {length} of a sweep that is shorter.")
    return replace(part, steps_per_epoch=whole.steps_per_epoch)
