"""What a schedule is: a function of progress, how it is called, scaled, drawn and checked.

Not here: the families (`annealing.py`, `policies.py`, `decay.py`, `cycles.py`), and torch's schedulers
(`torch_schedulers.py`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from vecsweep._types import FloatArray
from vecsweep.schedules.torch_schedulers import TorchSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Callable[[FloatArray], FloatArray]  # progress in [0, 1] -> values of the same shape
Bounds = Literal["above 0", "of at least 0", "between 0 and 1", "in [0, 1)"]

EDGE = 1e-9  # boundaries this close to a progress are reached: rounding is smaller, a step of a run is larger

_IS_INSIDE: dict[Bounds, Callable[[float], bool]] = {
    "above 0": lambda value: value > 0,
    "of at least 0": lambda value: value >= 0,
    "between 0 and 1": lambda value: 0 < value < 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
}

_NUM_LOOKED_AT = 101  # points of progress


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate as a function of progress: 0 is the first step of a run, 1 the last.

    Call it with a number or an array of them; progress below 0 or above 1 is taken for 0 or 1. The values are
    multiples of a member's learning rate: with `lrs=[1.0]`, or in `0.01 * schedule`, they are learning rates.

    Attributes:
        function: from an array of progress to an array of multiples, of the same shape.
        momentum: the like for momentum, or beta1 where the optimizer has `betas`; its values are not multiples
            but what the optimizer is given. None leaves the optimizer's own.
        name: how it was made, for people.

    Example:
        >>> from vecsweep.schedules import Schedule
        >>> schedule = Schedule(lambda progress: 1 - progress, name="to zero")
        >>> schedule(0.25), (0.01 * schedule)(0.0)
        (0.75, 0.01)
        >>> schedule([0.0, 0.5, 2.0])
        array([1. , 0.5, 0. ])
    """

    function: Curve
    momentum: Curve | None = None
    name: str = "function"

    __array_ufunc__ = None  # so that a NumPy number times a schedule is a schedule

    @overload
    def __call__(self, progress: float) -> float: ...

    @overload
    def __call__(self, progress: NDArray[Any] | Sequence[Any]) -> FloatArray: ...

    def __call__(self, progress: float | NDArray[Any] | Sequence[Any]) -> float | FloatArray:
        """Return the multiple at each progress."""
        clamped = np.clip(np.asarray(progress, dtype=np.float64), 0.0, 1.0)
        values = np.asarray(self.function(clamped), dtype=np.float64)
        is_scalar = np.ndim(progress) == 0 and not isinstance(progress, np.ndarray)
        return float(values) if is_scalar else values

    def __mul__(self, factor: float) -> "Schedule":
        if not _is_number(factor):
            return NotImplemented
        scale = check_number("factor", factor, "above 0", "Multiply a schedule by a learning rate, such as 0.01.")
        function = self.function
        return replace(self, function=lambda progress: scale * function(progress), name=f"{scale:g} * {self.name}")

    __rmul__ = __mul__

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Schedule({self.name})"

    @property
    def anneals(self) -> bool:
        """Whether it comes down, to less than half of its highest value, at the end."""
        values = evaluate(self, np.linspace(0.0, 1.0, _NUM_LOOKED_AT), self.name)
        return bool(values[-1] < np.max(values) / 2)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the multiple against progress.

        Args:
            ax: where to draw; None makes a figure.

        Returns:
            The axes; `schedule.plot().figure.savefig("schedule.png")` keeps the picture.
        """
        from vecsweep.plot import plot_schedule

        return plot_schedule(self, ax)


def as_schedule(value: Any) -> Schedule | TorchSchedule:
    """Take what a sweep accepts as a schedule: one of ours, one of torch's, or a function of progress.

    Args:
        value: a `Schedule`, a `TorchSchedule`, or a function from an array of progress in [0, 1] to an array of
            multiples of the learning rate.

    Raises:
        TypeError: It is none of these.

    Example:
        >>> from vecsweep.schedules import as_schedule
        >>> as_schedule(lambda progress: 1 - progress)(0.75)
        0.25
    """
    if isinstance(value, Schedule | TorchSchedule):
        return value
    if not callable(value):
        remedy = "Pass `vecsweep.schedules.cosine(1, 0)`, say, or a function from an array of progress to multiples."
        if isinstance(value, str):
            remedy = f"Pass `vecsweep.schedules.parse({value!r})`."
        elif isinstance(value, Real):
            remedy = f"Pass `vecsweep.schedules.constant({value})`."
        elif hasattr(value, "optimizer"):
            remedy = "Pass `vecsweep.schedules.from_torch(lambda optimizer: ...)`, for every member has its own."
        raise TypeError(f"A schedule must be a Schedule or a function of progress; got {value!r}. {remedy}")
    named = getattr(value, "func", value)  # a functools.partial has no name of its own
    return Schedule(value, name=getattr(named, "__name__", type(value).__name__))


def as_function(value: Any, name: str) -> Schedule:
    """Take a schedule that is a function of progress, as parts of other schedules must be."""
    schedule = as_schedule(value)
    if isinstance(schedule, TorchSchedule):
        raise TypeError(
            f"`{name}` must hold functions of progress; got {schedule!r}, which goes step by step. Chain torch's "
            "schedulers with SequentialLR, inside `from_torch`."
        )
    return schedule


def evaluate(schedule: Schedule, progress: FloatArray, name: str) -> FloatArray:
    """Return a schedule's multiples, checked: one for each progress, finite, and at least 0.

    Args:
        schedule: what is evaluated. What it raises is passed on, with a note.
        progress: `[step]`, in [0, 1].
        name: of the schedule, for errors.

    Returns:
        `[step]`, a new array.

    Raises:
        ValueError: A value is missing, is not a number, or is negative or not finite.

    Example:
        >>> import numpy as np
        >>> from vecsweep.schedules import Schedule, evaluate
        >>> evaluate(Schedule(lambda progress: 1 - progress), np.array([0.0, 0.5, 1.0]), "mine")
        array([1. , 0.5, 0. ])
    """
    values = _values(schedule.function, progress, f"The schedule `{name}`")
    for step in np.flatnonzero(~(np.isfinite(values) & (values >= 0)))[:1]:
        raise ValueError(
            f"The schedule `{name}` must return finite multiples of the lr that are at least 0; it returned "
            f"{values[step]} at progress {progress[step]:.6g}, step {step}. Return, say, `np.clip(multiples, 0, 1)`."
        )
    return values


def evaluate_momentum(schedule: Schedule, progress: FloatArray, name: str) -> FloatArray | None:
    """Return a schedule's momentum, `[step]`, checked to be in [0, 1); None if it leaves momentum alone.

    Args:
        schedule: what is evaluated. What it raises is passed on, with a note.
        progress: `[step]`, in [0, 1].
        name: of the schedule, for errors.

    Raises:
        ValueError: A value is missing, is not a number, or is outside [0, 1).

    Example:
        >>> import numpy as np
        >>> from vecsweep.schedules import Schedule, evaluate_momentum
        >>> ramp = Schedule(lambda progress: 1 - progress, momentum=lambda progress: 0.95 - 0.1 * progress)
        >>> evaluate_momentum(ramp, np.array([0.0, 0.5, 1.0]), "mine")
        array([0.95, 0.9 , 0.85])
    """
    if schedule.momentum is None:
        return None
    values = _values(schedule.momentum, progress, f"The momentum of the schedule `{name}`")
    for step in np.flatnonzero(~((values >= 0) & (values < 1)))[:1]:
        raise ValueError(
            f"The momentum of the schedule `{name}` must be in [0, 1); it is {values[step]} at progress "
            f"{progress[step]:.6g}, step {step}. Return momentum itself, such as 0.9, not a multiple of it."
        )
    return values


def _values(function: Curve, progress: FloatArray, subject: str) -> FloatArray:
    hint = "It is called once, with an array of all steps: use `np.where` for `if`, and `np.cos` for `math.cos`."
    try:
        values: Any = function(np.array(progress, dtype=np.float64))  # a copy: it belongs to the user's function
    except Exception as error:
        scheduler = "A function that makes one of torch's schedulers is passed as `schedules.from_torch(function)`."
        error.add_note(f"{subject} raised this. {hint} {scheduler}")
        raise
    remedy = f"Return an array with a value for each progress, such as `np.full_like(progress, 0.1)`. {hint}"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{subject} must return an array of numbers; it returned {values!r}. {remedy}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{subject} must return an array of numbers; it returned {values!r}. {remedy}")
    if array.shape != progress.shape:
        raise ValueError(
            f"{subject} must return an array of the shape of progress, {progress.shape}; the shape of what it "
            f"returned is {array.shape}. {remedy}"
        )
    return np.array(array, dtype=np.float64)


def check_number(name: str, value: Any, bounds: Bounds, remedy: str) -> float:
    """Return a number as a float, or raise: it is none, is not finite, or is out of bounds."""
    if not _is_number(value):
        raise TypeError(f"`{name}` must be a number {bounds}; got {value!r}. {remedy}")
    number = float(value)
    if not (math.isfinite(number) and _IS_INSIDE[bounds](number)):
        raise ValueError(f"`{name}` must be a finite number {bounds}; got {value}. {remedy}")
    return number


def check_numbers(name: str, values: Any, bounds: Bounds, remedy: str) -> list[float]:
    """Return several numbers as floats, or raise: it is no list of them, or one is not as `check_number` has it."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list of numbers; got {values!r:.80}. {remedy}")
    return [check_number(name, value, bounds, remedy) for value in values]


def check_fraction(name: str, value: Any) -> float:
    """Return a fraction of the run as a float, or raise."""
    return check_number(name, value, "between 0 and 1", "Pass a fraction of the run, such as 0.25.")


def check_length(name: str, value: Any, total: float) -> float:
    """Return a length in the unit of `total` as a float, or raise: it is none, or longer than the run."""
    length = check_number(name, value, "above 0", f"Pass a length in the unit of `total`, {total:g}.")
    if length > total * (1 + EDGE):
        raise ValueError(
            f"`{name}` must be at most `total`, the length of the run; got {length:g} with `total={total:g}`. Pass the "
            f"length of the run in the unit of `{name}`, such as `total=30` for 30 epochs."
        )
    return length


def check_total(total: Any) -> float:
    """Return the length of a run as a float, or raise."""
    return check_number("total", total, "above 0", "Pass the length of the run, such as 30 for 30 epochs.")


def describe(call: str, **arguments: Any) -> str:
    """Write a call down, as the name of the schedule that it makes."""
    return f"{call}({', '.join(f'{name}={_text(value)}' for name, value in arguments.items())})"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:g}" if isinstance(value, float) else str(value)
