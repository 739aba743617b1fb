import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import vecsweep as vs

# Allocates and frees 48 MB again and again, more than the 32 that glibc learns to keep, and prints how many pages the
# system had to give for the cheapest of the last times; at first a block may not fit where the one before it was,
# because something small has come to lie there.
FAULTS = """
import resource
import torch
{setup}
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print({seen})
"""

needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")


def page_faults(setup):
    program = FAULTS.format(setup=setup, seen="min(faults[-8:])")
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@needs_glibc
def test_freed_memory_is_kept_when_the_command_line_asks_for_it():
    setup = "import vecsweep.cli as cli\ntry: cli.main(['plot', 'missing.npz'])\nexcept SystemExit: pass"
    assert page_faults(setup) < 1000


@needs_glibc
def test_importing_the_library_leaves_the_allocator_alone():
    assert page_faults("import vecsweep, vecsweep.cli") > 1000 < page_faults("")


# Allocates the same in each step of a sweep, and prints how many pages the system had to give.
RUN = """
import torch
import torch.nn.functional as F
import vecsweep as vs
from vecsweep._engine.caller import memory
memory._LONG_RUN_S = 0  # what shorter runs leave may stay
def step(model, batch):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12_000_000)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return F.mse_loss(model(batch), batch)
model = torch.nn.Linear(3, 3)
task = vs.Task(model, [torch.ones(2, 3)], training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
vs.sweep(task, lrs=[0.1], num_steps=20, engine="sequential", progress=False)
"""


@needs_glibc
def test_freed_memory_is_kept_for_as_long_as_a_run_lasts():
    kept, after = faults_in_and_after_a_run()
    assert kept < 1000 < after


@needs_glibc
def test_run_leaves_an_allocator_alone_that_its_user_wants_left_alone():
    kept, _ = faults_in_and_after_a_run(VECSWEEP_KEEP_MEMORY="0")
    assert kept > 1000


def faults_in_and_after_a_run(**environment):
    # What lies between blocks may keep later ones from going back; what went back at the end is missing at first.
    program = "import resource\n" + RUN + FAULTS.format(setup="", seen="max(faults)")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    *inside, after = map(int, done.stdout.split())
    return min(inside[-8:]), after


# Trains 16 members of 1,000,000 parameters, whose states are 192 MB, with as much as is said besides what the process
# has already; prints how that ended, and a number that tells the weights.
SHORT = """
import resource
import sys
import warnings
import torch
import torch.nn.functional as F
import vecsweep as vs
warnings.simplefilter("ignore")
torch.set_num_threads(1)
def task(width):
    torch.manual_seed(0)
    model = torch.nn.Linear(width, width, bias=False)
    batches = [(torch.randn(4, width), torch.randn(4, width)) for _ in range(4)]
    return vs.Task(model, batches, F.mse_loss, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))
def train(width, engine):
    how = {"engine": engine, "chunk_size": 16, "compile": False, "progress": False}
    return vs.sweep(TASKS[width], lrs=[1e-4 * (i + 1) for i in range(16)], num_steps=4, **how)
TASKS = {width: task(width) for width in (4, 1000, 3000)}
train(4, "vectorized"), train(4, "sequential")
status = open("/proc/self/status").read()
size = int(status.split("VmSize:")[1].split()[0]) * 1024
RUNS = (None, 1000, "vectorized"), (300, 1000, "vectorized"), (150, 3000, "vectorized"), (150, 3000, "sequential")
for megabytes, width, engine in RUNS:
    most = size + megabytes * 2**20 if megabytes else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        runs = train(width, engine)
        print(megabytes, float(runs.model(3).weight.double().sum()), float(runs.train_loss.sum()))
        del runs
    except torch.OutOfMemoryError as error:
        print(megabytes, engine, str(error).partition(" Train")[0])
"""


@needs_glibc
def test_states_that_fit_train_with_little_more_and_others_are_told_the_size_of_a_member():
    done = subprocess.run([sys.executable, "-c", SHORT], stdout=subprocess.PIPE, text=True, check=True)
    plenty, short, *too_short = done.stdout.splitlines()
    assert short.split()[1:] == plenty.split()[1:], "in halves it is the same training"
    assert len(too_short) == 2
    for line in too_short:
        assert "There is not enough memory" in line
        assert "A member has 34.3 MiB of parameters" in line


def test_model_that_cannot_be_copied_for_want_of_memory_is_an_error_that_says_so():
    class Wide(torch.nn.Linear):
        def __deepcopy__(self, memo):
            return torch.empty(2**50)

    model = Wide(512, 512)
    batches = [(torch.ones(2, 512), torch.ones(2, 512))]
    task = vs.Task(model, batches, F.mse_loss, optimizer=lambda own: torch.optim.SGD(own, lr=0.1))
    with pytest.raises(torch.OutOfMemoryError, match=r"for a copy of the model\. A member has 1 MiB of"):
        vs.range_test(task, num_steps=5)
