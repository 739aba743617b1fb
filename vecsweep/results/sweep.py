"""Sweep: what a sweep trained - its curves, its pictures, its weights, its file, and the way to go on from it.

Not here: what the curves say (`curves.py`), range tests, which are sweeps read as one curve (`range_test.py`), and how
members train further (`training.py`).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, SupportsIndex

from torch import Tensor, nn

from vecsweep._errors import ResultFileError
from vecsweep._types import Batch, FloatArray, Lrs, Mode, PlotKind, Schedules
from vecsweep.results._checks import check_content
from vecsweep.results._files import read_result, replace_file, write_csv, write_result
from vecsweep.results.curves import Curves
from vecsweep.results.member import MemberRecord
from vecsweep.results.prediction import predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Trained(Protocol):
    """What a sweep leaves besides its curves: the weights, and all that it takes to go on. See `training.py`."""

    def model(self, i: int) -> nn.Module:
        """Make a module of member i's weights."""

    def select(self, members: Sequence[int]) -> "Trained":
        """Take some members."""

    def extend(self, runs: "Sweep", num_steps: int | None, epochs: int | None) -> "Sweep":
        """Train all members further."""

    def branch(
        self,
        runs: "Sweep",
        i: int,
        lrs: Lrs | None,
        schedules: Schedules | None,
        vary: Mapping[str, Sequence[float]] | None,
        num_steps: int | None,
        epochs: int | None,
    ) -> "Sweep":
        """Train copies of member i further."""


_NO_WEIGHTS = (
    "The weights of the members are not here: neither a range test nor an interrupted sweep keeps them, and a file "
    "does not hold them. Call this on what a complete `vecsweep.sweep` returns."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # arrays are neither equal nor short
class Sweep(Curves):
    """What a sweep trained: its curves, as `Curves` has them, and the weights, as long as it is not read from a file.

    A sweep is never changed: `select`, `extend` and `branch` return another.
    """

    _trained: Trained | None = field(default=None, repr=False)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        kind: PlotKind = "curves",
        metric: str | None = None,
        mode: Mode | None = None,
    ) -> "Axes":
        """Draw what was trained.

        Args:
            ax: where to draw; None makes a figure.
            kind: "curves" of all members, with bands over seeds; "final", the final metric against lr, a line for each
                schedule; "plan", the hyperparameters against the step; "heatmap", the final metric where two things
                vary.
            metric: as in `final`; for "curves" and "plan" the name of any curve.
            mode: as in `best`, for "final" and "heatmap".

        Returns:
            The axes; `runs.plot().figure.savefig("runs.png")` keeps the picture.

        Raises:
            ValueError: there is no such kind or metric.
        """
        from vecsweep import plot

        return plot.plot_sweep(self, ax, kind=kind, metric=metric, mode=mode)

    def model(self, i: int) -> nn.Module:
        """Return a module with member i's trained weights; of a member that diverged or stopped, those at its end.

        Raises:
            IndexError: there is no such member.
            ValueError: the result is of a range test, or was loaded from a file; neither holds weights.
        """
        return self._weights().model(self._index(i))

    def predict(self, batches: Iterable[Batch], *, member: int | Sequence[int] | None = None) -> Tensor:
        """Return what a trained member says of batches, or the mean of what several say.

        In eval mode and without gradients. Softmax, or taking the largest, is left to the caller: outputs are averaged
        as the model gives them.

        Args:
            batches: tensors, pairs `(inputs, targets)` whose targets are left alone, or dicts of the model's arguments.
            member: which, or a list of those to average; None for `best()`.

        Returns:
            The outputs for all samples, `[sample, ...]`.

        Raises:
            IndexError: there is no such member.
            TypeError: a model's output is no tensor, and has no tensor `logits`.
            ValueError: there are no batches, no members are named, or the weights are not here.

        Example:
            `runs.predict(loader, member=[0, 3]).argmax(-1)`
        """
        chosen = self.best() if member is None else member
        members = [chosen] if isinstance(chosen, SupportsIndex) else list(chosen)
        if not members:
            raise ValueError("`member` must name at least one member; got an empty list. Leave it out for the best.")
        return predict([self.model(int(i)) for i in members], batches)

    def save_model(self, i: int, path: str | os.PathLike[str]) -> Path:
        """Write member i's trained weights to a safetensors file, with its lr, schedule and seed as metadata.

        `safetensors.torch.load_model(model, path)` puts them into a module of the same architecture.

        Args:
            i: the member, such as `runs.best()`.
            path: where; ".safetensors" is added if it has no suffix. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            IndexError: as in `model`.
            ValueError: likewise.
            OSError: the file cannot be written.
        """
        from safetensors.torch import save_model

        model, path = self.model(i), Path(path)
        path = path if path.suffix else path.with_suffix(".safetensors")
        row = self.members[i].as_row() | {"num_steps": len(self.train_loss)}
        metadata = {name: str(value) for name, value in row.items() if value is not None}
        return replace_file(path, lambda part: save_model(model, str(part), metadata))

    def extend(self, *, num_steps: int | None = None, epochs: int | None = None) -> "Sweep":
        """Train all members further; this result stays as it is.

        Weights, optimizer states, batches and random numbers go on where they stood, so that ten epochs and ten more
        are twenty. A schedule that was left part-way, because the sweep had `until`, goes on; one that has come to its
        end holds its last value, if it is a function of progress, and one of torch's runs on. Members that diverged or
        were stopped stay as they are.

        Args:
            num_steps: further updates of each member.
            epochs: further passes over the batches, in place of `num_steps`; neither to go on to the schedules' end.

        Returns:
            The whole history, from the first step on.

        Raises:
            ValueError: there is nothing to train further, or an argument is out of range.
            Interrupted: Ctrl-C; its `result` holds what was computed.
        """
        return self._weights().extend(self, num_steps, epochs)

    def branch(
        self,
        i: int,
        *,
        lrs: Lrs | None = None,
        schedules: Schedules | None = None,
        vary: Mapping[str, Sequence[float]] | None = None,
        num_steps: int | None = None,
        epochs: int | None = None,
    ) -> "Sweep":
        """Copy member i, its weights, optimizer state and all, into new members, and train those side by side.

        They go on with the batches that follow the whole run, also after a member that was stopped earlier.

        Args:
            i: the member to go on from, such as `runs.best()`.
            lrs: the learning rates of the new members; None for member i's own.
            schedules: as in `vecsweep.sweep`; each begins where the branch does.
            vary: likewise; what is not named stays as member i had it.
            num_steps: further updates of each.
            epochs: further passes over the batches, in place of `num_steps`.

        Returns:
            A sweep of the new members, with member i's history before theirs.

        Raises:
            IndexError: there is no such member.
            ValueError: member i diverged, or an argument is out of range.
            Interrupted: Ctrl-C; its `result` holds what was computed.

        Example:
            `runs.branch(runs.best("val_loss"), lrs=[0.01, 0.003], epochs=30)`
        """
        return self._weights().branch(self, self._index(i), lrs, schedules, vary, num_steps, epochs)

    def to_tensorboard(self, folder: str | os.PathLike[str]) -> Path:
        """Write a TensorBoard run for each member, named by its lr, schedule and seed, with hparams.

        Args:
            folder: where; made if it is not there. Runs of the same names that are there are written on.

        Returns:
            The folder.

        Raises:
            ImportError: TensorBoard is not installed.
        """
        from vecsweep.observers.tensorboard import write_sweep

        return write_sweep(self, folder)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to one .npz file: arrays, and a JSON header. A file that is there is replaced at once.

        Args:
            path: where; ".npz" is added if it has no suffix.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written, for want of its folder for example.
        """
        header: dict[str, Any] = {"kind": type(self).__name__}
        header |= {name: getattr(self, name) for name in self._header_names()}
        header["members"] = [[*member[:-1], dict(member.hyper)] for member in self.members]
        arrays = {"lr": self.lr, "train_loss": self.train_loss, "evaluated_at": self.evaluated_at}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        arrays |= {f"hyper/{name}": values for name, values in self.hyper.items()}
        return write_result(path, header, arrays)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `records()` to a CSV file.

        Args:
            path: where. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written.
        """
        return write_csv(path, self.records())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a result that `save` wrote; nothing in the file is run.

        Args:
            path: where; ".npz" is added if it has no suffix and there is no such file.

        Returns:
            The result, without weights.

        Raises:
            FileNotFoundError: there is no such file.
            ResultFileError: the file is damaged, foreign, pickled, of a later version, or of another kind.
        """
        header, arrays = read_result(path)
        if header["kind"] != cls.__name__:
            raise ResultFileError(f"{path} holds a {header['kind']}, not a {cls.__name__}. Load it with that class.")
        try:
            check_content(header, arrays)
            header = {"in_doubt_from": None} | header  # which older files lack
            own = {name: header[name] for name in cls._header_names()}
            own["phases"] = tuple(own["phases"])
            return cls(
                members=tuple(MemberRecord(*member) for member in header["members"]),
                lr=arrays["lr"],
                train_loss=arrays["train_loss"],
                evaluated_at=arrays["evaluated_at"],
                metrics=_under("metrics/", arrays),
                hyper=_under("hyper/", arrays),
                **own,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Run the sweep again.") from error

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return ("phases", "steps_per_epoch", "engine", "duration_s", "is_complete", "in_doubt_from")

    def _index(self, i: int) -> int:
        if not -len(self.members) <= i < len(self.members):
            raise IndexError(f"`i` must be one of the {len(self.members)} members; got {i}.")
        return i % len(self.members)

    def _weights(self) -> Trained:
        if self._trained is None:
            raise ValueError(_NO_WEIGHTS)
        return self._trained

    def _take(self, members: Sequence[int]) -> Self:
        trained = None if self._trained is None else self._trained.select(members)
        return replace(Curves._take(self, members), _trained=trained)


def _under(prefix: str, arrays: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """The arrays whose names begin so, without that."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
