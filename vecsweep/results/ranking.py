"""What seeds say about settings: means, bands, and which settings are no worse than the best beyond chance.

A *setting* is all that members have besides their seed: lr, schedule, and what else was varied. Members of a seed share
initial weights, batches and dropout masks, so that settings are compared seed by seed, and the difference of two is
known far better than either of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vecsweep._types import FloatArray, IntArray, Mode
from vecsweep._words import cell
from vecsweep.execution import check_choice, check_name
from vecsweep.results._html import html_paragraph, html_table

Repeat = Literal["seed", "fold"]  # what the members of a setting differ by

_MINIMISED = ("loss", "error", "mse", "mae", "rmse", "nll", "perplexity", "entropy")
_MAXIMISED = ("accuracy", "acc", "f1", "auc", "precision", "recall", "r2", "iou", "bleu", "score")


@dataclass(frozen=True, slots=True)
class Setting:
    """What members have besides their seed.

    Attributes:
        lr: the base learning rate.
        schedule: the name of what it follows.
        hyper: what else was varied, as pairs of name and value.
    """

    lr: float
    schedule: str
    hyper: tuple[tuple[str, float], ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """All of it in words."""
        return (f"lr {self.lr:.4g}", self.schedule, *(f"{name} {value:.4g}" for name, value in self.hyper))

    def __str__(self) -> str:
        return ", ".join(self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """A curve of a setting over its seeds; every array is `[row]`, a step or an evaluation.

    Attributes:
        setting: whose.
        members: their indices.
        steps: the updates before each value.
        mean: over the seeds; a stopped one counts on with its last value. NaN where one has diverged.
        median: likewise.
        low: the lowest of the seeds that have not diverged.
        high: the highest of them.
    """

    setting: Setting
    members: tuple[int, ...]
    steps: IntArray
    mean: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, slots=True)
class Standing:
    """How one setting did.

    Attributes:
        setting: which.
        members: their indices.
        mean: of the final values over seeds; NaN if a seed has none.
        median: likewise.
        low: the lowest of the final values.
        high: the highest.
        num_diverged: seeds that diverged.
        num_missing: seeds without a final value, those that diverged among them.
        difference: to the best setting, averaged over the seeds; NaN where either diverged.
        margin: of that difference, so that `difference - margin` to `difference + margin` is the confidence interval;
            NaN with a single seed.
        is_tied: whether the interval holds zero; None where it is not known.
    """

    setting: Setting
    members: tuple[int, ...]
    mean: float
    median: float
    low: float
    high: float
    num_diverged: int
    num_missing: int
    difference: float
    margin: float
    is_tied: bool | None


@dataclass(frozen=True, slots=True, repr=False)
class Ranking:
    """Settings from the best to the worst.

    Attributes:
        metric: by which.
        mode: "min" if less of it is better, else "max".
        confidence: of the intervals.
        num_seeds: of each setting.
        are_seeds_alike: whether all seeds gave the same numbers, so that they say nothing of chance.
        standings: the best first; those of which a seed diverged last.
        repeat: "fold" where seeds stand for folds of cross-validation.
    """

    metric: str
    mode: Mode
    confidence: float
    num_seeds: int
    are_seeds_alike: bool
    standings: tuple[Standing, ...]
    repeat: Repeat = "seed"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows = [
            ("*" if own.is_tied else "", name, own.mean, own.low, own.high, self._difference(own))
            for name, own in zip(self.names, self.standings, strict=True)
        ]
        columns = ("", "setting", self.metric, "lowest", "highest", "to the best")
        return html_table(columns, rows) + html_paragraph(self.note)

    @property
    def best(self) -> Standing:
        """The setting with the best mean."""
        return self.standings[0]

    @property
    def names(self) -> list[str]:
        """What differs between the settings, of each, in words."""
        return tell_apart([standing.setting for standing in self.standings])

    @property
    def tied(self) -> tuple[Standing, ...]:
        """The best, and those that are no worse beyond chance."""
        return tuple(standing for standing in self.standings if standing.is_tied)

    @property
    def note(self) -> str:
        """What the differences say beyond chance, or what it would take."""
        if self.are_seeds_alike:
            remedy = "give the task a function that builds its model, or shuffle its data"
            remedy = remedy if self.repeat == "seed" else "see that `batches` and `val_batches` go by the fold"
            return f"All {self.repeat}s gave the same numbers: {remedy}."
        if self.num_seeds == 1:
            remedy = "pass `seeds=3` or more" if self.repeat == "seed" else "compare all of them"
            return f"With one {self.repeat} nothing tells a difference from chance; {remedy}."
        return (
            f"* the best, and what {self.num_seeds} {self.repeat}s cannot tell from it "
            f"({self.confidence:.0%} intervals of paired differences)."
        )

    def __str__(self) -> str:
        width = max(map(len, self.names))
        rows = [f"  {'':{width}}  {self.metric:>12}  {'lowest':>10}  {'highest':>10}  to the best"]
        rows += [
            f"{'*' if standing.is_tied else ' '} {name:<{width}}  {cell(standing.mean):>12}  "
            f"{cell(standing.low):>10}  {cell(standing.high):>10}  {self._difference(standing)}".rstrip()
            for name, standing in zip(self.names, self.standings, strict=True)
        ]
        return "\n".join([*rows, self.note])

    def _difference(self, standing: Standing) -> str:
        if standing.num_diverged:
            return f"{standing.num_diverged} of {self.num_seeds} diverged"
        if standing.num_missing:
            return f"NaN for {standing.num_missing} of {self.num_seeds}"
        if standing is self.best:
            return "best"
        margin = "" if np.isnan(standing.margin) else f" +- {standing.margin:.2g}"
        return f"{standing.difference:+.3g}{margin}"


def mode_of(metric: str, mode: Mode | None) -> Mode:
    """Say whether less or more of a metric is better, by its name unless it is said.

    Args:
        metric: its name, whose last word tells, as in "val_loss" or "val_accuracy".
        mode: "min" or "max"; None to go by the name.

    Raises:
        ValueError: the name does not tell.
    """
    check_name("metric", metric)
    if mode is not None:
        check_choice("mode", mode, get_args(Mode))
        return mode
    word = metric.lower().replace("-", "_").split("_")[-1]
    if word in _MINIMISED:
        return "min"
    if word in _MAXIMISED:
        return "max"
    raise ValueError(
        f'`mode` must be "min" or "max" for {metric!r}: its name does not tell whether less or more of it is better.'
    )


def tell_apart(settings: Sequence[Setting]) -> list[str]:
    """Name settings by what differs between them; a single one by all of it."""
    values = [(own.lr, own.schedule, *(value for _, value in own.hyper)) for own in settings]
    differs = [len(set(column)) > 1 for column in zip(*values, strict=True)]
    differs = differs if any(differs) else [True] * len(differs)
    return [", ".join(part for part, is_told in zip(own.parts, differs, strict=True) if is_told) for own in settings]


def group_by_setting(settings: Sequence[Setting]) -> dict[Setting, tuple[int, ...]]:
    """Return the indices of the members of each setting, in the order in which settings first come."""
    groups: dict[Setting, list[int]] = {}
    for i, setting in enumerate(settings):
        groups.setdefault(setting, []).append(i)
    return {setting: tuple(members) for setting, members in groups.items()}


def rank(
    settings: Sequence[Setting],  # [member]
    seeds: Sequence[int],  # [member]
    final: FloatArray,  # [member], NaN where there is none
    has_diverged: Sequence[bool],  # [member]
    metric: str,
    mode: Mode,
    confidence: float,
    repeat: Repeat = "seed",
) -> Ranking:
    """Order settings by their means over seeds, and compare each with the best, seed by seed.

    The confidence interval of a mean difference over n seeds is `mean(d) +- t * s / sqrt(n)`. Few seeds say little of
    `s`, the deviation of the differences `d`, so that settings say it together: `s**2` is twice the mean square of what
    is left of the values without the means of settings and seeds, of k settings with (k - 1)(n - 1) degrees of freedom.
    A setting whose own differences vary clearly more (by an F test at 1 %) is not among them, and has its own `s` and
    n - 1. Student's t is that of `confidence ** (1 / (k - 1))`, so that all k - 1 comparisons hold together with the
    confidence that was asked for. With two settings all this is the paired t-test.

    Reference:
        Student, The probable error of a mean, 1908; Fisher 1925, Statistical methods for research workers, for the
        analysis of variance; Sidak 1967, https://doi.org/10.1080/01621459.1967.10482935, for the correction.
    """
    groups = group_by_setting(settings)
    means = {setting: float(np.mean(final[list(members)])) for setting, members in groups.items()}
    sign = 1 if mode == "min" else -1
    order = sorted(groups, key=lambda setting: np.nan_to_num(sign * means[setting], nan=np.inf))
    several = [final[list(members)] for members in groups.values() if len(members) > 1]
    whole = [values for values in several if not np.isnan(values).any()]
    are_alike = bool(whole) and all((values == values[0]).all() for values in whole)
    best = {seeds[i]: final[i] for i in groups[order[0]]}
    with np.errstate(invalid="ignore"):  # of two that are infinite
        differences = {
            setting: np.array([final[i] - best[seeds[i]] for i in members if seeds[i] in best])
            for setting, members in groups.items()
        }
    margins = _margins([differences[setting] for setting in order[1:]], confidence)
    standings = []
    for setting, margin in zip(order, (0.0 if len(best) > 1 else float("nan"), *margins), strict=True):
        members = list(groups[setting])
        values = final[members]
        own = differences[setting]
        difference = float(own.mean()) if own.size else float("nan")
        margin = float("nan") if are_alike or np.isnan(difference) else margin
        standings.append(
            Standing(
                setting=setting,
                members=tuple(members),
                mean=means[setting],
                median=float(np.median(values)),
                low=float(np.min(values)),
                high=float(np.max(values)),
                num_diverged=sum(has_diverged[i] for i in members),
                num_missing=int(np.isnan(values).sum()),
                difference=difference,
                margin=margin,
                is_tied=_is_tied(difference, margin, is_best=setting is order[0]),
            )
        )
    return Ranking(metric, mode, confidence, len(set(seeds)), are_alike, tuple(standings), repeat)


def _is_tied(difference: float, margin: float, *, is_best: bool) -> bool | None:
    """Whether chance cannot tell a setting from the best; None where nothing is known of chance."""
    if not np.isfinite(difference):
        return False
    return True if is_best else None if np.isnan(margin) else abs(difference) <= margin


def _margins(differences: Sequence[FloatArray], confidence: float) -> list[float]:
    """The half-widths of the confidence intervals of mean differences to the best, NaN where they are not known.

    Args:
        differences: of each setting but the best, `[seed]`.
        confidence: of all intervals together.
    """
    margins = [float("nan")] * len(differences)
    known = [k for k, own in enumerate(differences) if own.size > 1 and np.isfinite(own).all()]
    if not known:
        return margins
    from scipy.special import fdtri, stdtrit  # quantiles; a fifth of a second to import, for those who rank

    num = max(differences[k].size for k in known)
    variances = {k: float(differences[k].var(ddof=1)) for k in known}
    whole = [k for k in known if differences[k].size == num]
    usual = float(np.median([variances[k] for k in whole]))
    most = float(fdtri(num - 1, max(1, (len(whole) - 1) * (num - 1)), 0.99)) if len(whole) > 1 else np.inf
    pooled = [k for k in whole if variances[k] <= most * usual]
    # The best differs from itself by nothing; of two-way residuals the differences to it have all that values have.
    table = np.stack([np.zeros(num), *(differences[k] for k in pooled)])
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    freedom = len(pooled) * (num - 1)
    together = confidence ** (1 / len(known))
    for k in known:
        variance, own_freedom = variances[k], differences[k].size - 1
        if k in pooled:
            variance, own_freedom = 2 * float((rest**2).sum()) / freedom, freedom
        margins[k] = float(stdtrit(own_freedom, (1 + together) / 2)) * float(np.sqrt(variance / differences[k].size))
    return margins
