"""What it costs to start: the import, the first step, the trace, the compiler, and the first result of the demo.

Every figure is a median over new processes. `trace_s` is the first trace of a process, which loads what tracing needs;
`retrace_s` is another one. Compiling is measured with Inductor's cache on disk empty, and filled.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import apart
import pytest
import torch
from conftest import Record

PROCESSES = 5
COMPILING_PROCESSES = 3
IMPORT_TARGET_S = 0.1


def _medians(measured: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in measured) for name in measured[0]}


def bench_import(record: Record, tiny: bool) -> None:
    """Import the library, after torch."""
    found = _medians([apart.run("importing") for _ in range(1 if tiny else PROCESSES)])
    record(**found, target=IMPORT_TARGET_S, met=found["import_s"] < IMPORT_TARGET_S)


def bench_range_test(record: Record, tiny: bool) -> None:
    """Make a range test of 64 learning rates and 100 steps in a new process, and another."""
    shape = (2, 5) if tiny else (64, 100)
    record(**_medians([apart.run("range_test", *shape, here=tiny) for _ in range(1 if tiny else PROCESSES)]))


@pytest.mark.parametrize("workload", ["digits-mlp", "cnn", "char-gpt"])
def bench_first_steps(workload: str, record: Record, tiny: bool) -> None:
    """Take the first step of a sweep, and trace it."""
    found = [apart.run("start", workload, tiny, here=tiny) for _ in range(1 if tiny else PROCESSES)]
    record(**_medians(found))


@pytest.mark.parametrize("workload", ["digits-mlp", "cnn", "char-gpt"])
def bench_compiling(workload: str, record: Record, tmp_path: Path, tiny: bool) -> None:
    """Compile the traced step, without and with what an earlier process left on disk."""
    cold, warm = [], []
    for i in range(COMPILING_PROCESSES if not tiny else 1):
        how = {"here": tiny, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(i))}
        cold.append(apart.run("compiling", workload, tiny, **how)["compile_s"])
        # Where nothing is compiled, there is nothing on disk.
        warm.append(cold[-1] if tiny else apart.run("compiling", workload, tiny, **how)["compile_s"])
    record(compile_s=statistics.median(cold), compile_from_disk_s=statistics.median(warm))


def bench_demo(record: Record, tmp_path: Path, tiny: bool) -> None:
    """Run `vecsweep demo --quick`; see when the suggestion is there, and when all is done."""
    record(**_medians([_demo(tmp_path) for _ in range(1 if tiny else PROCESSES)]))


def _demo(folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "vecsweep", "demo", "--quick", "--output-dir", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Suggestion"):
                break
        else:
            pytest.fail("The demo ended without a suggestion.")
        first_result_s = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0
    return {"first_result_s": first_result_s, "whole_s": time.perf_counter() - started}
