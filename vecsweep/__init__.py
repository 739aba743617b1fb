"""Train N copies of a PyTorch model at N learning rates in one batched pass.

Example:
    >>> import torch
    >>> import vecsweep as vs
    >>> model = torch.nn.Linear(2, 1)
    >>> task = vs.Task(
    ...     model,
    ...     batches=[(torch.ones(4, 2), torch.zeros(4, 1))],
    ...     loss_fn=torch.nn.functional.mse_loss,
    ...     optimizer=torch.optim.SGD(model.parameters()),
    ... )
    >>> found = vs.range_test(task, start_lr=1e-4, end_lr=10, num_lrs=32, num_steps=20)
    >>> 1e-4 <= found.suggest().lr <= 10
    True
"""

from vecsweep import schedules
from vecsweep._errors import FallbackWarning, Interrupted, ResultFileError
from vecsweep._version import __version__ as __version__
from vecsweep.answer import find_lr
from vecsweep.check import CheckReport, check
from vecsweep.execution import Execution
from vecsweep.finder import LRFinder
from vecsweep.integrations.fastai import lr_find
from vecsweep.results import Answer, RangeTest, Sweep, join, load
from vecsweep.suggest import Suggestion
from vecsweep.sweeps import range_test, sweep
from vecsweep.task import Task

__all__ = [
    "Answer",
    "CheckReport",
    "Execution",
    "FallbackWarning",
    "Interrupted",
    "LRFinder",
    "RangeTest",
    "ResultFileError",
    "Suggestion",
    "Sweep",
    "Task",
    "check",
    "find_lr",
    "join",
    "load",
    "lr_find",
    "range_test",
    "schedules",
    "sweep",
]
