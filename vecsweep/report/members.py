"""The table of members, and how a run came about."""

from collections.abc import Mapping, Sequence

from vecsweep._words import counted
from vecsweep.report.blocks import Cell, Facts, Table
from vecsweep.results.curves import Curves
from vecsweep.results.views import describe_counts


def table_members(parts: Sequence[tuple[str, Curves]]) -> Table:
    """Return a row for each member: what it was trained with, and what it came to."""
    names = list(dict.fromkeys(name for _, runs in parts for name in runs.members[0].hyper))
    metrics = list(dict.fromkeys(name for _, runs in parts for name in ("train_loss", *runs.metrics)))
    rows: list[tuple[Cell, ...]] = []
    for part, (_, runs) in enumerate(parts, start=1):
        finals = [runs.final(name).tolist() if name in ("train_loss", *runs.metrics) else None for name in metrics]
        for i, member in enumerate(runs.members):
            seed = [member.seed] if runs.folds is None else [member.seed // runs.folds, member.seed % runs.folds]
            own = [member.lr, member.schedule, *(member.hyper.get(name) for name in names), *seed]
            came_to = [None if values is None else values[i] for values in finals]
            rows.append((*([part] if len(parts) > 1 else []), i, *own, *came_to, member.diverged_at, member.stopped_at))
    head = ["part"] if len(parts) > 1 else []
    seed_and_fold = ["seed"] if parts[0][1].folds is None else ["seed", "fold"]
    columns = (*head, "member", "lr", "schedule", *names, *seed_and_fold, *metrics, "diverged at", "stopped at")
    return Table(
        title="Members",
        note="What each was trained with, and came to: of train_loss the mean of the last tenth, of metrics the last.",
        columns=columns,
        rows=rows,
        file="members.csv",
    )


def describe_run(parts: Sequence[tuple[str, Curves]], more: Mapping[str, str] | None = None) -> Facts:
    """Return how results came about: the call, versions, device, engine, durations."""
    facts = dict(parts[0][1].about) | dict(more or {})
    total = sum(runs.duration_s for _, runs in parts)
    facts["duration"] = f"{total:.3g} s"
    for part, (_, runs) in enumerate(parts, start=1):
        number = f" {part}" if len(parts) > 1 else ""
        took = f", {runs.duration_s:.3g} s" if number else ""
        facts[f"trained{number}"] = f"{describe_counts(runs)}; {counted(len(runs.train_loss), 'step')}{took}"
        facts[f"engine{number}"] = runs.engine
    return Facts(title="How it came about", facts=facts)
