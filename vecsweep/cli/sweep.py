"""`vecsweep sweep`: compare learning rates, schedules and seeds."""

import argparse
from pathlib import Path
from typing import Any

import vecsweep as vs
from vecsweep import Sweep
from vecsweep.cli.arguments import CHECKPOINT_OPTIONS, EXECUTION_OPTIONS, given, merged
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import describe_sweep, format_ranking, format_run
from vecsweep.cli.saving import make_folder, save_picture, save_result, saved_if_stopped, writing
from vecsweep.cli.saying import print_json, sayer, tell_files
from vecsweep.results.ranking import mode_of
from vecsweep.tasks import load_task

_OPTIONS = (
    "lrs",
    "schedules",
    "seeds",
    "folds",
    "num_steps",
    "epochs",
    "until",
    "val_every",
    "patience",
    "prune",
    "monitor",
    "record",
)


def run(arguments: argparse.Namespace) -> int:
    """Train a task, and rank what was compared."""
    if arguments.metric is not None:
        mode_of(arguments.metric, arguments.mode)  # a mistake is told before the work
    task = load_task(arguments.task)
    folder = None if arguments.output_dir is None else make_folder(arguments.output_dir)
    options = given(arguments, *_OPTIONS, "train_metrics", "tensorboard", *EXECUTION_OPTIONS, *CHECKPOINT_OPTIONS)
    if arguments.mode is not None and options.get("monitor") == arguments.metric:
        options["mode"] = arguments.mode
    with saved_if_stopped(Path("sweep-interrupted.npz") if folder is None else folder / "sweep.npz"):
        runs = vs.sweep(task, vary=merged(arguments.vary), callbacks=progress_lines(), **options)
    files = dict[str, str | None]()
    if folder is not None:  # before anything is made of it
        files["output"] = str(save_result(runs, folder / "sweep.npz"))
    say, ranking = sayer(arguments), runs.ranking(arguments.metric, arguments.mode)
    say(format_ranking(ranking))
    say(f"\n{format_run(runs)}")
    files |= _write(runs, folder, arguments, ranking.metric, ranking.mode)
    tell_files(files, say)
    print_json({"task": arguments.task, **describe_sweep(runs, ranking), **files}, arguments)
    return 0 if any(standing.num_missing == 0 for standing in ranking.standings) else 1


def _write(
    runs: Sweep, folder: Path | None, arguments: argparse.Namespace, metric: str, mode: Any
) -> dict[str, str | None]:
    """Draw a sweep, and write what else is asked for; return the paths, for JSON."""
    files = {} if folder is None else _write_into(folder, runs, metric, mode)
    if arguments.csv is not None:
        with writing(arguments.csv):
            files["csv"] = runs.to_csv(arguments.csv)
    if arguments.save_best is not None:
        with writing(arguments.save_best):
            files["best"] = runs.save_model(runs.best(metric, mode), arguments.save_best)
    return {name: str(path) for name, path in files.items()}


def _write_into(folder: Path, runs: Sweep, metric: str, mode: Any) -> dict[str, Path]:
    """Draw all pictures that a sweep has."""
    files = {"curves": save_picture(runs.plot(metric=metric), folder / "curves.png")}
    files["plan"] = save_picture(runs.plot(kind="plan"), folder / "plan.png")
    if len({member.lr for member in runs.members}) > 1:
        files["final"] = save_picture(runs.plot(kind="final", metric=metric, mode=mode), folder / "final.png")
    rows = [member.as_row() for member in runs.members]
    names = [name for name in rows[0] if name != "seed" and not name.endswith("_at")]
    if sum(len({row[name] for row in rows}) > 1 for name in names) == 2:
        files["heatmap"] = save_picture(runs.plot(kind="heatmap", metric=metric, mode=mode), folder / "heatmap.png")
    return files
