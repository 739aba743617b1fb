"""Objective: one member's loss and metrics as a module, into which other parameters can be put."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vecsweep._engine.caller.lending import Lent, lendable
from vecsweep._engine.caller.watch import Watch
from vecsweep._engine.data.packing import unpack
from vecsweep._errors import warn_of_stumble
from vecsweep._types import Batch, Precision
from vecsweep.kernels.rules import OpenDraws
from vecsweep.task import Task

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What torch says where it was to take a gradient, or one of a gradient whose formula is another without autograd.
_NO_GRAPH = ("does not require grad and does not have a grad_fn", "Trying to use forward AD with")


class Objective(nn.Module):
    """The loss of one batch, and the metrics, so that `functional_call` can put other parameters into the model.

    Args:
        task: whose loss.
        model: the module that is trained.
        precision: of autocast; None for none.

    Attributes:
        has_checks: whether a batched pass was seen to come by operators that raise where numbers are bad.
        has_told_of_failure: whether it was warned of an evaluation that fails with a member's weights.
        has_told_of_shared: whether it was warned of what members share and cannot be set back.
        owns_new: whether a batched pass has turned out to write what is a member's own into tensors that it makes.
        takes_gradients: whether what is measured has turned out to take gradients itself.
    """

    PREFIX = "model."  # of the model's parameters and buffers among the objective's

    def __init__(self, task: Task, model: nn.Module, precision: Precision | None) -> None:
        super().__init__()
        self.model = model
        self._task = task
        self._precision = precision
        self.owns_new = False
        self._watch: Watch | None = None  # made when it is needed
        self._lent: dict[str, nn.Parameter] | None = None  # likewise
        self._tied_names = _tied_names(model)
        may_hide_draws = any(OpenDraws.matters_on(p.device) for p in model.parameters())
        # In training mode and in eval mode; None as long as no pass has shown.
        self._has_hidden_draws = dict.fromkeys((True, False), None if may_hide_draws else False)
        self.takes_gradients = False
        self.has_checks = self.has_told_of_failure = self.has_told_of_shared = False
        self._has_told = False  # of a model that leaves eval mode

    def forward(self, batch: Batch, *, is_measured: bool = False) -> Tensor:
        """Compute the loss of one batch: a scalar; or the loss and the metrics: `[metric]`, float64."""
        compute, batch = self._measures if is_measured else self._loss, unpack(batch)
        if self._precision is None:
            return compute(batch)
        device = next(self.model.parameters()).device
        # The cache of casted weights would outlive the tensors of a traced step.
        with torch.autocast(device.type, AUTOCAST_DTYPES[self._precision], cache_enabled=False):
            return compute(batch)

    def compute(self, batch: Batch) -> Tensor:
        """Compute the loss of one batch in an ordinary pass, drawing what members that train together draw."""
        if self._has_hidden_draws[self.model.training] is False:
            return self(batch)
        with self.drawing_openly():
            return self(batch)

    @contextmanager
    def drawing_openly(self) -> Iterator[None]:
        """Let an ordinary pass draw what members draw that are computed together."""
        is_training = self.model.training
        with OpenDraws() if self._has_hidden_draws[is_training] is not False else nullcontext() as mode:
            yield
        self._has_hidden_draws[is_training] = mode is not None and mode.is_needed

    def evaluate(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the loss with other parameters and buffers; `tensors` afterwards holds what the pass made of them.

        Args:
            tensors: parameters and buffers by their names in the model.
            batch: one batch.
        """
        placed = self._placed(tensors)
        loss = functional_call(self, placed, (batch,), tie_weights=False)
        tensors.update({name: placed[self.PREFIX + name] for name in tensors})
        return loss

    def measure(self, tensors: dict[str, Tensor], batch: Batch) -> Tensor:
        """Compute the loss and the metrics with other parameters and buffers: `[metric]`, float64, the loss first.

        Without gradients, unless what is measured takes some itself, as of an energy with respect to positions.

        Args:
            tensors: parameters and buffers by their names in the model.
            batch: one batch.
        """
        if not self.takes_gradients:
            try:
                return functional_call(self, self._placed(tensors), (batch,), {"is_measured": True}, tie_weights=False)
            except RuntimeError as error:
                if not any(words in str(error) for words in _NO_GRAPH):
                    raise
        self.takes_gradients = True
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            # Leaves, because it may take gradients with respect to parameters, too.
            tensors = {n: t.detach().requires_grad_() if n in trained else t for n, t in tensors.items()}
            placed = self._placed(tensors)
            return functional_call(self, placed, (batch,), {"is_measured": True}, tie_weights=False).detach()

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each tensor under every name that it has in the model; tied ones have several."""
        return {
            self.PREFIX + alias: tensor
            for name, tensor in tensors.items()
            for alias in self._tied_names.get(name, [name])
        }

    @property
    def lent(self) -> dict[str, nn.Parameter]:
        """The model's frozen parameters whose memory others share, by name, once it is known what is trained."""
        if self._lent is None:
            self._lent = lendable(self.model)
        return self._lent

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put back in the end what the model, the loss and the metrics keep in Python, and what is lent.

        Raises:
            RuntimeError: in training mode, a parameter that is lent was written to.
        """
        if self._watch is None:
            self._watch = Watch.of_pass(self._task, self.model, has_numbers=False)
        with self._watch.undisturbed(), Lent(self.lent) as lent:
            yield
        if lent.changed and self.model.training:
            raise RuntimeError(f"the forward pass changes the frozen parameter {next(iter(lent.changed))!r} in place")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model in eval mode, without gradients; every module is given back the mode it was in."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad():
                yield
            if self.model.training and not self._has_told:
                self._has_told = True
                warn_of_stumble(
                    "The loss or a metric puts the model into training mode, also while it is validated, so that "
                    "dropout and batch norm are not those of validation. Leave `model.train()` out: members are in the "
                    "mode that they need."
                )
        finally:
            for module, mode in modes:
                module.training = mode

    def _loss(self, batch: Batch) -> Tensor:
        return self._scalar(self._task.loss(self.model, batch))

    def _measures(self, batch: Batch) -> Tensor:
        measured = self._task.measure(self.model, batch)
        device = next(self.model.parameters()).device
        scalars = [self._scalar(measured.pop("loss"))]
        for name, value in measured.items():
            try:
                value = torch.as_tensor(value, device=device)
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"The metric {name!r} must be a scalar; got {type(value).__name__}.") from None
            if value.numel() != 1:
                raise ValueError(
                    f"The metric {name!r} must be a scalar; got shape {tuple(value.shape)}. Reduce it, for example by "
                    "`.mean()`."
                )
            scalars.append(value.reshape(()))
        return torch.stack([scalar.double() for scalar in scalars])

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
        if loss.is_complex():
            raise TypeError(f"The loss must be a real number; got {loss.dtype}. Take its `.real`, or its `.abs()`.")
        return loss.reshape(())


def _tied_names(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by the first of them, which is its name in the model.

    A module that is registered under two names is one module: PyTorch's own way with tied weights would exchange its
    tensors twice, and put the first exchange back last.
    """
    names: dict[int, str] = {}
    aliases: dict[str, list[str]] = defaultdict(list)
    for path, module in model.named_modules():  # each module once
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                if tensor is not None:
                    alias = f"{path}.{key}" if path else key
                    aliases[names.setdefault(id(tensor), alias)].append(alias)
    return dict(aliases)
