"""What can be chosen by name, in calls and on the command line, whose help lists it. Nothing here needs PyTorch.

What a name stands for is in the table of its kind, which has these names in this order: `tasks/builtin.py`,
`tasks/fetching.py`, `schedules/names.py`.
"""

from typing import Literal

Method = Literal["grid", "ramp"]
Mode = Literal["min", "max"]
PlotKind = Literal["curves", "final", "plan", "heatmap"]
Spacing = Literal["exponential", "linear"]
EngineName = Literal["auto", "vectorized", "sequential", "parallel"]
Precision = Literal["bf16", "fp16"]
NormName = Literal["grad_norm", "update_norm"]

TASKS = ("digits", "digits-cnn", "mnist", "fashion-mnist", "cifar10", "shakespeare", "tanh-regression")
DATA_SETS = ("mnist", "fashion-mnist", "cifar10", "shakespeare")
SCHEDULES = (
    "constant",
    "linear",
    "cosine",
    "exponential",
    "polynomial",
    "combined-cosine",
    "one-cycle",
    "flat-cosine",
    "warmup-constant",
    "warmup-linear",
    "warmup-cosine",
    "sgdr",
    "step-decay",
    "multi-step",
    "exponential-decay",
    "inverse",
    "triangular",
    "triangular2",
    "exp-range",
)
