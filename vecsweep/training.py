"""From a checked request to a Sweep: draw up the plan, train it, join it to what went before, leave a way to go on.

`Training` is what a sweep keeps besides its curves. Each way of going on copies from it and changes nothing in it, so
that a sweep can be extended and branched as often as one likes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from vecsweep._arguments import check_lrs, check_schedules, check_vary, needs_epochs
from vecsweep._engine.keeping.record import Record, Start, here
from vecsweep._errors import Interrupted, with_result
from vecsweep._hyper import plain_options
from vecsweep._interrupts import held, is_due
from vecsweep.checkpoint.arguments import pack
from vecsweep.checkpoint.journal import Journal
from vecsweep.checkpoint.trained import Trained, write_trained
from vecsweep.cluster import train
from vecsweep.evaluation import Evaluation, SoFar
from vecsweep.folds import folds_of
from vecsweep.observers.observer import Run
from vecsweep.plan import Course, Member, Plan, Span, cross, draw_up, set_by
from vecsweep.pruning import pruning
from vecsweep.request import Request
from vecsweep.results import MemberRecord, Sweep
from vecsweep.results.going_on import Fork
from vecsweep.results.phases import join_phases

AnySweep = TypeVar("AnySweep", bound=Sweep)


@dataclass(frozen=True, slots=True)
class Training:
    """Members as they stand at the end of a sweep.

    Attributes:
        request: what they were trained on, and how.
        members: `[member]`.
        courses: what each follows.
        start: their states, and where their seeds stand.
        selected: their positions among those that the request's journal knows of.
    """

    request: Request
    members: tuple[Member, ...]
    courses: tuple[Course, ...]
    start: Start
    selected: tuple[int, ...]

    def model(self, i: int, *, copy_frozen: bool) -> nn.Module:
        """Make a module of member i's state."""
        (state,) = here([self.start.states[i]])
        return self.start.learners[self.members[i].seed].model_of(state, copy_frozen=copy_frozen)

    def select(self, members: Sequence[int]) -> "Training":
        """Take some members, one of them several times if it is named so."""
        metrics = {name: values[:, list(members)] for name, values in self.start.metrics.items()}
        return replace(
            self,
            members=tuple(self.members[i] for i in members),
            courses=tuple(self.courses[i] for i in members),
            selected=tuple(self.selected[i] for i in members),
            start=replace(self.start, states=[self.start.states[i] for i in members], metrics=metrics),
        )

    def save(self, runs: Sweep, path: Path) -> Path:
        """Write it all to a folder."""
        write_trained(path, runs, Trained(self.request, self.members, self.courses, self.start))
        return path

    @held()
    def extend(self, runs: Sweep, num_steps: int | None, epochs: int | None) -> Sweep:
        """Train all members further that neither diverged nor were stopped."""
        alive = [i for i, m in enumerate(runs.members) if m.diverged_at is None and m.stopped_at is None]
        if not alive:
            raise ValueError(
                f"There is nothing to train further: all {len(runs.members)} members diverged or were stopped. Branch "
                "from one that was stopped, or sweep over smaller learning rates."
            )
        if num_steps is None and epochs is None:
            num_steps = max(course.begin + course.num_steps for course in self.courses) - len(runs.train_loss)
            if num_steps <= 0:
                raise ValueError(
                    "`num_steps` or `epochs` must be given: the schedules have come to their end. Without either, "
                    "members go on to it."
                )
        schedules = {course.name: course.schedule for course in self.courses}
        span = self._span(runs, num_steps, epochs, needs_epochs(schedules))
        with self._kept("extend", num_steps=num_steps, epochs=epochs) as training:
            return training._go_on(runs, alive, span)

    @held()
    def branch(self, runs: Sweep, i: int, fork: Fork) -> Sweep:
        """Train copies of member i further, side by side."""
        origin = self.members[i]
        if runs.members[i].diverged_at is not None:
            raise ValueError(
                f"`i` must be a member that did not diverge; member {i}, at lr {origin.lr:.3g}, did at step "
                f"{runs.members[i].diverged_at}. Branch from another, such as `runs.best()`."
            )
        named = check_schedules(fork.schedules)
        varied = {} if fork.vary is None else check_vary(fork.vary, self.request.template(origin.seed))
        rates = check_lrs([origin.lr] if fork.lrs is None else fork.lrs)
        span = self._span(runs, fork.num_steps, fork.epochs, needs_epochs(named))
        template = self.request.template(origin.seed)
        members, courses = list[Member](), list[Course]()
        for member in cross(rates, list(named), [origin.seed], varied):
            course = Course(named[member.schedule], member.schedule, span.begin, span.num_steps)
            is_set = set_by(course, member.lr, span, template)
            inherited = {name: value for name, value in origin.hyper.items() if name not in is_set}
            members.append(replace(member, hyper=inherited | dict(member.hyper)))
            courses.append(course)
        copies = [i] * len(members)
        before = replace(runs._take(copies), members=tuple(_record_of(member) for member in members))
        with self._kept("branch", i=i, **fork.arguments) as training:
            request = training.request
            request = replace(request, audience=request.audience.part(f"branch of member {i} at step {span.begin}"))
            copied = replace(self.select(copies), request=request, members=tuple(members), courses=tuple(courses))
            copied = replace(copied, selected=tuple(range(len(members))))
            return copied._go_on(before, range(len(members)), span)

    @contextmanager
    def _kept(self, verb: str, **arguments: Any) -> Iterator["Training"]:
        """Open a folder for a call that goes on from here, inside that of the call that came to it."""
        journal = self.request.journal
        if journal is None:
            yield self
            return
        packed = {"members": list(self.selected)} | {name: pack(value) for name, value in arguments.items()}
        with journal.child(verb, packed).opened() as child:
            selected = tuple(range(len(self.members)))
            yield replace(self, request=replace(self.request, journal=child), selected=selected)

    def _span(self, runs: Sweep, num_steps: int | None, epochs: int | None, needs_epochs: bool) -> Span:
        return self.request.span(
            num_steps,
            epochs,
            seed=self.members[0].seed,
            begin=len(runs.train_loss),
            steps_per_epoch=runs.steps_per_epoch,
            needs_epochs=needs_epochs,
        )

    def _go_on(self, before: Sweep, alive: Sequence[int], span: Span) -> Sweep:
        """Train some of the members over a span, and join it to what went before."""
        for learner in self.start.learners.values():
            learner.check_lent()
        part = self.select(alive)
        # What is followed since the members took their course; they all took it at the same time.
        followed = self.request.regular(part.courses[0].begin, span.begin, before.steps_per_epoch)
        rows = np.isin(before.evaluated_at, list(followed))
        past = {name: values[rows] for name, values in part.start.metrics.items()}
        part = replace(part, start=replace(part.start, metrics=past))
        template = self.request.template(part.members[0].seed)
        plan = draw_up(part.members, part.courses, span, template, past)
        defaults = plain_options(template.param_groups[0])
        now, record = _train(
            self.request,
            plan,
            part.courses,
            span,
            part.start,
            partial(join_phases, before, alive=alive, defaults=defaults),
            alive,
        )
        joined = join_phases(before, now, alive, defaults)
        if record.states:
            states = list(self.start.states)
            for i, state in zip(alive, record.states, strict=True):
                states[i] = state
            start = Start(states, self.start.learners, {**self.start.ends, **record.ends}, joined.metrics)
            joined = replace(joined, _trained=replace(self, start=start))
        return finished(joined, record, self.request.journal)


def begin(
    request: Request, members: tuple[Member, ...], courses: tuple[Course, ...], span: Span, *, is_part: bool = False
) -> Sweep:
    """Train members from their first step on.

    Args:
        request: what, and how.
        members: who.
        courses: what each follows.
        span: the steps.
        is_part: whether the result is one of several of a call, so that what goes on from it is not kept with that.

    Raises:
        ValueError: a schedule or a metric does not suit the task, or the task cannot be trained.
        Interrupted: Ctrl-C; its `result` holds what was computed.
        Exception: what the task's own code raises; what was computed is in its attribute `result`.
    """
    plan = draw_up(members, courses, span, request.template(members[0].seed))
    runs, record = _train(request, plan, courses, span, None, lambda runs: runs, range(len(members)))
    if record.states:
        start = Start(record.states, record.learners, record.ends, record.metrics)
        kept = replace(request, journal=None) if is_part else request
        runs = replace(runs, _trained=Training(kept, members, courses, start, tuple(range(len(members)))))
    return finished(runs, record, request.journal, is_part=is_part)


def finished(runs: AnySweep, record: Record, journal: Journal | None = None, *, is_part: bool = False) -> AnySweep:
    """Return a sweep that came to its end; raise what stopped one that did not, with the sweep as its result.

    Args:
        runs: what was done, from the beginning.
        record: of it, or of what was done last.
        journal: of the call; None where nobody keeps it.
        is_part: whether the call has another result.
    """
    if record.error is not None:
        raise with_result(record.error, runs)
    if record.is_complete and journal is not None and not is_part:
        journal.note_result(runs)
    if not record.is_complete or is_due():
        raise Interrupted(runs if len(runs.train_loss) else None, None if journal is None else journal.folder)
    return runs


def _train(
    request: Request,
    plan: Plan,
    courses: Sequence[Course],
    span: Span,
    start: Start | None,
    join: Callable[[Sweep], Sweep],
    positions: Sequence[int],
) -> tuple[Sweep, Record]:
    """Train a plan; the sweep is that of these steps alone.

    Args:
        request: what, and how.
        plan: with which hyperparameters.
        courses: that members follow.
        span: the steps.
        start: where members stand; None for the beginning.
        join: puts a sweep of these steps after what was before them.
        positions: of the members in what that gives.
    """
    evaluation = replace(request.evaluation(span, plan, courses[0]), recorded=request.recorded)
    if request.prune is not None:
        steps = request.pruned_at(span, evaluation, courses[0])
        view = lambda so_far: join(_view(request, plan, so_far, span, evaluation))  # noqa: E731 - of what is at hand here
        evaluation = replace(evaluation, pruning=pruning(request.prune, steps, request.rung_metric, view, positions))
    return carry_out(request, plan, span, evaluation, start)


def carry_out(
    request: Request,
    plan: Plan,
    span: Span,
    evaluation: Evaluation,
    start: Start | None = None,
    *,
    keeps_states: bool = True,
) -> tuple[Sweep, Record]:
    """Train a plan in front of its audience.

    Args:
        request: what, how, and who is told.
        plan: with which hyperparameters.
        span: the steps.
        evaluation: when members are evaluated.
        start: where members stand; None for the beginning.
        keeps_states: whether the record has the members' states.
    """
    members = tuple(_record_of(member) for member in plan.members)
    request.audience.start(Run(members, span.begin, span.num_steps, span.steps_per_epoch))
    runs, started = None, time.perf_counter()
    try:
        record = train(
            request.task,
            plan,
            request.execution,
            keeps_states=keeps_states,
            evaluation=evaluation,
            start=start,
            observer=request.audience or None,
            keepers=None if request.journal is None else request.journal.next_keeper,
        )
        duration_s = record.earlier_s + time.perf_counter() - started
        runs = wrap(request, plan, record, span, evaluation, duration_s)
    finally:
        request.audience.end(runs)
    return runs, record


def _view(request: Request, plan: Plan, so_far: SoFar, span: Span, evaluation: Evaluation) -> Sweep:
    """Make a sweep of what a run that goes on has done so far."""
    nobody = Record.empty(len(plan.members))
    names = ("loss", "hyper", "metrics", "diverged_at", "stopped_at")
    record = replace(nobody, **{name: getattr(so_far, name) for name in names})
    return wrap(request, plan, record, span, evaluation, 0.0)


def wrap(request: Request, plan: Plan, record: Record, span: Span, evaluation: Evaluation, duration_s: float) -> Sweep:
    """Make a sweep of what a run recorded."""
    num_evaluated = len(next(iter(record.metrics.values()), ()))
    ends = zip(record.diverged_at.tolist(), record.stopped_at.tolist(), strict=True)
    return Sweep(
        members=tuple(
            _record_of(member, *(None if step < 0 else step + span.begin for step in own))
            for member, own in zip(plan.members, ends, strict=True)
        ),
        lr=record.hyper["lr"],
        train_loss=record.loss,
        metrics=record.metrics,
        evaluated_at=np.array(evaluation.steps[:num_evaluated], dtype=np.int64) + span.begin,
        hyper={name: values for name, values in record.hyper.items() if name != "lr"},
        norms=record.norms,
        phases=(span.begin,),
        steps_per_epoch=span.steps_per_epoch,
        engine=record.engine,
        duration_s=duration_s,
        is_complete=record.is_complete,
        about=dict(request.about),
        folds=folds_of(request.task),
        in_doubt_from=None if record.in_doubt_from is None else record.in_doubt_from + span.begin,
    )


def _record_of(member: Member, diverged_at: int | None = None, stopped_at: int | None = None) -> MemberRecord:
    return MemberRecord(member.lr, member.schedule, member.seed, diverged_at, stopped_at, dict(member.hyper))
