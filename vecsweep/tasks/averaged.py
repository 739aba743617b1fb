"""A module that trains at its weights and is evaluated at their moving average."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Averaged(nn.Module):
    """Evaluate a module at the exponential moving average of its weights.

    In training mode it is the module itself. In eval mode, where members are validated, it has the average in their
    place: after each update `average = decay * average + (1 - decay) * weights`, from the weights that it began with,
    as `torch.optim.swa_utils.AveragedModel` has it with `get_ema_multi_avg_fn(decay)`, but for its first update, which
    copies. Averages are buffers, so that members are stepped in one pass, each with its own.

    Forward passes in training mode are what is counted: one for each update, so that with `accumulation_steps=k` or k
    passes in a step the average of a step has the decay `decay ** k`.

    Args:
        module: what is trained. Its buffers, such as BatchNorm's, are not averaged.
        decay: share of the past that stays, within 0 and 1.

    Raises:
        TypeError: `module` is something else.
        ValueError: `decay` is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from vecsweep.tasks import Averaged
        >>> model = Averaged(nn.Linear(2, 1), decay=0.9)
        >>> model(torch.ones(3, 2)).shape, model.eval()(torch.ones(3, 2)).shape
        (torch.Size([3, 1]), torch.Size([3, 1]))
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be an nn.Module; got {type(module).__name__}. Build it first.")
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise ValueError(f"`decay` must be a number from 0 up to, not including, 1; got {decay!r}. Pass 0.999.")
        self.module = module
        self.decay = float(decay)
        for k, parameter in enumerate(module.parameters()):
            self.register_buffer(f"average_{k}", parameter.detach().clone())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, in eval mode at the averaged weights."""
        if not self.training:
            return functional_call(self.module, self._averages(), args, kwargs)
        with torch.no_grad():  # of what the last update left; the first pass finds what the average began with
            for k, parameter in enumerate(self.module.parameters()):
                self.get_buffer(f"average_{k}").lerp_(parameter.detach(), 1 - self.decay)
        return self.module(*args, **kwargs)

    def averaged(self) -> nn.Module:
        """Return a copy of the module with the averaged weights, in eval mode."""
        averages = self._averages()
        result = copy.deepcopy(self.module).eval()
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                parameter.copy_(averages[name])
        return result

    def _averages(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters, with what the last update left."""
        return {
            name: self.get_buffer(f"average_{k}").lerp(parameter.detach(), 1 - self.decay)
            for k, (name, parameter) in enumerate(self.module.named_parameters())
        }
