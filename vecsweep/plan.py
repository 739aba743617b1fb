"""Plan: the hyperparameters of a sweep as matrices [step, member]. Every feature of vecsweep is a plan.

Not here: what learning rates may follow (`schedules/`), when members are evaluated (`evaluation.py`), how arguments are
checked (`_arguments.py`) and plans trained (`_engine`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from torch.optim import Optimizer

from vecsweep._arrays import blank, column_blocks
from vecsweep._hyper import plain_options
from vecsweep._types import FloatArray, Hyper, Spacing
from vecsweep.schedules.schedule import Schedule, evaluate, evaluate_momentum
from vecsweep.schedules.torch_schedulers import RunningScheduler, TorchSchedule


@dataclass(frozen=True, slots=True)
class Member:
    """One of the copies of the model that a sweep trains.

    Attributes:
        lr: its base learning rate; for a ramp, the rate that the ramp ends at.
        seed: of its initial weights, batches and random numbers.
        schedule: the name of what its learning rate follows.
        hyper: what else it has of its own, by name.
    """

    lr: float
    seed: int
    schedule: str = "constant"
    hyper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Feedback:
    """A schedule that follows what a member measures, such as torch's ReduceLROnPlateau.

    Attributes:
        metric: that it follows.
        start: gives the scheduler, as it stands at the first step.
    """

    metric: str
    start: Callable[[], RunningScheduler]


@dataclass(frozen=True, slots=True)
class Course:
    """What a member's learning rate follows, and since when: the schedule covers the run in which it began.

    Attributes:
        schedule: a function of progress, or one of torch's schedulers.
        name: of it.
        begin: the step at which it began.
        num_steps: how long that run was, in steps; afterwards a function of progress holds its last value.
    """

    schedule: Schedule | TorchSchedule
    name: str
    begin: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Span:
    """Which steps a plan is for.

    Attributes:
        begin: the first.
        num_steps: how many.
        steps_per_epoch: updates in one pass over the batches; None if nobody counted.
    """

    begin: int
    num_steps: int
    steps_per_epoch: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What each member trains with at each step.

    Attributes:
        members: `[member]`.
        hyper: hyperparameters by name, each `[step, member]`; "lr" is always among them. "beta1" and "beta2" stand for
            the two of `betas`.
        feedback: of members, by their index, whose further hyperparameters depend on what they measure.
        begin: the step of the run that is the first of the plan; what is told of steps counts from it.
        seeds: `[member]`, of the members; listed once, because it is asked for member by member.
    """

    members: tuple[Member, ...]
    hyper: Hyper
    feedback: dict[int, Feedback] = field(default_factory=dict)
    begin: int = 0
    seeds: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(member.seed for member in self.members))

    @property
    def lr(self) -> FloatArray:
        """The learning rates, `[step, member]`."""
        return self.hyper["lr"]

    @property
    def num_steps(self) -> int:
        """How many updates each member takes."""
        return len(self.lr)

    def select(self, members: Sequence[int]) -> "Plan":
        """The plan of some members alone."""
        if list(members) == list(range(len(self.members))):  # their matrices are large
            return self
        positions = {i: k for k, i in enumerate(members)}
        return Plan(
            tuple(self.members[i] for i in members),
            {name: values[:, list(members)] for name, values in self.hyper.items()},
            {positions[i]: feedback for i, feedback in self.feedback.items() if i in positions},
            self.begin,
        )

    @classmethod
    def constant(cls, lrs: FloatArray, seeds: Sequence[int], num_steps: int) -> "Plan":
        """Each learning rate with each seed, the same from the first step to the last.

        Args:
            lrs: `[lr]`.
            seeds: of the members; those of one lr are next to each other.
            num_steps: updates of each member.

        Example:
            >>> Plan.constant(np.array([0.1, 0.2]), [0, 1], num_steps=3).lr
            array([[0.1, 0.1, 0.2, 0.2],
                   [0.1, 0.1, 0.2, 0.2],
                   [0.1, 0.1, 0.2, 0.2]])
        """
        members = tuple(Member(float(lr), seed) for lr in lrs for seed in seeds)
        row = np.array([member.lr for member in members])
        lr = blank(num_steps, len(members))
        lr[:] = row
        return cls(members, {"lr": lr})

    @classmethod
    def ramp(cls, lrs: FloatArray, seeds: Sequence[int]) -> "Plan":
        """One learning rate after another, a step each: a member for each seed.

        Args:
            lrs: `[step]`.
            seeds: of the members.

        Reference:
            Smith, Cyclical learning rates for training neural networks, 2015, https://arxiv.org/abs/1506.01186
        """
        members = tuple(Member(float(lrs[-1]), seed, "ramp") for seed in seeds)
        return cls(members, {"lr": np.tile(lrs[:, None], (1, len(members)))})


def cross(
    lrs: FloatArray,
    schedules: Sequence[str],
    seeds: Sequence[int],
    vary: Mapping[str, Sequence[float]],
) -> tuple[Member, ...]:
    """Return a member for each combination; those that differ in their seed alone are next to each other.

    Args:
        lrs: `[lr]`.
        schedules: their names.
        seeds: of the members.
        vary: values of other hyperparameters, by name.

    Example:
        >>> members = cross(np.array([0.1, 0.2]), ["constant"], [0, 1], {})
        >>> [(member.lr, member.seed) for member in members]
        [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]
    """
    return tuple(
        Member(float(lr), seed, schedule, dict(zip(vary, values, strict=True)))
        for lr, schedule, *values, seed in product(lrs, schedules, *vary.values(), seeds)
    )


def draw_up(
    members: Sequence[Member],
    courses: Sequence[Course],  # [member]
    span: Span,
    template: Optimizer,
    history: Mapping[str, FloatArray] | None = None,
) -> Plan:
    """Return the plan of members that follow schedules.

    Args:
        members: who.
        courses: what each follows.
        span: the steps of the plan.
        template: the optimizer whose hyperparameters hold where nothing else is said.
        history: what members measured before, each `[evaluation, member]`, for schedules that follow a metric.

    Raises:
        ValueError: a schedule gives what no learning rate can be, or sets what the optimizer does not have.
    """
    defaults = plain_options(template.param_groups[0])
    hyper, feedback = Hyper(), dict[int, Feedback]()
    planned = dict[tuple[int, int, float], dict[str, FloatArray]]()  # the same for all seeds

    def rows_of(i: int) -> dict[str, FloatArray]:
        member, course = members[i], courses[i]
        metric = _followed(course.schedule, template, member.lr)
        if metric is not None:
            assert isinstance(course.schedule, TorchSchedule)
            past = (history or {}).get(metric, np.empty((0, len(members))))[:, i]
            feedback[i] = Feedback(metric, partial(_fed, course.schedule, template, member.lr, past))
            rows = {name: np.full(span.num_steps, value) for name, value in feedback[i].start().hyper().items()}
        else:
            key = (id(course.schedule), course.begin, member.lr)
            if key not in planned:
                planned[key] = _planned(course, member.lr, span, template)
            rows = planned[key]
        if taken := member.hyper.keys() & rows.keys():
            raise ValueError(
                f"`vary` must not hold what a schedule sets; the schedule {course.name!r} sets {min(taken)!r}. Leave "
                "one of them out."
            )
        return {name: np.full(span.num_steps, value) for name, value in member.hyper.items()} | rows

    for block in column_blocks(len(members)):  # the columns of all members are as large as what they are put into
        columns = [rows_of(i) for i in range(block.start, block.stop)]
        for name in dict.fromkeys(name for rows in columns for name in rows):
            if name not in hyper:
                hyper[name] = blank(span.num_steps, len(members), defaults.get(name, np.nan))
            default = np.full(span.num_steps, defaults.get(name, np.nan))
            hyper[name][:, block] = np.stack([rows.get(name, default) for rows in columns], 1)
        planned.clear()
    return Plan(tuple(members), hyper, feedback, span.begin)


def set_by(course: Course, lr: float, span: Span, template: Optimizer) -> set[str]:
    """The hyperparameters besides lr that a schedule sets."""
    fed = _followed(course.schedule, template, lr) is not None
    return set() if fed else _planned(course, lr, span, template).keys() - {"lr"}


def _followed(schedule: Schedule | TorchSchedule, template: Optimizer, lr: float) -> str | None:
    """The metric that a schedule is fed, if it is."""
    return None if isinstance(schedule, Schedule) else schedule.start(template, lr).metric


def _planned(course: Course, lr: float, span: Span, template: Optimizer) -> dict[str, FloatArray]:
    """What a schedule gives that is not fed."""
    if isinstance(course.schedule, Schedule):
        return _follow(course.schedule, course, lr, span, plain_options(template.param_groups[0]))
    return _run(course.schedule, course, lr, span, template)


def _follow(
    schedule: Schedule, course: Course, lr: float, span: Span, defaults: Mapping[str, float]
) -> dict[str, FloatArray]:
    """What a function of progress gives."""
    steps = np.arange(span.begin, span.begin + span.num_steps) - course.begin
    progress = np.minimum(steps / max(1, course.num_steps - 1), 1.0)
    rows = {"lr": lr * evaluate(schedule, progress, course.name)}
    momentum = evaluate_momentum(schedule, progress, course.name)
    if momentum is not None:
        name = next((name for name in ("beta1", "momentum") if name in defaults), None)
        if name is None:
            raise ValueError(
                f"The schedule {course.name!r} anneals momentum, which this optimizer does not have. Pass "
                "`momentums=None`, or choose an optimizer with momentum or betas."
            )
        rows[name] = momentum
    return rows


def _run(schedule: TorchSchedule, course: Course, lr: float, span: Span, template: Optimizer) -> dict[str, FloatArray]:
    """What a scheduler of torch gives; it runs from where it began."""
    before = span.begin - course.begin
    rows = schedule.rows(template, lr, before + span.num_steps, span.steps_per_epoch or 1.0)
    return {name: values[before:] for name, values in rows.items()}


def _fed(schedule: TorchSchedule, template: Optimizer, lr: float, past: FloatArray) -> RunningScheduler:
    """A scheduler that was fed a metric before."""
    running = schedule.start(template, lr)
    for value in past:
        running.step(float(value))
    return running


def spaced(start: float, end: float, num: int, spacing: Spacing) -> FloatArray:
    """Return `num` learning rates from `start` to `end`, both exactly.

    Args:
        start: the first.
        end: the last.
        num: how many.
        spacing: "exponential" for equal ratios, "linear" for equal differences.

    Example:
        >>> spaced(1e-3, 1e-1, 3, "exponential")
        array([0.001, 0.01 , 0.1  ])
    """
    between = np.geomspace if spacing == "exponential" else np.linspace
    values = between(start, end, num)
    values[0], values[-1] = start, end
    return values
