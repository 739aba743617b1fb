"""Sweep: what a sweep trained - its curves, its pictures, its weights, its file, and the way to go on from it.

Not here: what the curves say (`curves.py`), range tests, which are sweeps read as one curve (`range_test.py`), and how
members train further (`training.py`).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsIndex

import numpy as np
from torch import Tensor, nn

from vecsweep._errors import ResultFileError
from vecsweep._types import Batch, Lrs, Mode, PlotKind, Schedules
from vecsweep.results._checks import check_content, check_is_dense
from vecsweep.results._files import Arrays, check_kind, read_result, replace_file, under, write_csv, write_result
from vecsweep.results._html import html_paragraph, html_picture
from vecsweep.results.curves import Curves
from vecsweep.results.going_on import Continuation, Fork
from vecsweep.results.member import MemberRecord
from vecsweep.results.prediction import predict
from vecsweep.results.records import column_names, rows_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


_NO_WEIGHTS = (
    "The weights of the members are not here: a range test keeps none, nor does a sweep that was stopped while some "
    "members were further than others, and a file does not hold them. Call this on what `vecsweep.sweep` returns, or "
    "on a folder that it was saved to, loaded with its task."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)  # arrays are neither equal nor short
class Sweep(Curves):
    """What a sweep trained: its curves, as `Curves` has them, and the weights, as long as it is not read from a file.

    A sweep is never changed: `select`, `extend` and `branch` return another.

    Example:
        >>> import torch
        >>> import vecsweep as vs
        >>> model = torch.nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, 2.0], [2.0, -1.0]]), torch.tensor([[3.0], [1.0]]))]
        >>> loss = torch.nn.functional.mse_loss
        >>> task = vs.Task(model, batches, loss, optimizer=torch.optim.SGD(model.parameters()))
        >>> runs = vs.sweep(task, lrs=[0.01, 0.1], num_steps=20)
        >>> runs.members[runs.best("train_loss")].lr, runs.extend(num_steps=5).train_loss.shape
        (0.1, (25, 2))
    """

    _trained: Continuation | None = field(default=None, repr=False)

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
            metric: as in `final`; for "curves" the name of any curve, for "plan" that of a hyperparameter.
            mode: as in `best`, for "final" and "heatmap".

        Returns:
            The axes; `runs.plot().figure.savefig("runs.png")` keeps the picture.

        Raises:
            ValueError: there is no such kind or metric.
        """
        from vecsweep import plot

        return plot.plot_sweep(self, ax, kind=kind, metric=metric, mode=mode)

    def _repr_html_(self) -> str:
        picture = html_picture(self.plot(), f"Curves of {self!r}")
        try:
            return html_paragraph(repr(self)) + self.ranking()._repr_html_() + picture
        except ValueError:  # the metric's name does not tell which side is better
            return html_paragraph(repr(self)) + picture

    def to_html(self, path: str | os.PathLike[str], *, metric: str | None = None, mode: Mode | None = None) -> Path:
        """Write a report: one HTML file, which opens in a browser without a network.

        It holds the best in a sentence, the final metric against the lr, curves by setting, schedules as planned and as
        run, the ranking with its intervals, heat maps of each two things that vary, and all members in a table.

        Args:
            path: where; ".html" is added if it has no suffix. A file that is there is replaced at once.
            metric: that settings are ranked by, as in `final`.
            mode: as in `best`.

        Returns:
            Where it was written.

        Raises:
            ImportError: Plotly is not installed.
            ValueError: there is no such metric, or its name does not tell whether less or more is better.
            OSError: the file cannot be written.
        """
        from vecsweep.report import report_sweep

        return report_sweep(self, path, metric=metric, mode=mode)

    def model(self, i: int, *, copy_frozen: bool = False) -> nn.Module:
        """Return a module with member i's trained weights; of a member that diverged or stopped, those at its end.

        Args:
            i: the member, such as `runs.best()`.
            copy_frozen: whether the module has what is not trained for itself, too. Without, large frozen parameters
                stay in the memory of the task's own model, if members trained on its device: such a module may be
                evaluated, saved and trained on, but what is written to its frozen parameters, as by `merge_and_unload`
                of peft, or by training those as well, is written to the task's model and to all others.

        Raises:
            IndexError: there is no such member.
            ValueError: the result is of a range test, or was loaded from a file; neither holds weights. Or frozen
                parameters, which members share, have been changed since the run.
        """
        return self._weights().model(self._index(i), copy_frozen=copy_frozen)

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
        check_is_dense(model)
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
        return self._weights().branch(self, self._index(i), Fork(lrs, schedules, vary, num_steps, epochs))

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
        """Write the result to a file of curves, or whole to a folder. What is there is replaced at once.

        A path with a suffix is one .npz file: arrays, and a JSON header. A path without one is a folder, with the
        weights and all that it takes for `vecsweep.load(path, task=task)` to extend and branch; where there are no
        weights, it is a file, and ".npz" is added.

        Args:
            path: where.

        Returns:
            Where it was written.

        Raises:
            OSError: it cannot be written, for want of the folder that it is in for example.
            ValueError: passes keep an object in Python that no folder can hold.
        """
        if self._trained is not None and not Path(path).suffix:
            return self._trained.save(self, Path(path))
        return write_result(path, *self._packed())

    def _packed(self) -> tuple[dict[str, Any], Arrays]:
        """What a file holds of it: a header, and arrays by name."""
        header: dict[str, Any] = {"kind": type(self).__name__}
        header |= {name: getattr(self, name) for name in self._header_names()}
        header["members"] = [[*member[:-1], dict(member.hyper)] for member in self.members]
        arrays = {"lr": self.lr, "train_loss": self.train_loss, "evaluated_at": self.evaluated_at}
        arrays |= {f"metrics/{name}": values for name, values in self.metrics.items()}
        arrays |= {f"hyper/{name}": values for name, values in self.hyper.items()}
        arrays |= {f"norms/{name}": values for name, values in self.norms.items()}
        return header, arrays

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `records()` to a CSV file.

        Args:
            path: where. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            OSError: the file cannot be written.
        """
        return write_csv(path, column_names(self), rows_of(self))

    def to_pandas(self) -> "DataFrame":
        """Return `records()` as a pandas DataFrame, made by columns, which is quick for long curves.

        Raises:
            ImportError: pandas is not installed.

        Example:
            `runs.to_pandas().query("metric == 'val_loss'").pivot_table("value", "lr", "schedule")`
        """
        from vecsweep.results.frames import make_frame

        return make_frame(self)

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write `records()` to a Parquet file.

        Args:
            path: where. A file that is there is replaced at once.

        Returns:
            Where it was written.

        Raises:
            ImportError: pandas or pyarrow is not installed.
            OSError: the file cannot be written.
        """
        from vecsweep.results.frames import write_parquet

        return write_parquet(self, path)

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
        return cls._of(path, *read_result(path))

    @classmethod
    def _of(cls, path: str | os.PathLike[str], header: dict[str, Any], arrays: Arrays) -> Self:
        """Make a result of what a file holds."""
        check_kind(path, header, cls.__name__)
        try:
            check_content(header, arrays)
            header = {"in_doubt_from": None, "about": {}, "folds": None} | header  # which older files lack
            own = {name: header[name] for name in cls._header_names()}
            own["phases"] = tuple(own["phases"])
            return cls(
                members=tuple(MemberRecord(*member) for member in header["members"]),
                lr=arrays["lr"],
                train_loss=arrays["train_loss"],
                evaluated_at=arrays["evaluated_at"],
                metrics=under("metrics/", arrays),
                hyper=under("hyper/", arrays),
                norms=under("norms/", arrays),
                **own,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ResultFileError(f"{path} is damaged: {error}. Run the sweep again.") from error

    @classmethod
    def _header_names(cls) -> tuple[str, ...]:
        return ("phases", "steps_per_epoch", "engine", "duration_s", "is_complete", "in_doubt_from", "about", "folds")

    def _index(self, i: int) -> int:
        if isinstance(i, bool) or not isinstance(i, SupportsIndex) or np.ndim(i) > 0:
            raise TypeError(f"`i` must be the number of a member; got {i!r:.80}. Pass `runs.best()`, say.")
        i = int(i)
        if not -len(self.members) <= i < len(self.members):
            raise IndexError(f"`i` must be one of the {len(self.members)} members; got {i}.")
        return i % len(self.members)

    def _weights(self) -> Continuation:
        return without_weights() if self._trained is None else self._trained

    def _take(self, members: Sequence[int]) -> Self:
        trained = None if self._trained is None else self._trained.select(members)
        return replace(Curves._take(self, members), _trained=trained)


def without_weights() -> NoReturn:
    """Say that there are none, and where they are."""
    raise ValueError(_NO_WEIGHTS)
