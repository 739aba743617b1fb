"""The same contract, by several processes of one thread each: members side by side on the cores of a CPU.

Members whose operators are work enough gain nothing from being batched on a CPU; but the operators of one model seldom
keep several threads busy, and those of several models do. Each process is forked, so that it has the task and the
learners as they are, and steps its share of the members as the sequential engine does. Batches are sent to it, losses
come back, and states when they are asked for.
"""

import gc
import multiprocessing
import pickle
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecsweep._engine.contract import Curve, Unmappable, Window
from vecsweep._engine.ensemble import MemberState
from vecsweep._engine.learner import Learner
from vecsweep._engine.memory import keep_memory
from vecsweep._engine.messages import Message, receive
from vecsweep._engine.rng import State, Streams
from vecsweep._engine.sequential import Sequential, SequentialChunk
from vecsweep._errors import FallbackWarning, warn_of_fallback
from vecsweep._types import Batch, Hyper
from vecsweep.execution import Execution

NO_PROCESSES = (
    "several processes need Linux, no GPU in this program, two of its threads, two members, the main thread, and "
    "batches that can be pickled"
)


def num_processes(num_members: int, device: torch.device, batch: Batch) -> int:
    """How many processes may train members side by side: one for each thread of PyTorch; 0 where that cannot be.

    Forked processes can neither use a GPU that this one uses, nor autograd where it has threads for a GPU.

    Args:
        num_members: of the run.
        device: where they train.
        batch: one of those that would be sent.
    """
    num = min(torch.get_num_threads(), num_members)
    is_possible = (
        sys.platform == "linux"
        and device.type == "cpu"
        and not torch.accelerator.is_available()
        and not multiprocessing.current_process().daemon  # a loader's worker, say: it may not have children
        and threading.current_thread() is threading.main_thread()
    )
    if num < 2 or not is_possible:
        return 0
    try:
        Message(batch)
    except Exception:  # whatever an object's own way of being pickled raises
        return 0
    return num


class Parallel:
    """The engine that steps members in several processes.

    Args:
        learners: one for each seed; the patterns of its members.
        execution: precision, clipping.
        streams: the random streams of the run.
        num_processes: of at least two, each with one thread.
    """

    def __init__(
        self, learners: Mapping[int, Learner], execution: Execution, streams: Streams, num_processes: int
    ) -> None:
        self.learners = learners
        self.execution = execution
        self.streams = streams
        self.num_processes = num_processes
        self._sequential = Sequential(learners, execution, streams)
        self._workers: list[_Worker] = []
        self._warned: set[str] = set()

    def start(self, seed: int) -> MemberState:
        """The state of a member of this seed before its first step."""
        return self._sequential.start(seed)

    def load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "ParallelChunk":
        """Deal members out to new processes, so that neighbours, which end alike, are in different ones."""
        positions = range(len(members))
        num = min(self.num_processes, len(members))
        own = list[_Worker]()
        for part in (positions[k::num] for k in range(num)):
            share = _Share(self._sequential, {i: members[i] for i in part}, {i: seeds[i] for i in part})
            own.append(_Worker(share, self._workers))
            self._workers.append(own[-1])
        return ParallelChunk(self, own, list(positions), list(seeds))

    def warn(self, text: str) -> None:
        """Pass on what a process has warned of, once."""
        if text not in self._warned:
            self._warned.add(text)
            warn_of_fallback(text)

    def close(self) -> None:
        """End all processes; their members are gone."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join()
        self._workers.clear()


class ParallelChunk:
    """Members of several processes; see `contract.Chunk`.

    Args:
        engine: what is common to the chunks of a run.
        workers: who have the members.
        members: by what numbers the workers know them.
        seeds: of the members.
    """

    def __init__(self, engine: Parallel, workers: Sequence["_Worker"], members: list[int], seeds: list[int]) -> None:
        self._engine = engine
        self._workers = workers
        self._members = members
        self._seeds = seeds

    def __len__(self) -> int:
        return len(self._members)

    def run(self, window: Window, hyper: Hyper) -> Curve:
        """Train through a window, all processes at once."""
        streams = self._engine.streams
        starts = {seed: streams.mark("model", seed) for seed in set(self._seeds)}
        shape = len(window), len(self)
        curve = Curve(torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.bool))
        for own, (loss, alive, ends) in self._ask("run", window, dict(hyper), starts):
            curve.loss[:, own], curve.alive[:, own] = loss, alive
            starts |= ends
        for seed, end in starts.items():
            streams.rewind("model", seed, end)
        return curve

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the members at the weights that they are evaluated at."""
        list(self._ask("begin_evaluating"))
        try:
            yield
        finally:
            list(self._ask("end_evaluating"))

    def measure(self, batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch, in eval mode and without gradients."""
        parts = dict[int, Tensor]()
        for own, measured in self._ask("measure", dict(batches)):
            parts |= dict(zip(own, measured.unbind(1), strict=True))
        return torch.stack([parts[k] for k in range(len(self))], dim=1)

    def members(self, positions: Sequence[int], *, is_last: bool = False) -> list[MemberState]:
        """Take the states of some members; on their way they are copied."""
        states = dict[int, MemberState]()
        wanted = [self._members[i] for i in positions]
        shares = [[member for member in wanted if member in worker.members] for worker in self._workers]
        for some in zip_longest(*shares):  # one of each process, which then needs no memory for the others twice
            only = [member for member in some if member is not None]
            for (k,), state in self._ask("state", is_last, only=only):
                states[only[k]] = state
        return [states[member] for member in wanted]

    def select(self, keep: Sequence[int]) -> "ParallelChunk":
        """Take some members out; they stay where they are."""
        return ParallelChunk(
            self._engine, self._workers, [self._members[i] for i in keep], [self._seeds[i] for i in keep]
        )

    def _ask(self, request: str, *arguments: object, only: list[int] | None = None) -> Iterator[tuple[list[int], Any]]:
        """Ask all who have members of these, and wait: whose members, by their positions here, and the answer."""
        members = self._members if only is None else only
        asked = [worker for worker in self._workers if not worker.members.isdisjoint(members)]
        try:
            message = Message((request, members, arguments))
        except Exception as error:
            raise Unmappable(f"a batch cannot be sent to other processes: {error}") from error
        for worker in asked:
            worker.tell(message)
        answers = [worker.answer() for worker in asked]  # of all, lest one is left over when another is an error
        for worker, answer in zip(asked, answers, strict=True):
            for text in answer.warnings:
                self._engine.warn(text)
            if answer.error is not None:
                raise answer.error
            yield [k for k, member in enumerate(members) if member in worker.members], answer.value


class _Worker:
    """A process that has some members.

    Args:
        share: its members.
        others: the processes that there are already.
    """

    def __init__(self, share: "_Share", others: Sequence["_Worker"]) -> None:
        self.members = share.members
        self._connection, its_end = socket.socketpair()
        # A process that kept these open would not notice, nor would the others, that this one is gone.
        ours = [self._connection, *(other._connection for other in others)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forking where there are threads
            context = multiprocessing.get_context("fork")
            self._process: BaseProcess = context.Process(target=_serve, args=(its_end, share, ours), daemon=True)
            self._process.start()
        its_end.close()

    def tell(self, message: Message) -> None:
        """Send a request."""
        with suppress(OSError):  # it has died, as `answer` will say
            message.send(self._connection)

    def answer(self) -> "_Answer":
        """Wait for the answer to a request."""
        try:
            answer: _Answer = receive(self._connection)
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(
                f"A process that trains members has ended, with exit code {self._process.exitcode}; -9 is what a "
                'machine short of memory does. `engine="sequential"` trains all members in this process.'
            ) from None
        return answer

    def end(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()

    def join(self) -> None:
        """Wait until it is gone."""
        self._process.join()
        self._process.close()


class _Answer(NamedTuple):
    """What a process has to say to a request.

    Attributes:
        value: what was asked for; None where there was an error.
        error: as it was raised, with a note of where.
        warnings: what was warned of meanwhile.
    """

    value: Any
    error: Exception | None
    warnings: list[str]


def _sendable(error: Exception) -> Exception:
    """Make an error fit to be sent, with a note of where it came from."""
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own way of being pickled raises
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a process that trains members:\n{where}")
    return error


class _Share:
    """The members of one process, on its side."""

    def __init__(self, engine: Sequential, members: Mapping[int, MemberState], seeds: Mapping[int, int]) -> None:
        self.members = frozenset(members)
        self._engine = engine
        self._states = members
        self._seeds = seeds
        self._positions = {member: k for k, member in enumerate(members)}
        self._evaluating = ExitStack()

    def load(self) -> None:
        """Make learners of the members, the first time, here and not where they were dealt out."""
        if self._states:
            self._chunk = self._engine.load(list(self._states.values()), list(self._seeds.values()))
            self._states = {}

    def run(
        self, members: Sequence[int], window: Window, hyper: Hyper, starts: Mapping[int, State]
    ) -> tuple[Tensor, Tensor, dict[int, State]]:
        """Train some members; return also where the streams stand of the seeds that still train."""
        own = [k for k, member in enumerate(members) if member in self._positions]
        seeds = [self._seeds[members[k]] for k in own]
        for seed in set(seeds):
            self._engine.streams.rewind("model", seed, starts[seed])
        curve = self._select(members).run(window, {name: values[:, own] for name, values in hyper.items()})
        alive = {seed for seed, is_alive in zip(seeds, curve.alive[-1].tolist(), strict=True) if is_alive}
        return curve.loss, curve.alive, {seed: self._engine.streams.mark("model", seed) for seed in alive}

    def begin_evaluating(self, members: Sequence[int]) -> None:
        """Put members at the weights that they are evaluated at."""
        self._evaluating.enter_context(self._select(members).evaluating())

    def end_evaluating(self, members: Sequence[int]) -> None:
        """Put them back."""
        self._evaluating.close()

    def measure(self, members: Sequence[int], batches: Mapping[int, Batch]) -> Tensor:
        """Compute the loss and the metrics of a batch: `[metric, member]`."""
        return self._select(members).measure(batches)

    def state(self, members: Sequence[int], is_last: bool) -> MemberState:
        """The state of a member, which is copied as it is sent; if it is the last that is wanted, the member goes."""
        (own,) = self._own(members)
        (state,) = self._chunk.members([own], is_last=True)
        if is_last:
            self._chunk.let_go(own)
        try:
            pickle.dumps(state.kept)
        except Exception as error:  # whatever an object's own way of being pickled raises
            state = replace(state, kept={})
            warn_of_fallback(
                "What passes have kept in Python, which they did not at first, cannot be handed over by the process "
                f"that trained the member, so that its model is without it: {error}"
            )
        return state

    def _select(self, members: Sequence[int]) -> SequentialChunk:
        return self._chunk.select(self._own(members))

    def _own(self, members: Sequence[int]) -> list[int]:
        """Where those of some members that are this process's lie in its chunk."""
        return [self._positions[member] for member in members if member in self._positions]


def _serve(connection: socket.socket, share: _Share, others: Sequence[socket.socket]) -> None:
    """Answer requests until there is nobody left who could send one."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; it is the other's to act on
    torch.set_num_threads(1)
    keep_memory()
    gc.freeze()  # what was there before would be copied page by page when it is looked through
    with suppress(EOFError, OSError):  # the other side is gone
        while True:
            request, members, arguments = receive(connection)
            _answer(share, request, members, arguments).send(connection)


def _answer(share: _Share, request: str, members: Sequence[int], arguments: Sequence[object]) -> Message:
    """Do what is asked for; what the caller's code prints is out by then."""
    value, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")  # of others it has been told where the first batch was looked at
        warnings.simplefilter("always", FallbackWarning)
        try:
            share.load()
            value = getattr(share, request)(members, *arguments)
        except Exception as raised:
            error = _sendable(raised)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return Message(_Answer(value, error, [str(warning.message) for warning in caught]))
