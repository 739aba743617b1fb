"""What several test files need."""

import gc
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

# PyTorch's threads sleep while they wait for each other, here and in processes that tests start: those of several tests
# share the cores. It is read as PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch

from vecsweep import execution

sys.path.insert(0, str(Path(__file__).parent))  # so that tests can import `stock`
import stock
from pretended_gpu import pretended_gpu

torch.set_num_threads(1)  # tests are small, and two threads wait for each other on a busy machine

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

HAS_GPU = torch.cuda.is_available()


def pytest_addoption(parser):
    parser.addoption("--gpu", action="store_true", help="only what runs on a GPU, and there")
    parser.addoption("--pretend-gpu", action="store_true", help="what runs on every device, on a GPU that is pretended")


def pytest_generate_tests(metafunc):
    """Run what asks for a `device` on each that there is, so that none is skipped test by test."""
    if "device" in metafunc.fixturenames:
        devices = ["cuda"] if metafunc.config.option.gpu else ["cpu", *(["cuda"] if HAS_GPU else [])]
        if metafunc.config.option.pretend_gpu:
            devices = ["pretended"]
        metafunc.parametrize("device", devices, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session):
    """Leave what imports have made, over a million objects, out of every later round of the garbage collector.

    Each round through them takes half a second, and many a test asks for one, or calls what does.
    """
    import hypothesis  # noqa: F401 - its plugin does so at the end, and asks then who refers to what is left out

    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(config, items):
    def is_left_out(item):
        needs_gpu = item.get_closest_marker("gpu") is not None
        if config.option.gpu or config.option.pretend_gpu:
            return not ((needs_gpu and config.option.gpu) or "device" in getattr(item, "fixturenames", ()))
        return needs_gpu and not HAS_GPU

    left_out = list(filter(is_left_out, items))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not is_left_out(item)]


def pytest_terminal_summary(terminalreporter):
    if not HAS_GPU:
        terminalreporter.write_line('no GPU: the cases on "cuda" are left out')


@pytest.fixture
def device(request, monkeypatch):
    """Where a verb trains that is not told where, and the ordinary loops beside it."""
    name = "cuda" if request.param == "pretended" else request.param
    check = execution._check_device
    monkeypatch.setattr(execution, "_check_device", lambda given: check(name if given is None else given))
    monkeypatch.setattr(stock, "DEVICE", torch.device(name))
    with pretended_gpu() if request.param == "pretended" else nullcontext():
        yield name


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
