"""Names for the types that pass between the layers. Nothing here does anything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._names import EngineName as EngineName
from vecsweep._names import Method as Method
from vecsweep._names import Mode as Mode
from vecsweep._names import NormName as NormName
from vecsweep._names import PlotKind as PlotKind
from vecsweep._names import Precision as Precision
from vecsweep._names import Spacing as Spacing

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

Hyper = dict[str, FloatArray]  # hyperparameters by name, each [step, member]
