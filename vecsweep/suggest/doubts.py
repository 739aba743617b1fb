"""What is doubtful about a curve of loss against lr, and about a learning rate read off it, in full sentences."""

from collections.abc import Iterator

import numpy as np

from vecsweep._types import FloatArray

MIN_POINTS = 10  # a suggestion from fewer finite points is doubted
FAR = 10  # times beyond an end of the range; nearer suggestions are as good as others, see docs/answers.md
FLAT_FRACTION = 0.05  # losses that differ by no more than this part of their magnitude are taken as equal


def _is_flat(losses: FloatArray) -> bool:
    return bool(np.ptp(losses) <= FLAT_FRACTION * np.max(np.abs(losses)))


def curve_doubts(lrs: FloatArray, curve: FloatArray) -> Iterator[str]:
    """Yield what is doubtful about any suggestion from this curve."""
    is_finite = np.isfinite(curve)
    trained, losses = lrs[is_finite], curve[is_finite]
    if trained.size < MIN_POINTS:
        yield (
            f"Too few points: only {trained.size} of {lrs.size} learning rates gave a finite loss, "
            f"fewer than {MIN_POINTS}. Raise `num_lrs`, or lower `end_lr` if many diverged."
        )
    lowest = int(np.argmin(losses))
    if trained.size > 1 and _is_flat(losses):
        yield (
            f"The curve is flat: its losses, from {losses.min():.4g} to {losses.max():.4g}, differ by "
            f"{FLAT_FRACTION:.0%} of their magnitude or less. Widen the range, or train for more steps."
        )
    elif lowest == 0:
        yield (
            f"The loss is lowest at the lower edge of the curve, {trained[0]:.3g}: the best lr may be "
            "smaller. Lower `start_lr`."
        )
    elif lowest == trained.size - 1 and trained[-1] == lrs[-1]:
        yield (
            f"The loss is lowest at the upper edge of the range, {lrs[-1]:.3g}: the best lr may be larger. "
            "Raise `end_lr`."
        )
    elif lowest == trained.size - 1:
        yield (
            f"The loss is lowest at {trained[-1]:.3g}, right below {lrs[lrs > trained[-1]][0]:.3g}, which "
            "diverged: the best lr is at the edge of stability. Stay below it, or test more lrs between them."
        )
    diverged = lrs[~is_finite]
    if diverged.size and diverged[0] < trained[-1]:
        yield (
            f"The lr {diverged[0]:.3g} diverged although larger ones, up to {trained[-1]:.3g}, did not: the "
            "curve is noisy there. Average over more `seeds`."
        )


def lr_doubts(lrs: FloatArray, curve: FloatArray, lr: float, loss: float) -> Iterator[str]:
    """Yield what is doubtful about this lr, at which the curve's loss is `loss`."""
    is_finite = np.isfinite(curve)
    diverged, first_loss = lrs[~is_finite], curve[is_finite][0]
    if not lrs[0] / FAR <= lr <= lrs[-1] * FAR:
        yield (
            f"The suggestion, {lr:.3g}, is far outside the range tested, {lrs[0]:.3g} to {lrs[-1]:.3g}. "
            "Test a range that holds it."
        )
    if diverged.size and lr >= diverged[0]:
        yield f"The suggestion, {lr:.3g}, is not below {diverged[0]:.3g}, which diverged. Take a smaller lr."
    if loss > first_loss and not _is_flat(np.array([first_loss, loss])):
        yield (
            f"The loss at the suggestion, {loss:.3g}, is higher than at the smallest lr, {first_loss:.3g}. "
            "Try another rule, or a lower `start_lr`."
        )
