"""Engines: which of them steps the members of a run, why, and what becomes of it as the run goes on."""

from contextlib import ExitStack
from dataclasses import replace

from vecsweep._engine.budget import check_room, in_words, is_memory_told, must_offload, tell_memory
from vecsweep._engine.caller.lending import have_same_special
from vecsweep._engine.caller.rng import Streams
from vecsweep._engine.keeping.snapshot import Manner
from vecsweep._engine.members.footprint import Footprint
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.members.optimizer import StackedUpdate
from vecsweep._engine.members.probe import Probe, probe
from vecsweep._engine.members.work import Work
from vecsweep._engine.ways.choices import Choice, Way
from vecsweep._engine.ways.parallel import NO_PROCESSES, Parallel, num_processes
from vecsweep._engine.ways.remembered import Pace, forget
from vecsweep._engine.ways.sequential import Sequential
from vecsweep._engine.ways.trials import Unbatched, choose_way, divide, without_batching
from vecsweep._engine.ways.vectorized import Vectorized
from vecsweep._engine.windows import Windows
from vecsweep._errors import warn_of_fallback
from vecsweep._types import NormName
from vecsweep._words import counted
from vecsweep.execution import Execution
from vecsweep.plan import Plan


class Engines:
    """The engine that is in use, and all that was decided about it.

    Args:
        learners: by seed.
        plan: of all members.
        execution: how they are to be stepped.
        streams: the random streams of their models.
        windows: what they read.
        recorded: the norms that are noted at each step.
        keeps_states: whether the members' states are wanted.
        not_evaluated: why an evaluation cannot be batched, as far as that is known; None if it is not.

    Attributes:
        engine: that steps the members.
        choice: of a way to step them.
        num_chunks: that they were divided into at first.
        obstacle: why they cannot be batched, in words; None if they can.
        is_short_of_memory: whether chunks had to be halved.
        in_doubt_from: the step from which on numbers may be wrong, as in `Record`.
        closing: of processes that train members.
    """

    def __init__(
        self,
        learners: dict[int, Learner],
        plan: Plan,
        execution: Execution,
        streams: Streams,
        windows: Windows,
        recorded: tuple[NormName, ...],
        *,
        keeps_states: bool,
        not_evaluated: str | None = None,
    ) -> None:
        self._learners = learners
        self._plan = plan
        self._execution = execution
        self._streams = streams
        self._windows = windows
        self._recorded = recorded
        self._keeps_states = keeps_states
        self._not_evaluated = not_evaluated
        self._seen: Probe | None = None  # in the first batch
        self._pattern = learners[plan.seeds[0]]
        self._device = next(self._pattern.model.parameters()).device
        self.choice = Choice(Way("sequential", len(plan.members), is_compiled=False), "")
        self.num_chunks = 0
        self.obstacle: str | None = None
        self.is_short_of_memory = False
        self.in_doubt_from: int | None = None
        self.closing = ExitStack()
        # On a GPU the next batches are loaded in the meantime, which may take longer than the steps.
        self.pace = Pace(is_exact=self._device.type == "cpu")
        self.engine: Vectorized | Sequential | Parallel = self._sequential()

    def choose(self) -> None:
        """Choose an engine as it was asked for, by what a pass of the first batch shows; say what memory that takes."""
        is_batched = self._execution.engine in ("auto", "vectorized") and not self._windows.mover
        may_offload = self._device.type == "cuda" and is_batched and StackedUpdate.suits(self._pattern)
        check_room(self.footprint, len(self._plan.members), self._device, may_offload=may_offload)
        self._choose()
        self._tell_memory()

    def _choose(self) -> None:
        asked, mover = self._execution.engine, self._windows.mover
        if mover and asked not in ("sequential", "parallel"):
            self.fall_back(mover)
            return
        seen = self._probe()
        if asked == "parallel":
            self._use_processes(is_stateful=seen.is_stateful)
        elif asked != "sequential":
            self._choose_way(seen)
        if self._device.type == "cpu":
            self._windows.limit(self._estimate_step_s(seen.work))

    def take_up(self, manner: Manner) -> None:
        """Step members as another process did."""
        self._windows.size, self.num_chunks = manner.window_steps, manner.num_chunks
        self.obstacle, self.is_short_of_memory = manner.obstacle, manner.is_short_of_memory
        self.choice = Choice(Way(manner.engine, manner.chunk_size, manner.is_compiled), manner.why)
        if manner.stepping is not None:
            seen = self._probe()
            if seen.obstacle is None:
                self.engine = self._vectorized(seen)
                self.engine.go_on(manner.stepping)
                self.engine.is_compiling = manner.is_compiled
            else:
                self.fall_back(seen.obstacle)
        if manner.engine == "parallel":
            self._use_processes(is_stateful=False)
        self._tell_memory()

    @property
    def footprint(self) -> Footprint:
        """What the members take, as far as passes have shown it."""
        pattern, seen = self._pattern, self._seen
        update = StackedUpdate(pattern, self._plan.hyper) if StackedUpdate.suits(pattern) else None
        if seen is None:
            return Footprint.of(self._learners, update)
        return Footprint.of(self._learners, update, seen.changed_buffers, seen.activation_bytes)

    def _tell_memory(self) -> None:
        if not is_memory_told():
            return
        at_once, engine, is_offloaded = 1, self.engine, False
        if isinstance(engine, Vectorized):
            at_once, is_offloaded = max(map(len, self.divide(self._plan))), engine.is_offloaded
        elif isinstance(engine, Parallel):
            at_once = engine.num_processes
        tell_memory(self.footprint, len(self._plan.members), at_once, self._device, is_offloaded=is_offloaded)

    @property
    def manner(self) -> Manner:
        """How members are stepped, as another process can take it over."""
        is_batched = isinstance(self.engine, Vectorized)
        return Manner(
            "vectorized" if is_batched else "parallel" if isinstance(self.engine, Parallel) else "sequential",
            self.choice.way.chunk_size,
            self.choice.way.is_compiled,
            self.choice.why,
            self.num_chunks,
            self._windows.size,
            self.obstacle,
            self._windows.mover,
            self.is_short_of_memory,
            self.engine.stepping if isinstance(self.engine, Vectorized) else None,
        )

    def divide(self, plan: Plan) -> list[list[int]]:
        """Put the members of a plan into chunks, by their positions."""
        member_bytes = self.engine.member_bytes if isinstance(self.engine, Vectorized) else 0
        return divide(plan, self.choice.way.chunk_size, member_bytes)

    def describe(self) -> str:
        """Say how members are stepped."""
        num_members = counted(len(self._plan.members), "member")
        why = f", because PyTorch cannot batch them: {self.obstacle}" if self.obstacle else ""
        why = f"{why}; {self.choice.why}" if self.choice.why else why
        name = f"sequential, {num_members}"
        if isinstance(self.engine, Parallel):
            name = f"parallel, {num_members} in {self.engine.num_processes} processes"
        if isinstance(self.engine, Vectorized):
            name = f"vectorized, {self.engine.level}, {num_members} in {counted(self.num_chunks, 'chunk')}"
        return f"{name}{why}"

    def fall_back(self, reason: str) -> None:
        """Go on with the sequential engine, and say why, once."""
        is_same = not any(learner.objective.has_told_of_shared for learner in self._learners.values())
        warn_of_fallback(
            f"The members are trained one after another, because PyTorch cannot batch them: {reason}. "
            f'{"The result is the same; " if is_same else ""}`engine="sequential"` asks for it without this warning.'
        )
        self.obstacle = reason
        self.note_doubt()
        self.engine = self._sequential()

    def note_doubt(self) -> None:
        """Note from which step on the engine that is now in use may have been wrong."""
        if isinstance(self.engine, Vectorized) and self.engine.in_doubt_from is not None:
            found = (self.in_doubt_from, self.engine.in_doubt_from)
            self.in_doubt_from = min(step for step in found if step is not None)

    def offload(self) -> bool:
        """Let members wait on the host from now on, and warn of it; False where they do already, or cannot."""
        engine = self.engine
        if not isinstance(engine, Vectorized) or engine.is_offloaded or not engine.can_offload:
            return False
        if len(self._plan.members) == 1:
            return False
        warn_of_fallback(
            "There is not enough memory on the GPU for a step of one member beside the states of all. Those that wait "
            "for their turn do so in the host's memory from now on; to come and go takes time. The result is the same."
        )
        engine.offload()
        return True

    def half_of(self, num_members: int, error: BaseException | None) -> int:
        """Say, and warn once, to how many members a chunk comes down that does not fit into memory.

        Args:
            num_members: of the chunk.
            error: of the allocator, which is raised where a single member does not fit.
        """
        size = num_members // 2
        if size == 0:
            assert isinstance(error, Exception)
            raise self.in_words(error) from error
        if not self.is_short_of_memory:
            warn_of_fallback(
                f"There is not enough memory for chunks of {num_members} members, which are halved; "
                f"`chunk_size={size}` asks for that without this warning."
            )
        self.is_short_of_memory = True
        return size

    def in_words(self, error: Exception) -> Exception:
        """Say how large a member is where there is no memory for one; any other error is as it was."""
        return in_words(error, self.footprint, len(self._plan.members))

    def reconsider(self) -> None:
        """Forget the choice that was followed, for later runs, if this one contradicts it."""
        choice, was_followed = self.choice, self.obstacle is None and not self.is_short_of_memory
        if was_followed and choice.key and choice.step_s and self.pace.contradicts(choice.step_s):
            forget(choice.key)

    def _probe(self) -> Probe:
        seed = self._plan.seeds[0]
        seen = probe(self._learners[seed], self._windows.first, seed, self._streams)
        if not have_same_special(learner.model for learner in self._learners.values()):
            seen = replace(seen, obstacle=seen.obstacle or "the model of each seed has quantized weights of its own")
        if self._not_evaluated:
            seen = replace(seen, obstacle=seen.obstacle or self._not_evaluated)
        self._seen = seen
        return seen

    def _choose_way(self, seen: Probe) -> None:
        unbatched = self._without_batching(seen.work)
        if seen.obstacle is None:
            batched, read = self._vectorized(seen), self._windows.streams
            self.choice = choose_way(batched, self._plan, read, self._streams, self._execution, unbatched)
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

    def _without_batching(self, work: Work) -> Unbatched | None:
        """How to train members that are not worth batching, where that is left open; None where they are."""
        asked = self._execution
        is_open = asked.engine == "auto" and asked.chunk_size == "auto" and asked.compile is not True
        if not is_open or self._device.type != "cpu":
            return None
        return without_batching(work, self._plan, self._num_processes(), keeps_states=self._keeps_states)

    def _use_processes(self, *, is_stateful: bool) -> None:
        """Go over to several processes as it was asked for, or say why not."""
        num, is_bound = self._num_processes(), is_stateful or self._windows.mover is not None
        if is_bound or num == 0:
            warn_of_fallback(
                "The members are trained one after another in this process, because "
                + ("each pass keeps something for the next" if is_bound else NO_PROCESSES)
                + '. The result is the same; `engine="sequential"` asks for it without this warning.'
            )
        else:
            self.engine = self._in_processes(num)

    def _num_processes(self) -> int:
        return num_processes(len(self._plan.members), self._device, self._windows.first)

    def _in_processes(self, num: int) -> Parallel:
        engine = Parallel(self._learners, self._execution, self._streams, num, self._recorded)
        self.closing.callback(engine.close)
        return engine

    def _sequential(self) -> Sequential:
        return Sequential(self._learners, self._execution, self._streams, self._windows.moved, self._recorded)

    def _vectorized(self, seen: Probe) -> Vectorized:
        first, hyper = self._windows.first, tuple(self._plan.hyper)
        engine = Vectorized(self._learners, self._execution, self._streams, first, seen, hyper, self._recorded)
        num_members = len(self._plan.members)
        if engine.can_offload and num_members > 1 and must_offload(engine.footprint, num_members, self._device):
            engine.offload()
        return engine

    def _estimate_step_s(self, work: Work) -> float:
        """About how long a step of all members takes; counted and not timed, so that windows are the same again."""
        num_members, alone_s = len(self._plan.members), work.step_s
        step_s = num_members * alone_s
        if isinstance(self.engine, Vectorized):
            step_s -= (num_members - 1) * work.overhead_s
        elif isinstance(self.engine, Parallel):
            step_s /= self.engine.num_processes
        return step_s * self._execution.accumulation_steps
