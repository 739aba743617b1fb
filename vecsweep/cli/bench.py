"""`vecsweep bench`: time the ways of stepping on this machine."""

import argparse
from dataclasses import asdict

import torch

from vecsweep.cli.arguments import given
from vecsweep.cli.reports import format_speeds
from vecsweep.cli.saying import print_json, sayer
from vecsweep.cli.timing import measure_speeds
from vecsweep.tasks import load_task


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
