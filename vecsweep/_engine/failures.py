"""Failures: what there is to say of members that diverged because their pass raised an error."""

from dataclasses import dataclass, field

from vecsweep._errors import warn_of_trouble

_WHY = "a pass fails with {} weights, and not with untrained ones"


@dataclass(frozen=True, slots=True)
class _Failure:
    """One member's."""

    lr: float
    seed: int
    step: int
    error: str


@dataclass(slots=True)
class Failures:
    """Members that failed, of whom is told at once where they are the first, and at the end of those that followed."""

    _untold: list[_Failure] = field(default_factory=list)
    _has_told: bool = False

    def note(self, lr: float, seed: int, step: int, error: str) -> None:
        """Note that a member failed.

        Args:
            lr: its learning rate at that step.
            seed: the member's.
            step: the first that it did not take.
            error: in words.
        """
        self._untold.append(_Failure(lr, seed, step, error))

    def tell(self, *, is_end: bool) -> None:
        """Warn of the first that failed, all those of one window together; at the end, of the others."""
        if not self._untold or (self._has_told and not is_end):
            return
        told, self._untold = self._untold, []
        first, lrs = min(told, key=lambda failure: failure.step), sorted(failure.lr for failure in told)
        if len(told) == 1:
            who = f"The member at lr {first.lr:.3g} of seed {first.seed} has diverged at step {first.step}"
            text = f"{who}: {_WHY.format('its')}. {first.error}"
        else:
            at_lr = " to ".join(dict.fromkeys(f"{lr:.3g}" for lr in (lrs[0], lrs[-1])))
            who = f"{len(told)} {'more ' * self._has_told}members have diverged, at lr {at_lr}"
            at = f"the one at lr {first.lr:.3g} of seed {first.seed} at step {first.step}"
            text = f"{who}: {_WHY.format('their')}. The first was {at}. {first.error}"
        self._has_told = True
        warn_of_trouble(text)
