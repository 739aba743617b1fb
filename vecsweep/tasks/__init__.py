"""Built-in tasks on real data, and the user's own tasks by name, as on the command line.

The data of most tasks are fetched once, by `vecsweep data`; those of the digits come with a package of the extra
`demo`, and those of the regression are made.
"""

from vecsweep.datasets import SplitData as DigitsData
from vecsweep.datasets import digits_data
from vecsweep.tasks.batches import ShuffledBatches
from vecsweep.tasks.builtin import TASKS, accuracy, cifar10, digits, digits_cnn
from vecsweep.tasks.finding import load_task

__all__ = [
    "TASKS",
    "DigitsData",
    "ShuffledBatches",
    "accuracy",
    "cifar10",
    "digits",
    "digits_cnn",
    "digits_data",
    "load_task",
]
