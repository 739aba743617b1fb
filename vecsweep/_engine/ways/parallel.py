"""The same contract, by several processes of one thread each: members side by side on the cores of a CPU.

Members whose operators are work enough gain nothing from being batched on a CPU; but the operators of one model seldom
keep several threads busy, and those of several models do. Each process is forked, so that it has the task and the
learners as they are, and steps its share of the members as the sequential engine does. Batches are sent to it, losses
come back, and states when they are asked for.
"""

import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from vecsweep._engine.caller.rng import State, Streams
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.ways.contract import Curve, Unmappable, Window
from vecsweep._engine.ways.messages import Message
from vecsweep._engine.ways.sequential import Sequential
from vecsweep._engine.ways.workers import Relay, Share, Worker
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
        recorded: the norms that are noted at each step.
    """

    def __init__(
        self,
        learners: Mapping[int, Learner],
        execution: Execution,
        streams: Streams,
        num_processes: int,
        recorded: Sequence[str] = (),
    ) -> None:
        self.learners = learners
        self.execution = execution
        self.recorded = recorded
        self.streams = streams
        self.num_processes = num_processes
        self._sequential = Sequential(learners, execution, streams, recorded=recorded)
        self._workers: list[Worker] = []
        self.relay = Relay()

    def start(self, seed: int) -> MemberState:
        """The state of a member of this seed before its first step."""
        return self._sequential.start(seed)

    def load(self, members: Sequence[MemberState], seeds: Sequence[int]) -> "ParallelChunk":
        """Deal members out to new processes, so that neighbours, which end alike, are in different ones."""
        positions = range(len(members))
        num = min(self.num_processes, len(members))
        own = list[Worker]()
        for part in (positions[k::num] for k in range(num)):
            share = Share(self._sequential, {i: members[i] for i in part}, {i: seeds[i] for i in part})
            own.append(Worker(share, self._workers))
            self._workers.append(own[-1])
        return ParallelChunk(self, own, list(positions), list(seeds))

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

    is_offloaded = False

    def __init__(self, engine: Parallel, workers: Sequence["Worker"], members: list[int], seeds: list[int]) -> None:
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
        norms = {name: torch.empty(shape, dtype=torch.float64) for name in self._engine.recorded}
        loss, alive = torch.empty(shape, dtype=torch.float64), torch.empty(shape, dtype=torch.bool)
        failures = dict[int, str]()
        ends = dict[int, State]()
        for own, (part, own_ends) in self._ask("run", window, dict(hyper), starts):
            loss[:, own], alive[:, own] = part.loss, part.alive
            for name, values in part.norms.items():
                norms[name][:, own] = values
            failures |= {own[k]: failure for k, failure in part.failures.items()}
            ends |= own_ends
        for seed, end in (starts | ends).items():
            streams.rewind("model", seed, end)
        return Curve(loss, alive, norms, failures)

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

    def copies(self, copy: Callable[[Tensor], Tensor]) -> list[MemberState]:
        """Copy the states of all members to the host, where they come as copies from other processes."""
        del copy
        return self.members(range(len(self)))

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
            self._engine.relay.pass_on(answer)
            if answer.error is not None:
                raise answer.error
            yield [k for k, member in enumerate(members) if member in worker.members], answer.value
