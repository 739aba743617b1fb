"""What `check` reports: how far the batched pass and stock PyTorch part."""

from dataclasses import dataclass

_NUM_SHOWN = 12  # deviations that are worth reading


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the two engines part on one tensor of one member.

    Attributes:
        dtype: in which they trained.
        member: its position.
        lr: its learning rate.
        name: of the parameter; "loss" for the curve.
        value: the largest absolute difference over the largest absolute value.
    """

    dtype: str
    member: int
    lr: float
    name: str
    value: float


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The batched pass against stock PyTorch.

    Attributes:
        deviations: of every member and parameter, largest first; none if nothing could be compared.
        tolerances: the largest deviation accepted, by dtype.
        engine: how the members were stepped, in words.
        notes: what could not be compared, and why.
        num_steps: how many updates were compared.
    """

    deviations: tuple[Deviation, ...]
    tolerances: dict[str, float]
    engine: str
    notes: tuple[str, ...]
    num_steps: int

    @property
    def is_equal(self) -> bool:
        """Whether something was compared, and every deviation is within its tolerance."""
        return bool(self.deviations) and all(d.value <= self.tolerances[d.dtype] for d in self.deviations)

    @property
    def verdict(self) -> str:
        """What the numbers mean, in a sentence or two."""
        parts = []
        for dtype, tolerance in self.tolerances.items():
            worst = max((d for d in self.deviations if d.dtype == dtype), key=lambda d: d.value)
            relation = "equals" if worst.value <= tolerance else "DIFFERS from"
            parts.append(
                f"In {dtype} the batched pass {relation} stock PyTorch over {self.num_steps} steps: the largest "
                f"relative deviation is {worst.value:.1e} (member {worst.member}, lr {worst.lr:.3g}, {worst.name}), "
                f"and up to {tolerance:.0e} is rounding."
            )
        return " ".join((*parts, *self.notes))

    def __str__(self) -> str:
        if not self.deviations:
            return self.verdict
        rows = [f"{'dtype':<10}{'member':>7}{'lr':>11}  {'deviation':>10}  name"]
        rows += [
            f"{d.dtype:<10}{d.member:>7}{d.lr:>11.3g}  {d.value:>10.1e}  {d.name}" for d in self.deviations[:_NUM_SHOWN]
        ]
        if len(self.deviations) > _NUM_SHOWN:
            rows.append(f"... and {len(self.deviations) - _NUM_SHOWN} smaller ones")
        return "\n".join((*rows, self.verdict))
