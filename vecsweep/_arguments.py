"""What the verbs accept, checked at the call: each function returns what the rest of the library takes."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex, get_args

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from vecsweep._hyper import plain_options
from vecsweep._types import FloatArray, NormName, Schedules, Seeds
from vecsweep.cluster.sending import MadeTask
from vecsweep.cluster.session import check_ray
from vecsweep.execution import MOST_MEMBERS, MOST_SEED, Execution, ExecutionOptions, check_choice, check_count
from vecsweep.observers.audience import Audience
from vecsweep.observers.observer import Observer
from vecsweep.schedules import constant, parse
from vecsweep.schedules.schedule import Schedule, as_schedule
from vecsweep.schedules.torch_schedulers import TorchSchedule
from vecsweep.several import parts_of
from vecsweep.stumbles import look_at_cores, look_at_task
from vecsweep.task import Task

RESTARTABLE = "Pass a list, a DataLoader, or the generator function itself."

NamedSchedules = dict[str, Schedule | TorchSchedule]


def check_task(
    task: Task | Callable[[], Task], execution: ExecutionOptions, verb: Callable[..., Any]
) -> tuple[Task, Execution]:
    """Return the task and the options of a call; on a cluster, a function may stand for the task that it makes.

    Args:
        task: as it was given.
        execution: likewise.
        verb: that was called, whose own options are told to whoever names another.
    """
    parameters = inspect.signature(verb).parameters.values()
    options = Execution.of(execution, [own.name for own in parameters if own.kind is own.KEYWORD_ONLY])
    if options.cluster is not None:
        check_ray()
        if not isinstance(task, Task) and callable(task) and not isinstance(task, type):
            task = MadeTask.of(task)
    if not isinstance(task, Task):
        raise TypeError(
            f"`task` must be a vecsweep.Task; got {type(task).__name__}. Wrap model, batches and loss in one."
        )
    look_at_task(task)
    if options.cluster is None:
        look_at_cores(task, options.place)
    return task, options


def check_callbacks(callbacks: Sequence[Observer] | None) -> Audience:
    """Return who is told of a run.

    Args:
        callbacks: the observers; None for none.

    Raises:
        TypeError: there is something else among them.
    """
    if callbacks is not None and (not isinstance(callbacks, Sequence) or isinstance(callbacks, str)):
        raise TypeError(f"`callbacks` must be a list of observers; got {callbacks!r:.80}. Pass [{callbacks!r:.40}].")
    for observer in callbacks or ():
        if not isinstance(observer, Observer):
            raise TypeError(
                f"`callbacks` must hold observers; got {observer!r:.80}. Derive its class from "
                "vecsweep.observers.Observer, and pass an instance."
            )
    return Audience(callbacks or ())


def check_lrs(lrs: Any, name: str = "lrs") -> FloatArray:
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
    distinct, counts = np.unique(rates, return_counts=True)
    if distinct.size < rates.size:
        again = distinct[counts > 1][0]
        raise ValueError(f"`{name}` must differ from each other; got {again:g} again. Pass `seeds` for repeats.")
    return rates


def check_record(record: Sequence[str]) -> tuple[NormName, ...]:
    """Return the norms that are to be noted, without repeats."""
    if isinstance(record, str) or not isinstance(record, Sequence):
        raise TypeError(f'`record` must be a list of names, such as ["grad_norm"]; got {record!r}.')
    for name in record:
        check_choice("record", name, get_args(NormName))
    return tuple(name for name in get_args(NormName) if name in record)


def check_seeds(seeds: Seeds, execution: Execution, task: Task) -> list[int]:
    """Return the seeds themselves."""
    if isinstance(seeds, SupportsIndex) and not isinstance(seeds, bool | np.ndarray | Tensor):
        num = check_count("seeds", seeds, most=MOST_MEMBERS)
        check_count("seed", execution.seed + num - 1, least=0, most=MOST_SEED)
        listed = [execution.seed + i for i in range(num)]
    else:
        if not isinstance(seeds, Sequence | np.ndarray) or isinstance(seeds, str | bytes) or np.ndim(seeds) == 0:
            raise TypeError(f"`seeds` must be how many, or a list of whole numbers; got {seeds!r:.80}.")
        if len(seeds) == 0:
            raise TypeError(f"`seeds` must be how many, or a list of whole numbers; got {seeds!r:.80}.")
        whole = [float(seed) if isinstance(seed, float | np.floating) else seed for seed in seeds]
        whole = [int(seed) if isinstance(seed, float) and seed.is_integer() else seed for seed in whole]
        if not all(isinstance(seed, int | np.integer) and 0 <= seed <= MOST_SEED for seed in whole):
            raise ValueError(f"`seeds` must be whole numbers of at least 0; got {list(seeds)!r:.80}.")
        listed = [int(seed) for seed in whole]
        if len(set(listed)) < len(listed):
            raise ValueError(f"`seeds` must differ from each other; got {listed}. Drop the repeated ones.")
    if task.is_one_pass and len(listed) > 1:
        raise ValueError(f"An iterator serves one seed; got `seeds` {listed}. {RESTARTABLE}")
    return listed


def check_schedules(schedules: Schedules | None) -> NamedSchedules:
    """Return schedules by name.

    Args:
        schedules: by name, or a list of them; None for a constant learning rate.

    Raises:
        TypeError: there is something else than a schedule among them.
        ValueError: two have one name, or there is none.
    """
    if schedules is None:
        return {"constant": constant()}
    if isinstance(schedules, Mapping):
        for name in schedules:
            if not isinstance(name, str):
                raise TypeError(f"`schedules` must have names that are text; got {name!r}. Pass {str(name)!r}.")
        pairs = list(schedules.items())
    elif isinstance(schedules, Sequence) and not isinstance(schedules, str):
        pairs = [(_name_of(schedule), schedule) for schedule in schedules]
    else:
        raise TypeError(
            "`schedules` must be a dict from names to schedules, or a list of schedules; got "
            f"{schedules!r:.80}. Pass [{schedules!r:.80}]."
        )
    if not pairs:
        raise ValueError("`schedules` must hold at least one schedule; got none. Leave it out for a constant lr.")
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"`schedules` must have different names; got {name!r} {names.count(name)} times. Pass a dict with "
                "names of your own."
            )
    return {name: parse(value) if isinstance(value, str) else as_schedule(value) for name, value in pairs}


def _name_of(schedule: Any) -> str:
    return schedule if isinstance(schedule, str) else str(getattr(as_schedule(schedule), "name", "torch"))


def needs_epochs(schedules: NamedSchedules) -> bool:
    """Whether one of the schedules has to know how long an epoch is."""
    return any(isinstance(own, TorchSchedule) and own.interval == "epoch" for own in schedules.values())


def follow_metrics(schedules: NamedSchedules, template: Optimizer) -> bool:
    """Whether one of the schedules is fed what members measure."""
    return any(isinstance(own, TorchSchedule) and own.start(template, 1.0).is_fed for own in schedules.values())


def check_vary(vary: Mapping[str, Sequence[float]], template: Optimizer) -> dict[str, list[float]]:
    """Return the values of other hyperparameters by name.

    Args:
        vary: by name.
        template: the task's optimizer, which must have them.

    Raises:
        TypeError: it is no dict, or the values are not numbers.
        ValueError: the optimizer has no such hyperparameter, or there is no value, or one comes twice.
    """
    if not isinstance(vary, Mapping):
        raise TypeError(
            '`vary` must be a dict from names to lists of values, such as {"weight_decay": [0, 1e-2]}; got '
            f"{vary!r:.80}."
        )
    template = parts_of(template)[0]
    known = plain_options(template.param_groups[0])
    checked = {}
    for name, values in vary.items():
        if name == "lr":
            raise ValueError("`vary` must not hold the lr. Pass `lrs`.")
        if name not in known:
            raise ValueError(
                f"`vary` must hold hyperparameters of {type(template).__name__} that are numbers, {', '.join(known)}; "
                f"got {name!r}."
            )
        listed = np.asarray(values)
        if listed.ndim != 1 or listed.dtype.kind not in "iuf":
            raise TypeError(f"`vary[{name!r}]` must be a list of numbers; got {values!r:.80}. Pass [{values!r:.40}].")
        if listed.size == 0 or not np.isfinite(listed).all():
            raise ValueError(f"`vary[{name!r}]` must hold finite numbers; got {listed.tolist()}.")
        if len(np.unique(listed)) < listed.size:
            raise ValueError(f"`vary[{name!r}]` must hold different values; got {listed.tolist()}. Drop the repeated.")
        checked[name] = [float(value) for value in listed]
        _check_is_taken(name, checked[name], template)
    return checked


def _check_is_taken(name: str, values: Sequence[float], template: Optimizer) -> None:
    """Raise ValueError unless the optimizer's class takes these values, as its own constructor says."""
    group = template.param_groups[0]
    for value in values:
        options = {key: own for key, own in group.items() if key in template.defaults}
        if name in ("beta1", "beta2"):
            first, second = group["betas"]
            options["betas"] = (value, second) if name == "beta1" else (first, value)
        else:
            options[name] = value
        try:
            type(template)([Tensor([[0.0]])], **options)  # a matrix, which some insist on
        except ValueError as error:
            raise ValueError(f"`vary[{name!r}]` must suit {type(template).__name__}; got {value}: {error}.") from error
        except TypeError:
            return  # a class of the user's, with a constructor of its own
