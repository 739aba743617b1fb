"""Request: what was asked of a sweep besides its plan; how many steps that is, and when members are evaluated."""

import math
from dataclasses import dataclass, field

from torch.optim import Optimizer

from vecsweep._arguments import RESTARTABLE
from vecsweep._engine.run import count_batches, template_of
from vecsweep._types import NormName
from vecsweep.checkpoint.journal import Journal
from vecsweep.evaluation import Evaluation, Stopping
from vecsweep.execution import Execution, check_count
from vecsweep.observers.audience import Audience
from vecsweep.plan import Course, Plan, Span
from vecsweep.pruning import Prune, steps_of
from vecsweep.task import Task

_ROUNDING = 1e-9  # of epochs, whose lengths in steps need not be whole


@dataclass(frozen=True, slots=True)
class Request:
    """What all phases of a sweep have in common.

    Attributes:
        task: what is trained.
        execution: how.
        val_every: steps between evaluations; None for each epoch.
        has_train_metrics: whether metrics are measured on the training batches, too.
        stopping: which members are stopped; None for none.
        audience: who is told what members do.
        prune: says which members go on where they are compared; None where all do.
        rungs: shares of the schedules' length after which it is asked; none where it is at each evaluation.
        rung_metric: that is measured for it; None if what is measured anyway will do.
        recorded: the norms that are noted at each step.
        about: where it comes from, as `tell_origin` has it.
        journal: keeps what is trained as it goes; None where nobody does.
    """

    task: Task
    execution: Execution
    val_every: int | None = None
    has_train_metrics: bool = False
    stopping: Stopping | None = None
    audience: Audience = field(default_factory=Audience)
    prune: Prune | None = None
    rungs: tuple[float, ...] = ()
    rung_metric: str | None = None
    recorded: tuple[NormName, ...] = ()
    about: dict[str, str] = field(default_factory=dict)
    journal: Journal | None = None

    @property
    def evaluates(self) -> bool:
        """Whether members are evaluated again and again, whatever their schedules follow."""
        asks_often = self.stopping is not None or (self.prune is not None and not self.rungs)
        return self.task.val_batches is not None or self.has_train_metrics or asks_often

    def template(self, seed: int) -> Optimizer:
        """The task's optimizer, to be read; see `run.template_of`."""
        return template_of(self.task, seed, self.execution)

    def span(
        self,
        num_steps: int | None,
        epochs: int | None,
        *,
        seed: int,
        begin: int = 0,
        steps_per_epoch: float | None = None,
        needs_epochs: bool = False,
    ) -> Span:
        """Say which steps a call asks for.

        Args:
            num_steps: how many; None if they are told in epochs.
            epochs: how many; None if they are told in steps.
            seed: whose batches are counted, if it comes to that.
            begin: the first step.
            steps_per_epoch: if it is known.
            needs_epochs: whether it has to be.
        """
        if (num_steps is None) == (epochs is None):
            raise ValueError(
                f"Exactly one of `num_steps` and `epochs` must be given; got {'neither' if epochs is None else 'both'}."
            )
        if num_steps is not None:
            num_steps = check_count("num_steps", num_steps)
        else:
            epochs = check_count("epochs", epochs)
        if self.task.is_one_pass and (epochs is not None or needs_epochs or begin):
            what = "`epochs` needs" if epochs is not None else "Going on needs" if begin else "The schedule needs"
            raise ValueError(f"{what} batches that can be read again; got an iterator. {RESTARTABLE}")
        is_by_epochs = needs_epochs or (self.evaluates and self.val_every is None and not self.task.is_one_pass)
        per_step = self.execution.accumulation_steps
        if steps_per_epoch is None and (epochs is not None or is_by_epochs or self.has_train_metrics):
            most = None if num_steps is None else (begin + num_steps) * per_step
            num_batches = count_batches(self.task, seed, self.execution, most)
            if num_batches == 0:
                raise ValueError(
                    "`batches` must yield at least one batch; got none. Look at the length of the data set, and at "
                    "`drop_last` when a batch is larger than it."
                )
            if num_batches is None:
                self._check_does_without_an_end(most, needs_epochs=needs_epochs)
            else:
                steps_per_epoch = num_batches / per_step
        if num_steps is None:
            assert epochs is not None
            assert steps_per_epoch is not None
            num_steps = _floor((round(begin / steps_per_epoch, 6) + epochs) * steps_per_epoch) - begin
            if num_steps == 0:
                raise ValueError(
                    f"`epochs` must cover at least one step; got {epochs} of {steps_per_epoch:.3g} steps each, with "
                    f"`accumulation_steps={per_step}` batches a step."
                )
        return Span(begin, num_steps, steps_per_epoch)

    def _check_does_without_an_end(self, num_read: int | None, *, needs_epochs: bool) -> None:
        """Raise ValueError where something needs the end of the batches, which did not come in so many."""
        remedy = "Pass batches that have a length"
        for is_asked, what, other in (
            (needs_epochs, "A schedule by epochs needs", 'a schedule by steps (`from_torch(..., interval="step")`)'),
            (self.has_train_metrics, "`train_metrics` needs", "leave them out"),
            (self.stopping is not None and self.val_every is None, "`patience` needs", "`val_every`"),
        ):
            if is_asked:
                raise ValueError(
                    f"{what} batches that come to an end; these have no length, and went on after the {num_read:,} "
                    f"that the run takes. {remedy}, or {other}."
                )

    def evaluation(self, span: Span, plan: Plan, course: Course | None = None) -> Evaluation:
        """Say when members are evaluated; those that are pruned besides at the rungs of the course that they follow.

        Raises:
            ValueError: a metric is followed that nobody measures.
        """
        measured = ["mean_train_loss"]
        if self.task.val_batches is not None:
            measured += ["val_loss", *(f"val_{name}" for name in self.task.metrics)]
        if self.has_train_metrics:
            measured += [f"train_{name}" for name in self.task.metrics]
        followed = {feedback.metric: "A schedule" for feedback in plan.feedback.values()}
        if self.stopping is not None:
            followed[self.stopping.metric] = "`patience`"
        compared = {} if self.rung_metric is None else {self.rung_metric: "`prune`"}
        for name, who in (followed | compared).items():
            if name not in measured:
                raise ValueError(
                    f"{who} follows {name!r}, which is not measured; there is {', '.join(measured)}. Give the task "
                    "`val_batches` and `metrics`, or follow another."
                )
        at_rungs = frozenset[int]() if course is None else steps_of(self.rungs, course, span)
        if len(measured) == 1 and not followed and (self.prune is None or self.rungs):
            return Evaluation(tuple(sorted(at_rungs | {span.num_steps})) if at_rungs else ())
        if self.task.is_one_pass and self.val_every is None and followed:
            raise ValueError(
                "What follows a metric needs epochs, which an iterator does not tell. Pass `val_every`, or batches "
                "that can be read again."
            )
        followed_at = self.regular(span.begin, span.begin + span.num_steps, span.steps_per_epoch)
        steps = frozenset(step - span.begin for step in followed_at)
        at = tuple(sorted(steps | at_rungs | {span.num_steps}))
        return Evaluation(at, steps, self.has_train_metrics, self.stopping)

    def pruned_at(self, span: Span, evaluation: Evaluation, course: Course) -> frozenset[int]:
        """After which steps of a span members are pruned; the end of their course is that of all who are left."""
        steps = steps_of(self.rungs, course, span) if self.rungs else evaluation.followed
        is_over = span.begin + span.num_steps >= course.begin + course.num_steps
        return steps - {span.num_steps} if is_over else steps

    def regular(self, begin: int, end: int, steps_per_epoch: float | None) -> set[int]:
        """The steps, after `begin` and up to `end`, that evaluations come after wherever phases end."""
        every = self.val_every or steps_per_epoch or end
        ends = (_ceil(k * every) for k in range(math.floor(begin / every) + 1, _ceil(end / every) + 1))
        return {step for step in ends if begin < step <= end}


def _floor(steps: float) -> int:
    return math.floor(steps + _ROUNDING)


def _ceil(steps: float) -> int:
    return math.ceil(steps - _ROUNDING)
