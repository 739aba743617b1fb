"""Results: curves as matrices [step, member], and what they say. Frozen; saved without pickle.

Losses are stored as they were, before each update and without smoothing.
"""

import errno
import io
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from torch import nn

from vecsweep._errors import ResultFileError
from vecsweep._types import FloatArray, IntArray, Method
from vecsweep.suggest import Rule, Suggestion, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMAT_VERSION = 1
RAMP_SMOOTHING = 0.8  # lags a third of a decade behind a ramp of 100 steps over 7 decades; a grid has averages already


class MemberRecord(NamedTuple):
    """One row of the table of members.

    Attributes:
        lr: its base learning rate; a ramp's is the rate it ends at.
        schedule: the name of what its learning rate follows.
        seed: of its initial weights, batches and random numbers.
        diverged_at: the step at which it diverged; None if it did not.
    """

    lr: float
    schedule: str
    seed: int
    diverged_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # arrays have no one truth value to compare by
class Sweep:
    """What a sweep trained.

    Attributes:
        members: one record each.
        lr: `[step, member]`, the learning rate that each update used.
        train_loss: `[step, member]`, before each update; NaN after a member diverged.
        steps_per_epoch: updates in one pass over the batches; None if nobody counted.
        engine: how the members were stepped, in words.
        duration_s: how long the run took, in seconds.
        is_complete: False when Ctrl-C stopped the run early.
    """

    members: tuple[MemberRecord, ...]
    lr: FloatArray
    train_loss: FloatArray
    steps_per_epoch: float | None
    engine: str
    duration_s: float
    is_complete: bool = True
    _make_model: Callable[[int], nn.Module] | None = field(default=None, repr=False)

    @property
    def diverged_at(self) -> IntArray:
        """The step at which each member diverged, `[member]`; -1 if it did not."""
        return np.array([-1 if m.diverged_at is None else m.diverged_at for m in self.members])

    def model(self, i: int) -> nn.Module:
        """Return a module with member i's trained weights; of a diverged member, those at which it stopped.

        Raises:
            IndexError: there is no such member.
            ValueError: the result is of a range test, or was loaded from a file; neither holds weights.
        """
        if self._make_model is None:
            raise ValueError(
                "The weights of the members are not here: neither a range test nor an interrupted sweep keeps them, "
                "and a file does not hold them. Call `model` on what a complete `vecsweep.sweep` returns."
            )
        if not -len(self.members) <= i < len(self.members):
            raise IndexError(f"`i` must be one of the {len(self.members)} members; got {i}.")
        return self._make_model(i % len(self.members))

    def best(self) -> int:
        """Return the index of the member whose last tenth of training losses is lowest on average.

        Raises:
            ValueError: every member diverged.
        """
        scores = _tail_mean(self.train_loss, self.diverged_at)
        if np.isnan(scores).all():
            raise ValueError(
                f"There is no best member: all {len(self.members)} diverged. Lower the learning rates; the smallest "
                f"was {min(m.lr for m in self.members):.3g}."
            )
        return int(np.nanargmin(scores))

    def records(self) -> list[dict[str, Any]]:
        """Return the curves in long format: a row for each member, step and metric, up to where the member diverged.

        Columns: member, lr (the base learning rate), schedule, seed, step, epoch (None if unknown), metric
        ("train_loss", or "lr" for the rate of that step), value, and diverged (whether the member had diverged).

        Example:
            `pandas.DataFrame(runs.records())`
        """
        return [
            {
                "member": i,
                "lr": member.lr,
                "schedule": member.schedule,
                "seed": member.seed,
                "step": step,
                "epoch": None if self.steps_per_epoch is None else int(step // self.steps_per_epoch),
                "metric": metric,
                "value": float(values[step, i]),
                "diverged": step == member.diverged_at,
            }
            for i, member in enumerate(self.members)
            for metric, values in (("train_loss", self.train_loss), ("lr", self.lr))
            for step in range(len(values) if member.diverged_at is None else member.diverged_at + 1)
        ]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one .npz file: arrays, and a JSON header. A file that is there is replaced at once.

        Args:
            path: where; ".npz" is added if it has no suffix.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written, for want of its folder for example.
        """
        header: dict[str, Any] = {"format": "vecsweep", "version": _FORMAT_VERSION, "kind": type(self).__name__}
        header |= {name: getattr(self, name) for name in self._header_names()}
        header["members"] = [list(member) for member in self.members]
        path = Path(path)
        path = path if path.suffix else path.with_suffix(".npz")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "There is no such folder; make it first", str(path.parent))
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # tempfile's are closed to other users
        try:
            with temporary.open("xb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), lr=self.lr, train_loss=self.train_loss)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote; nothing in the file is run.

        Args:
            path: where; ".npz" is added if it has no suffix and there is no such file.

        Raises:
            FileNotFoundError: there is no such file.
            ResultFileError: the file is damaged, foreign, pickled, of a later version, or of another kind.
        """
        header, arrays = _read(Path(path))
        if header["kind"] != cls.__name__:
            raise ResultFileError(f"{path} holds a {header['kind']}, not a {cls.__name__}. Load it with that class.")
        try:
            members = tuple(MemberRecord(*member) for member in header["members"])
            own = {name: header[name] for name in cls._header_names()}
            return cls(members=members, lr=arrays["lr"], train_loss=arrays["train_loss"], **own)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Run the sweep again.") from error

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return ("steps_per_epoch", "engine", "duration_s", "is_complete")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RangeTest(Sweep):
    """What an LR range test found: a sweep, read as one curve of loss against learning rate.

    Attributes:
        method: "grid", a member for each learning rate, or "ramp", a learning rate for each step.
    """

    method: Method

    @property
    def lrs(self) -> FloatArray:
        """The learning rates tested, `[lr]`, ascending."""
        if self.method == "ramp":
            return self.lr[:, 0]
        return np.array(list(dict.fromkeys(member.lr for member in self.members)))

    @property
    def scores_by_seed(self) -> FloatArray:
        """What `scores` is the mean of, `[lr, seed]`."""
        if self.method == "ramp":
            return self.train_loss
        of_members = _tail_mean(self.train_loss, self.diverged_at)
        found = {(member.lr, member.seed): score for member, score in zip(self.members, of_members, strict=True)}
        seeds = dict.fromkeys(member.seed for member in self.members)
        return np.array([[found[lr, seed] for seed in seeds] for lr in self.lrs.tolist()])

    @property
    def scores(self) -> FloatArray:
        """The loss that each learning rate leads to, `[lr]`, averaged over seeds; NaN where a seed diverged.

        Of a grid it is the mean of each member's last tenth of losses, which are comparable because the batches are
        common. Of a ramp it is the loss at the step that tried that learning rate.
        """
        return self.scores_by_seed.mean(axis=1)

    def suggest(self, rule: str | Rule | None = None, *, smoothing: float | None = None) -> Suggestion:
        """Read a learning rate off the curve of scores.

        Args:
            rule: a name in `vecsweep.suggest.RULES`, or a function `(lrs, losses) -> lr`; None is "lowest" for a grid,
                which has a run for each learning rate, and "valley" for a ramp.
            smoothing: weight of the past in [0, 1); None is 0 for a grid, and for a ramp 0.8.

        Raises:
            ValueError: every learning rate diverged, or there is no such rule.

        Example:
            `found.suggest().lr`
        """
        if rule is None:
            rule = "valley" if self.method == "ramp" else "lowest"
        if smoothing is None:
            smoothing = RAMP_SMOOTHING if self.method == "ramp" else 0.0
        return suggest(self.lrs, self.scores, rule, smoothing=smoothing)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the loss against the learning rate, with suggestions, divergence and the band over seeds.

        Args:
            ax: where to draw; None makes a figure.

        Returns:
            The axes; `found.plot().figure.savefig("lr.png")` keeps the picture.
        """
        from vecsweep.plot import plot_range_test

        return plot_range_test(self, ax)

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return (*Sweep._header_names(), "method")


def load(path: str | os.PathLike[str]) -> Sweep:
    """Read a result of whichever kind the file holds; nothing in the file is run.

    Args:
        path: where; ".npz" is added if it has no suffix and there is no such file.

    Raises:
        FileNotFoundError: there is no such file.
        ResultFileError: the file is not a result of this version.
    """
    kind = _read(Path(path))[0]["kind"]
    return _KINDS[kind].load(path)


_KINDS: dict[str, type[Sweep]] = {"Sweep": Sweep, "RangeTest": RangeTest}


def _tail_mean(losses: FloatArray, diverged_at: IntArray) -> FloatArray:
    """The mean of each member's last tenth of losses, `[member]`; NaN where it diverged."""
    tail = losses[-max(1, len(losses) // 10) :].mean(axis=0)
    return np.where(diverged_at < 0, tail, np.nan)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, FloatArray]]:
    """Read a file's header and arrays."""
    if not path.suffix and not path.exists():
        path = path.with_suffix(".npz")
    foreign = ResultFileError(f"{path} is not a result of vecsweep, or it is damaged. Pass a file that `save` wrote.")
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(str(arrays.pop("header")))
    except Exception as error:  # zlib, zipfile and NumPy raise many kinds, and document few
        raise foreign from error
    if not isinstance(header, dict) or header.get("format") != "vecsweep":
        raise foreign
    if header.get("version") != _FORMAT_VERSION:
        raise ResultFileError(
            f"{path} has format version {header.get('version')}; this vecsweep reads {_FORMAT_VERSION}. Use the "
            "vecsweep that wrote it."
        )
    if header.get("kind") not in list(_KINDS):
        raise foreign
    return header, arrays
