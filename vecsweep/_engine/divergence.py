"""When a member diverges. Both engines judge by this one function, so that they judge alike."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Fate:
    """How members have fared so far; every field is `[member]` on the device.

    Attributes:
        first: the first loss, NaN before it.
        best: the lowest loss, infinite before the first.
        alive: False from the step on at which the member diverged.
    """

    first: Tensor
    best: Tensor
    alive: Tensor

    @classmethod
    def start(cls, num_members: int, device: torch.device) -> "Fate":
        """Every member before its first step."""
        return cls(
            first=torch.full((num_members,), torch.nan, dtype=torch.float64, device=device),
            best=torch.full((num_members,), torch.inf, dtype=torch.float64, device=device),
            alive=torch.ones(num_members, dtype=torch.bool, device=device),
        )

    def after(
        self,
        loss: Tensor,  # [member] float64
        divergence_factor: float | None,
    ) -> "Fate":
        """Judge the losses of one step.

        A member diverges when its loss is not finite, or exceeds `best + (divergence_factor - 1) * |first|`. That is
        `divergence_factor * best` at the start, and neither trips on noise once a member is well trained nor inverts
        when losses are negative. With `divergence_factor=None` only a loss that is not finite ends a member.
        """
        first = torch.where(self.first.isnan(), loss, self.first)
        alive = self.alive & loss.isfinite()
        if divergence_factor is not None:
            alive = alive & (loss <= self.best + (divergence_factor - 1) * first.abs())
        return Fate(first, torch.where(alive, torch.minimum(self.best, loss), self.best), alive)

    def select(self, index: Tensor) -> "Fate":
        """Take some members out."""
        return replace(self, first=self.first[index], best=self.best[index], alive=self.alive[index])
