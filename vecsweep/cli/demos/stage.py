"""Where a demo is played: what it may say, where its files go, and how long it may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsweep.cli.saving import save_picture
from vecsweep.cli.saying import Say
from vecsweep.observers import Observer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Stage:
    """What a demo is given.

    Attributes:
        say: tells people something.
        folder: where files go.
        is_quick: whether to do with less data and time.
        device: where members train; None for the CPU.
        compares: whether to train once more, by a plain loop.
        callbacks: who is told what members do.
    """

    say: Say
    folder: Path
    is_quick: bool = False
    device: str | None = None
    compares: bool = False
    callbacks: Sequence[Observer] = ()

    @property
    def how(self) -> dict[str, Any]:
        """What every call that trains is given."""
        return {"device": self.device, "callbacks": self.callbacks}

    def panels(self, width: float, num: int = 1) -> "list[Axes]":
        """Make axes side by side in one figure.

        Args:
            width: of the figure, in inches.
            num: how many.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, 4.5), layout="constrained")
        return list(figure.subplots(1, num, squeeze=False)[0])

    @staticmethod
    def drop_legend(axes: "Axes") -> None:
        """Take the legend of axes away."""
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()

    def keep(self, axes: "Axes", name: str) -> str:
        """Write the picture that axes are in, and say where."""
        path = save_picture(axes, self.folder / name)
        self.say(f"Wrote {path}.")
        return str(path)
