"""The one training loop: a plan, batches and an engine, chunk by chunk and window by window.

A chunk of members is carried through a window of buffered batches before the next chunk has its turn, so that its
parameters stay in the cache. Between windows the host looks at the losses, once, and takes out what diverged.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from vecsweep import _interrupts as interrupts
from vecsweep._engine.batches import BatchStream, Position, is_finite, size_bytes
from vecsweep._engine.choices import Choice, Way
from vecsweep._engine.contract import Chunk, Curve, OutOfMemory, SeedsDiffer, Seen, Unmappable, Window, look_at
from vecsweep._engine.divergence import FIRST_BATCHES, GRACE, WINDOW, Fate, ceiling_of
from vecsweep._engine.ensemble import MemberState
from vecsweep._engine.learner import Learner
from vecsweep._engine.measure import Evaluator
from vecsweep._engine.memory import is_out_of_memory
from vecsweep._engine.packing import unpack
from vecsweep._engine.parallel import NO_PROCESSES, Parallel, num_processes
from vecsweep._engine.probe import Probe, probe
from vecsweep._engine.record import End, Observer, Record, Start
from vecsweep._engine.remembered import Pace, forget
from vecsweep._engine.rng import State, Streams
from vecsweep._engine.sequential import Sequential
from vecsweep._engine.snapshot import (
    Keeper,
    check_identity,
    describe_machine,
    identify,
    is_another_machine,
)
from vecsweep._engine.taking_up import manner_of, step_as, take_snapshot, take_up
from vecsweep._engine.trials import Unbatched, choose_way, divide, without_batching
from vecsweep._engine.untrained import untrained_losses
from vecsweep._engine.vectorized import Vectorized
from vecsweep._engine.watch import Changes, Watch
from vecsweep._engine.work import Work
from vecsweep._errors import warn_of_fallback, warn_of_trouble
from vecsweep._types import Batch, FloatArray
from vecsweep._words import counted
from vecsweep.execution import Execution
from vecsweep.plan import Evaluation, Plan, Pruning, SoFar, Stopping
from vecsweep.stumbles import explained, look_at_batch
from vecsweep.task import Task

_WINDOW_STEPS = 16
_WORTH_TRIMMING = 0.6  # of a chunk's members
_WINDOW_BYTES = 64 * 2**20  # of buffered batches
_WINDOW_S = 2.0  # on a CPU, about: Ctrl-C waits for its end


class _TooLarge(torch.OutOfMemoryError):
    """There is no memory for a step of a single member."""


@dataclass(slots=True)
class Group:
    """A chunk, and of its members the positions in the plan and the seeds."""

    chunk: Chunk
    members: list[int]
    seeds: list[int]

    @property
    def columns(self) -> slice | list[int]:
        """Where its members stand in `[step, member]`: a slice where they are neighbours, which is found sooner."""
        first, last = self.members[0], self.members[-1]
        is_whole = last - first == len(self.members) - 1 and self.members == list(range(first, last + 1))
        return slice(first, last + 1) if is_whole else self.members


@dataclass(frozen=True, slots=True)
class _Ran:
    """A chunk that was carried through a window, what it did, and where its seeds' random streams stand after it."""

    group: Group
    curve: Curve
    ends: dict[int, State]


class Place(NamedTuple):
    """Where a seed stands in its batches: the position, what reading them has changed, and the last that was taken."""

    position: Position
    read: Changes
    last: Batch | None


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
        self.observer = observer
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
        self.closing = ExitStack()  # of processes that train members
        self.in_doubt_from: int | None = None
        self.feedback = {i: feedback.start() for i, feedback in plan.feedback.items()}
        self.hyper = {name: values.copy() if self.feedback else values for name, values in plan.hyper.items()}
        self.loss = np.full(plan.lr.shape, np.nan)
        self.norms: dict[str, FloatArray] = {name: np.full(plan.lr.shape, np.nan) for name in self.evaluation.recorded}
        self.num_evaluated = 0
        self.diverged_at = np.full(len(plan.members), -1)
        self.stopped_at = np.full(len(plan.members), -1)
        self.states: list[MemberState | None] = [None] * len(plan.members)
        self.batches: dict[int, BatchStream] = {}
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
        self.batches = {
            seed: BatchStream(
                task,
                seed,
                streams,
                self.device,
                dtype,
                ends[seed].batches if ends else None,
                self.snapshot.last.get(seed) if self.snapshot else None,
                has_new_workers=self.keeper is not None,
                hides_progress=execution.hides_progress,
            )
            for seed in seeds
        }
        self.last: dict[int, Batch] = {}  # by seed, the batch that was taken last
        # What reading batches has changed outside the model (an epoch, say, that the loss reads), by seed: as the steps
        # of the window find it, and as the reader left it.
        pattern = self.learners[plan.seeds[0]]
        self.outside = Watch.outside(pattern.task, pattern.model, has_numbers=False)
        self.read: dict[int, Changes] = {seed: ends[seed].outside if ends else {} for seed in seeds}
        self.moved = dict(self.read)
        self.mover = self.snapshot.manner.mover if self.snapshot else None  # in words
        with self._reading(plan.seeds[0]):
            first = self.batches[plan.seeds[0]].peek()
        task.check_batch(unpack(first))
        look_at_batch(task, unpack(first))
        step_bytes = max(1, size_bytes(first) * execution.accumulation_steps)
        self.window_steps = 1 if self.mover else max(1, min(_WINDOW_STEPS, _WINDOW_BYTES // step_bytes))
        self.engine: Vectorized | Sequential | Parallel
        self.obstacle: str | None = None
        self.is_short_of_memory = False
        self.is_even = True  # all members stand at one step, which their batches and random streams stand at, too
        self.prefetched: Window | None = None
        self.places: dict[int, Place] = {}  # where seeds stood before they took batches that are not trained yet
        self.choice = Choice(Way("sequential", len(plan.members), is_compiled=False), "")
        self.evaluator: Evaluator | None = None
        if has_evaluation and (task.val_batches is not None or self.evaluation.has_train_metrics):
            self.evaluator = Evaluator(
                task,
                self.learners,
                streams,
                self.device,
                dtype,
                execution=execution,
                has_train_metrics=self.evaluation.has_train_metrics,
            )
        with explained(task, unpack(first)):
            if self.snapshot is not None:
                step_as(self, self.snapshot.manner, first)
            else:
                self._choose_engine(first)
        # On a GPU the next batches are loaded in the meantime, which may take longer than the steps.
        self.pace = Pace(is_exact=self.device.type == "cpu")
        for seed, end in ends.items():
            if seed in seeds:
                streams.rewind("model", seed, end.model)
        self.metrics = {name: np.full((self.evaluation.num, len(plan.members)), np.nan) for name in self._measured()}
        if not ends and execution.divergence_factor is not None:
            self.prefetched = self._window(list(seeds), 0)
        self.fates = {seed: self._fate(seed) for seed in seeds}

    def train(self) -> Record:
        """Run to the end of the plan, or to Ctrl-C."""
        with self.closing:
            for stream in self.batches.values():
                self.closing.callback(stream.close)
            return self._train()

    def _train(self) -> Record:
        num_members, total = len(self.plan.members), self.plan.num_steps
        groups = self._begin()
        num_done = 0 if self.snapshot is None else self.snapshot.num_done
        is_complete, error = False, None
        with tqdm(
            total=total * num_members,
            initial=num_done * num_members,
            unit=" steps",
            unit_scale=True,
            disable=self.execution.hides_progress,
            delay=1,
        ) as bar:
            try:
                while groups and num_done < total:
                    interrupts.check()
                    window = self.prefetched or self._window(self._seeds(groups), num_done)
                    self.prefetched = None
                    if isinstance(self.engine, Vectorized) and self.execution.compile == "auto":
                        # A chunk that shrinks late would not earn back what compiling it anew takes.
                        self.engine.is_worth_compiling = num_done < total / 2
                    if self.mover and isinstance(self.engine, Vectorized):
                        self.fall_back(self.mover)
                        groups = list(map(self._reload, groups))
                    started, is_whole = time.perf_counter(), bool(self._is_alive().all())
                    groups = self._advance(groups, window, num_done)
                    if is_whole:
                        self.pace.note(time.perf_counter() - started, len(window))
                    num_done += len(window)
                    bar.update(len(window) * num_members)
                    if num_done in self.evaluation.steps:
                        bar.set_postfix_str("evaluating")
                        groups = self._evaluate(groups, num_done)
                    bar.set_postfix_str(f"{self._is_alive().sum()} of {num_members} members alive", refresh=False)
                    if self.keeper is not None and num_done < total and self.keeper.is_due(num_done):
                        self.keeper.keep(take_snapshot(self, groups, num_done))
                num_done, is_complete = total, True
            except KeyboardInterrupt as stop:
                self.is_even &= isinstance(stop, interrupts.Stop)
            except Exception as raised:  # whatever the task's own code raises
                # Ctrl-C ends a loader's workers as well, which is then what goes wrong first.
                error = None if interrupts.is_due() else self._in_words(raised)
                if error is not None and num_done == 0:
                    raise error from error.__cause__
        has_states = self._finish(groups, num_done, is_complete=is_complete)
        return self._record(num_done, is_complete=is_complete, has_states=has_states, error=error)

    def _begin(self) -> list[Group]:
        """Put the members into chunks, as they were if the run goes on."""
        if self.is_over:
            return []
        if self.snapshot is not None:
            states = {i: state.on(self.device) for i, state in self.snapshot.states.items()}
            self.snapshot = replace(self.snapshot, states={}, ended={})  # once is enough
            parts = self.snapshot.chunks
            return [own for members in parts for own in self._groups(members, [states[i] for i in members])]
        member_bytes = self.engine.member_bytes if isinstance(self.engine, Vectorized) else 0
        parts = divide(self.plan, self.choice.way.chunk_size, member_bytes)
        groups = [group for members in parts for group in self._groups(members, self._starts(members))]
        self.num_chunks = len(groups)
        return groups

    def _finish(self, groups: Sequence[Group], num_done: int, *, is_complete: bool) -> bool:
        """Take the states of those that still train, and have them kept; say whether there are states of all."""
        if self.is_over or not self.is_even:
            return self.is_over and self.keeps_states
        try:
            if not is_complete and num_done and self.keeper is not None:
                self.keeper.keep(take_snapshot(self, groups, num_done))
            for group in groups:
                self._keep_states(group, range(len(group.members)), is_last=True)
        except Exception:
            if is_complete:
                raise
            return False  # a process that trained members may be gone, for one
        if is_complete:
            self._reconsider()
            if self.keeper is not None:
                self.keeper.keep(take_snapshot(self, [], num_done))
        return self.keeps_states

    def _record(self, num_done: int, *, is_complete: bool, has_states: bool, error: Exception | None) -> Record:
        """Say what the run did."""
        self.note_doubt()
        num_evaluated = self.evaluation.num if is_complete else self.num_evaluated
        ends = self.snapshot.ends if self.is_over and self.snapshot else {}
        return Record(
            loss=self.loss[:num_done],
            hyper={name: values[:num_done] for name, values in self.hyper.items()},
            metrics={name: values[:num_evaluated] for name, values in self.metrics.items()},
            diverged_at=np.where(self.diverged_at < num_done, self.diverged_at, -1),
            stopped_at=self.stopped_at,
            states=[state for state in self.states if state is not None] if has_states else [],
            learners=self.learners,
            ends=(ends or {seed: self._end(seed) for seed in self.learners}) if has_states else {},
            engine=self.describe(),
            is_batched=manner_of(self).engine == "vectorized",
            is_complete=is_complete,
            in_doubt_from=self.in_doubt_from,
            earlier_s=0.0 if self.snapshot is None else self.snapshot.duration_s,
            error=error,
            norms={name: values[:num_done] for name, values in self.norms.items()},
        )

    def describe(self) -> str:
        """Say how members are stepped."""
        if self.is_over:
            assert self.snapshot is not None
            return self.snapshot.engine
        num_members = counted(len(self.plan.members), "member")
        why = f", because PyTorch cannot batch them: {self.obstacle}" if self.obstacle else ""
        why = f"{why}; {self.choice.why}" if self.choice.why else why
        name = f"sequential, {num_members}"
        if isinstance(self.engine, Parallel):
            name = f"parallel, {num_members} in {self.engine.num_processes} processes"
        if isinstance(self.engine, Vectorized):
            name = f"vectorized, {self.engine.level}, {num_members} in {counted(self.num_chunks, 'chunk')}"
        return f"{name}{why}"

    def place_of(self, seed: int) -> Place:
        """Where a seed stands in its batches, those that were trained."""
        return self.places.get(seed) or Place(self.batches[seed].position, self.read[seed], self.last.get(seed))

    def _choose_engine(self, first: Batch) -> None:
        asked, seed = self.execution.engine, self.plan.seeds[0]
        if self.mover and asked not in ("sequential", "parallel"):
            self.fall_back(self.mover)
            return
        seen = probe(self.learners[seed], first, seed, self.streams)
        self.engine = Sequential(self.learners, self.execution, self.streams, self.moved, self.evaluation.recorded)
        if asked == "parallel":
            self.use_processes(first, seen.is_stateful)
        elif asked != "sequential":
            self._choose_way(first, seen)
        if self.device.type == "cpu":
            self.window_steps = min(self.window_steps, max(1, int(_WINDOW_S / self._estimate_step_s(seen.work))))

    def _estimate_step_s(self, work: Work) -> float:
        """About how long a step of all members takes; counted and not timed, so that windows are the same again."""
        num_members, alone_s = len(self.plan.members), work.step_s
        step_s = num_members * alone_s
        if isinstance(self.engine, Vectorized):
            step_s -= (num_members - 1) * work.overhead_s
        elif isinstance(self.engine, Parallel):
            step_s /= self.engine.num_processes
        return step_s * self.execution.accumulation_steps

    def _choose_way(self, first: Batch, seen: Probe) -> None:
        unbatched = self._without_batching(first, seen.work)
        if seen.obstacle is None:
            hyper = tuple(self.plan.hyper)
            recorded = self.evaluation.recorded
            batched = Vectorized(self.learners, self.execution, self.streams, first, seen, hyper, recorded)
            self.choice = choose_way(batched, self.plan, self.batches, self.streams, self.execution, unbatched)
            batched.is_compiling = self.choice.way.is_compiled
            if self.choice.way.engine == "vectorized":
                self.engine = batched
        elif unbatched is None or unbatched.way.engine == "sequential" or seen.is_stateful:
            self.fall_back(seen.obstacle)
        else:
            self.choice = Choice(unbatched.way, f"PyTorch cannot batch them: {seen.obstacle}")
        if self.choice.way.engine == "parallel":
            assert unbatched is not None
            self.engine = self._in_processes(unbatched.num_processes)

    def _without_batching(self, first: Batch, work: Work) -> Unbatched | None:
        """How to train members that are not worth batching, where that is left open; None where they are."""
        asked = self.execution
        is_open = asked.engine == "auto" and asked.chunk_size == "auto" and asked.compile is not True
        if not is_open or self.device.type != "cpu":
            return None
        num = num_processes(len(self.plan.members), self.device, first)
        return without_batching(work, self.plan, num, keeps_states=self.keeps_states)

    def _in_processes(self, num: int) -> Parallel:
        engine = Parallel(self.learners, self.execution, self.streams, num, self.evaluation.recorded)
        self.closing.callback(engine.close)
        return engine

    def use_processes(self, first: Batch, is_stateful: bool) -> None:
        """Go over to several processes as it was asked for, or say why not."""
        num = num_processes(len(self.plan.members), self.device, first)
        if is_stateful or self.mover or num == 0:
            warn_of_fallback(
                "The members are trained one after another in this process, because "
                + ("each pass keeps something for the next" if is_stateful or self.mover else NO_PROCESSES)
                + '. The result is the same; `engine="sequential"` asks for it without this warning.'
            )
        else:
            self.engine = self._in_processes(num)

    def _reconsider(self) -> None:
        """Forget the choice that was followed, for later runs, if this one contradicts it."""
        choice, was_followed = self.choice, self.obstacle is None and not self.is_short_of_memory
        if was_followed and choice.key and choice.step_s and self.pace.contradicts(choice.step_s):
            forget(choice.key)

    def fall_back(self, reason: str) -> None:
        """Go on with the sequential engine, and say why, once."""
        warn_of_fallback(
            f"The members are trained one after another, because PyTorch cannot batch them: {reason}. The result is "
            'the same; `engine="sequential"` asks for it without this warning.'
        )
        self.obstacle = reason
        self.note_doubt()
        self.engine = Sequential(self.learners, self.execution, self.streams, self.moved, self.evaluation.recorded)

    def note_doubt(self) -> None:
        """Note from which step on the engine that is now in use may have been wrong."""
        engine = getattr(self, "engine", None)  # none, if it cannot be had for the first batch
        if isinstance(engine, Vectorized) and engine.in_doubt_from is not None:
            found = (self.in_doubt_from, engine.in_doubt_from)
            self.in_doubt_from = min(step for step in found if step is not None)

    def _starts(self, members: Sequence[int]) -> list[MemberState]:
        if self.start is not None:
            return [self.start.states[i] for i in members]
        seeds = [self.plan.seeds[i] for i in members]
        of_seeds = {seed: replace(self.engine.start(seed), fate=self.fates[seed]) for seed in set(seeds)}
        return [of_seeds[seed] for seed in seeds]

    def _fate(self, seed: int) -> Fate:
        """What a seed's members begin with: the ceiling that the first batches show, where a run begins."""
        is_judged = self.keeps_states or self.plan.num_steps >= GRACE + WINDOW  # here, or in a run that takes it up
        if self.prefetched is None or not is_judged:
            return Fate.start(self.device)
        batches = [batch for step in self.prefetched[:FIRST_BATCHES] for batch in step[seed]][:FIRST_BATCHES]
        losses = untrained_losses(self.learners[seed], batches, seed, self.streams)
        return Fate.start(self.device, ceiling_of(losses, self.execution.divergence_factor))

    def _seeds(self, groups: Sequence[Group]) -> list[int]:
        """The seeds that are still trained."""
        return list(dict.fromkeys(chain.from_iterable(group.seeds for group in groups)))

    def _end(self, seed: int) -> End:
        place = self.place_of(seed)
        return End(self.streams.mark("model", seed), place.position, place.read)

    def _is_alive(self) -> NDArray[np.bool_]:
        """Who still trains, `[member]`."""
        return (self.diverged_at < 0) & (self.stopped_at < 0)

    def _window(self, seeds: Iterable[int], start: int) -> Window:
        """Take the batches of the next steps, for each of some seeds."""
        accumulated = range(self.execution.accumulation_steps)
        end = min((step for step in self.evaluation.steps if step > start), default=self.plan.num_steps)
        num_steps = min(self.window_steps, end - start)
        self.places = {seed: self.place_of(seed) for seed in self.learners}
        # One seed after another: each swap of random streams takes longer than a small batch.
        taken: dict[int, list[tuple[Batch, ...]]] = {seed: [] for seed in seeds}
        for seed, own in taken.items():
            while len(own) < num_steps:
                before = self.read[seed]
                with self._reading(seed):
                    own.append(tuple(self.batches[seed].take() for _ in accumulated))
                if len(own) == 1:
                    self.moved[seed] = self.read[seed]
                elif self.read[seed] != before:  # the steps before this one are trained as things were
                    num_steps = len(own) - 1
        for seed, own in taken.items():
            self.batches[seed].put_back([batch for step_batches in own[num_steps:] for batch in step_batches])
            self.last[seed] = own[num_steps - 1][-1]
        return [{seed: own[t] for seed, own in taken.items()} for t in range(num_steps)]

    @contextmanager
    def _reading(self, seed: int) -> Iterator[None]:
        """Read batches of a seed as if it were the only one; note what that changes outside the model."""
        self.outside.put(self.read[seed])
        try:
            yield
        finally:
            self.read[seed] = self.outside.plain_changes()
            self.outside.set_back(self.read[seed])
        if self.read[seed] and self.mover is None:
            name = self.outside.names(self.read[seed])[0]
            self.mover = f"reading batches changes {name}, on which the loss may depend"
            self.window_steps = 1

    def _prefetch(self, groups: Sequence[Group], start: int) -> None:
        """Take the next batches while a GPU is still at work; afterwards the host waits for it."""
        if self.device.type == "cuda" and start < self.plan.num_steps:
            self.places = {}
            self.prefetched = self._window(self._seeds(groups), start)

    def _advance(self, groups: list[Group], window: Window, start: int) -> list[Group]:
        """Carry every chunk through a window; return the chunks that go on."""
        starts = {seed: self.streams.mark("model", seed) for seed in window[0]}
        if isinstance(self.engine, Vectorized):
            self.engine.num_done = start
        pending, ran = list(groups), list[_Ran]()
        while pending:
            group = pending.pop(0)
            seeds = dict.fromkeys(group.seeds)
            for seed in seeds:
                self.streams.rewind("model", seed, starts[seed])
            columns = group.columns
            hyper = {name: values[start : start + len(window), columns] for name, values in self.hyper.items()}
            self.is_even = False
            try:
                curve = group.chunk.run(window, hyper)
            except (SeedsDiffer, OutOfMemory, Unmappable) as hindrance:
                self._go_back(starts)
                self.is_even = not ran
                if isinstance(hindrance, SeedsDiffer):
                    pending[:0] = self._split_seeds(group)
                elif isinstance(hindrance, OutOfMemory):
                    pending[:0] = self._halve(group, hindrance)
                else:
                    self._raise_own_error(group, window, hindrance)
                    self.fall_back(hindrance.reason)
                    pending = [self._reload(own) for own in (group, *pending)]
                    ran = [replace(other, group=self._reload(other.group)) for other in ran]
            else:
                ran.append(_Ran(group, curve, {seed: self.streams.mark("model", seed) for seed in seeds}))
        self._prefetch(groups, start + len(window))
        advanced, ends = list[Group](), dict(starts)
        for own, seen in zip(ran, look_at([own.curve for own in ran]), strict=True):
            advanced += self._settle(own.group, seen, start)
            # Where a seed's stream stands now is what its members that are alive have drawn.
            alive = set(compress(own.group.seeds, self.diverged_at[own.group.members] < 0))
            ends.update({seed: own.ends[seed] for seed in alive})
        self._go_back(ends)
        self._blame_data(window, start)
        self.is_even = True
        if self.prefetched is None:
            self.places = {}
        if self.observer:
            rows = slice(start, start + len(window))
            self.observer.losses(start, self.loss[rows], {name: values[rows] for name, values in self.hyper.items()})
            for i in np.flatnonzero((self.diverged_at >= start) & (self.diverged_at < start + len(window))).tolist():
                self.observer.ended(i, int(self.diverged_at[i]), has_diverged=True)
        return advanced

    def _blame_data(self, window: Window, start: int) -> None:
        """Warn of a batch that is not finite, where all members of a seed diverged at its step."""
        for seed in window[0]:
            own = np.array([own == seed for own in self.plan.seeds]) & (self.stopped_at < 0)
            at = np.unique(self.diverged_at[own & ((self.diverged_at < 0) | (self.diverged_at >= start))])
            if len(at) == 1 and at[0] >= start and not all(map(is_finite, window[at[0] - start][seed])):
                num = int((self.diverged_at[own] == at[0]).sum())
                who = f"All {num} members" if num > 1 else "The member"
                warn_of_trouble(
                    f"{who} of seed {seed} diverged at step {at[0]}, whose batch holds NaN or infinity: look at the "
                    "data rather than at the learning rates. Steps, and batches, are counted from 0."
                )

    def _go_back(self, marks: Mapping[int, State]) -> None:
        """Set what the models of seeds draw from back."""
        for seed, mark in marks.items():
            self.streams.rewind("model", seed, mark)

    def _raise_own_error(self, group: Group, window: Window, obstacle: Unmappable) -> None:
        """Raise what has nothing to do with batching: what an ordinary pass over these batches raises, too."""
        interrupts.check()
        if isinstance(obstacle.__cause__, RuntimeError) and "DataLoader worker" in str(obstacle.__cause__):
            raise obstacle.__cause__  # from the handler of a signal, wherever that came
        try:
            for seed in dict.fromkeys(group.seeds):
                batches = [batch for step_batches in window for batch in step_batches[seed]]
                untrained_losses(self.learners[seed], batches, seed, self.streams)
        except Exception as error:
            raise error from None  # what PyTorch makes of it in a batched pass is of no interest

    def _evaluate(self, groups: list[Group], num_done: int) -> list[Group]:
        """Measure every member, and act on it."""
        row, alive = self.num_evaluated, self._is_alive()
        if self.evaluator is not None:
            measured = self.evaluator([group.chunk for group in groups], [group.seeds for group in groups])
            for group, values in zip(groups, measured, strict=True):
                for name, of_members in zip(self.evaluator.names, values, strict=True):
                    self.metrics[name][row, group.members] = of_members
        if "mean_train_loss" in self.metrics:
            begin = ([0, *self.evaluation.steps])[row]
            self.metrics["mean_train_loss"][row] = self.loss[begin:num_done].mean(axis=0)
        for values in self.metrics.values():
            values[row, ~alive] = np.nan
        self.num_evaluated += 1  # one that Ctrl-C broke off does not count
        if self.observer:
            self.observer.metrics(num_done, {name: values[row] for name, values in self.metrics.items()})
        return self.judge(groups, num_done)

    def judge(self, groups: list[Group], num_done: int) -> list[Group]:
        """Tell the schedules that follow a metric, and take out whose metric has stalled, and who is pruned."""
        row, alive = self.num_evaluated - 1, self._is_alive()
        if num_done in self.evaluation.followed:
            for i, scheduler in self.feedback.items():
                if alive[i]:
                    scheduler.step(float(self.metrics[self.plan.feedback[i].metric][row, i]))
                    for name, value in scheduler.hyper().items():
                        self.hyper[name][num_done:, i] = value
            if self.evaluation.stopping is not None:
                groups = self._stop(groups, self._have_stalled(self.evaluation.stopping), num_done)
        pruning = self.evaluation.pruning
        if pruning is not None and num_done in pruning.steps:
            groups = self._regrouped(self._stop(groups, self._are_pruned(pruning, num_done), num_done))
        return groups

    def _have_stalled(self, stopping: Stopping) -> NDArray[np.bool_]:
        """Who no longer improves, `[member]`."""
        steps = self.evaluation.steps[: self.num_evaluated]
        rows = [row for row, step in enumerate(steps) if step in self.evaluation.followed]
        history = self.metrics[stopping.metric][rows]
        if self.start is not None:
            history = np.concatenate([self.start.metrics[stopping.metric], history])
        return stopping.are_due(history)

    def _are_pruned(self, pruning: Pruning, num_done: int) -> NDArray[np.bool_]:
        """Who does not go on after being compared with the others, `[member]`."""
        so_far = SoFar(
            num_done,
            self.loss[:num_done].copy(),
            {name: values[:num_done].copy() for name, values in self.hyper.items()},
            {name: values[: self.num_evaluated].copy() for name, values in self.metrics.items()},
            self.diverged_at.copy(),
            self.stopped_at.copy(),
        )
        kept = np.zeros(len(self.plan.members), dtype=np.bool_)
        kept[list(pruning.keep(so_far))] = True
        return ~kept

    def _stop(self, groups: Sequence[Group], due: NDArray[np.bool_], num_done: int) -> list[Group]:
        """Stop members, and take them out of their chunks, where that makes these cheaper."""
        due = due & self._is_alive()
        for group in groups:
            self._keep_states(group, np.flatnonzero(due[group.members]))
        self.stopped_at[due] = num_done
        if self.observer:
            for i in np.flatnonzero(due).tolist():
                self.observer.ended(i, num_done, has_diverged=False)
        alive = self._is_alive()
        return [part for group in groups for part in self._trim(group, np.flatnonzero(alive[group.members]).tolist())]

    def _regrouped(self, groups: list[Group]) -> list[Group]:
        """Put the members that are left into as few chunks as they need; a process keeps those it has."""
        alive = np.flatnonzero(self._is_alive()).tolist()
        if len(groups) < 2 or not isinstance(self.engine, Vectorized):
            return groups
        parts = divide(self.plan.select(alive), self.choice.way.chunk_size, self.engine.member_bytes)
        if len(parts) >= len(groups):
            return groups
        states = dict[int, MemberState]()
        for group in groups:
            own = [k for k, i in enumerate(group.members) if i in set(alive)]
            states |= zip((group.members[k] for k in own), group.chunk.members(own, is_last=True), strict=True)
        members = [[alive[k] for k in part] for part in parts]
        return [self._group(part, [states[i] for i in part]) for part in members]

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

    def _settle(self, group: Group, seen: Seen, start: int) -> list[Group]:
        """Note what a chunk did in a window, and take out what diverged, where that makes the chunk cheaper."""
        loss, alive, norms = seen
        was_alive = self._is_alive()[group.members]
        self.loss[start : start + len(loss), group.columns] = np.where(was_alive, loss, np.nan)
        for name, norm in norms.items():
            self.norms[name][start : start + len(loss), group.columns] = np.where(was_alive, norm, np.nan)
        is_new = ~alive[-1] & was_alive
        self.diverged_at[np.array(group.members)[is_new]] = start + (~alive[:, is_new]).argmax(axis=0)
        self._keep_states(group, np.flatnonzero(is_new))
        return self._trim(group, np.flatnonzero(alive[-1] & was_alive).tolist())

    def _trim(self, group: Group, keep: list[int]) -> list[Group]:
        """Leave only some members in a chunk, by their positions, where that makes it cheaper."""
        if not keep:
            return []
        # Each new size of a stacked chunk is traced anew, so that it is about halved rather than trimmed.
        share, is_stacked = len(keep) / len(group.members), isinstance(self.engine, Vectorized)
        return [self._select(group, keep) if share < 1 and not (is_stacked and share > _WORTH_TRIMMING) else group]

    def _groups(self, members: list[int], states: Sequence[MemberState]) -> list[Group]:
        """Hand members to the engine, in several chunks where there is no memory for one."""
        try:
            return [self._group(members, states)]
        except OutOfMemory as shortage:
            size = self._half_of(len(members), shortage)
        return [*self._groups(members[:size], states[:size]), *self._groups(members[size:], states[size:])]

    def _group(self, members: list[int], states: Sequence[MemberState]) -> Group:
        """Hand members, by their positions in the plan, to the engine that is now in use."""
        seeds = [self.plan.seeds[i] for i in members]
        return Group(self.engine.load(states, seeds), members, seeds)

    def _reload(self, group: Group) -> Group:
        return self._group(group.members, group.chunk.members(range(len(group.members))))

    def _split_seeds(self, group: Group) -> list[Group]:
        """Make a chunk of each seed."""
        of_seeds: dict[int, list[int]] = {}
        for i, seed in enumerate(group.seeds):
            of_seeds.setdefault(seed, []).append(i)
        return [self._select(group, own) for own in of_seeds.values()]

    def _halve(self, group: Group, shortage: OutOfMemory) -> list[Group]:
        """Make two chunks of one that does not fit into memory."""
        size = self._half_of(len(group.members), shortage)
        return [self._select(group, part) for part in (range(size), range(size, len(group.members)))]

    def _half_of(self, num_members: int, shortage: OutOfMemory) -> int:
        """Say, and warn once, to how many members a chunk comes down that does not fit into memory."""
        size = num_members // 2
        if size == 0:
            assert isinstance(shortage.__cause__, Exception)
            raise self._in_words(shortage.__cause__) from shortage.__cause__
        if not self.is_short_of_memory:
            warn_of_fallback(
                f"There is not enough memory for chunks of {num_members} members, which are halved; "
                f"`chunk_size={size}` asks for that without this warning."
            )
        self.is_short_of_memory = True
        return size

    def _in_words(self, error: Exception) -> Exception:
        """Say how large a member is where there is no memory for one; any other error is as it was."""
        if not is_out_of_memory(error) or isinstance(error, _TooLarge):
            return error
        learner = self.learners[self.plan.seeds[0]]
        parameters = sum(p.nbytes for p in learner.parameters.values()) / 2**20
        activations = self.engine.activation_bytes / 2**20 if isinstance(self.engine, Vectorized) else 0
        kept = f" and {activations:.3g} MiB of activations" if activations else ""
        told = _TooLarge(
            f"There is not enough memory for a step of one member besides the states of {len(self.plan.members)}. A "
            f"member has {parameters:.3g} MiB of parameters, as much again of gradients and of each moment that its "
            f"optimizer keeps{kept}. Train fewer members at a time, or with smaller batches; {error}"
        )
        told.__cause__ = error
        return told

    def _select(self, group: Group, keep: Sequence[int]) -> Group:
        return Group(group.chunk.select(keep), [group.members[i] for i in keep], [group.seeds[i] for i in keep])

    def _keep_states(self, group: Group, positions: Iterable[int], *, is_last: bool = False) -> None:
        """Take the states of members that have come to their end, or whose chunk has."""
        if not self.keeps_states:
            return
        new = [i for i in positions if self.states[group.members[i]] is None]
        for i, state in zip(new, group.chunk.members(new, is_last=is_last) if new else [], strict=True):
            self.states[group.members[i]] = state
