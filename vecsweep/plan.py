"""Plan: the hyperparameters of a sweep as matrices [step, member]. Every feature of vecsweep is a plan.

Not here: where plans come from (`sweeps.py`) and how they are trained (`_engine`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vecsweep._types import FloatArray, Hyper, Spacing


@dataclass(frozen=True, slots=True)
class Member:
    """One of the copies of the model that a sweep trains.

    Attributes:
        lr: its base learning rate; for a ramp, the rate that the ramp ends at.
        seed: of its initial weights, batches and random numbers.
        schedule: the name of what its learning rate follows.
    """

    lr: float
    seed: int
    schedule: str = "constant"


@dataclass(frozen=True, slots=True)
class Plan:
    """What each member trains with at each step.

    Attributes:
        members: `[member]`.
        hyper: hyperparameters by name, each `[step, member]`; "lr" is always among them.
    """

    members: tuple[Member, ...]
    hyper: Hyper

    @property
    def lr(self) -> FloatArray:
        """The learning rates, `[step, member]`."""
        return self.hyper["lr"]

    @property
    def num_steps(self) -> int:
        """How many updates each member takes."""
        return len(self.lr)

    @property
    def seeds(self) -> list[int]:
        """The seed of each member."""
        return [member.seed for member in self.members]

    @classmethod
    def constant(cls, lrs: FloatArray, seeds: Sequence[int], num_steps: int) -> "Plan":
        """Each learning rate with each seed, the same from the first step to the last.

        Args:
            lrs: `[lr]`.
            seeds: of the members; those of one lr are next to each other.
            num_steps: updates of each member.

        Example:
            >>> Plan.constant(np.array([0.1, 0.2]), [0, 1], num_steps=3).lr
            array([[0.1, 0.1, 0.2, 0.2],
                   [0.1, 0.1, 0.2, 0.2],
                   [0.1, 0.1, 0.2, 0.2]])
        """
        members = tuple(Member(float(lr), seed) for lr in lrs for seed in seeds)
        row = np.array([member.lr for member in members])
        return cls(members, {"lr": np.tile(row, (num_steps, 1))})

    @classmethod
    def ramp(cls, lrs: FloatArray, seeds: Sequence[int]) -> "Plan":
        """One learning rate after another, a step each: a member for each seed.

        Args:
            lrs: `[step]`.
            seeds: of the members.

        Reference:
            Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
        """
        members = tuple(Member(float(lrs[-1]), seed, "ramp") for seed in seeds)
        return cls(members, {"lr": np.tile(lrs[:, None], (1, len(members)))})


def spaced(start: float, end: float, num: int, spacing: Spacing) -> FloatArray:
    """Return `num` learning rates from `start` to `end`, both exactly.

    Args:
        start: the first.
        end: the last.
        num: how many.
        spacing: "exponential" for equal ratios, "linear" for equal differences.

    Example:
        >>> spaced(1e-3, 1e-1, 3, "exponential")
        array([0.001, 0.01 , 0.1  ])
    """
    between = np.geomspace if spacing == "exponential" else np.linspace
    values = between(start, end, num)
    values[0], values[-1] = start, end
    return values
