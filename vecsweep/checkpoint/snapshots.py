"""Snapshots on disk: those of one run in a folder, the last two of which are kept."""

import dataclasses
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from vecsweep._engine.data.batches import Position
from vecsweep._engine.data.fingerprint import Fingerprint
from vecsweep._engine.data.waypoints import Waypoint
from vecsweep._engine.graphs.levels import Level, Stepping
from vecsweep._engine.keeping.record import End
from vecsweep._engine.keeping.snapshot import Manner, Snapshot
from vecsweep._engine.members.divergence import Fate
from vecsweep._engine.members.ensemble import LossScale, MemberState, OptimizerState
from vecsweep._errors import ResultFileError, warn_of_fallback
from vecsweep._version import __version__
from vecsweep.checkpoint.disk import read_folder, remove, write_folder
from vecsweep.checkpoint.elsewhere import refresh
from vecsweep.checkpoint.values import Box

_NUM_KEPT = 2


def write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    """Write a snapshot, and remove all but it and the one before.

    Raises:
        OSError: it cannot be written; those that are there stay.
        TypeError: passes keep an object in Python that only pickle could keep.
    """
    value = {field.name: _outline(getattr(snapshot, field.name)) for field in dataclasses.fields(snapshot)}
    write_folder(folder / f"step-{snapshot.num_done:09}", value, written_by())
    for path in snapshots_in(folder)[:-_NUM_KEPT]:
        remove(path)


def read_newest(folder: Path) -> Snapshot | None:
    """Read the last snapshot that is whole; None where there is none yet.

    Raises:
        ResultFileError: there are some, and all are damaged.
    """
    paths, error = snapshots_in(folder), None
    for path in reversed(paths):
        try:
            snapshot = _snapshot_of(read_folder(path))
        except ResultFileError as damage:
            error = error or damage
            continue
        if error is not None:
            warn_of_fallback(f"{error} The run goes on from the checkpoint before it, at step {snapshot.num_done}.")
            for damaged in paths[paths.index(path) + 1 :]:  # they would count among the last two
                remove(damaged)
        return snapshot
    if error is not None:
        raise ResultFileError(f"{error} No other checkpoint is left; pass `restart=True` to begin anew.") from error
    return None


def written_by() -> dict[str, Any]:
    """Who writes a folder, for people."""
    return {"written_at": time.time(), "vecsweep": __version__, "torch": torch.__version__}


def pack_state(state: MemberState) -> dict[str, Any]:
    """A member's state as plain containers."""
    own, scale = state.optimizer, state.scale
    return {
        "parameters": state.parameters,
        "buffers": state.buffers,
        "optimizer": None if own is None else {"of_parameters": own.of_parameters, "rest": own.rest},
        "fate": {"ceiling": state.fate.ceiling, "streak": state.fate.streak, "alive": state.fate.alive},
        "scale": None if scale is None else {"value": scale.value, "streak": scale.streak},
        "kept": state.kept,
        "stream": state.stream,
    }


def unpack_state(value: dict[str, Any]) -> MemberState:
    """What `pack_state` was given."""
    own, scale = value["optimizer"], value["scale"]
    return MemberState(
        value["parameters"],
        value["buffers"],
        None if own is None else OptimizerState(**own),
        Fate(**value["fate"]),
        None if scale is None else LossScale(**scale),
        value["kept"],
        value.get("stream"),
    )


def pack_end(end: End) -> dict[str, Any]:
    """Where a seed stands, as plain containers."""
    place: dict[str, Any] = {"epoch": end.batches.epoch, "num_taken": end.batches.num_taken}
    if end.batches.own:
        with suppress(TypeError):
            Box().pack(end.batches.own, "own")
            place["own"] = end.batches.own
    if (waypoint := end.batches.waypoint) is not None:
        own = {"stream": waypoint.stream, "loader": waypoint.loader, "num_loaded": waypoint.num_loaded}
        with suppress(TypeError):  # without it, batches are read over
            Box().pack(own, "waypoint")
            place["waypoint"] = own
    return {"model": end.model, "batches": place, "outside": end.outside}


def unpack_end(value: dict[str, Any]) -> End:
    """What `pack_end` was given."""
    place = dict(value["batches"])
    waypoint = place.pop("waypoint", None)
    position = Position(**place, waypoint=None if waypoint is None else Waypoint(**waypoint))
    return End(value["model"], position, value["outside"])


def _outline(value: Any) -> Any:
    """A field of a snapshot as plain containers."""
    if isinstance(value, dict) and value:
        first = next(iter(value.values()))
        pack: Any = {MemberState: pack_state, End: pack_end, Fingerprint: Fingerprint._asdict}.get(type(first))
        if pack is not None:
            return {str(key): pack(own) for key, own in value.items()}
    return dataclasses.asdict(value) if isinstance(value, Manner) else value


def _snapshot_of(value: dict[str, Any]) -> Snapshot:
    """Make a snapshot of what was read.

    Raises:
        ResultFileError: it is not what `write_snapshot` writes.
    """
    try:
        json.dumps(value["identity"])  # or it cannot be compared
        manner = dict(value["manner"])
        if manner["stepping"] is not None:
            stepping = dict(manner["stepping"])
            for name in ("programs", "measures"):
                stepping[name] = {key: Level(**level) for key, level in stepping[name].items()}
            manner["stepping"] = Stepping(**stepping)
        value = value | {
            "manner": Manner(**manner),
            "states": {int(i): unpack_state(state) for i, state in value["states"].items()},
            "ended": {int(i): unpack_state(state) for i, state in value["ended"].items()},
            "ends": {int(seed): unpack_end(end) for seed, end in value["ends"].items()},
            "last": {int(seed): Fingerprint(**own) for seed, own in value["last"].items()},
        }
        return Snapshot(**value)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ResultFileError(f"A checkpoint is damaged: {error}.") from error


def snapshots_in(folder: Path) -> list[Path]:
    """The snapshots of a folder, the oldest first."""
    refresh(folder)
    return sorted(folder.glob("step-*"))
