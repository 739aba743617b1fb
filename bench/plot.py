"""Draw speed-up against the number of members: `python bench/plot.py bench/results/sweep-....json [PICTURE]`.

The picture goes to docs/speedup.png unless it is named. Its file comes from `make bench ARGS="-k steps --full"`.
"""

import json
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_PICTURE = Path(__file__).parents[1] / "docs" / "speedup.png"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
_LINES = {"auto": "-", "eager": ":", "traced": "--", "compiled": "-.", "sequential": (0, (1, 3))}


def speedups(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The ratio to the stock loop at each number of members, by workload and level."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if "level" in row:
            points = found.setdefault((row["workload"], row["level"]), [])
            points.append((row["num_members"], row["ratios"]["stock"]))
    return {key: sorted(points) for key, points in found.items()}


def draw(ax: Axes, measured: dict[str, Any]) -> None:
    """Draw a line for each workload and level, and the stock loop at 1."""
    curves = speedups(measured["rows"])
    workloads = list(dict.fromkeys(workload for workload, _ in curves))
    styles = dict(zip(workloads, zip(cycle(_COLORS), cycle(_MARKERS), strict=False), strict=False))
    has_levels = len({level for _, level in curves}) > 1
    for (workload, level), points in curves.items():
        color, marker = styles[workload]
        label = f"{workload}, {level}" if has_levels else workload
        ax.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle=_LINES[level], label=label)
    ax.axhline(1, color="0.4", linewidth=1, zorder=1)
    ax.annotate("as fast as one after another", (1, 1), (-2, 3), ("axes fraction", "data"), "offset points", ha="right")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g} x")
    ax.set(
        xlabel="members trained at once",
        ylabel="speed-up over a plain loop, one member after another",
        title=f"A step of all members: {_where(measured)}",
    )
    ax.grid(visible=True, alpha=0.25)
    ax.legend(fontsize="small", framealpha=0.9)


def _where(measured: dict[str, Any]) -> str:
    device = measured["cpu"] if measured["device"] == "cpu" else measured["device"]
    threads = measured["num_threads"]
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}, torch {measured['versions']['torch']}"


def main(arguments: list[str]) -> None:
    """Draw one file of results."""
    measured = json.loads(Path(arguments[0]).read_text())
    picture = Path(arguments[1]) if len(arguments) > 1 else _PICTURE
    figure = Figure(figsize=(8, 5), layout="constrained")
    draw(figure.add_subplot(), measured)
    figure.savefig(picture, dpi=150)
    print(f"Wrote {picture}.")


if __name__ == "__main__":
    main(sys.argv[1:])
