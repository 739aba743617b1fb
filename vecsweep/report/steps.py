"""The axis of steps: what it counts, and where on it members ended."""

from vecsweep.results.curves import Curves


def find_unit(runs: Curves) -> float:
    """Return what steps are divided by to stand on the axis, which counts epochs where there are two or more."""
    per_epoch = runs.steps_per_epoch
    return float(per_epoch) if per_epoch and len(runs.train_loss) >= 2 * per_epoch else 1.0


def describe_axis(unit: float) -> str:
    """Name the axis."""
    return "step" if unit == 1.0 else f"epoch, of {unit:g} steps"


def find_ends(runs: Curves) -> list[int]:
    """Return the step at which each member diverged, was stopped, or came to the end, `[member]`."""
    whole = len(runs.train_loss)
    return [
        min((step for step in (member.diverged_at, member.stopped_at) if step is not None), default=whole)
        for member in runs.members
    ]
