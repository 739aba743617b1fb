"""TensorBoard: a run for each member, written while it trains or afterwards, with what the HPARAMS tab needs.

TensorBoard's messages and records are used, and not its event writers: those have a thread and an open file for each
run, and take an event at a time, which for 64 members is ten times slower.

Not here: the curves themselves (`results`), and who hands them over as they come (`training.py`).
"""

import errno
import hashlib
import io
import math
import os
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from vecsweep._types import FloatArray, Hyper
from vecsweep.observers.observer import Observer, Run
from vecsweep.results.curves import Curves

_MAX_POINTS = 1000  # of a curve; TensorBoard shows no more of one either, unless it is told to
_FLUSH_S = 2.0
_MAX_NAME = 200  # characters of a folder's name, of which file systems take 255


def write_sweep(runs: Curves, folder: str | os.PathLike[str]) -> Path:
    """Write a TensorBoard run for each member; see `TensorBoard` for what is in it.

    Args:
        runs: what was trained.
        folder: where; made if it is not there.

    Returns:
        The folder.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the folder cannot be written to.

    Example:
        `vs.sweep(task, lrs=[0.03, 0.1], epochs=2, callbacks=[TensorBoard("runs")])`, then `tensorboard --logdir runs`
    """
    writer = TensorBoard(folder)
    writer.start(Run(runs.members, 0, len(runs.train_loss), runs.steps_per_epoch))
    writer.losses(0, runs.train_loss, {"lr": runs.lr, **runs.hyper})
    for row, step in enumerate(runs.evaluated_at.tolist()):
        writer._take_metrics(step, {name: values[row] for name, values in runs.metrics.items()})
    writer.end(runs)
    return Path(folder)


class TensorBoard(Observer):
    """Writes what members do, as they do it.

    Each member has a folder, named by its lr, schedule, seed and what else it has of its own. There are the scalars
    "train_loss", "lr" and every other hyperparameter that has a curve, against the step, up to where the member
    diverged or was stopped; every metric, against the updates before it; and at the end "final/<metric>" and the
    hparams. Of more than 1,000 steps every k-th is written; of metrics, every one. NaN is not written. A branch of a
    sweep has a folder of its own within this one.

    What an earlier file of the same run says of these steps or later ones, TensorBoard no longer shows.

    Args:
        folder: where; made if it is not there.

    Raises:
        ImportError: TensorBoard is not installed.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        _import_tensorboard()
        self.folder = _made(Path(folder))
        self._begin = 0
        self._every = 1
        self._files: list[Path] = []
        # By the tags of an event: the steps, the times and the values, [step, member, tag], that are to be written.
        self._pending: dict[tuple[str, ...], list[tuple[list[int], list[float], NDArray[np.float32]]]] = {}
        self._flushed_at = time.monotonic()

    def start(self, run: Run) -> None:
        """Begin a file for each member."""
        self._begin = run.begin
        self._every = max(1, math.ceil(run.num_steps / _MAX_POINTS))
        self._files = _begin_files(self.folder, _folders(run), run.begin)

    def losses(self, step: int, loss: FloatArray, hyper: Hyper) -> None:
        """Take the losses of some steps; where one is NaN, nothing is written."""
        kept = slice((self._begin - step) % self._every, None, self._every)
        steps = range(step, step + len(loss))[kept]
        self._take(("train_loss", *hyper), steps, np.stack([loss[kept], *(v[kept] for v in hyper.values())], axis=2))
        if time.monotonic() - self._flushed_at >= _FLUSH_S:
            self._flush()

    def metrics(self, step: int, values: Mapping[str, FloatArray]) -> None:
        """Take what was measured after some steps."""
        self._take_metrics(step, values)
        self._flush()

    def end(self, runs: Curves | None) -> None:
        """Write what is left, the hparams, and what each member came to; the files themselves are never held open."""
        self._flush()
        if runs is None:
            return
        end = self._begin + len(runs.train_loss)
        finals = {name: runs.final(name) for name in dict.fromkeys(("train_loss", *runs.metrics))}
        settings = Run(runs.members, 0, 0).settings
        experiment = _experiment(settings[0], list(finals))
        for i, (file, member) in enumerate(zip(self._files, runs.members, strict=True)):
            own = {name: float(values[i]) for name, values in finals.items() if not np.isnan(values[i])}
            step = end if member.stopped_at is None else member.stopped_at
            _append(
                file, _final_records(experiment, settings[i], own, step, has_diverged=member.diverged_at is not None)
            )

    def part(self, name: str) -> Self:
        """Return one that writes to a folder within this one, of which there was none before."""
        names = (f"{name}{suffix}" for suffix in ("", *(f" ({k})" for k in range(2, 1000))))
        return type(self)(next(self.folder / own for own in names if not (self.folder / own).exists()))

    def _take_metrics(self, step: int, values: Mapping[str, FloatArray]) -> None:
        for name, of_members in values.items():
            self._take((name,), [step], of_members[None, :, None])

    def _take(self, tags: tuple[str, ...], steps: Sequence[int], values: FloatArray) -> None:
        """Keep a copy of values, [step, member, tag], until they are written."""
        with np.errstate(over="ignore"):  # a loss on its way to divergence may be infinite as float32
            copies = values.astype(np.float32)
        self._pending.setdefault(tags, []).append((list(steps), [time.time()] * len(steps), copies))

    def _flush(self) -> None:
        """Put what is pending on disk."""
        pending, self._pending = self._pending, {}
        written = [bytearray() for _ in self._files]
        for tags, parts in pending.items():
            for steps, times, values in parts:
                for i, records in enumerate(written):
                    records += _records(_scalars(tags, steps, times, values[:, i]))
        for file, records in zip(self._files, written, strict=True):
            if records:
                _append(file, records)
        self._flushed_at = time.monotonic()


def _import_tensorboard() -> None:
    """Import what is needed of TensorBoard, once, without what its import warns of."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorboard.compat.proto.event_pb2
            import tensorboard.plugins.hparams.metadata
            import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise ImportError("Writing runs needs TensorBoard. Run: pip install 'vecsweep[tensorboard]'") from error


def _folders(run: Run) -> list[str]:
    """Name each member's folder, distinctly, as any file system takes it: a long one by its ends and a digest."""
    quoted = [quote(name, safe=" +=()") for name in run.names]
    return [name if len(name) <= _MAX_NAME else f"{name[:150]}~{_digest(name)}~{name[-40:]}" for name in quoted]


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=4).hexdigest()


def _made(folder: Path) -> Path:
    """Make the folder."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            errno.ENOTDIR, "TensorBoard's runs need a folder, and this is a file; name another", str(folder)
        )
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say what to do where nothing can be written."""
    try:
        yield
    except OSError as error:
        message = f"TensorBoard's runs cannot be written here ({error.strerror}); name another folder"
        raise type(error)(error.errno, message, str(folder)) from error


def _begin_files(folder: Path, names: Sequence[str], begin: int) -> list[Path]:
    """Begin an event file for each run; readers take the files of a run by name, so that a later one has to sort so."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    now = time.time_ns()
    second, rest = divmod(now, 10**9)
    file_name = f"events.out.tfevents.{second:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
    # What this run said before of these steps is void; not so what it measured at the end of those before.
    start = Event(wall_time=now / 1e9, step=begin + 1 if begin else 0, session_log=SessionLog(status=SessionLog.START))
    head = _records([Event(wall_time=now / 1e9, file_version="brain.Event:2"), start])
    files = [folder / name / file_name for name in names]
    with _told(folder):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            _append(file, head)
    return files


def _append(file: Path, records: bytes | bytearray) -> None:
    with file.open("ab") as stream:
        stream.write(records)


def _experiment(hparams: Mapping[str, float | str], metrics: Sequence[str]) -> Any:
    """Say which hparams and which metrics there are; all members have the same."""
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    kinds = {name: "STRING" if isinstance(value, str) else "FLOAT64" for name, value in hparams.items()}
    return HParamsPluginData(
        experiment=api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(name=name, type=api_pb2.DataType.Value(f"DATA_TYPE_{kind}"))
                for name, kind in kinds.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"final/{name}"), display_name=name) for name in metrics
            ],
        )
    )


def _final_records(
    experiment: Any, hparams: Mapping[str, float | str], finals: Mapping[str, float], step: int, *, has_diverged: bool
) -> bytes:
    """Say how a member was set and what it came to."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    settings = SessionStartInfo()
    for name, value in hparams.items():
        if isinstance(value, str):
            settings.hparams[name].string_value = value
        else:
            settings.hparams[name].number_value = value
    status = api_pb2.Status.Value("STATUS_FAILURE" if has_diverged else "STATUS_SUCCESS")
    contents = {
        metadata.EXPERIMENT_TAG: experiment,
        metadata.SESSION_START_INFO_TAG: HParamsPluginData(session_start_info=settings),
        metadata.SESSION_END_INFO_TAG: HParamsPluginData(session_end_info=SessionEndInfo(status=status)),
    }
    values = [
        Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
        for tag, content in contents.items()
    ]
    values += [Summary.Value(tag=f"final/{name}", simple_value=value) for name, value in finals.items()]
    return _records([Event(wall_time=time.time(), step=step, summary=Summary(value=values))])


def _records(events: Iterable[Any]) -> bytes:
    """Frame events as they stand in a file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(event.SerializeToString())
    return stream.getvalue()


def _scalars(
    tags: Sequence[str],
    steps: Sequence[int],
    times: Sequence[float],  # [step]
    values: NDArray[np.float32],  # [step, tag]
) -> Iterator[Any]:
    """Yield an event for each step whose first value is not NaN."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    for step, now, row in zip(steps, times, values.tolist(), strict=True):
        if not math.isnan(row[0]):
            summary = Summary(
                value=[Summary.Value(tag=tag, simple_value=value) for tag, value in zip(tags, row, strict=True)]
            )
            yield Event(wall_time=now, step=step, summary=summary)
