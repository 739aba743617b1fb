"""When a member diverges. Both engines judge by this one function, so that they judge alike.

    start    = mean of the losses of a seed's first batches under its untrained weights
    scale    = mean of their magnitudes
    ceiling  = start + (divergence_factor - 1) * scale         where the scale is 0, none

A member diverges at the first loss that is not finite, and at the last of 16 steps in a row whose losses are above the
ceiling, the first 16 steps of its life not counted. A spike that comes back is no divergence, nor is noise: a lone
first loss may happen to be tiny, as it is with batches of one sample, and then says nothing of the scale of losses. A
member's own next losses cannot mend that, because they do not tell a tiny first loss from an explosion at step 1;
those of the untrained weights can, and they are the same for all members of a seed.

What was tried otherwise, and what the numbers were chosen by, is in `bench/bench_divergence.py`.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FIRST_BATCHES = 4  # that show where losses start, and their scale
WINDOW = 16  # steps above the ceiling
GRACE = 16  # steps before them


@dataclass(frozen=True, slots=True)
class Fate:
    """How members have fared so far; every field is `[member]` on the device.

    Attributes:
        ceiling: the loss above which a member must not stay; infinite where there is none.
        streak: how many losses in a row were above it; below 0 as long as nothing counts yet.
        alive: False from the step on at which the member diverged.
    """

    ceiling: Tensor
    streak: Tensor
    alive: Tensor

    @classmethod
    def start(cls, device: torch.device, ceiling: float = torch.inf) -> "Fate":
        """One member before its first step."""
        return cls(
            ceiling=torch.full((1,), ceiling, dtype=torch.float64, device=device),
            streak=torch.full((1,), -GRACE, dtype=torch.int64, device=device),
            alive=torch.ones(1, dtype=torch.bool, device=device),
        )

    def after(
        self,
        loss: Tensor,  # [member] float64
    ) -> "Fate":
        """Judge the losses of one step."""
        counts = (self.streak < 0) | (loss > self.ceiling)
        streak = (self.streak + 1) * counts
        is_finite = loss - loss == 0  # `isfinite` is four operators
        return Fate(self.ceiling, streak, self.alive & is_finite & (streak < WINDOW))

    def copy(self) -> "Fate":
        """The same with tensors of its own."""
        return Fate(self.ceiling.clone(), self.streak.clone(), self.alive.clone())

    def select(self, index: Tensor | slice) -> "Fate":
        """Take some members out; a range of them is not copied."""
        return replace(self, ceiling=self.ceiling[index], streak=self.streak[index], alive=self.alive[index])


def judge(ceiling: float, streak: int, loss: float) -> tuple[int, bool]:
    """Judge one loss of one member as `Fate.after` does those of several, in plain numbers.

    Returns:
        The streak after it, and whether the member lives on.
    """
    streak = streak + 1 if streak < 0 or loss > ceiling else 0
    return streak, math.isfinite(loss) and streak < WINDOW


def ceiling_of(
    losses: Tensor,  # [batch] float64
    divergence_factor: float | None,
) -> float:
    """Return the loss above which no member of a seed must stay, from those of its untrained weights.

    It is infinite where these losses tell no scale, because they are 0 or not finite, and where the factor is None:
    there only a loss that is not finite ends a member.

    Example:
        >>> ceiling_of(torch.tensor([2.0, 4.0]), 5.0), ceiling_of(torch.tensor([-2.0, -4.0]), 5.0)
        (15.0, 9.0)
    """
    scale = float(losses.abs().mean())
    if divergence_factor is None or not 0 < scale < torch.inf:
        return torch.inf
    return float(losses.mean()) + (divergence_factor - 1) * scale
