"""Peak memory against the number of members: the batched pass, and the sequential engine.

Each figure is of a process of its own: what it holds at most, less what it held before the sweep. On a CPU that is
resident memory, to which belong the modules that are loaded when a sweep is first traced (the row of one member shows
how much they are); on a GPU, what torch allocated.
"""

import apart
import pytest
from conftest import Record

NUM_STEPS = 4  # the step is eager in the first, traced in the second, checked against the eager one in the third


@pytest.mark.parametrize("num_members", [1, 4, 16, 64])
@pytest.mark.parametrize("workload", ["mnist-mlp", "cnn"])
def bench_memory(workload: str, num_members: int, record: Record, request: pytest.FixtureRequest, tiny: bool) -> None:
    """Sweep with both engines, and compare what they needed and found."""
    keeps_memory = not request.config.option.system_allocator
    num_members = min(num_members, 2) if tiny else num_members
    ours, stock = (
        apart.run("memory", workload, num_members, NUM_STEPS, engine, keeps_memory, here=tiny)
        for engine in ("vectorized", "sequential")
    )
    record(
        num_members=num_members,
        params_mb=ours["params_mb"],
        batched_mb=ours["peak_mb"],
        sequential_mb=stock["peak_mb"],
        times_sequential=ours["peak_mb"] / max(stock["peak_mb"], 1e-3),
        deviation=abs(ours["loss"] / stock["loss"] - 1),
    )
