"""A cluster against one device: what it costs to have one, and how well members are divided among many devices.

`bench_overhead` is one worker against none, on a run of about a minute, with a Ray that is started and stopped for it,
or with one that runs, and as many cores on both sides; `bench_beginning` is what of that is the same for runs of any
length. `bench_workers` is two workers against one. `bench_driver` is what 10,000 members bring to the driver, whose
weights stay where they are kept, or come to it. `bench_makespan` trains nothing: `cluster_simulation.py` deals members
out to as many devices as are asked for, some of which fail, with checkpoints and without.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import apart
import numpy as np
import pytest
import torch
from cluster_simulation import PER_DEVICE, Scenario, simulate
from conftest import Compare, Interleave, Record
from workloads import mnist_mlp

import vecsweep as vs
from vecsweep.execution import Cluster

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vecsweep[cluster]'")

HOUR_S = 3600


def _sweep(num_members: int, num_steps: int, num_workers: int | None, address: str = "auto") -> Callable[[], vs.Sweep]:
    task, lrs = mnist_mlp(), np.geomspace(1e-3, 0.1, num_members)
    cluster = None if num_workers is None else Cluster(address=address, kind="cpu", num_workers=num_workers)
    return lambda: vs.sweep(task, lrs=lrs, num_steps=num_steps, cluster=cluster, compile=False, engine="vectorized")


@pytest.fixture
def address() -> Iterator[str]:
    """A Ray that runs, for one worker."""
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield nodes.address
    nodes.shutdown()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Have PyTorch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_worker(num_members: int, num_steps: int, address: str) -> dict[str, Callable[[], vs.Sweep]]:
    """The same run in this process and in a worker."""
    return {
        "no cluster": _sweep(num_members, num_steps, None),
        "one worker, Ray started": _sweep(num_members, num_steps, 1),
        "one worker, Ray runs": _sweep(num_members, num_steps, 1, address),
    }


@pytest.mark.parametrize("runs_already", [False, True])
def bench_overhead(runs_already: bool, compare: Compare, address: str, tiny: bool) -> None:
    """Train for about a minute, on as many cores as the worker has: all, or one of a Ray that runs already."""
    num_members, num_steps = (2, 3) if tiny else (16, 1100 if runs_already else 2000)
    arms = _one_worker(num_members, num_steps, address)
    others = [name for name in arms if name != "no cluster" and name.endswith("runs") == runs_already]
    with _threads(1 if runs_already else torch.get_num_threads()):
        compare(
            {name: arms[name] for name in ("no cluster", *others)},
            rounds=1 if tiny else 2,
            num_members=num_members,
            num_steps=num_steps,
        )


def bench_beginning(interleave: Interleave, record: Record, address: str, tiny: bool) -> None:
    """Train for two steps: what a worker costs, however long it trains; the least of the rounds is least disturbed."""
    seconds = interleave(_one_worker(2, 2, address), rounds=1 if tiny else 10)
    least = {name: min(values) for name, values in seconds.items()}
    record(**{f"{name}_s": own - least["no cluster"] for name, own in least.items() if name != "no cluster"})


def bench_workers(compare: Compare, tiny: bool) -> None:
    """Train the same members in two workers and in one."""
    num_members, num_steps = (2, 3) if tiny else (16, 1500)
    arms = {"two workers": _sweep(num_members, num_steps, 2), "one worker": _sweep(num_members, num_steps, 1)}
    compare(arms, rounds=1 if tiny else 3, num_members=num_members, num_steps=num_steps)


@pytest.mark.parametrize("is_kept", [False, True])
def bench_driver(is_kept: bool, record: Record, tiny: bool) -> None:
    """See what comes to the driver of 10,000 tiny members over 100 steps, and what memory it takes."""
    num_members, num_steps = (20, 3) if tiny else (10_000, 100)
    own = apart.run("driver", num_members, num_steps, is_kept, here=tiny)
    record(num_members=num_members, num_steps=num_steps, is_kept=is_kept, **own)


@pytest.mark.parametrize("checkpoint_s", [None, 600.0])
@pytest.mark.parametrize("hours", [1, 8])
@pytest.mark.parametrize("num_devices", [10, 100, 1_000, 10_000])
def bench_makespan(num_devices: int, hours: int, checkpoint_s: float | None, record: Record, tiny: bool) -> None:
    """Deal members out to devices of three speeds, of which a hundredth fails in an hour and is not replaced."""
    num_devices = min(num_devices, 10) if tiny else num_devices
    scenario = Scenario(num_devices, PER_DEVICE * num_devices, hours * HOUR_S, checkpoint_s=checkpoint_s)
    outcomes = [simulate(scenario, seed) for seed in range(1 if tiny else 20 if num_devices <= 100 else 3)]
    for own in outcomes:
        assert sorted(own.trained) == list(range(scenario.num_members)), "a member was lost"
    ratios, bounds = [own.ratio for own in outcomes], [own.ratio_of_bound for own in outcomes]
    record(
        num_devices=num_devices,
        hours=hours,
        checkpoint_s=checkpoint_s,
        num_runs=len(outcomes),
        failed=statistics.mean(own.num_failed for own in outcomes),
        shards=statistics.mean(own.num_shards for own in outcomes),
        times_ideal=statistics.median(ratios),
        worst=max(ratios),
        times_bound=statistics.median(bounds),
        worst_of_bound=max(bounds),
    )
