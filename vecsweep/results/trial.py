"""What became of one setting in a race for a learning rate."""

from typing import NamedTuple

from vecsweep.results.ranking import Setting


class Trial(NamedTuple):
    """What became of one setting.

    Attributes:
        setting: its lr, schedule and whatever else was compared.
        rungs: shares of the run after which it was measured, up to its end.
        scores: the metric there, `[rung]`, the mean over seeds; NaN where a seed diverged.
        gap: how far it was behind the best at its last rung, as a share of what training had gained there: 0 for the
            best, 1 for as bad as untrained; infinite where it diverged.
        is_late: whether it came to the race later, to look closer at the best of those that had started.
    """

    setting: Setting
    rungs: tuple[float, ...]
    scores: tuple[float, ...]
    gap: float
    is_late: bool = False
