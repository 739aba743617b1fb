import subprocess
import sys

import pytest

# Allocates and frees 200 MB again and again, and prints how many pages the system had to give for the cheapest of the
# last times; at first a block may not fit where the one before it was, because something small has come to lie there.
FAULTS = """
import resource
import torch
{setup}
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(50_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[-3:]))
"""

needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")


def page_faults(setup):
    program = FAULTS.format(setup=setup)
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


@needs_glibc
def test_freed_memory_is_kept_when_the_command_line_asks_for_it():
    setup = "import vecsweep.cli as cli\ntry: cli.main(['plot', 'missing.npz'])\nexcept SystemExit: pass"
    assert page_faults(setup) < 1000


@needs_glibc
def test_importing_the_library_leaves_the_allocator_alone():
    assert page_faults("import vecsweep, vecsweep.cli") > 1000 < page_faults("")
