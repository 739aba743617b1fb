"""Levels: how far a program of a step or an evaluation has come, under a name that another process knows it by."""

import hashlib
import re
from collections.abc import Hashable
from dataclasses import dataclass, field

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Level:
    """How far a program has come.

    Attributes:
        num_calls: so far.
        is_traced: whether it has a graph.
        is_compiled: whether the graph is compiled.
        is_eager: whether it stays without a graph.
        is_compilable: whether the graph may be compiled.
        loss_scale: the largest loss that a check has seen.
        unchecked_from: the first step of the run that was not checked yet; None if all were.
    """

    num_calls: int
    is_traced: bool
    is_compiled: bool = False
    is_eager: bool = False
    is_compilable: bool = False
    loss_scale: float = 0.0
    unchecked_from: int | None = None


@dataclass(frozen=True, slots=True)
class Stepping:
    """What the vectorized engine has seen of its task, and how far it has come in making the step faster.

    Attributes:
        changed_buffers: that a pass changes.
        member_buffers: that it changes differently for each member.
        activation_bytes: that a member keeps for its backward pass.
        is_measured_at_once: whether members are evaluated in one pass.
        programs: the levels of the steps, by kind of batch and of chunk.
        measures: likewise those of evaluations.
        owns_new: whether members have the tensors for themselves that a pass makes.
    """

    changed_buffers: frozenset[str]
    member_buffers: frozenset[str]
    activation_bytes: int
    is_measured_at_once: bool
    programs: dict[str, Level] = field(default_factory=dict)
    measures: dict[str, Level] = field(default_factory=dict)
    owns_new: bool = False


def name_of_key(key: Hashable) -> str:
    """Name what a program is for; the same in every process."""
    return hashlib.blake2b(_text_of(key).encode(), digest_size=16).hexdigest()


def _text_of(key: Hashable) -> str:
    if isinstance(key, frozenset):
        return f"{{{', '.join(sorted(map(_text_of, key)))}}}"
    if type(key) is tuple:
        return f"({', '.join(map(_text_of, key))})"
    return without_addresses(repr(key))


def without_addresses(text: str) -> str:
    """A description that is the same in every process."""
    return _ADDRESS.sub("", text)
