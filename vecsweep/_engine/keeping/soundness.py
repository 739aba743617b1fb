"""Soundness: whether a snapshot that was read is one of this run, before anything is made of it.

Checksums tell files that were damaged; this tells those that somebody wrote.
"""

import random
from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from vecsweep._engine.graphs.levels import Level
from vecsweep._engine.keeping.snapshot import Manner, Snapshot
from vecsweep._engine.members.ensemble import MemberState, OptimizerState
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.ways.choices import Engine
from vecsweep._errors import ResultFileError
from vecsweep.evaluation import Evaluation
from vecsweep.plan import Plan


def check_sound(snapshot: Snapshot, learners: Mapping[int, Learner], plan: Plan, evaluation: Evaluation) -> None:
    """Raise ResultFileError unless a snapshot holds what one of this plan does, each thing of its kind and shape.

    Args:
        snapshot: that was read.
        learners: by seed.
        plan: of all members.
        evaluation: when they are evaluated.
    """
    try:
        fault = next(_faults(snapshot, learners, plan, evaluation), None)
    except Exception as error:  # a list where there should be a number, say
        fault = f"{type(error).__name__}, {error}"
    if fault is not None:
        raise ResultFileError(
            f"The checkpoint is not one of this run ({fault}). Pass `restart=True` to begin anew, or another folder."
        )


def _faults(snapshot: Snapshot, learners: Mapping[int, Learner], plan: Plan, evaluation: Evaluation) -> Iterator[str]:
    """Name what is wrong, one thing after another."""
    num_members = len(plan.members)
    yield from _faulty_count("num_done", snapshot.num_done, plan.num_steps)
    yield from _faulty_count("num_evaluated", snapshot.num_evaluated, evaluation.num)
    if snapshot.hyper.keys() != plan.hyper.keys():
        yield "hyper"
    for name, values in [("loss", snapshot.loss), *snapshot.hyper.items(), *snapshot.norms.items()]:
        yield from _faulty_matrix(name, values, snapshot.num_done, num_members)
    for name, values in snapshot.metrics.items():
        yield from _faulty_matrix(name, values, snapshot.num_evaluated, num_members)
    for name, found in (("diverged_at", snapshot.diverged_at), ("stopped_at", snapshot.stopped_at)):
        if found.shape != (num_members,) or found.dtype.kind != "i":
            yield name
    members = list(chain.from_iterable(snapshot.chunks))
    if sorted(members) != sorted(snapshot.states) or not set(members).union(snapshot.ended) <= set(range(num_members)):
        yield "chunks"
    for i, state in chain(snapshot.states.items(), snapshot.ended.items()):
        yield from _faulty_state(f"state of member {i}", state, learners[plan.seeds[i]])
    if snapshot.manner.engine == "vectorized" and not _are_alike(snapshot.states.values()):
        yield "buffers or optimizers of members"
    for seed in learners:
        end = snapshot.ends[seed]
        _try_random_state(end.model)
        _try_random_state(end.batches.epoch)
        if not all(isinstance(items, dict) for items in (*end.outside.values(), *end.batches.own.values())):
            yield f"what the batches of seed {seed} change"
        yield from _faulty_count("batches", end.batches.num_taken)
    yield from _faulty_manner(snapshot.manner)
    if snapshot.in_doubt_from is not None:
        yield from _faulty_count("in_doubt_from", snapshot.in_doubt_from, plan.num_steps)
    if not isinstance(snapshot.engine, str) or not all(isinstance(v, str) for v in snapshot.machine.values()):
        yield "engine or machine"
    if not isinstance(snapshot.duration_s, float) or not snapshot.duration_s >= 0:
        yield f"duration_s {snapshot.duration_s!r:.40}"


def _faulty_count(name: str, value: Any, most: float = float("inf")) -> Iterator[str]:
    if type(value) is not int or not 0 <= value <= most:
        yield f"{name} {value!r:.40}"


def _faulty_matrix(name: str, values: Any, num_rows: int, num_members: int) -> Iterator[str]:
    if values.shape != (num_rows, num_members) or values.dtype.kind != "f":
        yield f"{name} of shape {values.shape}"


def _faulty_state(name: str, state: MemberState, learner: Learner) -> Iterator[str]:
    own, expected = (
        {key: (p.shape, p.dtype) for key, p in of.items()} for of in (state.parameters, learner.parameters)
    )
    if own != expected:
        yield f"{name}: parameters"
    if not all(isinstance(buffer, Tensor) and key in learner.constants for key, buffer in state.buffers.items()):
        yield f"{name}: buffers"
    fate, scale = state.fate, state.scale
    ones = [(fate.alive, torch.bool), (fate.ceiling, torch.float64), (fate.streak, torch.int64)]
    ones += [] if scale is None else [(scale.value, torch.float32), (scale.streak, torch.int64)]
    if (scale is None) != (learner.precision != "fp16") or any(x.shape != (1,) or x.dtype != d for x, d in ones):
        yield f"{name}: fate or loss scale"
    if state.stream is not None:
        _try_random_state(state.stream)
    if state.optimizer is not None and not _is_optimizer_state(state.optimizer, learner):
        yield f"{name}: optimizer"


def _forms(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: (v.shape, v.dtype) if isinstance(v, Tensor) else type(v) for key, v in values.items()}


def _are_alike(states: Collection[MemberState]) -> bool:
    """Whether what members have of their own can be stacked."""
    if len({frozenset(state.buffers) for state in states}) > 1:
        return False
    forms: dict[tuple[str, str], Any] = {}
    for state in states:
        remembered = {} if state.optimizer is None else state.optimizer.of_parameters
        for name, values in {"": state.buffers, **remembered}.items():
            if any(forms.setdefault((name, key), form) != form for key, form in _forms(values).items()):
                return False
    return True


def _is_optimizer_state(state: OptimizerState, learner: Learner) -> bool:
    remembered = state.of_parameters
    return remembered.keys() <= learner.parameters.keys() and all(
        isinstance(key, str) for of_one in remembered.values() for key in of_one
    )


def _try_random_state(state: Any) -> None:
    """Raise what Python, NumPy or PyTorch raise where this is no state of their generators."""
    python, legacy_numpy, generators = state
    random.Random().setstate(python)
    np.random.RandomState().set_state(legacy_numpy)
    torch.Generator().set_state(generators[0])  # the CPU's
    if not all(own.dtype == torch.uint8 for own in generators):
        raise TypeError("a generator's state must be bytes")


def _faulty_manner(manner: Manner) -> Iterator[str]:
    counts = (manner.chunk_size, manner.num_chunks, manner.window_steps)
    if manner.engine not in get_args(Engine) or not all(type(n) is int and n >= 0 for n in counts):
        yield "manner"
    flags, texts = (manner.is_compiled, manner.is_short_of_memory), (manner.obstacle, manner.mover)
    if not all(type(flag) is bool for flag in flags) or not all(
        isinstance(t, str | None) for t in (manner.why, *texts)
    ):
        yield "manner"
    if (stepping := manner.stepping) is None:
        return
    if not all(isinstance(name, str) for name in stepping.changed_buffers | stepping.member_buffers):
        yield "buffers that are changed"
    if type(stepping.activation_bytes) is not int or not all(
        type(flag) is bool for flag in (stepping.is_measured_at_once, stepping.owns_new)
    ):
        yield "stepping"
    for level in (*stepping.programs.values(), *stepping.measures.values()):
        kinds = {"num_calls": int, "loss_scale": float, "unchecked_from": int | None}
        if not all(isinstance(getattr(level, key), kinds.get(key, bool)) for key in Level.__slots__):
            yield "levels"
