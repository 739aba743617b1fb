"""Going on from a sweep: what it leaves besides its curves, so that it can be extended, branched and saved whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from vecsweep._types import Lrs, Schedules

if TYPE_CHECKING:
    from vecsweep.results.sweep import Sweep


@dataclass(frozen=True, slots=True)
class Fork:
    """What copies of a member train with further, and for how long; the arguments of `Sweep.branch`."""

    lrs: Lrs | None
    schedules: Schedules | None
    vary: Mapping[str, Sequence[float]] | None
    num_steps: int | None
    epochs: int | None

    @property
    def arguments(self) -> dict[str, Any]:
        """By name, as they were given."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Continuation(Protocol):
    """The weights of a sweep's members, and all that it takes to go on. `training.py` has the usual one."""

    def save(self, runs: "Sweep", path: Path) -> Path:
        """Write it all to a folder."""

    def model(self, i: int, *, copy_frozen: bool) -> nn.Module:
        """Make a module of member i's weights."""

    def select(self, members: Sequence[int]) -> "Continuation":
        """Take some members."""

    def extend(self, runs: "Sweep", num_steps: int | None, epochs: int | None) -> "Sweep":
        """Train all members further."""

    def branch(self, runs: "Sweep", i: int, fork: Fork) -> "Sweep":
        """Train copies of member i further."""
