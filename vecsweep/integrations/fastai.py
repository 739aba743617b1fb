"""For people who come from fastai: `lr_find` with its arguments and its named tuple. fastai itself is not needed.

Reference:
    `Learner.lr_find` of fastai 2, https://docs.fast.ai/callback.schedule.html
"""

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, Unpack

from vecsweep._types import Seeds
from vecsweep.execution import ExecutionOptions
from vecsweep.results import RangeTest
from vecsweep.suggest import RULES, Rule, steepest, suggest
from vecsweep.sweeps import range_test
from vecsweep.task import Task

_SMOOTHING = 0.98  # of fastai's recorder
_DIVERGENCE_FACTOR = 4.0
_ALIASES: dict[str, Rule] = {"steep": steepest}


def lr_find(
    task: Task,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_it: int = 100,
    stop_div: bool = True,
    suggest_funcs: str | Rule | Sequence[str | Rule] = ("valley",),
    *,
    seeds: Seeds = 1,
    **execution: Unpack[ExecutionOptions],
) -> Any:
    """Suggest learning rates as fastai's `lr_find` does: from Smith's ramp, smoothed by 0.98 and without its ends.

    Different from fastai: the model is never changed; the ramp reaches `end_lr`; a member ends at its first loss above
    four times its best, not the first average; and with `seeds=R` R ramps are trained at once and averaged. For the
    curve itself, call `vecsweep.range_test(task, method="ramp")`.

    Args:
        task: what is trained; nothing of it is changed.
        start_lr: the first learning rate of the ramp.
        end_lr: the last.
        num_it: steps from one to the other.
        stop_div: whether a ramp ends where its loss explodes.
        suggest_funcs: rules, by their names in `vecsweep.suggest.RULES` ("steep" being "steepest"), or functions from
            lrs and losses to an lr, such as `vecsweep.suggest.valley`.
        seeds: how many seeds, or the seeds themselves.
        **execution: as in `vecsweep.range_test`.

    Returns:
        A named tuple with a field for each rule.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or every learning rate diverged.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = Task(model, batches, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters()))
        >>> lr_find(task, suggest_funcs=("valley", "steep"))._fields
        ('valley', 'steep')
    """
    single = isinstance(suggest_funcs, str) or callable(suggest_funcs)
    asked: Sequence[str | Rule] = [suggest_funcs] if single else list(suggest_funcs)  # type: ignore[list-item, arg-type]
    rules = {_name_of(function): _rule_of(function) for function in asked}
    for rule in rules.values():
        suggest([1.0], [1.0], rule)  # a mistake in a rule is told before the work
    if stop_div:
        execution.setdefault("divergence_factor", _DIVERGENCE_FACTOR)
    else:
        execution["divergence_factor"] = None
    found: RangeTest = range_test(
        task, start_lr=start_lr, end_lr=end_lr, num_steps=num_it, seeds=seeds, method="ramp", **execution
    )
    suggested = namedtuple("SuggestedLRs", list(rules))  # type: ignore[misc]  # its fields are those asked for
    return suggested(*(found.suggest(rule, smoothing=_SMOOTHING).lr for rule in rules.values()))


def _name_of(function: str | Rule) -> str:
    named = getattr(function, "func", function)  # a functools.partial has no name of its own
    return function if isinstance(function, str) else str(getattr(named, "__name__", type(function).__name__))


def _rule_of(function: str | Rule) -> str | Rule:
    if isinstance(function, str) and function not in RULES:
        return _ALIASES.get(function, function)
    return function
