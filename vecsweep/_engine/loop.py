"""The one training loop: a plan, batches and an engine, chunk by chunk and window by window.

A chunk of members is carried through a window of buffered batches before the next chunk has its turn, so that its
parameters stay in the cache. Between windows the host looks at the losses, once, and takes out what diverged.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress

import numpy as np
import torch
from numpy.typing import NDArray

from vecsweep import _interrupts as interrupts
from vecsweep._bars import Bar
from vecsweep._engine.caller.rng import State, Streams
from vecsweep._engine.data.packing import unpack
from vecsweep._engine.engines import Engines
from vecsweep._engine.evaluate import Evaluator
from vecsweep._engine.groups import Group, Grouping
from vecsweep._engine.keeping.record import End, Observer, Record, Start, here
from vecsweep._engine.keeping.snapshot import (
    Keeper,
    Manner,
    check_identity,
    describe_machine,
    identify,
    is_another_machine,
)
from vecsweep._engine.keeping.soundness import check_sound
from vecsweep._engine.members.divergence import FIRST_BATCHES, GRACE, WINDOW, Fate, ceiling_of
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.stock import ChangesLr
from vecsweep._engine.members.untrained import untrained_losses
from vecsweep._engine.passes import Passes
from vecsweep._engine.taking_up import take_snapshot, take_up
from vecsweep._engine.tally import Tally
from vecsweep._engine.ways.contract import Curve, OutOfMemory, SeedsDiffer, Unmappable, Window, look_at
from vecsweep._engine.ways.parallel import Parallel
from vecsweep._engine.ways.sequential import Sequential
from vecsweep._engine.ways.vectorized import Vectorized
from vecsweep._engine.windows import Windows
from vecsweep._types import FloatArray
from vecsweep.evaluation import Evaluation
from vecsweep.execution import Execution
from vecsweep.plan import Plan
from vecsweep.stumbles import explained
from vecsweep.task import Task


@dataclass(frozen=True, slots=True)
class _Ran:
    """A chunk that was carried through a window, what it did, and where its seeds' random streams stand after it."""

    group: Group
    curve: Curve
    ends: dict[int, State]


class Loop:
    """A run and where it stands; the arguments are those of `run.train`."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        execution: Execution,
        streams: Streams,
        dtype: torch.dtype | None,
        *,
        keeps_states: bool,
        evaluation: Evaluation | None = None,
        start: Start | None = None,
        observer: Observer | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self.began_s = time.perf_counter()
        self.plan = plan
        self.execution = execution
        self.streams = streams
        self.keeps_states = keeps_states
        self.start = start
        self.keeper = keeper
        self.evaluation = evaluation or Evaluation()
        seeds = dict.fromkeys(plan.seeds)
        if start is None:
            self.learners = {seed: Learner.build(task, seed, streams, execution, dtype) for seed in seeds}
        else:
            self.learners = {seed: start.learners[seed] for seed in seeds}
        self.device = next(self.learners[plan.seeds[0]].model.parameters()).device
        self.identity = identify(self.learners, plan, execution, self.evaluation) if keeper else {}
        self.snapshot = keeper.latest() if keeper else None
        if self.snapshot is not None:
            check_identity(self.identity, self.snapshot.identity)
            check_sound(self.snapshot, self.learners, plan, self.evaluation)
        self.tally = Tally(plan, self.evaluation, {} if start is None else start.metrics, observer)
        self.states: list[MemberState | None] = [None] * len(plan.members)
        self.is_even = True  # all members stand at one step, which their batches and random streams stand at, too
        self.is_over = self.snapshot is not None and self.snapshot.num_done == plan.num_steps
        if not self.is_over:
            before = self.snapshot
            if before is not None and is_another_machine(describe_machine(self.device), before.machine):
                self.snapshot = before.roughly()
            self._prepare(task, dtype, has_evaluation=evaluation is not None)
        if self.snapshot is not None:
            take_up(self, self.snapshot)

    def _prepare(self, task: Task, dtype: torch.dtype | None, *, has_evaluation: bool) -> None:
        """Get all that it takes to train: batches, an engine, who evaluates."""
        plan, execution, streams, start = self.plan, self.execution, self.streams, self.start
        seeds = dict.fromkeys(plan.seeds)
        ends = self.snapshot.ends if self.snapshot else start.ends if start else {}
        self.windows = Windows(
            task,
            self.learners,
            execution,
            streams,
            self.device,
            dtype,
            ends=ends,
            last=self.snapshot.last if self.snapshot else {},
            mover=self.snapshot.manner.mover if self.snapshot else None,
            has_new_workers=self.keeper is not None,
        )
        self.evaluator: Evaluator | None = None
        if has_evaluation and (task.val_batches is not None or self.evaluation.has_train_metrics):
            passes = Passes(task, self.learners, streams, self.device, dtype)
            self.evaluator = Evaluator(passes, execution, has_train_metrics=self.evaluation.has_train_metrics)
        self.engines = Engines(
            self.learners,
            plan,
            execution,
            streams,
            self.windows,
            self.evaluation.recorded,
            keeps_states=self.keeps_states,
            not_evaluated=None if self.evaluator is None else self.evaluator.obstacle,
        )
        self.grouping = Grouping(self.engines, plan, self.states, self.keeps_states)
        try:
            with explained(task, unpack(self.windows.first)):
                if self.snapshot is not None:
                    self.engines.take_up(self.snapshot.manner)
                else:
                    self.engines.choose()
        except Exception as error:
            raise self.engines.in_words(error) from error.__cause__
        for seed, end in ends.items():
            if seed in seeds:
                streams.rewind("model", seed, end.model)
        self.tally.expect(self._measured())
        is_judged = self.keeps_states or plan.num_steps >= GRACE + WINDOW  # here, or in a run that takes it up
        first = self._prefetch(seeds, 0) if not ends and execution.divergence_factor is not None else []
        self.fates = {seed: self._fate(seed, first if is_judged else []) for seed in seeds}

    def train(self) -> Record:
        """Run to the end of the plan, or to Ctrl-C."""
        if self.is_over:
            return self._train()
        with self.engines.closing:
            return self._train()

    def _train(self) -> Record:
        num_members, total = len(self.plan.members), self.plan.num_steps
        groups, self.is_even = list[Group](), False
        num_done = 0 if self.snapshot is None else self.snapshot.num_done
        is_complete, error = False, None
        with Bar(
            total=total * num_members,
            initial=num_done * num_members,
            unit=" steps",
            unit_scale=True,
            disable=self.execution.hides_progress,
            delay=1,
        ) as bar:
            try:
                groups, self.is_even = self._begin(), True
                while groups and num_done < total:
                    interrupts.check()
                    window = self.windows.next(self._seeds(groups), self._num_steps_to_evaluation(num_done))
                    if isinstance(self.engine, Vectorized) and self.execution.compile == "auto":
                        # A chunk that shrinks late would not earn back what compiling it anew takes.
                        self.engine.is_worth_compiling = num_done < total / 2
                    if self.windows.mover and isinstance(self.engine, Vectorized):
                        self.engines.fall_back(self.windows.mover)
                        groups = list(map(self.grouping.reload, groups))
                    started, is_whole = time.perf_counter(), bool(self.tally.is_alive.all())
                    groups = self._advance(groups, window, num_done)
                    if is_whole:
                        self.engines.pace.note(time.perf_counter() - started, len(window))
                    num_done += len(window)
                    bar.update(len(window) * num_members)
                    if num_done in self.evaluation.steps:
                        bar.set_postfix_str("evaluating")
                        groups = self._evaluate(groups, num_done)
                    bar.set_postfix_str(f"{self.tally.is_alive.sum()} of {num_members} members alive", refresh=False)
                    if self.keeper is not None and num_done < total and self.keeper.is_due(num_done):
                        self.keeper.keep(take_snapshot(self, groups, num_done))
                self.tally.failures.tell(is_end=True)
                num_done, is_complete = total, True
            except KeyboardInterrupt as stop:
                self.is_even &= isinstance(stop, interrupts.Stop)
            except Exception as raised:  # whatever the task's own code raises
                # Ctrl-C ends a loader's workers as well, which is then what goes wrong first.
                error = None if interrupts.is_due() else self.engines.in_words(raised)
                if error is not None and num_done == 0:
                    raise error from error.__cause__
        has_states = self._finish(groups, num_done, is_complete=is_complete)
        return self._record(num_done, is_complete=is_complete, has_states=has_states, error=error)

    def _begin(self) -> list[Group]:
        """Put the members into chunks, as they were if the run goes on."""
        if self.is_over:
            return []
        if self.snapshot is not None:
            states = self.snapshot.states  # on the host; the engine moves those of a chunk at a time
            self.snapshot = replace(self.snapshot, states={}, ended={})  # once is enough
            parts = self.snapshot.chunks
            return [own for members in parts for own in self.grouping.load(members, [states[i] for i in members])]
        parts = self.engines.divide(self.plan)
        groups = [group for members in parts for group in self.grouping.load(members, self._starts(members))]
        self.engines.num_chunks = len(groups)
        return groups

    def _finish(self, groups: Sequence[Group], num_done: int, *, is_complete: bool) -> bool:
        """Take the states of those that still train, and have them kept; say whether there are states of all."""
        if self.is_over or not self.is_even:
            return self.is_over and self.keeps_states
        try:
            if not is_complete and num_done and self.keeper is not None:
                self.keeper.keep(take_snapshot(self, groups, num_done))
            for group in groups:
                self.grouping.keep(group, range(len(group.members)), is_last=True)
        except Exception:
            if is_complete:
                raise
            return False  # a process that trained members may be gone, for one
        if is_complete:
            self.engines.reconsider()
            if self.keeper is not None:
                self.keeper.keep(take_snapshot(self, [], num_done))
        return self.keeps_states

    def _record(self, num_done: int, *, is_complete: bool, has_states: bool, error: Exception | None) -> Record:
        """Say what the run did."""
        tally, num_evaluated = self.tally, self.evaluation.num if is_complete else self.tally.num_evaluated
        ends = self.snapshot.ends if self.is_over and self.snapshot else {}
        return Record(
            loss=tally.loss[:num_done],
            hyper={name: values[:num_done] for name, values in tally.hyper.items()},
            metrics={name: values[:num_evaluated] for name, values in tally.metrics.items()},
            diverged_at=np.where(tally.diverged_at < num_done, tally.diverged_at, -1),
            stopped_at=tally.stopped_at,
            states=[state for state in self.states if state is not None] if has_states else [],
            learners=self.learners,
            ends=(ends or {seed: self._end(seed) for seed in self.learners}) if has_states else {},
            engine=self.describe(),
            is_batched=self.manner.engine == "vectorized",
            is_complete=is_complete,
            in_doubt_from=self.in_doubt_from,
            earlier_s=0.0 if self.snapshot is None else self.snapshot.duration_s,
            error=error,
            norms={name: values[:num_done] for name, values in tally.norms.items()},
        )

    @property
    def engine(self) -> Vectorized | Sequential | Parallel:
        """That steps the members now."""
        return self.engines.engine

    @property
    def manner(self) -> Manner:
        """How members are stepped, or were, if the run is over."""
        return self.snapshot.manner if self.snapshot is not None and self.is_over else self.engines.manner

    @property
    def in_doubt_from(self) -> int | None:
        """As in `Record`."""
        earlier = None if self.snapshot is None else self.snapshot.in_doubt_from
        if self.is_over:
            return earlier
        self.engines.note_doubt()
        return min((step for step in (earlier, self.engines.in_doubt_from) if step is not None), default=None)

    def describe(self) -> str:
        """Say how members are stepped, or were."""
        return self.snapshot.engine if self.snapshot is not None and self.is_over else self.engines.describe()

    def _starts(self, members: Sequence[int]) -> list[MemberState]:
        if self.start is not None:
            return here(self.start.states[i] for i in members)
        seeds = [self.plan.seeds[i] for i in members]
        of_seeds = {seed: replace(self.engine.start(seed), fate=self.fates[seed]) for seed in set(seeds)}
        return [of_seeds[seed] for seed in seeds]

    def _fate(self, seed: int, first: Window) -> Fate:
        """What a seed's members begin with: the ceiling that the first batches show, where there are any."""
        if not first:
            return Fate.start(self.device)
        batches = [batch for step in first[:FIRST_BATCHES] for batch in step[seed]][:FIRST_BATCHES]
        losses = untrained_losses(self.learners[seed], batches, seed, self.streams)
        return Fate.start(self.device, ceiling_of(losses, self.execution.divergence_factor))

    def _seeds(self, groups: Sequence[Group]) -> list[int]:
        """The seeds that are still trained."""
        return list(dict.fromkeys(chain.from_iterable(group.seeds for group in groups)))

    def _end(self, seed: int) -> End:
        place = self.windows.place_of(seed)
        return End(self.streams.mark("model", seed), place.position, place.read)

    def _num_steps_to_evaluation(self, start: int) -> int:
        return min((step for step in self.evaluation.steps if step > start), default=self.plan.num_steps) - start

    def _prefetch(self, seeds: Iterable[int], start: int) -> Window:
        """Take the batches of the steps from here on before it is their turn."""
        return self.windows.prefetch(seeds, self._num_steps_to_evaluation(start))

    def _advance(self, groups: list[Group], window: Window, start: int) -> list[Group]:
        """Carry every chunk through a window; return the chunks that go on."""
        starts = {seed: self.streams.mark("model", seed) for seed in window[0]}
        if isinstance(self.engine, Vectorized):
            self.engine.num_done = start
        pending, ran, is_first = list(groups), list[_Ran](), True
        while pending:
            group = pending.pop(0)
            seeds = dict.fromkeys(group.seeds)
            if not is_first:  # they stand there
                self._go_back({seed: starts[seed] for seed in seeds})
            is_first = False
            columns = group.columns
            hyper = {name: values[start : start + len(window), columns] for name, values in self.tally.hyper.items()}
            self.is_even = False
            try:
                curve = group.chunk.run(window, hyper)
            except (SeedsDiffer, OutOfMemory, Unmappable) as hindrance:
                self._go_back(starts)
                self.is_even = not ran
                pending, ran = self._overcome(hindrance, group, window, pending, ran)
            except interrupts.Stop:  # as a step was to be compiled; the window has not begun for these
                self._go_back(starts)
                if not ran:
                    self.is_even = True
                    raise
                pending.insert(0, group)  # the others are through it; what is left goes without a compiler
            else:
                ran.append(_Ran(group, curve, {seed: self.streams.mark("model", seed) for seed in seeds}))
        if self.device.type == "cuda" and start + len(window) < self.plan.num_steps:
            self._prefetch(self._seeds(groups), start + len(window))  # the GPU is at work; afterwards the host waits
        advanced, ends = list[Group](), dict(starts)
        for own, seen in zip(ran, look_at([own.curve for own in ran]), strict=True):
            diverged, left = self.tally.note_losses(own.group, seen, start)
            self.grouping.keep(own.group, diverged)
            advanced += self.grouping.trim(own.group, left)
            # Where a seed's stream stands now is what its members that are alive have drawn.
            alive = set(compress(own.group.seeds, self.tally.diverged_at[own.group.members] < 0))
            ends.update({seed: own.ends[seed] for seed in alive})
        self._go_back(ends)
        self.tally.warn(window, start)
        self.is_even = True
        self.windows.note_trained()
        self.tally.tell(slice(start, start + len(window)))
        return advanced

    def _overcome(
        self,
        hindrance: SeedsDiffer | OutOfMemory | Unmappable,
        group: Group,
        window: Window,
        pending: Sequence[Group],
        ran: list[_Ran],
    ) -> tuple[list[Group], list[_Ran]]:
        """Find another way through a window for a chunk that did not come through.

        Returns:
            The chunks that are still to go through it, and those that have.

        Raises:
            Exception: the task's own, where it fails as well when members train one after another.
        """
        if isinstance(hindrance, SeedsDiffer):
            return [*self.grouping.split_seeds(group), *pending], ran
        if isinstance(hindrance, OutOfMemory):
            return [*self.grouping.halve(group, hindrance), *pending], ran
        self._raise_own_error(group, window, hindrance)
        if isinstance(self.engine, Vectorized) and self.engine.give_own_tensors(hindrance.__cause__):
            return [group, *pending], ran
        if 1 < len(set(group.seeds)) < len(group.members):  # it may be batches and draws that differ between seeds
            return [*self.grouping.split_seeds(group), *pending], ran
        self.engines.fall_back(hindrance.reason)
        reload = self.grouping.reload
        return [reload(own) for own in (group, *pending)], [replace(other, group=reload(other.group)) for other in ran]

    def _go_back(self, marks: Mapping[int, State]) -> None:
        """Set what the models of seeds draw from back."""
        for seed, mark in marks.items():
            self.streams.rewind("model", seed, mark)

    def _raise_own_error(self, group: Group, window: Window, obstacle: Unmappable) -> None:
        """Raise what has nothing to do with batching: what an ordinary pass over these batches raises, too."""
        interrupts.check()
        if isinstance(obstacle.__cause__, ChangesLr):
            raise obstacle.__cause__ from None
        try:
            for seed in dict.fromkeys(group.seeds):
                batches = [batch for step_batches in window for batch in step_batches[seed]]
                untrained_losses(self.learners[seed], batches, seed, self.streams)
        except Exception as error:
            raise error from None  # what PyTorch makes of it in a batched pass is of no interest

    def _evaluate(self, groups: list[Group], num_done: int) -> list[Group]:
        """Measure every member, and act on it."""
        measured = list[tuple[list[int], dict[str, FloatArray]]]()
        if self.evaluator is not None and groups:  # not all have diverged
            parts = self.evaluator([group.chunk for group in groups], [group.seeds for group in groups])
            for group, values in zip(groups, parts, strict=True):
                measured.append((group.members, dict(zip(self.evaluator.names, values, strict=True))))
        self.tally.note_metrics(measured, num_done)
        return self.judge(groups, num_done)

    def judge(self, groups: list[Group], num_done: int) -> list[Group]:
        """Tell the schedules that follow a metric, and take out whose metric has stalled, and who is pruned."""
        if num_done in self.evaluation.followed:
            self.tally.follow(num_done)
            if self.evaluation.stopping is not None:
                groups = self._stop(groups, self.tally.have_stalled(self.evaluation.stopping), num_done)
        pruning = self.evaluation.pruning
        if pruning is not None and num_done in pruning.steps:
            groups = self._stop(groups, self.tally.are_pruned(pruning, num_done), num_done)
            if groups:  # as always, but where what another process did is gone through again
                groups = self.grouping.put_together(groups, np.flatnonzero(self.tally.is_alive).tolist())
        return groups

    def _stop(self, groups: Sequence[Group], due: NDArray[np.bool_], num_done: int) -> list[Group]:
        """Stop members, and take them out of their chunks, where that makes these cheaper."""
        due = due & self.tally.is_alive
        for group in groups:
            self.grouping.keep(group, np.flatnonzero(due[group.members]))
        self.tally.stop(due, num_done)
        left = self.tally.is_alive
        trimmed = (self.grouping.trim(group, np.flatnonzero(left[group.members]).tolist()) for group in groups)
        return list(chain.from_iterable(trimmed))

    def _measured(self) -> list[str]:
        """The names of what there is to know at each evaluation."""
        if self.evaluation.num == 0:
            return []
        wanted = {feedback.metric for feedback in self.plan.feedback.values()}
        if self.evaluation.stopping is not None:
            wanted.add(self.evaluation.stopping.metric)
        if self.evaluation.pruning is not None and self.evaluation.pruning.metric is not None:
            wanted.add(self.evaluation.pruning.metric)
        names = list(self.evaluator.names) if self.evaluator is not None else []
        return names + ["mean_train_loss"] * ("mean_train_loss" in wanted)
