"""The types of the command line's arguments, and the groups of them that several commands take.

An option that is not given is left out of the parsed arguments, so that the defaults of the library hold.
"""

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from vecsweep._names import TASKS, EngineName, Precision
from vecsweep.checkpoint.elsewhere import folder_of, is_elsewhere

RANGE_OPTIONS = ("start_lr", "end_lr", "num_lrs", "num_steps", "seeds", "method", "spacing")
CHECK_OPTIONS = ("lrs", "num_steps", "seeds")
EXECUTION_OPTIONS = (
    "device",
    "precision",
    "engine",
    "compile",
    "chunk_size",
    "accumulation_steps",
    "max_grad_norm",
    "divergence_factor",
    "seed",
    "cluster",
)
CHECKPOINT_OPTIONS = ("checkpoint", "checkpoint_every", "restart")
TASK_HELP = (
    f"a built-in task ({', '.join(TASKS)}), path/to/file.py:function or package.module:function returning a "
    "vecsweep.Task"
)


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; for all others the library's defaults hold."""
    return {name: value for name, value in vars(arguments).items() if name in names}


def add_json(parser: Any) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", default=False, help="print one JSON document, nothing else")


def add_seeds(parser: Any, default: str = "1") -> None:
    """Add --seeds."""
    parser.add_argument(
        "--seeds",
        type=seeds,
        metavar="N",
        help=f"how many seeds, or the seeds themselves as in 3,4,5 (default: {default})",
    )


def add_execution(parser: argparse.ArgumentParser, *, has_engine: bool) -> None:
    """Add the options that every verb takes."""
    group = parser.add_argument_group("how it is carried out")
    group.add_argument(
        "--device",
        type=_devices,
        help="where members train, such as cpu, cuda or cuda:0,cuda:1 (default: where the model is)",
    )
    group.add_argument("--precision", choices=get_args(Precision), help="of autocast (default: the model's own)")
    if has_engine:
        group.add_argument(
            "--engine",
            choices=get_args(EngineName),
            help="how members are stepped (default: auto)",
        )
    group.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="compile the step, or not (default: where that pays)",
    )
    group.add_argument("--chunk-size", type=_chunk_size, metavar="N", help="members stepped together (default: auto)")
    group.add_argument("--accumulation-steps", type=int, metavar="N", help="batches in each update (default: 1)")
    group.add_argument("--max-grad-norm", type=float, metavar="NORM", help="clip each member's gradient (default: no)")
    group.add_argument(
        "--divergence-factor", type=_divergence_factor, metavar="FACTOR", help="above 1, or none (default: 5)"
    )
    group.add_argument("--seed", type=int, metavar="SEED", help="the first of several seeds (default: 0)")
    group.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="several devices that share the members, by Ray: auto for all of this machine, or a cluster's address",
    )


def add_checkpoint(parser: Any) -> None:
    """Add --checkpoint, and how it is kept."""
    parser.add_argument(
        "--checkpoint",
        type=kept_folder,
        metavar="DIR",
        help="keep the run here as it goes, in a folder or at a URL, so that the same command, or vecsweep resume "
        "DIR, goes on with it (default: nowhere)",
    )
    parser.add_argument(
        "--checkpoint-every",
        metavar="INTERVAL",
        help="how often, such as 90s, 5min, 1h or '1000 steps' (default: 5min)",
    )
    parser.add_argument("--restart", action="store_true", help="begin anew where DIR holds a run already")


def numbers(text: str) -> list[float]:
    """Read learning rates, as in 1e-3,1e-2."""
    return [
        _number(item, f"learning rates such as 1e-3,1e-2; got {item!r} at position {i}") for i, item in _items(text)
    ]


def counts(text: str) -> list[int]:
    """Read counts, as in 8,64."""
    for i, item in _items(text):
        if not item.isdecimal() or int(item) == 0:
            raise argparse.ArgumentTypeError(f"must be counts such as 8,64; got {item!r} at position {i}")
    return [int(item) for _, item in _items(text)]


def seeds(text: str) -> int | list[int]:
    """Read how many seeds, or the seeds themselves, as in 3,4,5."""
    for i, item in _items(text):
        if not item.isdecimal():
            raise argparse.ArgumentTypeError(f"must be whole numbers such as 3 or 3,4,5; got {item!r} at position {i}")
    return [int(item) for _, item in _items(text)] if "," in text else int(text)


def _items(text: str) -> list[tuple[int, str]]:
    return [(i, item.strip()) for i, item in enumerate(text.split(","), start=1)]


def _chunk_size(text: str) -> int | str:
    if text == "auto" or text.isdecimal():
        return text if text == "auto" else int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number, or auto; got {text!r}")


def _devices(text: str) -> str | list[str]:
    return [item.strip() for item in text.split(",")] if "," in text else text


def _divergence_factor(text: str) -> float | None:
    return None if text.lower() == "none" else _number(text, f"a number, or none; got {text!r}")


def _number(text: str, rule: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {rule}") from None


def output_file(text: str) -> Path:
    """Check where a file can be written, before the work whose result it is to hold."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write to; make it first")
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} is read-only; choose another")
    return path


def weights_file(text: str) -> Path:
    """Check where weights can be written."""
    path = output_file(text)
    if path.suffix != ".safetensors":
        raise argparse.ArgumentTypeError(f"{text!r} must end in .safetensors")
    return path


def picture_file(text: str) -> Path:
    """Check where a picture can be written."""
    path = output_file(text)
    if path.suffix not in (".png", ".pdf", ".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .png, .pdf or .svg")
    return path


def report_file(text: str) -> Path:
    """Check where a report can be written, and that it can be."""
    if find_spec("plotly") is None:
        raise argparse.ArgumentTypeError("a report needs Plotly; run: pip install 'vecsweep[report]'")
    path = output_file(text)
    if path.suffix not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"{text!r} must end in .html")
    return path


def names(text: str) -> list[str]:
    """Read names, as in grad_norm,update_norm."""
    return [name for _, name in _items(text)]


def schedules(text: str) -> list[str]:
    """Read names of schedules, as in constant,one-cycle(div=10, pct_start=0.3), whose arguments may hold commas."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def varied(text: str) -> tuple[str, list[float]]:
    """Read values of a hyperparameter, as in weight_decay=0,1e-2."""
    name, equals, values = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be a name and its values, such as weight_decay=0,1e-2; got {text!r}")
    return name, numbers(values)


def merged(varied: Sequence[tuple[str, list[float]]]) -> dict[str, list[float]]:
    """Put the values of a hyperparameter that was named several times together."""
    found: dict[str, list[float]] = {}
    for name, values in varied:
        found.setdefault(name, []).extend(values)
    return found


def kept_folder(text: str) -> Path | str:
    """Check a folder for checkpoints, which may be a URL, before the work that it is to keep."""
    try:
        folder = folder_of(text)
    except (ImportError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from error
    if is_elsewhere(folder):
        return text
    path = output_folder(str(folder))
    there = next(own for own in (path, *path.absolute().parents) if own.is_dir())
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(there)!r} is read-only; choose another")
    return path


def output_folder(text: str) -> Path:
    """Check a folder that can be made, before the work whose results it is to hold."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file; name a folder")
    return path
