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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vecsweep._version import __version__ as __version__

if TYPE_CHECKING:
    from vecsweep import schedules
    from vecsweep._errors import FallbackWarning, Interrupted, ResultFileError
    from vecsweep.answer import find_lr
    from vecsweep.checking import CheckReport, check
    from vecsweep.execution import Execution
    from vecsweep.finder import LRFinder
    from vecsweep.integrations.fastai import lr_find
    from vecsweep.range_testing import range_test
    from vecsweep.results import Answer, RangeTest, Sweep, join
    from vecsweep.resuming import load, resume
    from vecsweep.suggest import Suggestion
    from vecsweep.sweeps import sweep
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
    "resume",
    "schedules",
    "sweep",
]

# Names are imported when they are asked for, so that `vecsweep --version` need not wait for PyTorch. No public function
# may have the name of a module beside it: importing that would put it in the function's place.
_HOMES = {
    "_errors": ("FallbackWarning", "Interrupted", "ResultFileError"),
    "answer": ("find_lr",),
    "checking": ("CheckReport", "check"),
    "execution": ("Execution",),
    "finder": ("LRFinder",),
    "integrations.fastai": ("lr_find",),
    "range_testing": ("range_test",),
    "results": ("Answer", "RangeTest", "Sweep", "join"),
    "resuming": ("load", "resume"),
    "suggest": ("Suggestion",),
    "sweeps": ("sweep",),
    "task": ("Task",),
}
_MODULES = (
    "finder",
    "integrations",
    "kernels",
    "observers",
    "plot",
    "report",
    "results",
    "schedules",
    "suggest",
    "tasks",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})
