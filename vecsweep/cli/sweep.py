"""`vecsweep sweep`: compare learning rates, schedules and seeds."""

import argparse
from pathlib import Path
from typing import Any

import vecsweep as vs
from vecsweep import Sweep
from vecsweep.cli.arguments import (
    CHECKPOINT_OPTIONS,
    EXECUTION_OPTIONS,
    TASK_HELP,
    add_checkpoint,
    add_execution,
    add_json,
    add_seeds,
    given,
    merged,
    names,
    numbers,
    output_file,
    output_folder,
    schedules,
    varied,
    weights_file,
)
from vecsweep.cli.progress import progress_lines
from vecsweep.cli.reports import describe_sweep, format_ranking, format_run
from vecsweep.cli.saying import (
    make_folder,
    print_json,
    save_picture,
    save_result,
    saved_if_stopped,
    sayer,
    tell_files,
    writing,
)
from vecsweep.results.ranking import mode_of
from vecsweep.tasks import load_task

WHAT = "train at several learning rates, schedules and seeds side by side, and rank them"
EXAMPLE = "vecsweep sweep digits --lrs 0.03,0.1,0.3 --schedules constant,one-cycle --seeds 3 --epochs 10"

_OPTIONS = (
    "lrs",
    "schedules",
    "seeds",
    "num_steps",
    "epochs",
    "until",
    "val_every",
    "patience",
    "prune",
    "monitor",
    "record",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    compared = parser.add_argument_group("what is compared")
    compared.add_argument("--lrs", type=numbers, required=True, metavar="LR,LR", help="the learning rates")
    compared.add_argument(
        "--schedules",
        type=schedules,
        metavar="NAME,NAME",
        help=f"what they follow: {', '.join(vs.schedules.SCHEDULES)}; with arguments as in 'one-cycle(div=10)' "
        "(default: constant)",
    )
    add_seeds(compared)
    compared.add_argument(
        "--vary",
        type=varied,
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="another hyperparameter of the optimizer, such as weight_decay=0,1e-2; may be given again, for "
        "more of them or more values",
    )
    length = compared.add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the training data")
    length.add_argument("--num-steps", type=int, metavar="N", help="updates of each member, in place of --epochs")
    parser.add_argument(
        "--until", type=int, metavar="N", help="stop there, part-way through the schedules (default: at their end)"
    )
    judged = parser.add_argument_group("how it is judged")
    judged.add_argument("--metric", default=None, help="to rank by (default: val_loss, or train_loss without one)")
    judged.add_argument(
        "--mode", choices=("min", "max"), default=None, help="less or more is better (default: by its name)"
    )
    judged.add_argument("--val-every", type=int, metavar="N", help="updates between evaluations (default: an epoch)")
    judged.add_argument(
        "--record",
        type=names,
        metavar="NAME,NAME",
        help="norms to note of each member at each step: grad_norm, update_norm (default: none)",
    )
    judged.add_argument(
        "--train-metrics", action="store_true", help="measure the metrics on the training data, too (default: no)"
    )
    judged.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="stop a member after N evaluations without progress (default: never)",
    )
    judged.add_argument(
        "--prune",
        choices=("halving",),
        help="stop the worse half after an eighth, a quarter and a half of the run (default: nobody)",
    )
    judged.add_argument("--monitor", metavar="METRIC", help="what --patience and --prune watch (default: val_loss)")
    add_execution(parser, has_engine=True)
    written = parser.add_argument_group("what is written")
    written.add_argument(
        "--output-dir",
        type=output_folder,
        default=None,
        metavar="DIR",
        help="write sweep.npz and pictures there (default: nowhere)",
    )
    written.add_argument(
        "--csv", type=output_file, default=None, metavar="FILE.csv", help="write all curves here (default: nowhere)"
    )
    written.add_argument(
        "--save-best",
        type=weights_file,
        default=None,
        metavar="FILE.safetensors",
        help="write the best member's weights here (default: nowhere)",
    )
    written.add_argument("--tensorboard", metavar="DIR", help="write each member there as it trains (default: nowhere)")
    add_checkpoint(written)
    add_json(written)


def run(arguments: argparse.Namespace) -> int:
    """Train a task, and rank what was compared."""
    if arguments.metric is not None:
        mode_of(arguments.metric, arguments.mode)  # a mistake is told before the work
    task = load_task(arguments.task)
    folder = None if arguments.output_dir is None else make_folder(arguments.output_dir)
    options = given(arguments, *_OPTIONS, "train_metrics", "tensorboard", *EXECUTION_OPTIONS, *CHECKPOINT_OPTIONS)
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
