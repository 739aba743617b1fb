"""`vecsweep bench`: time the ways of stepping on this machine."""

import argparse
from dataclasses import asdict

import torch

from vecsweep.cli.arguments import TASK_HELP, add_json, counts, given
from vecsweep.cli.reports import format_speeds
from vecsweep.cli.saying import print_json, sayer
from vecsweep.cli.timing import measure_speeds
from vecsweep.tasks import load_task

WHAT = "time the ways of stepping on this machine, and say which to use"
EXAMPLE = "vecsweep bench digits --num-members 8,64"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "tasks", metavar="TASK", nargs="*", default=["digits", "digits-cnn"], help=f"{TASK_HELP} (default: both)"
    )
    parser.add_argument(
        "--num-members",
        type=counts,
        default=[8, 64],
        metavar="N,N",
        help="how many copies are trained (default: 8,64)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="time the compiled step too, which takes seconds to compile (default: yes)",
    )
    parser.add_argument("--device", help="where members train, such as cpu or cuda (default: where the model is)")
    parser.add_argument("--precision", choices=("bf16", "fp16"), help="of autocast (default: the model's own)")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Time tasks, and say which way is best."""
    say, results = sayer(arguments), []
    say(f"PyTorch {torch.__version__}, {torch.get_num_threads()} CPU threads.")
    for name in arguments.tasks:
        task = load_task(name)
        for num_members in arguments.num_members:
            say(f"\n{name}, {num_members} members:")
            options = given(arguments, "device", "precision", "compile")
            speeds, best = measure_speeds(task, num_members, **options)
            say(format_speeds(speeds, best))
            results.append(
                {"task": name, "num_members": num_members, "ways": list(map(asdict, speeds)), "use": asdict(best)}
            )
    document = {"torch": torch.__version__, "num_threads": torch.get_num_threads(), "results": results}
    print_json(document, arguments)
    return 0
