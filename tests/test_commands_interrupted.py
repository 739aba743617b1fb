"""Ctrl-C at any moment of a command: imports, the task, training, ranking, pictures. `make soak` tries many more."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import vecsweep as vs

NUM_PRESSES = int(os.environ.get("VECSWEEP_SOAK_PRESSES", "6"))
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single child process")

TASK = """
import torch
import torch.nn.functional as F
import vecsweep as vs
def task():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    batches = [(torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(20)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return vs.Task(model, batches, F.cross_entropy, optimizer=optimizer, val_batches=batches[:2])
"""
# What the console script does; then it is up.
COMMAND = "import os, sys; from vecsweep.__main__ import command; os.write(1, b'up'); sys.exit(command())"


def start(folder, *options):
    words = ["sweep", "run.py:task", "--lrs", "0.01,0.1", "--num-steps", "400", "--output-dir", "out", *options]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


@pytest.mark.parametrize("options", [[], ["--compile"]], ids=["eager", "compiled"])
def test_ctrl_c_at_any_moment_ends_a_command_with_130_and_no_traceback(options, tmp_path):
    if options and NUM_PRESSES <= 6:
        pytest.skip("compiling takes long; `make soak` has it")
    (tmp_path / "run.py").write_text(TASK)
    with start(tmp_path, *options) as process:
        assert process.stdout.read(2) == b"up"
        started = time.monotonic()
        process.communicate(timeout=300)
        duration_s = time.monotonic() - started
    assert process.returncode == 0
    random, waited_s, num_pressed = np.random.default_rng(0), [], 0
    for _ in range(NUM_PRESSES):
        with start(tmp_path, *options) as process:
            assert process.stdout.read(2) == b"up"
            try:
                _, err = process.communicate(timeout=random.uniform(0, duration_s))
            except subprocess.TimeoutExpired:
                pressed = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                _, err = process.communicate(timeout=60)
                waited_s.append(time.monotonic() - pressed)
        num_pressed += process.returncode != 0
        # It may have been over, or, while PyTorch was loaded, ended by the signal itself: 130 for a shell.
        assert process.returncode in (0, 130, -signal.SIGINT), err.decode()
        assert b"Traceback" not in err
        assert b"Exception ignored" not in err
        vs.load(tmp_path / "out" / "sweep.npz")
        assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".npz", ".png"}
    assert num_pressed > NUM_PRESSES / 3
    sys.stdout.write(
        f"{num_pressed} of {NUM_PRESSES}: at most {max(waited_s):.2f} s, mostly {np.median(waited_s):.2f}\n"
    )
