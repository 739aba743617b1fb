"""Task: what is trained. The user writes one model and one loss for one member; nothing here knows of members."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._types import Batch, Batches, BatchWeight, LossFn, Metric, ModelSource, OptimizerSource, TrainingStep
from vecsweep.several import as_one


@dataclass(frozen=True, slots=True, repr=False)
class Task:
    """Describe one training: a model, its batches, its loss and its optimizer.

    Nothing given here is ever changed: a sweep trains copies. A model that is in training mode is trained as it stands,
    so that a frozen body in eval mode stays in eval mode; a model in eval mode is put in training mode as a whole.
    Random numbers should come from the global generators, which a sweep seeds and gives back, not from a generator
    that the model or the loss keeps for itself. The generators of a DataLoader and its sampler are seeded, too, so that
    each seed has an order of its own, and given back.

    Args:
        model: a module, or a function without arguments that builds one, such as its class. It is called once for
            each seed, under that seed, so that every seed has its own initial weights.
        batches: a DataLoader, a list, any iterable of batches, a generator function, or a function from a
            seed to an iterable. Batches start over when they run out; a function is then called again. An iterator
            serves one seed, once. Each seed has the worker processes of a DataLoader for itself; where that would
            make more than 16 and than there are processors, seeds train in turns.
        loss_fn: `(outputs, targets) -> scalar`, for batches that are pairs `(inputs, targets)`.
        optimizer: a torch.optim optimizer over the model's parameters, used as a template and never stepped,
            or a function from parameters to an optimizer, such as its class. Its class, hyperparameters and parameter
            groups are what every member trains with. A member's lr is that of the first group; the other groups
            keep their ratio to it. A list of optimizers, such as Muon for matrices and AdamW for the rest, is
            as one optimizer with the groups of all.
        training_step: `(model, batch) -> scalar loss`, in place of `loss_fn`, for batches of any structure. It must
            reach what is trained through its `model`; other modules that it refers to are used as they are.
        val_batches: what members are validated on: a DataLoader, a list, or a function without arguments that returns
            an iterable; or, as for `batches`, a function from a seed to one. Members of a seed see the same batches.
        metrics: by name, each `(outputs, targets) -> scalar`, the mean over a batch; with `training_step`,
            `(model, batch) -> scalar`. "val_loss" is there without asking, and the others become `val_<name>`.
        batch_weight: `(batch) -> number`, how much a batch counts in the means over validation batches. None counts
            what the loss averages over: the elements of the targets, but for those at the `ignore_index` of `loss_fn`.
            The targets are the second of a pair; with `training_step`, the entry or attribute `labels`, `label`,
            `targets`, `target` or `y` first, and the last tensor where there is neither. Of `labels` in a dict, those
            that are -100 are left out.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: arguments do not fit together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import vecsweep as vs
        >>> model = nn.Linear(4, 1)
        >>> batches = [(torch.ones(8, 4), torch.zeros(8, 1))]
        >>> task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> task.loss(model, batches[0]).shape
        torch.Size([])
    """

    model: ModelSource
    batches: Batches
    loss_fn: LossFn | None = None
    optimizer: OptimizerSource | None = None
    training_step: TrainingStep | None = None
    val_batches: Batches | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    batch_weight: BatchWeight | None = None

    def __post_init__(self) -> None:
        if not callable(self.model) or (isinstance(self.model, type) and not _is_class(self.model, nn.Module, 0)):
            raise TypeError(
                f"`model` must be an nn.Module, or a function without arguments that builds one; got "
                f"{_describe(self.model)}. Pass an instance, or wrap a class that takes arguments in a lambda."
            )
        is_within = not isinstance(self.model, nn.Module) and isinstance(getattr(self.model, "model", None), nn.Module)
        if is_within and not _takes(self.model, 0):  # as a Learner of fastai, which is called with events
            raise TypeError(
                f"`model` must be an nn.Module, or a function without arguments that builds one; got "
                f"{type(self.model).__name__}, which has one. Pass its `.model`."
            )
        if not _is_source(self.batches):
            raise TypeError(
                "`batches` must be an iterable of batches (a DataLoader, a list), a generator function, or a "
                f"function from a seed to an iterable; got {_describe(self.batches)}."
            )
        self._check_validation()
        if (self.loss_fn is None) == (self.training_step is None):
            raise ValueError(
                "Exactly one of `loss_fn` and `training_step` must be given; got "
                f"{'neither' if self.loss_fn is None else 'both'}. `loss_fn(outputs, targets)` suits batches "
                "that are pairs; `training_step(model, batch)` suits all others."
            )
        for name, function in (("loss_fn", self.loss_fn), ("training_step", self.training_step)):
            if function is not None and (isinstance(function, type) or not callable(function)):
                raise TypeError(
                    f"`{name}` must be a function, or an instance such as `nn.CrossEntropyLoss()`; got "
                    f"{_describe(function)}."
                )
            if function is not None and not _takes(function, 2):
                given = "(outputs, targets)" if name == "loss_fn" else "(model, batch)"
                raise TypeError(
                    f"`{name}` must take two arguments, `{given}`; got one of {inspect.signature(function)}. Bind the "
                    "others, as by `functools.partial`."
                )
        if self.optimizer is None:
            raise TypeError(
                "`optimizer` must be given: a torch.optim optimizer over the model's parameters, or a function "
                "from parameters to one, such as `lambda params: torch.optim.SGD(params, lr=0.1)`."
            )
        object.__setattr__(self, "optimizer", as_one(self.optimizer))
        if not _is_optimizer_source(self.optimizer):
            raise TypeError(say_what_optimizer_is(self.optimizer))
        if isinstance(self.optimizer, Optimizer) and not isinstance(self.model, nn.Module):
            raise TypeError(
                "`optimizer` must be a function from parameters to an optimizer when `model` is a function "
                "that builds one: an optimizer holds the parameters of one model, and here each seed has its "
                "own. Pass `lambda params: ...`."
            )

    def __repr__(self) -> str:
        model = type(self.model).__name__ if isinstance(self.model, nn.Module) else "built by a function"
        validation = (
            "none" if self.val_batches is None else ", ".join(("val_loss", *(f"val_{n}" for n in self.metrics)))
        )
        return f"Task(model {model}, batches {type(self.batches).__name__}, validation {validation})"

    def _check_validation(self) -> None:
        if self.val_batches is not None:
            if not _is_source(self.val_batches):
                raise TypeError(
                    "`val_batches` must be an iterable of batches (a DataLoader, a list), or a function that returns "
                    f"one; got {_describe(self.val_batches)}."
                )
            if isinstance(self.val_batches, Iterator):
                raise TypeError(
                    "`val_batches` must be read again at each evaluation; got an iterator. Pass a list, a DataLoader, "
                    "or the generator function itself."
                )
        if not isinstance(self.metrics, Mapping):
            raise TypeError(
                f'`metrics` must be a dict from names to functions, such as {{"accuracy": fn}}; got '
                f"{_describe(self.metrics)}."
            )
        for name, metric in self.metrics.items():
            if not isinstance(name, str) or not callable(metric) or isinstance(metric, type):
                raise TypeError(
                    "`metrics` must be functions `(outputs, targets) -> scalar` by name; got "
                    f"{_describe(metric)} as {name!r}."
                )
        if self.batch_weight is not None and (isinstance(self.batch_weight, type) or not callable(self.batch_weight)):
            raise TypeError(
                "`batch_weight` must be a function from a batch to a number, such as `lambda batch: len(batch[1])`; "
                f"got {_describe(self.batch_weight)}."
            )
        if "loss" in self.metrics:
            raise ValueError('`metrics` must not hold "loss": the task\'s own is always measured. Choose another name.')

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the loss of one batch, as an ordinary training loop would.

        Args:
            model: the module to run.
            batch: one batch, on the model's device.
        """
        if self.training_step is not None:
            return self.training_step(model, batch)
        assert self.loss_fn is not None
        inputs, targets = batch
        return self.loss_fn(model(inputs), targets)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Compute the loss and the metrics of one batch, as an ordinary evaluation loop would.

        Args:
            model: the module to run.
            batch: one batch, on the model's device.
        """
        if self.training_step is not None:
            return {
                "loss": self.training_step(model, batch),
                **{name: metric(model, batch) for name, metric in self.metrics.items()},
            }
        assert self.loss_fn is not None
        inputs, targets = batch
        outputs = model(inputs)
        return {
            "loss": self.loss_fn(outputs, targets),
            **{name: metric(outputs, targets) for name, metric in self.metrics.items()},
        }

    def check_batch(self, batch: Batch) -> None:
        """Raise TypeError when `loss_fn` cannot take this batch apart."""
        if self.loss_fn is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(
                f"`loss_fn` needs batches that are pairs (inputs, targets); got {_describe(batch)}. Pass "
                "`training_step=lambda model, batch: ...` in its place for batches of another structure."
            )

    def open(self, seed: int) -> Iterable[Batch]:
        """Return what the batches of one seed are read from: the source itself, or what it returns for the seed."""
        return _open(self.batches, seed)

    def iterate(self, seed: int, source: Batches | None = None) -> Iterator[Batch]:
        """Start over on the batches, for one seed; `source` may be a loader that stands for the task's own."""
        return iter(_open(self.batches if source is None else source, seed))

    def open_validation(self, seed: int, source: Batches | None = None) -> Iterable[Batch]:
        """Return what one seed's validation batches are read from; `source` may stand for the task's own."""
        return _open(self.val_batches if source is None else source, seed)

    @property
    def validates_by_seed(self) -> bool:
        """Whether each seed has validation batches of its own."""
        return is_by_seed(self.val_batches)

    @property
    def is_one_pass(self) -> bool:
        """Whether the batches are an iterator, which cannot start over."""
        return isinstance(self.batches, Iterator)


def say_what_optimizer_is(value: object) -> str:
    """Say what to pass in place of something that is no optimizer."""
    if isinstance(value, list | tuple):
        return (
            f"`optimizer` must be a list of optimizers where it is a list; got {_describe(value)}. Leave out what is "
            "none, as in `[Muon(matrices, lr=0.02), AdamW(others, lr=3e-4)]`."
        )
    if hasattr(value, "param_groups"):
        return (
            "`optimizer` must be a torch.optim.Optimizer, of which each member can have a copy; "
            f"{type(value).__name__} only behaves like one. Pass the optimizer inside it, or make it a subclass that "
            "keeps all that it remembers in `self.state`."
        )
    return (
        "`optimizer` must be a torch.optim optimizer, or a function from parameters to one; got "
        f"{_describe(value)}. A class must be one of torch.optim.Optimizer that takes parameters alone; wrap any "
        "other: `lambda params: SGD(params, lr=0.1)`."
    )


def _is_optimizer_source(optimizer: Any) -> bool:
    """Whether this is an optimizer, or can be called with parameters for one, as most classes of optimizers can."""
    if isinstance(optimizer, type):
        return _is_class(optimizer, Optimizer, 1)
    return isinstance(optimizer, Optimizer) or callable(optimizer)


def _is_class(value: type, base: type, num_arguments: int) -> bool:
    """Whether a class makes instances of this base, and of so many arguments."""
    return issubclass(value, base) and _takes(value, num_arguments)


def _is_source(source: Any) -> bool:
    """Whether this can be iterated over, or called for something that can."""
    if isinstance(source, Tensor | str):
        return False
    return callable(source) or hasattr(source, "__iter__") or hasattr(source, "__getitem__")


def _open(source: Any, seed: int) -> Iterable[Batch]:
    """Call a source that is a function, with the seed if it takes one."""
    if callable(source) and not hasattr(source, "__iter__"):
        return source(seed) if is_by_seed(source) else source()
    return source


def is_by_seed(source: Any) -> bool:
    """Whether a source of batches is a function that must be called with one argument, the seed."""
    if not callable(source) or hasattr(source, "__iter__"):
        return False
    parameters = inspect.signature(source).parameters.values()
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _takes(function: Any, num_arguments: int) -> bool:
    """Whether a function can be called with so many arguments, as far as Python can say."""
    try:
        inspect.signature(function).bind(*[None] * num_arguments)
    except TypeError:
        return False
    except ValueError:  # of some functions in C
        return True
    return True


def _describe(value: object) -> str:
    """Say what a value is, in a few words, for an error message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return f"a dict with keys {list(value)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__} ({value!r:.60})"
