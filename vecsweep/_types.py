"""Names for the types that pass between the layers. Nothing here does anything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

Batch = Any  # what the user's loader yields: a tensor, or any nesting of tuples, lists and dicts around tensors
Batches = Iterable[Batch] | Callable[..., Iterable[Batch]]
LossFn = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], Any]  # (outputs, targets) -> scalar; with a training step, (model, batch) -> scalar
BatchWeight = Callable[[Batch], Any]  # a number, or a tensor of one element
TrainingStep = Callable[[nn.Module, Batch], Tensor]
ModelSource = nn.Module | Callable[[], nn.Module]
Optimizers = Optimizer | Sequence[Optimizer]  # several, each over some of the parameters
OptimizerSource = Optimizers | Callable[[Iterable[nn.Parameter]], Optimizers]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ByteArray = NDArray[np.uint8]
Seeds = int | Sequence[int]
Lrs = ArrayLike | Tensor
Schedules = Mapping[str, Any] | Sequence[Any]  # schedules by name, or what has a name; see `vecsweep.sweep`

Method = Literal["grid", "ramp"]
Mode = Literal["min", "max"]
PlotKind = Literal["curves", "final", "plan", "heatmap"]
Spacing = Literal["exponential", "linear"]
EngineName = Literal["auto", "vectorized", "sequential", "parallel"]
Precision = Literal["bf16", "fp16"]
NormName = Literal["grad_norm", "update_norm"]

Hyper = dict[str, FloatArray]  # hyperparameters by name, each [step, member]
