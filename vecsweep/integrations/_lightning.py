"""What a LightningModule is made of, as far as a Task needs it: its steps, its data, its optimizer.

Of Lightning nothing is imported but the class LightningModule, of the package that the caller has imported.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from vecsweep._types import Batch, Batches, Metric
from vecsweep.execution import ExecutionOptions
from vecsweep.integrations._stand_in import StandIn, attached, is_meter, meters_of

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_MOMENTUM_KEYS = ("momentum", "betas")
_SCHEDULER_KEYS = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")  # left in parameter groups


class Steps:
    """The module's own steps, for whichever copy of it a member has.

    Args:
        trainer: what they find in place of a Trainer.
        base: the class LightningModule.
        has_validation: whether the module has a `validation_step` of its own.
    """

    def __init__(self, trainer: StandIn, base: type[Any], *, has_validation: bool) -> None:
        self._trainer = trainer
        self._base = base
        self._has_validation = has_validation
        self._needs_meters = dict[str, bool]()  # by step: whether its loss depends on torchmetrics objects

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Compute the loss: of `training_step` in training mode, of `validation_step` in eval mode."""
        if not model.training and self._has_validation:
            loss = self._loss_of("validation_step", model, batch)
            if loss is not None:
                return loss
        loss = self._loss_of("training_step", model, batch)
        if loss is None:
            raise ValueError(
                f"`training_step` of {type(model).__name__} must return the loss, a tensor, or a dict with it as "
                '"loss"; got neither. Return it.'
            )
        return loss

    def _loss_of(self, step: str, model: nn.Module, batch: Batch) -> Tensor | None:
        """The loss that a step returns, or logs as "val_loss"; the first pass, which is not batched, sees to meters."""
        if step in self._needs_meters:
            return self._read_loss(step, model, batch, is_metered=self._needs_meters[step])
        loss = self._read_loss(step, model, batch, is_metered=False)
        self._needs_meters[step] = bool(meters_of(model)) and loss is not None and not bool(loss.isfinite().all())
        return self._read_loss(step, model, batch, is_metered=True) if self._needs_meters[step] else loss

    def _read_loss(self, step: str, model: nn.Module, batch: Batch, *, is_metered: bool) -> Tensor | None:
        result, logged = self._run(step, model, batch, is_metered=is_metered)
        found = result.get("loss") if isinstance(result, dict) else result
        if found is None and step == "validation_step":
            found = _measured(logged.get("val_loss"))
        return found if isinstance(found, Tensor) else None

    def metric(self, name: str) -> Metric:
        """A metric that is what `validation_step` logs under a name."""

        def measure(model: nn.Module, batch: Batch) -> Any:
            _, logged = self._run("validation_step", model, batch, is_metered=True)
            if name not in logged:
                raise ValueError(f"`metrics` must be names that `validation_step` logs, {list(logged)}; got {name!r}.")
            return _measured(logged[name])

        return measure

    def _run(self, step: str, model: nn.Module, batch: Batch, *, is_metered: bool) -> tuple[Any, dict[str, Any]]:
        """Call a step as the Trainer would; return also what it logged."""
        logged: dict[str, Any] = {}
        self._trainer.training, self._trainer.validating = model.training, not model.training
        if is_metered and step == "validation_step":
            for meter in meters_of(model):
                meter.reset()  # what is measured is of this batch
        with attached(model, self._trainer, logged, is_metered=is_metered):
            for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
                batch = self._batch_hook(model, hook)(batch, 0)
            method = getattr(model, step)
            indices = [self._trainer.batch_idx() if step == "training_step" else 0, 0][: _num_indices(method)]
            return method(batch, *indices), logged

    def _batch_hook(self, model: nn.Module, name: str) -> Callable[[Batch, int], Batch]:
        """The data module's, if it has one of its own, else the module's."""
        data = self._trainer.datamodule
        default = getattr(self._base, name)
        return getattr(model if data is None or getattr(type(data), name, default) is default else data, name)


def _measured(value: Any) -> Any:
    """What was logged; of a torchmetrics object what it has measured."""
    return value.compute() if is_meter(value) else value


def _num_indices(step: Callable[..., Any]) -> int:
    """How many of `batch_idx` and `dataloader_idx` a step takes after the batch."""
    parameters = list(inspect.signature(step).parameters.values())
    if any(p.name == "dataloader_iter" for p in parameters):
        raise ValueError("`training_step` must take a batch; got one that takes `dataloader_iter`. Take `batch`.")
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 1
    return min(2, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) - 1)


def num_batches_of(batches: Batches) -> int:
    """How many batches a pass has; a guess where they have no length."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 1000


def load(
    module: Any, base: type[Any], trainer: StandIn, train_dataloaders: Any, val_dataloaders: Any
) -> tuple[Batches, Batches | None]:
    """Set up the data and the module, and find the batches to train and to validate on."""
    data = trainer.datamodule
    if data is not None:
        data.trainer = trainer
        data.prepare_data()
        data.setup("fit")
    module.prepare_data()
    module.setup("fit")
    module.configure_model()
    owner = module if data is None else data

    def own(name: str) -> Any:
        """What the data module, or the module without one, loads by this name; None where it has no such method."""
        method = getattr(owner, name)
        return None if getattr(method, "__func__", method) is getattr(base, name) else method()

    batches = own("train_dataloader") if train_dataloaders is None else train_dataloaders
    if batches is None:
        raise ValueError(
            f"There must be batches to train on; got neither `train_dataloaders` nor a `datamodule`, and "
            f"{type(module).__name__} has no `train_dataloader`. Pass a DataLoader."
        )
    val_batches = own("val_dataloader") if val_dataloaders is None else val_dataloaders
    return _only_loader("train_dataloaders", batches), _only_loader("val_dataloaders", val_batches)


def _only_loader(name: str, loaders: Any) -> Any:
    """Take the loader out of a list of one; raise ValueError if there are several."""
    members = list(loaders.values()) if isinstance(loaders, dict) else loaders
    is_collection = isinstance(members, list | tuple) and any(isinstance(item, DataLoader) for item in members)
    if isinstance(loaders, list | tuple) and is_collection and len(members) == 1:
        return members[0]
    if is_collection or isinstance(loaders, dict) or type(loaders).__name__ == "CombinedLoader":
        remedy = (
            "the one that members are to be judged by"
            if name == "val_dataloaders"
            else "one iterable that yields the batches your step takes, such as a generator function over `zip(first, "
            "second)`"
        )
        raise ValueError(f"`{name}` must be one loader; got {type(loaders).__name__} of several. Pass {remedy}.")
    return loaders


def has_scheduler(configured: Any) -> bool:
    """Whether there is a scheduler in what `configure_optimizers` returns."""
    if isinstance(configured, dict):
        return configured.get("lr_scheduler") is not None
    if isinstance(configured, list | tuple) and len(configured) == 2 and isinstance(configured[0], list | tuple):
        return bool(configured[1])
    return isinstance(configured, list | tuple) and any(isinstance(c, dict) and has_scheduler(c) for c in configured)


def read_optimizer(configured: Any) -> Optimizer:
    """Take the optimizer out of what `configure_optimizers` returns, as it was before it had a scheduler."""
    if isinstance(configured, list | tuple) and len(configured) == 2 and isinstance(configured[0], list | tuple):
        configured = list(configured[0])  # ([optimizer], [scheduler])
    listed = list(configured) if isinstance(configured, list | tuple) else [configured]
    listed = [item.get("optimizer") if isinstance(item, dict) else item for item in listed]
    if len(listed) > 1:
        raise ValueError(
            f"`configure_optimizers` must return one optimizer; got {len(listed)}. A sweep has one learning rate for "
            "each member: put the parameters into groups of one optimizer, or sweep one of several models at a time "
            "with a `vs.Task` of its own."
        )
    if not listed or not isinstance(listed[0], Optimizer):
        got = type(listed[0]).__name__ if listed else "an empty list"
        raise ValueError(f"`configure_optimizers` must return a torch.optim optimizer; got {got}.")
    optimizer = listed[0]
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])
        if "base_momentum" in group or "max_momentum" in group:  # a scheduler that cycles momentum has set it
            group.update({key: optimizer.defaults[key] for key in _MOMENTUM_KEYS if key in optimizer.defaults})
        for key in _SCHEDULER_KEYS:
            if key not in optimizer.defaults:
                group.pop(key, None)
    return optimizer


def options_of(trainer: Any) -> ExecutionOptions:
    """The options of a Trainer that are options of a sweep, too."""
    options: ExecutionOptions = {}
    if trainer is None:
        return options
    if trainer.accumulate_grad_batches != 1:
        options["accumulation_steps"] = trainer.accumulate_grad_batches
    if trainer.gradient_clip_val:
        if str(trainer.gradient_clip_algorithm or "norm").rpartition(".")[2].lower() != "norm":
            raise ValueError(
                '`trainer` must clip gradients by norm, or not at all; got `gradient_clip_algorithm="value"`. Members '
                "have no clipping by value."
            )
        options["max_grad_norm"] = float(trainer.gradient_clip_val)
    if trainer.precision == "bf16-mixed":
        options["precision"] = "bf16"
    elif trainer.precision == "16-mixed":
        options["precision"] = "fp16"
    elif trainer.precision != "32-true":
        raise ValueError(
            f"`trainer` must have the precision 32-true, 16-mixed or bf16-mixed; got {trainer.precision}. Convert the "
            "module, as by `module.double()`, and give batches of its type."
        )
    return options


def base_of(module: Any) -> type[Any]:
    """The class LightningModule that this module is of, in whichever of the two packages."""
    packages = [sys.modules[name] for name in _PACKAGES if sys.modules.get(name) is not None]
    bases = [package.LightningModule for package in packages or [_import_lightning()]]
    for base in bases:
        if isinstance(module, base):
            return base
    raise TypeError(
        f"`module` must be a LightningModule; got {type(module).__name__}. For other modules there is `vs.Task`; of a "
        "Trainer pass the module that it fits."
    )


def _import_lightning() -> Any:
    for name in _PACKAGES:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            cause = error
    raise ImportError("This task needs Lightning. Run: pip install 'vecsweep[lightning]'") from cause


def parsing_of(base: type[Any]) -> Any:
    """Lightning's own access to attributes that may be in `hparams`."""
    return importlib.import_module(f"{base.__module__.rpartition('.core.')[0]}.utilities.parsing")


def find_attribute(module: nn.Module, base: type[Any], attr_name: str) -> str:
    """Name the attribute that holds the learning rate."""
    names = (attr_name,) if attr_name else ("lr", "learning_rate")
    for name in names:
        if parsing_of(base).lightning_hasattr(module, name):
            return name
    raise AttributeError(
        f"`update_attr` needs an attribute {' or '.join(f'`{name}`' for name in names)} in the module or its "
        f"`hparams`; {type(module).__name__} has none. Pass its name as `attr_name`."
    )
