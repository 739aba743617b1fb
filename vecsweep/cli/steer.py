"""`vecsweep steer`: schedule by hand, several learning rates at a time, and keep the best after each phase."""

import argparse
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import vecsweep as vs
from vecsweep import Sweep, Task
from vecsweep.cli.arguments import EXECUTION_OPTIONS, given, numbers
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import format_members
from vecsweep.cli.saving import make_folder, save_picture, writing
from vecsweep.cli.saying import say_aloud, tell_files
from vecsweep.results._files import replace_file
from vecsweep.results.ranking import mode_of
from vecsweep.tasks import load_task

with suppress(ImportError):  # arrow keys at the prompts, where there is such a thing
    import readline  # noqa: F401


_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class _Phase:
    """What is offered for the next phase: what was asked for in the last one."""

    epochs: int
    lrs: list[float]


def run(arguments: argparse.Namespace) -> int:
    """Ask, train and ask again, until the answer is that this is enough."""
    task = load_task(arguments.task)
    _check_metric(task, arguments.metric)
    folder = make_folder(arguments.output_dir)
    offered, path = _Phase(arguments.epochs, arguments.lrs), None
    say_aloud("Each phase trains the learning rates you name side by side, from the model you kept last.")
    say_aloud("An empty line takes what is in brackets; q ends and saves.")
    while True:
        phase = _ask_phase(offered, 1 if path is None else len(path.phases) + 1)
        if phase is None:
            break
        offered = phase
        runs = _train(task, path, phase, arguments)
        if runs is None:
            continue
        say_aloud(format_members(runs))
        kept, is_last = _ask_kept(runs, arguments.metric)
        if kept is not None:
            path = runs.select(member=kept)
            offered = _Phase(phase.epochs, _around(path.members[0].lr))
        if is_last:
            break
    if path is None:
        say_aloud("Nothing was kept, so nothing is saved.")
        return 0
    say_aloud(f"\nThe schedule found: {_describe(path)}.")
    tell_files(_save(path, folder), say_aloud)
    return 0


def _check_metric(task: Task, metric: str | None) -> None:
    """Raise ValueError for a metric that no phase will measure, or of which nobody knows which way is better."""
    measured = ["train_loss"]
    if task.val_batches is not None:
        measured += ["val_loss", *(f"val_{name}" for name in task.metrics)]
    if metric is not None and metric not in measured:
        raise ValueError(f"`--metric` must be one of {', '.join(measured)}; got {metric!r}.")
    if metric is not None:
        mode_of(metric, None)


def _train(task: Task, path: Sweep | None, phase: _Phase, arguments: argparse.Namespace) -> Sweep | None:
    """Train a phase; None if it was interrupted, or if the answers were wrong."""
    try:
        if path is None:
            return vs.sweep(
                task,
                lrs=phase.lrs,
                epochs=phase.epochs,
                callbacks=progress_lines(),
                **given(arguments, *EXECUTION_OPTIONS),
            )
        return path.branch(0, lrs=phase.lrs, epochs=phase.epochs)
    except vs.Interrupted:
        say_aloud("Interrupted: this phase is dropped.")
        return None


def _ask_phase(offered: _Phase, number: int) -> _Phase | None:
    """Ask for the epochs and the learning rates of a phase; None to end."""
    say_aloud(f"\nPhase {number}")
    epochs = _ask("Epochs", str(offered.epochs), _count)
    if epochs is None:
        return None
    lrs = _ask("Learning rates", ",".join(f"{lr:.4g}" for lr in offered.lrs), _lrs)
    return None if lrs is None else _Phase(epochs, lrs)


def _ask_kept(runs: Sweep, metric: str | None) -> tuple[int | None, bool]:
    """Ask which member to keep, None for none of them; and whether that is the last answer: then the best is kept."""
    try:
        best = runs.best(metric)
    except ValueError as error:
        say_aloud(f"{error} The phase is dropped.")
        return None, False

    def choice(text: str) -> int:
        if text == "none":
            return -1
        if not text.isdecimal() or int(text) >= len(runs.members):
            raise ValueError(f"must be a number of the table, or none; got {text!r}")
        if runs.members[int(text)].diverged_at is not None:
            raise ValueError(f"must be a member that did not diverge; {text} did")
        return int(text)

    kept = _ask("Keep (or none, to go back)", str(best), choice)
    if kept is None:
        return best, True
    return (None if kept < 0 else kept), False


def _ask(question: str, offered: str, read: Callable[[str], _Answer]) -> _Answer | None:
    """Ask until the answer can be read; None if it is q, or if nobody answers."""
    while True:
        try:
            text = input(f"{question} [{offered}]: ").strip() or offered
        except EOFError:
            say_aloud("")
            return None
        if text in ("q", "quit"):
            return None
        try:
            return read(text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            say_aloud(f"  {question.split(' (')[0]} {error}.")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _lrs(text: str) -> list[float]:
    lrs = numbers(text)
    if not all(0 < lr < float("inf") for lr in lrs):
        raise ValueError(f"must be positive and finite; got {text!r}")
    return lrs


def _around(lr: float) -> list[float]:
    """What is worth trying next."""
    return [lr / 10, lr / 3, lr]


def _describe(path: Sweep) -> str:
    ends = [*path.phases[1:], len(path.lr)]
    parts = [
        f"lr {path.lr[begin, 0]:.4g} for {end - begin} steps" for begin, end in zip(path.phases, ends, strict=True)
    ]
    final = ", ".join(f"{name} {path.final(name)[0]:.4g}" for name in path.metrics or ["train_loss"])
    return f"{', then '.join(parts)}: {final}"


def _save(path: Sweep, folder: Path) -> dict[str, str | None]:
    """Write the schedule, the curves, a picture and the model."""
    ends = [*path.phases[1:], len(path.lr)]
    phases = [
        {"begin": begin, "num_steps": end - begin, "lr": float(path.lr[begin, 0])}
        for begin, end in zip(path.phases, ends, strict=True)
    ]
    final = {name: float(path.final(name)[0]) for name in ("train_loss", *path.metrics)}
    document = {"phases": phases, "steps_per_epoch": path.steps_per_epoch, "final": final}
    with writing(folder):
        files = [
            replace_file(folder / "schedule.json", lambda part: _dump(part, document)),
            path.save(folder / "steer.npz"),
            path.save_model(0, folder / "model.safetensors"),
            save_picture(path.plot(), folder / "steer.png"),
        ]
    return {file.name: str(file) for file in files}


def _dump(part: Path, document: object) -> None:
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
