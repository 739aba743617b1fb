"""Processes that are killed at random moments, whose runs go on in others: bit for bit what nobody disturbed.

`make soak` kills more of them, and those that take long.
"""

import os
import signal
import time

import numpy as np
import pytest
from kept_runs import assert_same, call, fork, make_task, noisy, shuffled

import vecsweep as vs

NUM_KILLS = int(os.environ.get("VECSWEEP_KILLS", "10"))
is_soak = pytest.mark.skipif(NUM_KILLS <= 10, reason="takes long; `make soak` has it")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")


def assert_survives(run, whole, folder, num_kills):
    """That runs which are killed so many times, at most 20 times each, come to the same end."""
    started = time.monotonic()
    assert os.waitpid(fork(lambda: run(folder / "timed")), 0)[1] == 0
    duration_s, rng, killed = time.monotonic() - started, np.random.default_rng(num_kills), 0
    while killed < num_kills:
        own, status = folder / f"after-{killed}", None
        for may_be_killed in [True] * min(20, num_kills - killed) + [False]:
            is_fresh, started = not own.exists(), time.monotonic()
            child = fork(lambda: run(own))  # noqa: B023
            status = status_of(child, rng.uniform(0, duration_s) if may_be_killed else np.inf)
            if status != signal.SIGKILL:
                if is_fresh:  # the cores may have been busier before
                    duration_s = min(duration_s, time.monotonic() - started)
                break
            killed += 1
        assert status == 0
        assert_same(run(own), whole)  # which only reads it
        assert not [path for pattern in (".new-*", ".old-*") for path in own.rglob(pattern)]


def status_of(child, seconds):
    """How a process ends, which is killed after so many seconds if it has not ended by itself."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize(
    ("case", "num_kills"),
    [
        ("sgd", NUM_KILLS),
        ("adamw, seeds and chunks", NUM_KILLS),
        ("dropout and batch norm", NUM_KILLS),
        ("plateau and patience", NUM_KILLS),
        ("fp16", NUM_KILLS),
        # Workers see within 5 s that who started them is gone, and only then is the folder free.
        ("workers", NUM_KILLS // 5),
        pytest.param("compiled", NUM_KILLS // 10, marks=is_soak),
    ],
)
def test_sweep_that_is_killed_at_any_moment_goes_on_bit_for_bit(case, num_kills, tmp_path):
    # Where the workers persist, a run that is kept draws other numbers than one that is not.
    whole = call(case, tmp_path / "whole" if case == "workers" else None)
    assert case != "compiled" or "compiled" in whole.engine
    assert_survives(lambda folder: call(case, folder), whole, tmp_path, num_kills)


def test_range_test_that_is_killed_at_any_moment_goes_on_bit_for_bit(tmp_path):
    def run(folder=None):
        kept = {} if folder is None else {"checkpoint": folder, "checkpoint_every": "3 steps"}
        return vs.range_test(make_task(noisy, shuffled), num_lrs=6, num_steps=60, seeds=2, compile=False, **kept)

    assert_survives(run, run(), tmp_path, NUM_KILLS)
