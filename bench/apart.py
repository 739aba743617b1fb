"""What has to be measured in a process of its own, because it can be done only once: starting, and reaching a peak.

`run` starts such a process; started, this file does one thing and prints what it measured as JSON.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPILED_STEPS = 8  # enough for a step to be traced, checked, compiled and checked


def run(name: str, *arguments: object, here: bool = False, **environment: str) -> dict[str, float]:
    """Do one of the things below in a new process, with as many threads as this one; return what it measured.

    With `here` it is done in this process, which is quicker where only its working is looked at.
    """
    if here:
        return globals()[name](*map(str, arguments))
    done = subprocess.run(
        [sys.executable, __file__, name, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())} | environment,
    )
    return json.loads(done.stdout.splitlines()[-1])


def importing() -> dict[str, float]:
    """Import the library, after torch."""
    started = time.perf_counter()
    from vecsweep import sweep  # noqa: F401  # names are imported when they are asked for

    return {"import_s": time.perf_counter() - started}


def start(workload: str, is_tiny: str) -> dict[str, float]:
    """Take the first steps of sweeps: the first eager one, and the traced one.

    A step is traced when it comes for the second time; the seconds to trace it are those of this step too.
    """
    sweep_s = _sweeps(workload, is_tiny)
    num_times = 1 if is_tiny == "True" else 3
    first_step_s, again_s = sweep_s(1), min(sweep_s(1) for _ in range(num_times))
    traced_s, retraced_s = sweep_s(2), min(sweep_s(2) for _ in range(num_times))
    return {"first_step_s": first_step_s, "trace_s": traced_s - again_s, "retrace_s": retraced_s - again_s}


def compiling(workload: str, is_tiny: str) -> dict[str, float]:
    """See what a sweep takes longer when its step is compiled."""
    sweep_s = _sweeps(workload, is_tiny)
    if is_tiny == "False":
        sweep_s(COMPILED_STEPS)  # what the first sweep of a process takes is not the compiler's
    uncompiled_s = sweep_s(COMPILED_STEPS)
    return {"compile_s": sweep_s(COMPILED_STEPS, compile=True) - uncompiled_s}


def _sweeps(name: str, is_tiny: str) -> Callable[..., float]:
    """A function that sweeps a workload for some steps, and returns how long it took."""
    import numpy as np
    from workloads import WORKLOADS

    import vecsweep as vs

    workload = WORKLOADS[name].tiny() if is_tiny == "True" else WORKLOADS[name]
    torch.manual_seed(0)
    task, lrs = workload.make(), np.geomspace(1e-4, 1e-2, workload.num_members)
    torch.ones(1, device=DEVICE)  # what a GPU takes to start is not ours

    def sweep_s(num_steps: int, **how: Any) -> float:
        started = time.perf_counter()
        vs.sweep(task, lrs=lrs, num_steps=num_steps, device=DEVICE, progress=False, **{"compile": False, **how})
        return time.perf_counter() - started

    return sweep_s


def range_test(num_lrs: str, num_steps: str) -> dict[str, float]:
    """Make a range test of the digits MLP twice; the first call has what the process loads for it."""
    from workloads import digits_mlp

    import vecsweep as vs

    torch.ones(1, device=DEVICE)
    torch.manual_seed(0)
    task, seconds = digits_mlp(), []
    for _ in range(2):
        started = time.perf_counter()
        vs.range_test(task, num_lrs=int(num_lrs), num_steps=int(num_steps), device=DEVICE, progress=False)
        seconds.append(time.perf_counter() - started)
    return {"first_call_s": seconds[0], "second_call_s": seconds[1]}


def memory(workload: str, num_members: str, num_steps: str, engine: Any, keeps_memory: str) -> dict[str, float]:
    """Sweep, and see by how much memory has risen at most."""
    import numpy as np
    from workloads import WORKLOADS

    import vecsweep as vs
    from vecsweep._engine.caller.memory import keep_memory

    if keeps_memory == "True":
        keep_memory()
    torch.manual_seed(0)
    task, lrs = WORKLOADS[workload].make(), np.geomspace(1e-4, 1e-2, int(num_members))
    torch.ones(1, device=DEVICE)
    before, _ = _memory_mb()
    runs = vs.sweep(
        task,
        lrs=lrs,
        num_steps=int(num_steps),
        device=DEVICE,
        engine=engine,
        compile=False,
        divergence_factor=None,
        progress=False,
    )
    _, peak = _memory_mb()
    own = sum(p.nbytes for p in task.model.parameters() if p.requires_grad)
    return {"peak_mb": peak - before, "params_mb": own * len(lrs) / 1e6, "loss": float(runs.train_loss[-1].mean())}


def members(num_members: str, num_steps: str) -> dict[str, float]:
    """Sweep a tiny model at many learning rates, and see what time and memory it takes."""
    sweep = _tiny_sweeps(int(num_steps))
    sweep(10)  # what is loaded for the first
    (before, _), started = _memory_mb(), time.process_time()
    runs = sweep(int(num_members))
    runs.best()
    return {"cpu_s": time.process_time() - started, "peak_mb": _memory_mb()[1] - before}


def driver(num_members: str, num_steps: str, is_kept: str) -> dict[str, float]:
    """Sweep it on a cluster of two workers, and see what comes to the driver, and what memory that takes."""
    import tempfile

    from vecsweep.cluster.session import Session
    from vecsweep.execution import Cluster

    sweep, cluster, traffic = _tiny_sweeps(int(num_steps)), Cluster(kind="cpu", num_workers=2), [0]
    take = Session.take

    def counted(self: Session, answer: Any) -> Any:
        said = take(self, answer)
        traffic[0] += len(said)
        return said

    sweep(2, cluster=cluster)
    before, _ = _memory_mb()
    Session.take = counted
    try:
        with tempfile.TemporaryDirectory() as folder:
            sweep(int(num_members), cluster=cluster, checkpoint=folder if is_kept == "True" else None)
    finally:
        Session.take = take
    return {"traffic_mb": traffic[0] / 1e6, "peak_mb": _memory_mb()[1] - before}


def _tiny_sweeps(num_steps: int) -> Callable[..., Any]:
    """A function that sweeps a tiny model over so many learning rates."""
    import numpy as np
    from torch import nn

    import vecsweep as vs

    torch.manual_seed(0)
    inputs = torch.randn(64, 3)
    batches = [(inputs, torch.sin(inputs.sum(1, keepdim=True)))]
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task = vs.Task(model, batches, nn.functional.mse_loss, optimizer=optimizer, val_batches=batches)

    def sweep(num: int, **how: Any) -> vs.Sweep:
        lrs = np.geomspace(1e-4, 1, num)
        how = {"engine": "vectorized", "compile": False, "progress": False, **how}
        return vs.sweep(task, lrs=lrs, num_steps=num_steps, val_every=num_steps, **how)

    return sweep


def _memory_mb() -> tuple[float, float]:
    """What the process holds now, and what it held at most.

    Not `getrusage`: its maximum starts from that of the process which started this one.
    """
    if DEVICE == "cuda":
        return torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()
    now, peak = (int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) / 1e3 for name in ("VmRSS", "VmHWM"))
    return now, peak


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
