"""How a sweep is carried out, whatever it trains: the keyword options that every verb takes, in one place."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, SupportsIndex, TypedDict, get_args

import torch

from vecsweep._types import EngineName, Precision
from vecsweep._words import did_you_mean


class ExecutionOptions(TypedDict, total=False):
    """The keyword options of every verb; `Execution` says what each means."""

    device: torch.device | str | None
    precision: Precision | None
    engine: EngineName
    compile: bool | Literal["auto"]
    chunk_size: int | Literal["auto"]
    accumulation_steps: int
    max_grad_norm: float | None
    divergence_factor: float | None
    progress: bool | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a sweep is carried out.

    Attributes:
        device: where members train; None leaves the model where it is.
        precision: of autocast, "bf16" or "fp16", the latter with a loss scale for each member; None for the model's
            own.
        engine: "vectorized" trains all members in one pass; "sequential" one after another on torch.optim; "parallel"
            likewise, but side by side in forked processes of one thread each, as many as PyTorch has threads (on a CPU,
            under Linux). "auto" is the first on a GPU wherever PyTorch can batch the model, and on a CPU for models
            whose operators are small; larger ones are trained by the third, or by the second where there is too little
            to do for processes. Runs that are long enough time them. All give the same result.
        compile: whether the batched step is compiled, which takes seconds at first; "auto" tries that where the run is
            long enough to pay for it, and takes the faster.
        chunk_size: members that are stepped together; "auto" keeps a chunk small enough for the caches of a CPU, takes
            as many as fit on a GPU by an estimate, and times other sizes in long runs.
        accumulation_steps: batches in each step, whose gradients are averaged.
        max_grad_norm: the norm to which each member's gradient is clipped; None leaves it alone.
        divergence_factor: a member ends at the first loss that is not finite, and once 16 losses in a row, after the
            first 16, have been above `start + (divergence_factor - 1) * scale`, where start and scale are the mean and
            the mean magnitude of what its seed's first batches, up to 4, lose under the untrained weights. A spike
            that comes back ends no member. None leaves only the first.
        progress: whether to show a progress bar; None shows one on a terminal.
        seed: of the first of several seeds; the others count up from it.
    """

    device: torch.device | str | None = None
    precision: Precision | None = None
    engine: EngineName = "auto"
    compile: bool | Literal["auto"] = "auto"
    chunk_size: int | Literal["auto"] = "auto"
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    divergence_factor: float | None = 5.0
    progress: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, get_args(EngineName))
        if self.precision is not None:
            check_choice("precision", self.precision, get_args(Precision), note=", or None")
        if not isinstance(self.compile, bool) and self.compile != "auto":
            raise TypeError(f'`compile` must be True, False or "auto"; got {self.compile!r}.')
        if self.chunk_size != "auto":
            check_count("chunk_size", self.chunk_size, note=', or "auto"')
        check_count("accumulation_steps", self.accumulation_steps)
        if self.max_grad_norm is not None and not (_is_number(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(
                f"`max_grad_norm` must be a positive number; got {self.max_grad_norm!r}. Pass None not to clip."
            )
        if self.divergence_factor is not None and not (
            _is_number(self.divergence_factor) and self.divergence_factor > 1
        ):
            raise ValueError(
                f"`divergence_factor` must be a number above 1; got {self.divergence_factor!r}. Pass None to end "
                "members only at a loss that is not finite."
            )
        check_count("seed", self.seed, least=0)
        object.__setattr__(self, "seed", int(self.seed))
        object.__setattr__(self, "device", _check_device(self.device))

    @property
    def hides_progress(self) -> bool | None:
        """`progress` as tqdm's `disable` has it; None hides a bar where there is no terminal."""
        return None if self.progress is None else not self.progress

    @classmethod
    def of(cls, options: ExecutionOptions) -> "Execution":
        """Check the options of a call; an unknown name is a TypeError that says which are known."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise TypeError(f"{name!r} is not an option.{did_you_mean(name, known)} The options are {known}.")
        return cls(**options)


def check_choice(name: str, value: object, choices: tuple[str, ...], note: str = "") -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}{note}; got {value!r}.{did_you_mean(value, list(choices))}")


def check_count(name: str, value: object, *, least: int = 1, note: str = "") -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex) or value.__index__() < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}{note}; got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        checked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`device` must be one that PyTorch knows, such as 'cpu' or 'cuda'; got {device!r}."
        ) from error
    if checked.type == "mps":
        raise ValueError("`device` must have float64, for the bookkeeping of losses; 'mps' has not. Pass 'cpu'.")
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` must be available; got {str(device)!r}, and PyTorch sees no GPU. Pass 'cpu'.")
    if checked.type == "cuda" and checked.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return checked
