"""Draw docs/answers.png, regret against cost: `python bench/quality/draw.py FILE` with a file that judge.py wrote."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

PICTURE = Path(__file__).parents[2] / "docs" / "answers.png"
_FREE = 0.1  # where, on the axis of cost, stands what costs nothing
_LEFT_OUT = ("raw winner", "shifted to the run", "100, lowest")
_OURS = "#D55E00"
_OTHERS = "#0072B2"


def draw(rows: dict[str, dict[str, float]]) -> Figure:
    """Draw the mean regret of each method with a line up to its 90 % quantile."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    ax = figure.add_subplot()
    for name, row in rows.items():
        if name.endswith(_LEFT_OUT):  # where another stands
            continue
        is_ours = name.startswith("find_lr")
        color, cost = _OURS if is_ours else _OTHERS, max(row["cost"], _FREE)
        ax.plot([cost, cost], [row["mean"], row["p90"]], color=color, linewidth=1, alpha=0.6)
        ax.plot(cost, row["mean"], marker="o" if is_ours else "s", color=color)
        ax.annotate(name, (cost, row["mean"]), xytext=(6, -3), textcoords="offset points", fontsize="small")
    ours = [row for name, row in rows.items() if name.removeprefix("find_lr ").isdigit()]
    ax.plot([row["cost"] for row in ours], [row["mean"] for row in ours], color=_OURS, linewidth=1.5, zorder=1)
    ax.set(xscale="log", yscale="log", xlabel="cost, in runs of one member", ylabel="regret: mean, and line to p90")
    ax.set_xlim(_FREE * 0.8, 60)
    ax.grid(visible=True, alpha=0.25)
    ax.set_title("How far a suggested learning rate is behind the best, held-out problems")
    return figure


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())["rows"]).savefig(PICTURE, dpi=110)
