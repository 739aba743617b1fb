"""What the benchmarks note besides times: the circumstances, the rows of a subject in a file, and their table.

Not here: how arms are timed (`conftest.py`).
"""

import json
import os
import platform
import re
import statistics
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = ("torch", "numpy", "pytest-benchmark", "torch-lr-finder", "lightning", "fastai", "pytorch-ignite", "jax")
_HIDDEN = {
    "ratios",
    "spreads",
    "num_rounds",
    "load",
    "against",
    "workload",
    "level",
    "window_steps",
}  # in the file alone, or in columns of their own
_LONGEST = 60  # text in a table
_NOTED = 4  # rank of the columns that stand right of times, ratios and targets


def circumstances(*, keeps_memory: bool) -> dict[str, Any]:
    """What a figure depends on besides the code that is measured."""
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "is_modified": bool(_git("status", "--porcelain", "--untracked-files=no", ":!bench/results")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu": _cpu_model(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "allocator": "thresholds raised" if keeps_memory else "as the system has it",
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": _versions(),
    }


def path_of(subject: str, around: dict[str, Any]) -> Path:
    """The file for this subject, device, number of threads and commit."""
    device = re.sub(r"[^a-z0-9]+", "-", around["device"].lower()).strip("-")
    return RESULTS / f"{subject}-{device}-{around['num_threads']}threads-{around['commit']}.json"


def write(subject: str, around: dict[str, Any], rows: list[Row]) -> Path:
    """Write the rows of a subject; rows of other cases that are in the file already stay there."""
    path = path_of(subject, around)
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    merged = {row["name"]: row for row in (*known, *rows)}
    path.write_text(json.dumps({"subject": subject, **around, "rows": list(merged.values())}, indent=1) + "\n")
    return path


def summary(seconds: dict[str, list[float]]) -> Row:
    """Milliseconds of each arm, and ratios of the others to the first; medians over the rounds, and their spread."""
    ours, *others = seconds
    ratios = {arm: [a / b for a, b in zip(seconds[arm], seconds[ours], strict=True)] for arm in others}
    return {
        **{f"{arm}_ms": 1e3 * statistics.median(values) for arm, values in seconds.items()},
        "ratios": {arm: statistics.median(values) for arm, values in ratios.items()},
        "spreads": {arm: [min(values), max(values)] for arm, values in ratios.items()},
        "num_rounds": len(seconds[ours]),
    }


def judge(row: Row) -> bool | None:
    """Whether a row meets its target: the ratio to the arm that `against` names, else to the strongest one."""
    if isinstance(row.get("met"), bool):
        return row["met"]
    target, ratios = row.get("target"), row.get("ratios")
    if not isinstance(target, int | float) or not ratios:
        return None
    return bool((ratios[row["against"]] if "against" in row else min(ratios.values())) >= target)


def line(row: Row) -> str:
    """Say in one line what was found, as the progress of a run."""
    flat = _flatten(row)
    names = sorted((name for name in flat if flat[name] is not None), key=_rank)
    return ", ".join(f"{name} {_format(flat[name])}" for name in names if _rank(name) < _NOTED).removeprefix("name ")


def table(rows: list[Row]) -> str:
    """Lay rows out in aligned columns: times, ratios, targets, the rest; a block for each set of arms."""
    blocks: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        blocks.setdefault(tuple(row.get("ratios", ())), []).append(_flatten(row))
    return "\n\n".join(_block(block) for block in blocks.values())


def _block(rows: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=_rank)  # stable: columns of one rank stay in the order of the rows
    cells = [names, *([_format(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if _is_left(name) else text.rjust(width)
            for name, text, width in zip(names, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _flatten(row: Row) -> Row:
    flat = {name: value for name, value in row.items() if name not in _HIDDEN and not isinstance(value, dict | list)}
    flat |= {f"x {arm}": ratio for arm, ratio in row.get("ratios", {}).items()}
    met = judge(row)
    return flat if met is None else flat | {"met": met}


def _rank(name: str) -> int:
    if _is_left(name):
        return 0 if name == "name" else _NOTED + 1
    if name.startswith("x "):
        return 2
    return {"target": 3, "met": 3}.get(name, 1 if name.endswith(("_ms", "_s")) else _NOTED)


def _is_left(name: str) -> bool:
    return name in ("name", "engine", "note")


def _format(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    except OSError:  # there is none
        return ""
    return done.stdout.strip()
