"""Processes that train members: how they are started and asked, and what they do.

A process is forked with its share of the members, makes learners of them, and answers one request after another until
there is nobody left who could send one.
"""

import gc
import multiprocessing
import pickle
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vecsweep._engine.caller.memory import keep_memory
from vecsweep._engine.caller.rng import State
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.ways.contract import Curve, Window
from vecsweep._engine.ways.messages import Message, receive
from vecsweep._engine.ways.sequential import Sequential, SequentialChunk
from vecsweep._errors import FallbackWarning, warn_again, warn_of_fallback
from vecsweep._types import Batch, Hyper


class Worker:
    """A process that has some members.

    Args:
        share: its members.
        others: the processes that there are already.
    """

    def __init__(self, share: "Share", others: Sequence["Worker"]) -> None:
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

    def answer(self) -> "Answer":
        """Wait for the answer to a request."""
        try:
            answer: Answer = receive(self._connection)
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


class Answer(NamedTuple):
    """What a process has to say to a request.

    Attributes:
        value: what was asked for; None where there was an error.
        error: as it was raised, with a note of where.
        warnings: what was warned of meanwhile, as `noting` has it.
    """

    value: Any
    error: Exception | None
    warnings: list[Warning]


@contextmanager
def noting() -> Iterator[list[Warning]]:
    """Note what is warned of, for the process that asked: fallbacks, and what goes wrong in training.

    What a task warns of in any pass is told where the first batch is looked at.
    """
    noted: list[Warning] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", FallbackWarning)
        warnings.simplefilter("default", RuntimeWarning)
        yield noted
    for own in caught:  # of the kinds that every process knows
        kind = FallbackWarning if issubclass(own.category, FallbackWarning) else RuntimeWarning
        noted.append(kind(str(own.message)))


class Relay:
    """Passes on what other processes have warned of, each warning once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def pass_on(self, answer: Answer) -> None:
        """Warn of what a process has warned of before it answered, as far as it is new."""
        for warning in answer.warnings:
            if repr(warning) not in self._told:
                self._told.add(repr(warning))
                warn_again(warning)


def sendable(error: Exception) -> Exception:
    """Make an error fit to be sent, with a note of where it came from."""
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own way of being pickled raises
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a process that trains members:\n{where}")
    return error


class Share:
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
    ) -> tuple[Curve, dict[int, State]]:
        """Train some members; return also where the streams stand of the seeds that still train."""
        own = [k for k, member in enumerate(members) if member in self._positions]
        seeds = [self._seeds[members[k]] for k in own]
        for seed in set(seeds):
            self._engine.streams.rewind("model", seed, starts[seed])
        curve = self._select(members).run(window, {name: values[:, own] for name, values in hyper.items()})
        alive = {seed for seed, is_alive in zip(seeds, curve.alive[-1].tolist(), strict=True) if is_alive}
        return curve, {seed: self._engine.streams.mark("model", seed) for seed in alive}

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


def _serve(connection: socket.socket, share: Share, others: Sequence[socket.socket]) -> None:
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


def _answer(share: Share, request: str, members: Sequence[int], arguments: Sequence[object]) -> Message:
    """Do what is asked for; what the caller's code prints is out by then."""
    value, error = None, None
    with noting() as noted:
        try:
            share.load()
            value = getattr(share, request)(members, *arguments)
        except Exception as raised:
            error = sendable(raised)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # a program without a terminal may have neither
        stream.flush()
    return Message(Answer(value, error, noted))
