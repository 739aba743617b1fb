"""Learner: a copy of the caller's model with an optimizer of its own, on stock PyTorch.

The caller's objects are only ever copied. The sequential engine trains learners; the vectorized engine takes one
for each seed as the pattern of its members.
"""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._engine.caller.casting import place_
from vecsweep._engine.caller.copying import copy_model, forget_, set_to_train, uncompiled
from vecsweep._engine.caller.lending import Seal, is_special, lendable
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.caller.watch import Changes, Watch
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.objective import Objective
from vecsweep._engine.members.stock import has_modes, load_state
from vecsweep._engine.members.templates import check_template
from vecsweep._hyper import BETAS, own_lrs, plain_options
from vecsweep._types import Metric, Precision
from vecsweep.execution import Execution
from vecsweep.several import as_one, parts_of
from vecsweep.stumbles import look_at_optimizer
from vecsweep.task import Task


@dataclass(frozen=True, slots=True)
class Group:
    """A parameter group of the optimizer.

    Attributes:
        names: of its trained parameters in the model.
        options: its hyperparameters by torch.optim's names, without lr.
        lr_ratio: its lr over the lr of the first group.
        own: the names of hyperparameters for which it does not follow the first group: it has another value, or none.
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    lr_ratio: float
    own: frozenset[str] = frozenset()

    def hyper(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters of this group in a step, by torch.optim's names, from those of the first group.

        Args:
            hyper: "lr" and others, with "beta1" and "beta2" for the two of `betas`.
        """
        followed = {name: value for name, value in hyper.items() if name not in self.own}
        betas = tuple(followed.pop(name, None) for name in BETAS)
        if betas != (None, None):
            followed["betas"] = tuple(
                old if new is None else new for old, new in zip(self.options["betas"], betas, strict=True)
            )
        return followed | {"lr": hyper["lr"] * self.lr_ratio}


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
        self.seal: Seal | None = None  # of what is lent, where the caller has it, too
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
            check_given(task.model, template)
            model, optimizer = copy_model(task.model, template, lent=lendable(task.model))
        else:
            streams.use("weights", seed)
            built = task.model()
            if not isinstance(built, nn.Module):
                raise TypeError(f"`model` must return an nn.Module when it is a function; got {type(built).__name__}.")
            _check_trainable(built)
            # The function may return a module that the caller keeps.
            model, optimizer = copy_model(built, lent=lendable(built))
        place_(model, execution.place, dtype)
        if any(parameter.device.type == "mps" for parameter in model.parameters()):
            raise ValueError(
                "`model` must be where there is float64, for the bookkeeping of losses; it is on 'mps', which has "
                "none. Pass `device='cpu'`."
            )
        set_to_train(model)
        if optimizer is None:
            assert callable(task.optimizer)
            made = as_one(task.optimizer(model.parameters()))
            if made is None:
                raise TypeError(
                    "`optimizer` must return a torch.optim optimizer when it is a function; got NoneType. Return the "
                    "optimizer, as in `lambda params: SGD(params, lr=0.1)`."
                )
            check_template(made)  # or it is none
            optimizer = cast(Optimizer, made)
            _check_steps_by_its_class(optimizer)
            look_at_optimizer(optimizer)
        else:
            forget_(optimizer)
        if has_modes(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        task = replace(task, loss_fn=uncompiled(task.loss_fn), training_step=uncompiled(task.training_step))
        if isinstance(task.loss_fn, nn.Module):  # it may hold class weights, which go where the model goes
            loss_fn = copy.deepcopy(task.loss_fn)
            place_(loss_fn, execution.place, dtype)
            task = replace(task, loss_fn=loss_fn)
        metrics = {name: _own_metric(metric, execution.place, dtype) for name, metric in task.metrics.items()}
        learner = cls(replace(task, metrics=metrics), model, optimizer, execution.precision)
        learner.frozen = frozenset(name for name, p in model.named_parameters() if not p.requires_grad)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in learner.parameters)
        learner.seal = Seal(learner.objective.lent)
        return learner

    def copy(self, *, copy_frozen: bool = False) -> "Learner":
        """Make an independent learner in the same state; what is lent is shared, unless it is to be copied, too."""
        model, optimizer = copy_model(self.model, self.optimizer, lent={} if copy_frozen else self.objective.lent)
        assert optimizer is not None
        task = self.task
        if isinstance(task.loss_fn, nn.Module):
            task = replace(task, loss_fn=copy.deepcopy(task.loss_fn))
        copied = Learner(task, model, optimizer, self.precision)
        copied.objective.takes_gradients = self.objective.takes_gradients
        return copied

    def check_lent(self) -> None:
        """Raise ValueError where somebody has changed what is lent since this was made of the caller's model."""
        if self.seal is not None:
            self.seal.check()

    @property
    def constants(self) -> dict[str, Tensor]:
        """What is not trained and yet may change, by name: buffers, and parameters that the step itself may set."""
        frozen = {n: p for n, p in self.model.named_parameters() if n not in self.parameters and not is_special(p)}
        return {name: tensor.detach() for name, tensor in (frozen | dict(self.model.named_buffers())).items()}

    @functools.cached_property
    def inside(self) -> Watch:
        """What Python keeps in the model and the loss, as it is when this is first asked for."""
        return Watch.inside(self.task, self.model)

    def keep_(self, kept: Changes, pattern: "Learner") -> None:
        """Take over what another learner's passes had kept in Python.

        Args:
            kept: as `kept` of a `MemberState`.
            pattern: the learner of the seed.
        """
        self.inside.put(pattern.inside.translate(kept, self.inside))

    def kept(self, pattern: "Learner") -> Changes:
        """Copy what passes have kept in Python since `inside` was first asked for."""
        return self.inside.translate(self.inside.changes(), pattern.inside)

    def model_of(self, state: MemberState, *, copy_frozen: bool = False) -> nn.Module:
        """Make a module of its own that has a member's buffers, and its parameters as they are to be evaluated.

        Args:
            state: the member's.
            copy_frozen: whether lent parameters are copied, too.

        Raises:
            ValueError: somebody has changed those meanwhile.
        """
        self.check_lent()
        copied = self.copy(copy_frozen=copy_frozen)
        if state.kept:
            copied.keep_(state.kept, self)
        model, optimizer = copied.model, copied.optimizer
        put_tensors(model, state.parameters | state.buffers)
        if optimizer is not None and has_modes(optimizer):
            named = dict(model.named_parameters())
            load_state(optimizer, {name: named[name] for name in self.parameters}, state.optimizer)
            optimizer.eval()  # type: ignore[attr-defined]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.frozen)
        return model

    def set_hyper(self, hyper: Mapping[str, float]) -> None:
        """Set the hyperparameters of the next update; `lr` is that of the first parameter group."""
        for group, own in zip(self.groups, self.optimizer.param_groups, strict=True):
            own.update(group.hyper(hyper))


def check_given(model: nn.Module, template: Optimizer | None) -> None:
    """Refuse a model that cannot be trained, and an optimizer that no member can have a copy of.

    Args:
        model: the caller's own, and not a copy, so that the message fits.
        template: over its parameters; None where a function makes one.

    Raises:
        TypeError: one of them is of a kind that cannot be copied, or stepped.
        ValueError: they do not go together, or hold what a copy would not.
    """
    _check_trainable(model)
    if template is not None:
        check_template(template)
        _check_steps_by_its_class(template)
        _groups(model, template)


def taken_out(name: str) -> ValueError:
    """The error for a trained parameter of this name that a pass has taken out of the model."""
    return ValueError(
        f"A model must keep the parameters that are trained; a step has taken out {name!r}, as pruning and "
        "parametrizations do. Do it before the sweep, and build the optimizer after that."
    )


def put_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put copies of tensors into a model, by name; what a pass was the first to register is registered as a buffer.

    They may be elsewhere, and come to where the model is.
    """
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in tensors.items():
        if name in named:
            named[name].data = value.to(named[name].device, copy=True)  # of another shape, if a buffer may grow
        else:
            path, _, key = name.rpartition(".")
            device = next(iter(named.values())).device
            model.get_submodule(path).register_buffer(key, value.to(device, copy=True))


def _own_metric(metric: Metric, device: torch.device | str | None, dtype: torch.dtype | None) -> Metric:
    """A copy of a metric that may keep something; a function is its own."""
    copied = copy.deepcopy(metric)
    if isinstance(copied, nn.Module):
        place_(copied, device, dtype)
    return copied


def _groups(model: nn.Module, optimizer: Optimizer) -> tuple[Group, ...]:
    """Read the parameter groups of an optimizer over this model's parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = list[Group]()
    lrs = own_lrs(optimizer)
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
        if lrs[0] <= 0 and len(lrs) > 1:
            raise ValueError(
                "The lr of the first parameter group must be positive, because the others are trained at their ratio "
                f"to it; got {lrs[0]}. Put a group with a positive lr first."
            )
        options = {key: value for key, value in group.items() if key not in ("params", "lr")}
        plain, first = plain_options(options), plain_options(groups[0].options if groups else options)
        groups.append(
            Group(
                names=tuple(names[id(p)] for p in group["params"] if p.requires_grad),
                options=options,
                lr_ratio=lrs[index] / lrs[0] if lrs[0] > 0 else 1.0,
                own=frozenset(key for key in plain | first if plain.get(key) != first.get(key)),
            )
        )
    if not any(group.names for group in groups):
        raise ValueError(
            "`optimizer` must hold parameters with requires_grad=True; got only frozen ones. Unfreeze some, or build "
            "the optimizer on those that are trained."
        )
    return tuple(groups)


def _check_trainable(model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TypeError(
            f"`model` must be a module of Python; got {type(model).__name__}, with parts that torch.jit has scripted "
            "or traced, into which no other parameters can be put. Pass the module as it was before."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "`model` must have parameters to train; got none with requires_grad=True. Unfreeze some of them."
        )
    for name, buffer in model.named_buffers():
        if buffer.layout not in (torch.strided, torch.sparse_coo):
            raise TypeError(
                f"`model` must have buffers that can be copied; {name!r} is {buffer.layout}, which PyTorch does not "
                "copy. Keep it as `to_sparse_coo()`, or let the batches bring it."
            )
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter):
            raise ValueError(
                f"`model` must be initialised; its lazy parameter {name!r} has no shape yet. Run one batch through the "
                "model first, and build the optimizer after that."
            )


def _check_steps_by_its_class(optimizer: Optimizer) -> None:
    for part in parts_of(optimizer):
        if "step" in vars(part) and not hasattr(part.step, "_wrapped_by_lr_sched"):
            raise ValueError(
                f"`optimizer` must step by its class; the `step` of this {type(part).__name__} has been replaced, and "
                "copies would not have it. Put the new step into a subclass."
            )
