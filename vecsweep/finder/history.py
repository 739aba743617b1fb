"""What a range test notes step by step: smoothing, the stop rule, and what is read off the curve."""

import math
from typing import TYPE_CHECKING

import numpy as np

from vecsweep.suggest import Rule, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def smooth_like_history(losses: list[float], smooth_f: float) -> list[float]:
    """Smooth losses as `History` does: from the second on, `smooth_f * loss + (1 - smooth_f) * previous`.

    Example:
        >>> smooth_like_history([1.0, 3.0], 0.5)
        [1.0, 2.0]
    """
    smoothed = list[float]()
    for loss in losses:
        is_plain = not smoothed or smooth_f == 0
        smoothed.append(loss if is_plain else smooth_f * loss + (1 - smooth_f) * smoothed[-1])
    return smoothed


class History:
    """The learning rates and the losses of a test, and what they say.

    Attributes:
        history: "lr" and "loss" of each step. The loss is smoothed; `history["lr"][0]` is the first learning rate that
            was tried, and no suggestion.
        best_loss: the lowest of the history; None before a test.
        stop_reason: why the test ended before its last step, in words; None if it did not.
        history_by_seed: with `seeds`, the smoothed losses of each seed; None without.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {"lr": [], "loss": []}
        self.best_loss: float | None = None
        self.stop_reason: str | None = None
        self.history_by_seed: dict[int, list[float]] | None = None

    def suggestion(self, rule: str | Rule | None = None, *, skip_start: int = 10, skip_end: int = 5) -> float:
        """Return the suggested learning rate.

        Args:
            rule: None for the point of the history where the loss falls fastest from step to step, which is what `plot`
                marks; or a name in `vecsweep.suggest.RULES`, or a function, as for `vecsweep.suggest.suggest`.
            skip_start: points left out at the start.
            skip_end: points left out at the end.

        Raises:
            RuntimeError: there was no test, or it has too few points.
            ValueError: an argument is out of range.
        """
        self._check_points(skip_start, skip_end, is_suggesting=True)
        lrs, losses = (_trim(self.history[name], skip_start, skip_end) for name in ("lr", "loss"))
        return suggest(lrs, losses, rule=rule).lr if rule is not None else lrs[self._steepest(losses)]

    def plot(
        self,
        skip_start: int = 10,
        skip_end: int = 5,
        log_lr: bool = True,
        show_lr: float | None = None,
        ax: "Axes | None" = None,
        suggest_lr: bool = True,
    ) -> "Axes | tuple[Axes, float]":
        """Draw the loss against the learning rate; of several seeds the mean, with a band from lowest to highest.

        Args:
            skip_start: points left out at the start.
            skip_end: points left out at the end.
            log_lr: whether the learning-rate axis is logarithmic.
            show_lr: a learning rate, as a float, at which a vertical line is drawn; None for none.
            ax: where to draw; None makes a figure by pyplot and shows it.
            suggest_lr: whether to mark the point where the loss falls fastest.

        Returns:
            The axes; with `suggest_lr` the axes and the suggested learning rate.

        Raises:
            RuntimeError: there was no test, or it has too few points for a suggestion.
            ValueError: an argument is out of range.
        """
        self._check_points(skip_start, skip_end, is_suggesting=suggest_lr)
        if show_lr is not None and not isinstance(show_lr, float):
            raise ValueError(f"show_lr must be float; got {show_lr!r}. Pass float({show_lr!r}).")
        lrs, losses = (_trim(self.history[name], skip_start, skip_end) for name in ("lr", "loss"))
        at = self._steepest(losses) if suggest_lr else None
        from vecsweep.finder.drawing import draw, new_axes, show

        drawn = draw(
            new_axes() if ax is None else ax,
            lrs,
            losses,
            by_seed=[_trim(own, skip_start, skip_end) for own in (self.history_by_seed or {}).values()],
            marked=at,
            show_lr=show_lr,
            is_log=log_lr,
        )
        if ax is None:
            show()
        return drawn if at is None else (drawn, lrs[at])

    def _check_points(self, skip_start: int, skip_end: int, *, is_suggesting: bool) -> None:
        for name, value in (("skip_start", skip_start), ("skip_end", skip_end)):
            if value < 0:
                raise ValueError(f"{name} cannot be negative; got {value}. Pass 0 to leave out nothing.")
        num_points = len(self.history["lr"])
        least = skip_start + skip_end + 2
        if num_points == 0:
            opening = f"Need at least {least} iterations to suggest a learning rate. Got 0. " if is_suggesting else ""
            raise RuntimeError(f"{opening}There is no history yet. Call `range_test` first.")
        if is_suggesting and num_points < least:
            because = f", because {self.stop_reason}" if self.stop_reason else ""
            raise RuntimeError(
                f"Need at least {least} iterations to suggest a learning rate. Got {num_points}{because}; two are "
                "needed besides `skip_start` and `skip_end`. Lower these, or pass more `num_iter`."
            )

    def _steepest(self, losses: list[float]) -> int:
        """Where the loss falls fastest, by index."""
        with np.errstate(invalid="ignore"):
            slopes = np.gradient(np.array(losses))
        if not np.isfinite(slopes).any():
            raise RuntimeError(
                f"A suggestion needs neighbouring losses that are finite; got {losses}, because {self.stop_reason}. "
                "Lower `start_lr`, or look for NaN in the data."
            )
        return int(np.argmin(np.where(np.isfinite(slopes), slopes, np.inf)))

    def _forget(self) -> None:
        """Begin a new history."""
        self.history = {"lr": [], "loss": []}
        self.best_loss, self.stop_reason, self.history_by_seed = None, None, None

    def _note(self, lr: float, loss: float, smooth_f: float, diverge_th: float) -> bool:
        """Add a step, and say whether it is the last."""
        losses = self.history["loss"]
        if losses and smooth_f > 0:
            loss = smooth_f * loss + (1 - smooth_f) * losses[-1]
        self.history["lr"].append(lr)
        losses.append(loss)
        if not math.isfinite(loss):
            self.stop_reason = f"the loss was {loss} at an lr of {lr:.3g}"
            return True
        self.best_loss = loss if self.best_loss is None else min(loss, self.best_loss)
        limit = diverge_th * self.best_loss
        if self.best_loss < 0:  # a multiple of it lies below it
            limit = self.best_loss + (diverge_th - 1) * max(abs(self.best_loss), abs(losses[0]))
        if loss > limit:
            self.stop_reason = f"the loss diverged, to {loss:.3g} at an lr of {lr:.3g}"
        return self.stop_reason is not None


def _trim(values: list[float], skip_start: int, skip_end: int) -> list[float]:
    return values[skip_start : max(0, len(values) - skip_end)]
