"""What several test files need."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `stock`
torch.set_num_threads(1)  # tests are small, and two threads wait for each other on a busy machine


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep the choices that tests make out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VECSWEEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def float64():
    """Make float64 the default, as models, data and NAdam's scalar state take it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
