"""Schedules: how the learning rate of a member goes over a run.

A schedule is a function of progress, from 0 at the first step to 1 at the last, that returns a multiple of the
member's learning rate; or a scheduler of torch. Here are all the families, and their names on the
command line.

Example:
    >>> schedule = warmup(0.1, start=0.01, then=cosine(1, 0))
    >>> schedule([0.0, 0.1, 0.55, 1.0])
    array([0.01, 1.  , 0.5 , 0.  ])
"""

from vecsweep.schedules.annealing import combine, combined_cosine, constant, cosine, exponential, linear, polynomial
from vecsweep.schedules.cycles import exp_range, sgdr, triangular, triangular2
from vecsweep.schedules.decay import exponential_decay, inverse, multi_step, step_decay
from vecsweep.schedules.names import SCHEDULES, parse
from vecsweep.schedules.policies import flat_cosine, one_cycle, warmup
from vecsweep.schedules.schedule import Schedule, as_schedule, evaluate, evaluate_momentum
from vecsweep.schedules.torch_schedulers import RunningScheduler, TorchSchedule, from_torch, plateau

__all__ = [
    "SCHEDULES",
    "RunningScheduler",
    "Schedule",
    "TorchSchedule",
    "as_schedule",
    "combine",
    "combined_cosine",
    "constant",
    "cosine",
    "evaluate",
    "evaluate_momentum",
    "exp_range",
    "exponential",
    "exponential_decay",
    "flat_cosine",
    "from_torch",
    "inverse",
    "linear",
    "multi_step",
    "one_cycle",
    "parse",
    "plateau",
    "polynomial",
    "sgdr",
    "step_decay",
    "triangular",
    "triangular2",
    "warmup",
]
