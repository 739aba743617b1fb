"""How the benchmarks measure: arms interleaved in one run, medians of ratios, the circumstances beside the figures."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleave(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each arm once a round, in turn, so that what else the machine does falls on all of them.

    Args:
        arms: what is timed, by name.
        rounds: how often.

    Returns:
        Seconds of each arm in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            started = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over the rounds of how many times longer one arm took than the other."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def circumstances() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write(subject: str, rows: list[dict[str, Any]]) -> Path:
    """Write the rows of a benchmark to one JSON file for this subject, device and commit."""
    around = circumstances()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    path = RESULTS / f"{subject}-{kind}-{around['num_threads']}threads-{around['commit']}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"subject": subject, **around, "rows": rows}, indent=1) + "\n")
    return path
