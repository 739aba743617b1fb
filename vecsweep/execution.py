"""How a sweep is carried out, whatever it trains: the keyword options that every verb takes, in one place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, SupportsIndex, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor

from vecsweep._types import EngineName, Precision
from vecsweep._words import did_you_mean

_MOST = 10**9  # of steps, say; whoever asks for more means something else
MOST_MEMBERS = 10**6
MOST_SEED = 2**63 - 1  # that generators take
# What other finders and trainers call ours.
_AS_OTHERS_SAY = {
    "min_lr": "start_lr",
    "max_lr": "end_lr",
    "num_it": "num_steps",
    "num_iter": "num_steps",
    "num_training": "num_steps",
    "max_steps": "num_steps",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "step_mode": "spacing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Workers that train members side by side, each with a device of its own, by Ray.

    Attributes:
        address: of a cluster that runs, as Ray takes it: "head:6379", or "ray://head:10001" from outside of it. "auto"
            is this machine: Ray is started for the call and stopped after it, unless `ray.init` was called before.
        kind: of the devices, "cuda" or "cpu", a core each; None for GPUs where there are any.
        indices: of the GPUs of this machine that are used; none for all.
        num_workers: how many devices are used; None for all there are when the call begins. Give it where nodes are
            yet to come.
        max_restarts: how often members whose worker is gone begin anew, before they are given up.
    """

    address: str = "auto"
    kind: Literal["cuda", "cpu"] | None = None
    indices: tuple[int, ...] = ()
    num_workers: int | None = None
    max_restarts: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.address, str) or not self.address:
            raise TypeError(f'`address` must be "auto" or an address that Ray takes; got {self.address!r}.')
        if self.kind is not None:
            check_choice("kind", self.kind, ("cuda", "cpu"), note=", or None")
        if self.num_workers is not None:
            check_count("num_workers", self.num_workers)
        check_count("max_restarts", self.max_restarts, least=0)

    @property
    def is_here(self) -> bool:
        """Whether it is this machine alone."""
        return self.address == "auto"


class ExecutionOptions(TypedDict, total=False):
    """The keyword options of every verb; `Execution` says what each means."""

    device: torch.device | str | Sequence[torch.device | str] | None
    precision: Precision | None
    engine: EngineName
    compile: bool | Literal["auto"]
    chunk_size: int | Literal["auto"]
    accumulation_steps: int
    max_grad_norm: float | None
    divergence_factor: float | None
    progress: bool | None
    seed: int
    cluster: Cluster | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a sweep is carried out.

    Attributes:
        device: where members train; None leaves the model where it is. Several, as in `["cuda:0", "cuda:1"]`, are a
            cluster of one machine.
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
        max_grad_norm: the 2-norm to which each member's gradient is clipped, over all of its parameters, as
            `torch.nn.utils.clip_grad_norm_` does; None leaves it alone.
        divergence_factor: a member ends at the first loss that is not finite, and once 16 losses in a row, after the
            first 16, have been above `start + (divergence_factor - 1) * scale`, where start and scale are the mean and
            the mean magnitude of what its seed's first batches, up to 4, lose under the untrained weights. A spike
            that comes back ends no member. None leaves only the first.
        progress: whether to show a progress bar; None shows one on a terminal, and in a notebook.
        seed: of the first of several seeds; the others count up from it.
        cluster: several devices that share the members, by Ray: "auto" for all GPUs of this machine, or all cores where
            it has none; the address of a cluster that runs; or a `vecsweep.execution.Cluster`, which says more. The
            `device` is then None, "cuda" or "cpu". The result is the same, and its weights are on the CPU. None for
            one device.

    Raises:
        TypeError: an option is of the wrong kind.
        ValueError: an option is out of range, or PyTorch has no such device here.

    Example:
        >>> import vecsweep as vs
        >>> vs.Execution(precision="bf16", accumulation_steps=4).chunk_size
        'auto'
    """

    device: torch.device | str | Sequence[torch.device | str] | None = None
    precision: Precision | None = None
    engine: EngineName = "auto"
    compile: bool | Literal["auto"] = "auto"
    chunk_size: int | Literal["auto"] = "auto"
    accumulation_steps: int = 1
    max_grad_norm: float | None = None
    divergence_factor: float | None = 5.0
    progress: bool | None = None
    seed: int = 0
    cluster: Cluster | str | None = None

    def __post_init__(self) -> None:
        check_choice("engine", self.engine, get_args(EngineName))
        if self.precision is not None:
            check_choice("precision", self.precision, get_args(Precision), note=", or None")
        if not _is_auto(self.compile) and not isinstance(self.compile, bool):
            raise TypeError(f'`compile` must be True, False or "auto"; got {self.compile!r:.80}.')
        if self.progress is not None:
            check_flag("progress", self.progress, ", or None for where there is a terminal")
        if not _is_auto(self.chunk_size):
            object.__setattr__(self, "chunk_size", check_count("chunk_size", self.chunk_size, note=', or "auto"'))
        object.__setattr__(self, "accumulation_steps", check_count("accumulation_steps", self.accumulation_steps))
        if self.max_grad_norm is not None and not (is_number(self.max_grad_norm) and self.max_grad_norm > 0):
            raise ValueError(
                f"`max_grad_norm` must be a positive number; got {self.max_grad_norm!r}. Pass None not to clip."
            )
        if self.divergence_factor is not None and not (
            is_number(self.divergence_factor) and self.divergence_factor > 1
        ):
            raise ValueError(
                f"`divergence_factor` must be a number above 1; got {self.divergence_factor!r}. Pass None to end "
                "members only at a loss that is not finite."
            )
        object.__setattr__(self, "seed", check_count("seed", self.seed, least=0, most=MOST_SEED))
        if (cluster := _check_cluster(self.cluster, self.device)) is not None:
            object.__setattr__(self, "cluster", cluster)
            object.__setattr__(self, "device", None)
        else:
            device = self.device
            one: Any = device[0] if isinstance(device, list | tuple) else device
            object.__setattr__(self, "device", _check_device(one))

    @property
    def place(self) -> torch.device | None:
        """Where this process trains or builds models; None leaves them where they are."""
        assert self.device is None or isinstance(self.device, torch.device)
        return self.device

    @property
    def hides_progress(self) -> bool | None:
        """`progress` as tqdm's `disable` has it; None hides a bar where there is no terminal."""
        return None if self.progress is None else not self.progress

    @classmethod
    def of(cls, options: ExecutionOptions, others: Sequence[str] = ()) -> "Execution":
        """Check the options of a call; an unknown name is a TypeError that says which are known.

        Args:
            options: by name.
            others: names that the call takes besides.
        """
        own = [field.name for field in fields(cls)]
        known = [*others, *own]
        for name in options:
            if name not in own:
                meant = _AS_OTHERS_SAY.get(name, name)
                hint = f" Did you mean {meant!r}?" if meant in known else did_you_mean(name, known)
                if not hint and "vary" in known:
                    hint = f" A hyperparameter of the optimizer goes into `vary={{{name!r}: [...]}}`."
                raise TypeError(f"{name!r} is not an option.{hint} The options are {known}.")
        return cls(**options)


def check_choice(name: str, value: object, choices: tuple[str, ...], note: str = "") -> None:
    """Raise ValueError unless `value` is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"`{name}` must be one of {listed}{note}; got {value!r:.80}.{did_you_mean(value, list(choices))}"
        )


def check_count(name: str, value: Any, *, least: int = 1, most: int = _MOST, note: str = "") -> int:
    """Return a whole number; raise ValueError unless it is one within bounds."""
    is_whole = isinstance(value, SupportsIndex) and not isinstance(value, bool | Tensor | np.ndarray)
    if not is_whole or value.__index__() < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}{note}; got {value!r:.80}.")
    if value.__index__() > most:
        raise ValueError(f"`{name}` must be no more than {most:,}{note}; got {value!r:.80}.")
    return int(value.__index__())


def check_flag(name: str, value: object, note: str = "") -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False{note}; got {value!r:.80}.")


def check_name(name: str, value: object) -> None:
    """Raise TypeError unless `value` is text, or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"`{name}` must be a name, or None; got {value!r:.80}.")


def _is_auto(value: object) -> bool:
    return isinstance(value, str) and value == "auto"


def is_number(value: Any) -> bool:
    """Whether this is a finite number."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that is larger than any float
        return False


def _check_cluster(
    cluster: Cluster | str | None, device: torch.device | str | Sequence[torch.device | str] | None
) -> Cluster | None:
    """Make of two options the cluster that they ask for; None if it is one device."""
    if isinstance(cluster, str):
        cluster = Cluster(address=cluster)
    if cluster is not None and not isinstance(cluster, Cluster):
        raise TypeError(
            f'`cluster` must be "auto", the address of a cluster, or a `vecsweep.execution.Cluster`; got {cluster!r}.'
        )
    if device is None:
        return cluster
    if isinstance(device, list | tuple):
        if cluster is not None:
            raise ValueError(
                f"`device` must not be a list where `cluster` is given; got {device!r}. Leave one of them out."
            )
        return _cluster_of([_known_device(own) for own in device])
    if cluster is None:
        return None
    checked = _known_device(device)  # type: ignore[arg-type]  # no sequence is left but text
    if checked.type not in ("cuda", "cpu") or checked.index is not None:
        raise ValueError(
            f"`device` must be 'cuda' or 'cpu' where `cluster` is given, which divides the devices itself; got "
            f"{str(device)!r}. Several GPUs of this machine are `device=['cuda:0', 'cuda:1']`, without `cluster`."
        )
    return replace(cluster, kind=checked.type)


def _cluster_of(devices: Sequence[torch.device]) -> Cluster | None:
    """Make a cluster of devices of this machine; None if it is one device."""
    if not devices:
        raise ValueError("`device` must name at least one device; got an empty list. Leave it out.")
    kinds, indices = {device.type for device in devices}, tuple(device.index for device in devices)
    if len(devices) == 1:
        return None
    if kinds == {"cpu"}:
        return Cluster(kind="cpu", num_workers=len(devices))
    if kinds != {"cuda"} or None in indices or len(set(indices)) < len(indices):
        listed = [str(device) for device in devices]
        raise ValueError(
            "`device` must be different GPUs by their numbers, such as ['cuda:0', 'cuda:1'], or 'cpu' as many times as "
            f"cores are used; got {listed}."
        )
    for device in devices:
        _check_device(device)
    return Cluster(kind="cuda", indices=indices, num_workers=len(devices))


def _known_device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except Exception as error:  # of several kinds, for what is no device at all
        raise ValueError(
            f"`device` must be one that PyTorch knows, such as 'cpu' or 'cuda'; got {device!r:.80}."
        ) from error


def _check_device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    checked = _known_device(device)
    if checked.type == "meta":
        raise ValueError("`device` must be one that computes; got 'meta', which has no numbers. Pass 'cpu'.")
    if checked.type == "mps":
        raise ValueError("`device` must have float64, for the bookkeeping of losses; 'mps' has not. Pass 'cpu'.")
    if checked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` must be available; got {str(device)!r}, and PyTorch sees no GPU. Pass 'cpu'.")
    if checked.type == "cuda" and checked.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    try:
        torch.empty(0, device=checked)
    except Exception as error:  # each kind of device has its own
        raise ValueError(
            f"`device` must be available; got {str(device)!r}: {str(error).partition(chr(10))[0]}. Pass 'cpu'."
        ) from error
    return checked
