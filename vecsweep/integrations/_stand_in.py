"""What a LightningModule finds in place of a Trainer while a member takes a step.

Lightning itself is not imported here; nothing below depends on which of its two packages a module comes from.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vecsweep._errors import warn_of_fallback


class StandIn:
    """A Trainer's attributes as far as they mean something to a member; any other is an error that says so.

    Args:
        module_name: for messages.
        datamodule: what `self.trainer.datamodule` is.
    """

    is_global_zero = True
    global_rank = local_rank = node_rank = 0
    world_size = num_nodes = num_devices = 1
    accumulate_grad_batches = 1
    progress_bar_callback = None
    sanity_checking = testing = predicting = fast_dev_run = False

    def __init__(self, module_name: str, datamodule: Any) -> None:
        self.datamodule = datamodule
        self.training, self.validating = True, False
        self.callbacks: list[Any] = []
        self.logger = Silent()
        self.loggers = [self.logger]
        self._module_name = module_name
        self._warned: set[str] = set()
        self._planned: dict[str, Any] = {}
        self._optimizer: Optimizer | None = None

    @property
    def current_epoch(self) -> int:
        """Always 0: members of a sweep do not count epochs for their models."""
        return self._zero("current_epoch")

    @property
    def global_step(self) -> int:
        """Always 0, likewise."""
        return self._zero("global_step")

    @property
    def optimizers(self) -> list[Optimizer]:
        """The template, whose learning rate is not that of the member."""
        self._warn("optimizers", "whose learning rate is that of `configure_optimizers` for every member")
        return [] if self._optimizer is None else [self._optimizer]

    def batch_idx(self) -> int:
        """Always 0, with a word where it is reckoned with."""
        return _First(lambda: self._zero("batch_idx"))

    def take(self, optimizer: Optimizer, *, is_scheduled: bool) -> None:
        """Have an optimizer, for steps that look at it, and no scheduler if there is none."""
        self._optimizer = optimizer
        if not is_scheduled:
            self.lr_scheduler_configs = list[Any]()

    @contextmanager
    def planning(self, num_batches: int) -> Iterator[None]:
        """Have a length of training for schedulers to be built with, which are set aside."""
        self._planned = {
            "estimated_stepping_batches": num_batches,
            "num_training_batches": num_batches,
            "max_epochs": 1,
            "max_steps": -1,
        }
        try:
            yield
        finally:
            self._planned = {}

    def _zero(self, name: str) -> int:
        self._warn(name, "which is 0 at every step of a sweep")
        return 0

    def _warn(self, name: str, what: str) -> None:
        if name not in self._warned and not self._planned:
            self._warned.add(name)
            warn_of_fallback(
                f"{self._module_name} reads `{name}`, {what}. Where its loss depends on it, the sweep is of the loss "
                "as it is in the beginning."
            )

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._planned:
            return self._planned[name]
        raise AttributeError(
            f"`{self._module_name}` must train without `self.trainer.{name}` in a sweep, where there is no Trainer. "
            "Take what it needs from its own attributes, or guard it by `hasattr(self.trainer, ...)`."
        )


class _First(int):
    """The index of a first batch: 0, and a word where a step reckons with it, or asks how large it is."""

    def __new__(cls, note: Callable[[], object]) -> "_First":
        first = super().__new__(cls)
        first._note = note
        return first

    _note: Callable[[], object]


def _noted(name: str) -> Callable[..., Any]:
    own = getattr(int, name)

    def method(self: _First, *others: Any) -> Any:
        self._note()
        return own(self, *others)

    return method


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "floordiv", "mod", "pow", "eq", "ne", "lt", "le"):
    setattr(_First, f"__{_name}__", _noted(f"__{_name}__"))
for _name in ("gt", "ge", "bool", "float"):
    setattr(_First, f"__{_name}__", _noted(f"__{_name}__"))


class Silent:
    """A logger, its experiment, and whatever is asked of them: nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "Silent":
        return self


@contextmanager
def attached(module: nn.Module, trainer: StandIn, logged: dict[str, Any], *, is_metered: bool = True) -> Iterator[None]:
    """Attach a stand-in to a module and those within it, and take it off again: a module keeps nothing of it.

    Args:
        module: a LightningModule that belongs to vecsweep.
        trainer: the stand-in.
        logged: where what is logged meanwhile is put, by name.
        is_metered: whether torchmetrics objects measure; where they do not, they answer NaN.
    """

    def log(name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        logged[name] = value

    def log_dict(dictionary: Any, *args: Any, **kwargs: Any) -> None:
        logged.update(dictionary.items())

    def say_nothing(*args: Any, **kwargs: Any) -> None:
        pass

    own: dict[str, Any] = {
        "_trainer": trainer,
        "log": log,
        "log_dict": log_dict,
        "print": say_nothing,
        "optimizers": lambda use_pl_optimizer=True: trainer.optimizers[0],
    }
    replaced: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (vars(part), own) for part in module.modules() if "_trainer" in vars(part)
    ]
    if not is_metered:
        replaced += [(vars(meter), _SILENT_METER) for meter in meters_of(module)]
    before = [{name: attributes[name] for name in new if name in attributes} for attributes, new in replaced]
    for attributes, new in replaced:
        attributes.update(new)
    try:
        yield
    finally:
        for (attributes, new), old in zip(replaced, before, strict=True):
            for name in new:
                attributes.pop(name, None)
            attributes.update(old)


def meters_of(module: nn.Module) -> list[Any]:
    """The torchmetrics objects within a module."""
    return [part for part in module.modules() if is_meter(part)]


def is_meter(value: object) -> bool:
    """Whether this is a torchmetrics object."""
    torchmetrics: Any = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric | torchmetrics.MetricCollection)


def _measure_nothing(*args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(float("nan"))


_SILENT_METER = dict.fromkeys(("forward", "update", "compute", "reset"), _measure_nothing)
