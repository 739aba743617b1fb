"""Learner: a copy of the caller's model with an optimizer of its own, on stock PyTorch.

The caller's objects are only ever copied. The sequential engine trains learners; the vectorized engine takes one
for each seed as the pattern of its members.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from vecsweep._engine.ensemble import MemberState
from vecsweep._engine.rng import Streams
from vecsweep._types import Batch, Precision
from vecsweep.execution import Execution
from vecsweep.kernels.updates import UPDATES
from vecsweep.task import Task

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """The loss of one batch as a module, so that `functional_call` can put other parameters into the model.

    Args:
        task: whose loss.
        model: the module that is trained.
        precision: of autocast; None for none.
    """

    PREFIX = "model."  # of the model's parameters and buffers among the objective's

    def __init__(self, task: Task, model: nn.Module, precision: Precision | None) -> None:
        super().__init__()
        self.model = model
        self._task = task
        self._precision = precision

    def forward(self, batch: Batch) -> Tensor:
        """Compute the loss of one batch: a scalar."""
        device = next(self.model.parameters()).device
        if self._precision is None:
            return self._scalar(self._task.loss(self.model, batch))
        # The cache of casted weights would outlive the tensors of a traced step.
        with torch.autocast(device.type, AUTOCAST_DTYPES[self._precision], cache_enabled=False):
            return self._scalar(self._task.loss(self.model, batch))

    def evaluate(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the loss with other parameters and buffers; `tensors` afterwards holds what the pass made of them.

        Args:
            tensors: parameters and buffers by their names in the model.
            batch: one batch.
        """
        prefixed = {self.PREFIX + name: tensor for name, tensor in tensors.items()}
        loss = functional_call(self, prefixed, (batch,))
        tensors.update({name: prefixed[self.PREFIX + name] for name in tensors})
        return loss

    @staticmethod
    def _scalar(loss: Any) -> Tensor:
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"The loss must be a scalar tensor; got {type(loss).__name__}. Return the tensor itself, not "
                "`loss.item()` or a tuple."
            )
        if loss.numel() != 1:
            raise ValueError(
                f"The loss must be a scalar; got shape {tuple(loss.shape)}. Reduce it, for example by `.mean()`."
            )
        return loss.reshape(())


@dataclass(frozen=True, slots=True)
class Group:
    """A parameter group of the optimizer.

    Attributes:
        names: of its trained parameters in the model.
        options: its hyperparameters by torch.optim's names, without lr.
        lr_ratio: its lr over the lr of the first group.
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    lr_ratio: float

    def hyper(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters of this group in a step, from those of the first group."""
        return {**hyper, "lr": hyper["lr"] * self.lr_ratio}


class Learner:
    """A model and its optimizer, ready to train.

    Args:
        task: what is trained.
        model: a model that belongs to this learner.
        optimizer: over this model's parameters.
        precision: of autocast; None for none.
    """

    def __init__(self, task: Task, model: nn.Module, optimizer: Optimizer, precision: Precision | None) -> None:
        self.task = task
        self.model = model
        self.optimizer = optimizer
        self.precision = precision
        self.objective = Objective(task, model, precision)
        self.groups = _groups(model, optimizer)
        named = dict(model.named_parameters())
        self.parameters = {name: named[name] for group in self.groups for name in group.names}
        self.frozen: frozenset[str] = frozenset()  # what the caller had frozen; here all is that is not trained

    @classmethod
    def build(
        cls,
        task: Task,
        seed: int,
        streams: Streams,
        execution: Execution,
        dtype: torch.dtype | None = None,
    ) -> "Learner":
        """Copy the task's model, or build one under the seed, and give it an optimizer.

        Args:
            task: what is trained.
            seed: for the initial weights, if the task's model is a function.
            streams: the random streams of the run.
            execution: device and precision.
            dtype: what floating-point parameters and buffers are cast to; None leaves them alone.
        """
        template = task.optimizer if isinstance(task.optimizer, Optimizer) else None
        if isinstance(task.model, nn.Module):
            _check_trainable(task.model)
            if template is not None:
                _groups(task.model, template)  # checked while both are the caller's, so that the message fits
            model, optimizer = copy_model(task.model, template)
        else:
            streams.use("weights", seed)
            model, optimizer = task.model(), None
            if not isinstance(model, nn.Module):
                raise TypeError(f"`model` must return an nn.Module when it is a function; got {type(model).__name__}.")
            _check_trainable(model)
        model.to(device=execution.device, dtype=dtype)
        if not model.training:
            model.train()
        if optimizer is None:
            assert callable(task.optimizer)
            optimizer = task.optimizer(model.parameters())
            if not isinstance(optimizer, Optimizer):
                raise TypeError(
                    "`optimizer` must return a torch.optim optimizer when it is a function; got "
                    f"{type(optimizer).__name__}. Return the optimizer, as in `lambda params: SGD(params, lr=0.1)`."
                )
        else:
            _forget(optimizer)
        _check_needs_no_closure(optimizer)
        if isinstance(task.loss_fn, nn.Module):  # it may hold class weights, which go where the model goes
            task = replace(task, loss_fn=copy.deepcopy(task.loss_fn).to(device=execution.device, dtype=dtype))
        learner = cls(task, model, optimizer, execution.precision)
        learner.frozen = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in learner.parameters)
        return learner

    def copy(self) -> "Learner":
        """Make an independent learner in the same state."""
        model, optimizer = copy_model(self.model, self.optimizer)
        assert optimizer is not None
        return Learner(self.task, model, optimizer, self.precision)

    def model_of(self, state: MemberState) -> nn.Module:
        """Make a module of its own that has a member's parameters and buffers."""
        model, _ = copy_model(self.model)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in (state.parameters | state.buffers).items():
                tensors[name].copy_(value)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        return model

    def set_hyper(self, hyper: Mapping[str, float]) -> None:
        """Set the hyperparameters of the next update; `lr` is that of the first parameter group."""
        for group, own in zip(self.groups, self.optimizer.param_groups, strict=True):
            own.update(group.hyper(hyper))


def copy_model(model: nn.Module, optimizer: Optimizer | None = None) -> tuple[nn.Module, Optimizer | None]:
    """Copy a model, and with it an optimizer over its parameters."""
    # Tensors computed from parameters (weight_norm keeps one) refuse to be copied; they are computed anew anyway.
    memo: dict[int, Any] = {
        id(leaf): leaf.detach().clone()
        for module in model.modules()
        for leaf in pytree.tree_leaves(vars(module))
        if isinstance(leaf, Tensor) and not leaf.is_leaf
    }
    copied = copy.deepcopy(model, memo)
    return copied, None if optimizer is None else copy_optimizer(optimizer, memo)


def copy_optimizer(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copy an optimizer over to other parameters.

    Args:
        optimizer: the optimizer; what torch.optim leaves out of its copies, attributes of a class's own, is copied too.
        memo: as in `copy.deepcopy`: from the ids of the parameters to what stands for them.
    """
    copied = copy.deepcopy(optimizer, memo)
    for key, value in vars(optimizer).items():
        # A scheduler puts a `step` of its own on the caller's optimizer, which refers to that optimizer.
        if key not in vars(copied) and key != "step":
            setattr(copied, key, copy.deepcopy(value, memo))
    return copied


def _forget(optimizer: Optimizer) -> None:
    """Take from a copied template what it learned in steps of the caller's."""
    if not optimizer.state:
        return
    if not any(isinstance(optimizer, known) for known in (*UPDATES, torch.optim.ASGD, torch.optim.Rprop)):
        raise ValueError(
            f"`optimizer` must not have been stepped; {type(optimizer).__name__} holds state, and vecsweep does not "
            "know how to make it fresh. Pass a function that builds a new one: `lambda params: ...`."
        )
    optimizer.state.clear()
    if isinstance(optimizer, torch.optim.Adagrad):  # the one class that fills its state when it is built
        for group in optimizer.param_groups:
            for p in group["params"]:
                total = torch.full_like(p, group["initial_accumulator_value"], requires_grad=False)
                optimizer.state[p] = {"step": torch.tensor(0.0), "sum": total}


def _groups(model: nn.Module, optimizer: Optimizer) -> tuple[Group, ...]:
    """Read the parameter groups of an optimizer over this model's parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = []
    base_lr = float(optimizer.param_groups[0].get("lr", 0.0))
    for index, group in enumerate(optimizer.param_groups):
        if "lr" not in group:
            raise ValueError(
                f"`optimizer` must have an `lr` in each parameter group; {type(optimizer).__name__} has none. There "
                "is no learning rate to find for it."
            )
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError(
                    f"`optimizer` must be built on the parameters of `model`; group {index} holds a parameter of shape "
                    f"{tuple(parameter.shape)} that is not the model's. Build it from `model.parameters()`, or pass "
                    "a function: `lambda params: ...`."
                )
        if base_lr <= 0 and float(group["lr"]) != base_lr:
            raise ValueError(
                f"The lr of the first parameter group must be positive, because the others are trained at their "
                f"ratio to it; got {base_lr}. Put a group with a positive lr first."
            )
        groups.append(
            Group(
                names=tuple(names[id(p)] for p in group["params"] if p.requires_grad),
                options={key: value for key, value in group.items() if key not in ("params", "lr")},
                lr_ratio=float(group["lr"]) / base_lr if base_lr > 0 else 1.0,
            )
        )
    if not any(group.names for group in groups):
        raise ValueError(
            "`optimizer` must hold parameters with requires_grad=True; got only frozen ones. Unfreeze some, or build "
            "the optimizer on those that are trained."
        )
    return tuple(groups)


def _check_trainable(model: nn.Module) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "`model` must have parameters to train; got none with requires_grad=True. Unfreeze some of them."
        )
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"`model` must be initialised; its lazy parameter {name!r} has no shape yet. Run one batch through the "
                "model first, and build the optimizer after that."
            )


def _check_needs_no_closure(optimizer: Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "`optimizer` must take one gradient a step; LBFGS evaluates a closure several times in each, so that its "
            "members cannot step together. Use a first-order optimizer, such as SGD or AdamW."
        )


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to itself."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
