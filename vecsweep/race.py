"""The race for the best learning rate: which are tried, and which go on. No training here.

A *scan* of the whole range comes first: the schedule squeezed into a 32nd of the run. Where it is best, and from where
on it is worse than untrained, bounds the learning rates that start. At each *rung*, a share of the run, the better part
of them goes on. Those that end early count as far behind as they were at their last rung.

Why these numbers: on the problems of `bench/quality` that are not held out, the best lr of a run lies from 1.6 decades
below the best of its scan to 0.4 above it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vecsweep._types import FloatArray
from vecsweep.pruning import step_of
from vecsweep.results.ranking import Setting

SCANNED = (1e-6, 1e2)  # the range of the first scan
SCAN_SHARE = 1 / 32  # of the run
_LEAST_SCAN_STEPS = 4
BELOW, ABOVE = 1.5, 0.5  # decades around the best of the scan
_TO_CLIFF = 1.6  # decades: a best that is further below the cliff is noise
UNFELT = 0.02  # of what untrained weights score; training that gains less has shown nothing
_BROKEN = 0.1  # of the same: where nothing is gained anywhere, a lr that is worse by less may yet be a good one
_TO_CLIFF_UNFELT = 0.9  # decades: the cliff's median distance from the best lr of a run
_MOST_DECADES = 20  # that a scan may come to, from its first range on


@dataclass(frozen=True, slots=True)
class Strategy:
    """How finely a race looks, and how far.

    Attributes:
        spacing: decades between the learning rates that start.
        rungs: shares of the run; the race ends at the last.
        keeps: the shares of them that go on after each rung but the last.
    """

    spacing: float
    rungs: tuple[float, ...]
    keeps: tuple[float, ...]

    def cost(self, num: int, num_steps: int, num_seeds: int = 1) -> float:
        """The work of it in runs of one member.

        Args:
            num: who start.
            num_steps: of the run.
            num_seeds: that each is trained with.
        """
        cost, before = 0, 0
        for rung, keep in zip(self.rungs, (*self.keeps, 1.0), strict=True):
            step = step_of(rung, num_steps)
            cost += num * (step - before)
            num, before = survivors(num, keep), step
        return num_seeds * cost / num_steps


_TO_THE_END = (1 / 8, 1 / 4, 1 / 2, 1.0)
STRATEGIES = (  # each takes more work than the one before it
    Strategy(0.8, (1 / 16,), ()),
    Strategy(0.65, (1 / 16,), ()),
    Strategy(0.65, (1 / 8, 1 / 4), (0.5,)),
    Strategy(0.5, (1 / 8, 1 / 4), (0.6,)),
    Strategy(0.5, (1 / 8, 1 / 4, 1 / 2), (0.6, 0.5)),
    Strategy(0.5, _TO_THE_END, (0.6, 0.6, 0.5)),
    Strategy(0.5, _TO_THE_END, (0.8, 0.7, 0.6)),
    Strategy(0.5, _TO_THE_END, (1.0, 0.8, 0.6)),
    Strategy(0.4, _TO_THE_END, (1.0, 0.8, 0.6)),
    Strategy(0.3, _TO_THE_END, (1.0, 0.8, 0.6)),
    Strategy(0.25, _TO_THE_END, (1.0, 0.8, 0.8)),
    Strategy(0.2, _TO_THE_END, (1.0, 0.8, 0.8)),
    Strategy(0.15, _TO_THE_END, (1.0, 1.0, 1.0)),
    Strategy(0.1, _TO_THE_END, (1.0, 1.0, 1.0)),
)
# Exponents: the best lr of a run is that of a share of it times share ** exponent. See `suggest/horizon.py`; of several
# values these were best for races that ended early.
_DRIFT, _DRIFT_ANNEALED = 0.3, 1 / 8
_BUDGET = 4.0
_LEAST_STEPS = 240  # of one member, that a budget comes to: a scan is much of a run that is shorter than 60 steps
_SEEDS_FROM = (7.0, 11.0)  # a budget, from which on it goes into another seed
_NEAR_ENOUGH = 0.15  # decades between neighbours
_SCAN_SPACINGS = (0.4, 0.6, 0.8, 1.0)  # decades, the finest of which the scan takes its share of the budget at most
_SCANNED_SHARE = 0.25


def scan_spacing(budget: float, num_steps: int, num_combinations: int = 1) -> float:
    """Choose the decades between the learning rates of a scan.

    Args:
        budget: in runs of one member.
        num_steps: of the run.
        num_combinations: of schedules and hyperparameters, each of which is scanned.

    Raises:
        ValueError: it does not pay for a scan and the least of races.
    """
    costs = {
        spacing: num_combinations * len(scan_lrs(spacing)) * scan_steps(num_steps) / num_steps
        for spacing in _SCAN_SPACINGS
    }
    coarsest, cheapest = _SCAN_SPACINGS[-1], STRATEGIES[0]
    most = num_combinations * (math.floor((BELOW + ABOVE) / cheapest.spacing) + 1)
    least = costs[coarsest] + cheapest.cost(most, num_steps)
    if budget < least:
        what = f"{num_combinations} combinations" if num_combinations > 1 else "one setting"
        raise ValueError(
            f"`budget` must be at least {math.ceil(10 * least) / 10:g} runs for {what} and {num_steps} steps; got "
            f"{budget:g}. Raise it, or compare less."
        )
    return next((own for own in _SCAN_SPACINGS if costs[own] <= _SCANNED_SHARE * budget), coarsest)


def budget_for(num_steps: int) -> float:
    """Choose a budget, in runs of one member: 4, and for a run of so few steps that a scan takes much of them, more.

    Args:
        num_steps: of the run.
    """
    return max(_BUDGET, _LEAST_STEPS / num_steps)


def num_seeds_for(budget: float) -> int:
    """Choose how many seeds a race has: more of them steady the answer better than a finer look."""
    return 1 + sum(budget >= least for least in _SEEDS_FROM)


def strategy_for(left: float, scans: Iterable["Scan"], num_steps: int, num_seeds: int = 1) -> Strategy:
    """Choose the most thorough strategy that is paid for, or else the first.

    Args:
        left: of the budget, in runs of one member.
        scans: of each combination.
        num_steps: of the run.
        num_seeds: that each setting is trained with.
    """
    found = list(scans)
    chosen = STRATEGIES[0]
    for strategy in STRATEGIES:
        if strategy.cost(sum(len(scan.window(strategy.spacing)) for scan in found), num_steps, num_seeds) <= left:
            chosen = strategy
    return chosen


def survivors(num: int, keep: float) -> int:
    """How many of so many go on."""
    return max(1, math.ceil(num * keep - 1e-9))


def scan_steps(num_steps: int) -> int:
    """How many steps a scan takes."""
    return min(num_steps, max(_LEAST_SCAN_STEPS, round(SCAN_SHARE * num_steps)))


def scan_lrs(spacing: float, low: float = SCANNED[0], high: float = SCANNED[1]) -> FloatArray:
    """Learning rates at multiples of a spacing in decades, from `low` up to `high`."""
    places = np.arange(math.ceil(math.log10(low) / spacing - 1e-9), math.floor(math.log10(high) / spacing + 1e-9) + 1)
    return np.array(10.0 ** (places * spacing), dtype=np.float64)


@dataclass(slots=True)
class Scan:
    """What a scan has shown.

    Attributes:
        scores: by lr, less being better; infinite where it diverged.
    """

    scores: dict[float, float] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """What untrained weights score: as the smallest lr does."""
        return self.scores[min(self.scores)]

    @property
    def is_felt(self) -> bool:
        """Whether any lr has gained something; on a plateau, or within few steps, none may have."""
        return self.start - min(self.scores.values()) > UNFELT * abs(self.start)

    @property
    def best(self) -> float:
        """The lr that scores best, unless it is so far below the cliff that what it gained must be noise."""
        best = min(self.scores, key=self.scores.__getitem__)
        distance = _TO_CLIFF if self.is_felt else _TO_CLIFF_UNFELT
        return best if self.cliff is None else max(best, self.cliff * 10**-distance)

    @property
    def cliff(self) -> float | None:
        """The least lr above the best from which on all score worse than untrained weights; None if there is none.

        Where no lr has gained anything, all but the smallest may score a trace worse: there the cliff is where training
        breaks the model.
        """
        lowest = min(self.scores, key=self.scores.__getitem__)
        highest = self.start if self.is_felt else self.start + _BROKEN * abs(self.start)
        for lr in sorted(self.scores, reverse=True):
            if lr <= lowest or self.scores[lr] <= highest:
                return min((own for own in self.scores if own > lr), default=None)
        return None

    def missing(self, spacing: float) -> FloatArray:
        """The learning rates to be scanned, too, because the range does not hold what it is to show."""
        low, high = min(self.scores), max(self.scores)
        if math.log10(high / low) >= _MOST_DECADES:
            return np.empty(0)
        if not any(map(math.isfinite, self.scores.values())) or self.cliff == min(sorted(self.scores)[:2][1:]):
            return scan_lrs(spacing, low * 10**-4, low * 0.99)
        if self.cliff is None and self.best >= high * 10**-ABOVE:
            return scan_lrs(spacing, high * 1.01, high * 10**4)
        return np.empty(0)

    def window(self, spacing: float) -> FloatArray:
        """The learning rates that are to start."""
        return scan_lrs(spacing, self.best * 10**-BELOW, self.best * 10**ABOVE)


class Race:
    """Who has come how far.

    Args:
        strategy: how many go on.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy
        self.scores: dict[float, dict[Setting, float]] = {rung: {} for rung in strategy.rungs}
        self._places: dict[float, int] = {}  # that there are after each rung

    def admit(self, num: int) -> None:
        """Say how many start; those that come later compete for the same places."""
        for rung, keep in zip(self.strategy.rungs, (*self.strategy.keeps, 1.0), strict=True):
            num = survivors(num, keep)
            self._places.setdefault(rung, num)

    def judge(self, rung: float, scores: Mapping[Setting, float]) -> set[Setting]:
        """Take the scores of some at a rung, less being better, and return who of them goes on.

        Those that diverged, there or later, hold no place.
        """
        of_all = self.scores[rung]
        of_all.update(scores)
        diverged = self.diverged
        ranked = sorted((own for own in of_all if own not in diverged), key=of_all.__getitem__)
        return set(ranked[: self._places[rung]]) & set(scores)

    @property
    def diverged(self) -> set[Setting]:
        """Who has diverged, at whichever rung that showed."""
        return {own for scores in self.scores.values() for own, score in scores.items() if not math.isfinite(score)}

    @property
    def end(self) -> float:
        """The last rung that anybody came to who has not diverged since; if all have, that anybody came to alive."""
        return max((rung for rung in self.scores if self._standing(rung)), default=0.0)

    def _standing(self, rung: float) -> dict[Setting, float]:
        """The scores at a rung of those who have not diverged, there or later; where everybody has, not there."""
        diverged, own = self.diverged, self.scores[rung]
        if all(setting in diverged for scores in self.scores.values() for setting in scores):
            return {setting: score for setting, score in own.items() if math.isfinite(score)}
        return {setting: score for setting, score in own.items() if setting not in diverged}

    def drift(self, *, anneals: bool) -> float:
        """What an lr that is read off here is multiplied by: the longer a run, the lower is its best."""
        return self.end ** (_DRIFT_ANNEALED if anneals else _DRIFT)

    @property
    def winner(self) -> Setting:
        """Who is best at the end."""
        of_end = self._standing(self.end)
        return min(of_end, key=of_end.__getitem__)

    def gaps(self, start: float) -> dict[Setting, float]:
        """How far each is behind the best at its last rung, as a share of what training had gained there.

        Infinite for those that diverged; where all have, only rungs that somebody came to alive count.

        Args:
            start: what untrained weights score.
        """
        found: dict[Setting, float] = {}
        for rung in (rung for rung in self.scores if rung <= self.end):
            standing = self._standing(rung)
            best = min(standing.values(), default=math.inf)
            gain = max(start - best, 1e-12 * max(abs(start), 1e-300))
            found |= dict.fromkeys(self.scores[rung], math.inf)
            found |= {setting: (score - best) / gain for setting, score in standing.items()}
        return found

    def after_divergence(self, start: float) -> Setting | None:
        """Who is to start, too, because nobody came to the end alive; None if somebody did.

        The best of those sent home goes again; where none of them is left, one below all that raced starts.

        Args:
            start: what untrained weights score.
        """
        if self.end == self.strategy.rungs[-1]:
            return None
        gaps, diverged, winner = self.gaps(start), self.diverged, self.winner
        if winner not in diverged:
            return winner
        lowest = min(own.lr for own in gaps if is_alike(own, winner))
        return replace(winner, lr=lowest * 10**-self.strategy.spacing)

    def beyond_edge(self) -> Setting | None:
        """Who is to start, too, because the winner is the first or last of those like it."""
        winner, spacing = self.winner, self.strategy.spacing
        lrs = sorted(own.lr for scores in self.scores.values() for own in scores if is_alike(own, winner))
        if lrs[0] < winner.lr < lrs[-1]:
            return None
        factor = 10**-spacing if winner.lr == lrs[0] else 10**spacing
        return Setting(winner.lr * factor, winner.schedule, winner.hyper)

    def beside_winner(self, start: float) -> Setting | None:
        """Who is to start, too, half-way from the winner to the better of its neighbours; None if that is near enough.

        Args:
            start: what untrained weights score.
        """
        winner, gaps = self.winner, self.gaps(start)
        alike = sorted((own for own in gaps if is_alike(own, winner)), key=lambda own: own.lr)
        place = alike.index(winner)
        neighbours = alike[max(0, place - 1) : place] + alike[place + 1 : place + 2]
        if not neighbours:
            return None
        better = min(neighbours, key=gaps.__getitem__)
        if abs(math.log10(better.lr / winner.lr)) < _NEAR_ENOUGH:
            return None
        return Setting(math.sqrt(winner.lr * better.lr), winner.schedule, winner.hyper)


def is_alike(a: Setting, b: Setting) -> bool:
    """Whether two settings differ in their lr at most."""
    return (a.schedule, a.hyper) == (b.schedule, b.hyper)
