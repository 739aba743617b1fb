"""Built-in tasks on real data, and the user's own tasks by name, as on the command line.

The data of most tasks are fetched once, by `vecsweep data`; those of the digits come with a package of the extra
`demo`, and those of the regression are made.
"""

from vecsweep.tasks.averaged import Averaged
from vecsweep.tasks.batches import ShuffledBatches
from vecsweep.tasks.builtin import (
    TASKS,
    cifar10,
    digits,
    digits_cnn,
    fashion_mnist,
    fashion_mnist_sgd,
    mnist,
    tanh_regression,
)
from vecsweep.tasks.finding import load_task

__all__ = [
    "TASKS",
    "Averaged",
    "ShuffledBatches",
    "cifar10",
    "digits",
    "digits_cnn",
    "fashion_mnist",
    "fashion_mnist_sgd",
    "load_task",
    "mnist",
    "tanh_regression",
]
