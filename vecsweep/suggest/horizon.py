"""What is known of how the best learning rate moves with the length of a run and with annealing.

On the problems of `bench/quality` that are not held out, the best constant rate of a run is that of its first eighth,
quarter or half times the share to the power of 0.4 (0.37 to 0.44). Annealing to nothing moves the best up by some 0.3
decades, to twice as much.
"""

_EXPONENT = 0.4
_ANNEALED = 10**0.3


def shift_for(num_steps: int, horizon: int, *, anneals: bool) -> float:
    """Return what the best constant lr of a short test is multiplied by for a longer run.

    Args:
        num_steps: of the test.
        horizon: the steps of the run.
        anneals: whether its rate is annealed.

    Example:
        >>> round(shift_for(100, 3200, anneals=False), 3), round(shift_for(100, 100, anneals=True), 3)
        (0.25, 1.995)
    """
    return (num_steps / horizon) ** _EXPONENT * (_ANNEALED if anneals else 1.0)
