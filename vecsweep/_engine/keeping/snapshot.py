"""Snapshot: a run between two windows of steps, as another process can take it up, to the same last bit.

Not here: how a snapshot lies on disk, and who decides when there is one (`vecsweep.checkpoint`).
"""

import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vecsweep._engine.data.fingerprint import Fingerprint
from vecsweep._engine.graphs.levels import Stepping, without_addresses
from vecsweep._engine.keeping.record import End
from vecsweep._engine.members.ensemble import MemberState
from vecsweep._engine.members.learner import Learner
from vecsweep._engine.ways.choices import Engine
from vecsweep._errors import warn_of_fallback
from vecsweep._types import FloatArray, Hyper, IntArray
from vecsweep._version import __version__
from vecsweep.evaluation import Evaluation
from vecsweep.execution import Execution
from vecsweep.plan import Plan
from vecsweep.several import parts_of

_NUM_LOOKED_AT = 17  # steps of a plan
_RTOL = 1e-6  # of what another machine may compute otherwise, such as a schedule

Identity = dict[str, Any]  # of JSON values, nested; what must be the same for a run to go on


@dataclass(frozen=True, slots=True)
class Manner:
    """How the members of a run are stepped, so that nothing has to be timed or found out again.

    Attributes:
        engine: by its name.
        chunk_size: of members that are stepped together.
        is_compiled: whether the step is compiled.
        why: in words, what speaks for it.
        num_chunks: there were at first.
        window_steps: steps that a chunk is carried through at once.
        obstacle: why the members cannot be batched; None if they can.
        mover: what reading batches changes outside the model, in words; None if it does not.
        is_short_of_memory: whether chunks were halved for want of it.
        stepping: of the vectorized engine.
    """

    engine: Engine
    chunk_size: int
    is_compiled: bool
    why: str
    num_chunks: int
    window_steps: int
    obstacle: str | None = None
    mover: str | None = None
    is_short_of_memory: bool = False
    stepping: Stepping | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run as it stands after some steps.

    Attributes:
        num_done: steps.
        num_evaluated: times that the members were evaluated.
        loss: `[step, member]`.
        hyper: what the updates used, each `[step, member]`.
        norms: those that are recorded, likewise.
        metrics: by name, each `[evaluation, member]`.
        diverged_at: `[member]`, as in `Record`.
        stopped_at: `[member]`, likewise.
        chunks: the positions of the members that are stepped together; none at the end of the run.
        states: of the members in chunks, by their position.
        ended: of the members that have come to their end, likewise.
        ends: by seed, where it stands.
        last: by seed, what is known of the batch that was taken last.
        manner: how members are stepped.
        engine: likewise in words, for a run that is over.
        in_doubt_from: as in `Record`.
        duration_s: that the run has taken so far.
        identity: of what is trained.
        machine: what it ran on, as far as bits depend on it.
    """

    num_done: int
    num_evaluated: int
    loss: FloatArray
    hyper: Hyper
    norms: dict[str, FloatArray]
    metrics: dict[str, FloatArray]
    diverged_at: IntArray
    stopped_at: IntArray
    chunks: list[list[int]]
    states: dict[int, MemberState]
    ended: dict[int, MemberState]
    ends: dict[int, End]
    last: dict[int, Fingerprint]
    manner: Manner
    engine: str
    in_doubt_from: int | None
    duration_s: float
    identity: Identity
    machine: dict[str, str]

    def roughly(self) -> "Snapshot":
        """The same where numbers come out otherwise in the last bit: of batches, only the form has to be the same."""
        return replace(self, last={seed: own._replace(digest=None) for seed, own in self.last.items()})


class Keeper(Protocol):
    """Who keeps snapshots of a run."""

    def latest(self) -> Snapshot | None:
        """The snapshot to go on from; None where the run has to begin."""

    def is_due(self, num_done: int) -> bool:
        """Whether a snapshot is wanted after so many steps."""

    def keep(self, snapshot: Snapshot) -> None:
        """Take a snapshot, whose tensors and arrays are the keeper's own.

        Raises:
            KeyboardInterrupt: the run is to stop now that it is kept.
            SystemExit: likewise.
        """


def identify_task(learners: Mapping[int, Learner]) -> Identity:
    """Say what is trained, so that another task can be told from it."""
    pattern = next(iter(learners.values()))
    return {
        "model": {
            "class": type(pattern.model).__qualname__,
            "parameters": {name: _form(p) for name, p in pattern.model.named_parameters()},
            "buffers": {name: _form(b) for name, b in pattern.model.named_buffers()},
            "layers": without_addresses(repr(pattern.model)).splitlines(),
            "what is not trained": {name: summarize(tensor) for name, tensor in pattern.constants.items()},
        },
        "optimizer": {
            "class": ", ".join(type(part).__qualname__ for part in parts_of(pattern.optimizer)),
            "groups": [
                {"names": list(group.names), "lr_ratio": group.lr_ratio, "options": _options_of(group.options)}
                for group in pattern.groups
            ],
        },
        "loss": _name_of(pattern.task.loss_fn or pattern.task.training_step),
    }


def identify(learners: Mapping[int, Learner], plan: Plan, execution: Execution, evaluation: Evaluation) -> Identity:
    """Say what a run trains, so that another can be told from it."""
    options = ("precision", "accumulation_steps", "max_grad_norm", "divergence_factor")
    return identify_task(learners) | {
        "members": [asdict(member) | {"hyper": dict(member.hyper)} for member in plan.members],
        "plan": {name: values[_looked_at(plan.num_steps)].tolist() for name, values in plan.hyper.items()},
        "num_steps": plan.num_steps,
        "evaluations": list(evaluation.steps),
        "options": {name: getattr(execution, name) for name in options},
    }


def check_identity(now: Identity, before: Identity) -> None:
    """Raise ValueError unless a run is the one that was begun, and name the first difference."""
    difference = difference_of(now, before)
    if difference is not None:
        raise ValueError(
            f"A checkpoint goes on with the task that it was begun with; {difference}. Pass that task again, "
            "`restart=True` to begin anew, or another folder."
        )


def describe_machine(device: torch.device) -> dict[str, str]:
    """Say what the bits of a result depend on besides the task and how its members are stepped."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration), Path("/proc/cpuinfo").open() as file:
        cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": f"{cpu}, {torch.backends.cpu.get_cpu_capability()}",
        "number of threads": str(torch.get_num_threads()),
        "version of torch": torch.__version__,
        "version of vecsweep": __version__,
    }


def is_another_machine(now: Mapping[str, str], before: Mapping[str, str]) -> bool:
    """Whether a run goes on where it cannot to the last bit; says so if it does."""
    others = [f"the {name} was {before.get(name)} and is {own}" for name, own in now.items() if own != before.get(name)]
    if others:
        warn_of_fallback(
            f"The run goes on where {'; '.join(others)}: what it gives equals that of a run without a break but for "
            "rounding, and no longer bit for bit."
        )
    return bool(others)


def difference_of(now: Any, before: Any, path: str = "") -> str | None:
    """Say in which place two nested values differ first, if they do by more than rounding on another machine."""
    if isinstance(now, dict) and isinstance(before, dict):
        for name in dict.fromkeys((*now, *before)):
            inner = f"{path}.{name}" if path else str(name)
            if name not in before or name not in now:
                return f"`{inner}` {'is new' if name not in before else 'is gone'}"
            if (found := difference_of(now[name], before[name], inner)) is not None:
                return found
        return None
    if isinstance(now, list) and isinstance(before, list) and len(now) == len(before):
        each = (difference_of(*pair, f"{path}[{i}]") for i, pair in enumerate(zip(now, before, strict=True)))
        return next(filter(None, each), None)
    if now == before or (isinstance(now, float) and isinstance(before, float) and _is_close(now, before)):
        return None
    what = [f"{len(value)} long" if isinstance(value, list) else f"{value!r:.80}" for value in (before, now)]
    return f"`{path}` was {what[0]} and is {what[1]}"


def _options_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters as text, but for the note that a scheduler has left."""
    return {name: without_addresses(repr(value)) for name, value in options.items() if name != "initial_lr"}


def _form(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or without_addresses(repr(function))


def summarize(tensor: torch.Tensor) -> list[float]:
    """A few numbers by which a tensor is told from another, and not from what another machine makes of it."""
    if tensor.layout != torch.strided:
        raise TypeError(
            f"A checkpoint keeps dense tensors; the model has one that is {tensor.layout}, {list(tensor.shape)}. Let "
            "the batches bring it, or leave `checkpoint` out."
        )
    values = tensor.detach().reshape(-1)
    values = (values.abs() if values.is_complex() else values).double()
    if values.numel() == 0:
        return []
    return [float(values.mean()), float(values.square().mean()), float(values[0]), float(values[-1])]


def _looked_at(num_steps: int) -> list[int]:
    """The steps by which plans are told apart."""
    return sorted({*np.linspace(0, num_steps - 1, min(num_steps, _NUM_LOOKED_AT)).astype(int).tolist()})


def _is_close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_RTOL) or (math.isnan(a) and math.isnan(b))
