"""For people who come from fastai: `lr_find` with its arguments and its named tuple. fastai itself is not needed.

Reference:
    `Learner.lr_find` of fastai 2, https://docs.fast.ai/callback.schedule.html
"""

from collections import namedtuple
from collections.abc import Sequence
from keyword import iskeyword
from typing import Any, Unpack

import numpy as np

from vecsweep._types import Seeds
from vecsweep.execution import ExecutionOptions
from vecsweep.range_testing import range_test
from vecsweep.results import RangeTest
from vecsweep.suggest import RULES, Rule, steepest, suggest
from vecsweep.task import Task

_SMOOTHING = 0.98  # of fastai's recorder
_DIVERGENCE_FACTOR = 4.0
_USUAL_CURVE = (  # a loss that falls, and rises at the end
    np.geomspace(1e-7, 10, 100),
    2.3 - 2 * np.exp(-((np.linspace(-6, 3, 100) - 1) ** 2)) + np.linspace(0, 1, 100) ** 8,
)
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

    Different from fastai: the model is never changed; the ramp reaches `end_lr`; a member ends as
    `divergence_factor=4` of `Execution` has it, not at an average above four times its best; and with `seeds=R` R
    ramps are trained at once and averaged. For the curve itself, call `vecsweep.range_test(task, method="ramp")`.

    Args:
        task: what is trained; nothing of it is changed.
        start_lr: the first learning rate of the ramp.
        end_lr: the last.
        num_it: steps from one to the other.
        stop_div: whether a ramp ends where its loss stays far above its start; otherwise only where it is not finite.
        suggest_funcs: a rule, or several, by their names in `vecsweep.suggest.RULES` ("steep" being "steepest"), or
            functions from lrs and losses to an lr, such as `vecsweep.suggest.valley`.
        seeds: how many seeds, or the seeds themselves.
        **execution: as in `vecsweep.range_test`.

    Returns:
        A named tuple with a field for each rule; a function without a name of its own is `rule_0`, by its position.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range, or every learning rate diverged.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> task = vs.Task(model, batches, torch.nn.functional.mse_loss, torch.optim.SGD(model.parameters()))
        >>> vs.lr_find(task, suggest_funcs=("valley", "steep"))._fields
        ('valley', 'steep')
    """
    single = isinstance(suggest_funcs, str) or callable(suggest_funcs)
    asked: Sequence[str | Rule] = [suggest_funcs] if single else list(suggest_funcs)  # type: ignore[list-item, arg-type]
    rules = [_rule_of(function) for function in asked]
    suggested = namedtuple("SuggestedLRs", _fields(asked))  # type: ignore[misc]  # its fields are those asked for
    for rule in rules:
        suggest(*_USUAL_CURVE, rule)  # a mistake in a rule is told before the work
    if stop_div:
        execution.setdefault("divergence_factor", _DIVERGENCE_FACTOR)
    else:
        execution["divergence_factor"] = None
    found: RangeTest = range_test(
        task, start_lr=start_lr, end_lr=end_lr, num_steps=num_it, seeds=seeds, method="ramp", **execution
    )
    return suggested(*(found.suggest(rule, smoothing=_SMOOTHING).lr for rule in rules))


def _fields(functions: Sequence[str | Rule]) -> list[str]:
    """Name the fields of the answer; what is no name, or one that is taken, goes by its position."""
    fields = list[str]()
    for i, function in enumerate(functions):
        name = _name_of(function)
        is_fit = name.isidentifier() and not iskeyword(name) and not name.startswith("_") and name not in fields
        fields.append(name if is_fit else f"rule_{i}")
    return fields


def _name_of(function: str | Rule) -> str:
    named = getattr(function, "func", function)  # a functools.partial has no name of its own
    return function if isinstance(function, str) else str(getattr(named, "__name__", type(function).__name__))


def _rule_of(function: str | Rule) -> str | Rule:
    if isinstance(function, str) and function not in RULES:
        return _ALIASES.get(function, function)
    return function
