"""Two nodes for all tests of clusters, and workers that the tests of a file share."""

import signal
import sys

import clusters
import pytest


@pytest.fixture(autouse=True, scope="module")
def sent_by_value(request):
    """Send what tests define with a task: workers do not have the folder of the tests."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    modules = (clusters, sys.modules[request.module.__name__])
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(autouse=True, scope="package")
def handlers():
    """Put back those that `ray.init` and Tune have replaced, and that neither puts back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="package")
def nodes(handlers):
    """A cluster of two nodes with a core each."""
    with clusters.two_nodes() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def warm(nodes):
    """The same cluster; all calls of a file have one connection to it and its workers, as the runs of one call do."""
    from vecsweep.cluster.session import connected_once

    with connected_once():
        yield nodes


@pytest.fixture
def third(nodes):
    """What adds a third node, and removes it; it is gone after the test."""
    added = []

    def add():
        added.append(nodes.add_node(num_cpus=1, object_store_memory=clusters.STORE))

    def remove():
        nodes.remove_node(added.pop(), allow_graceful=False)

    yield add, remove
    while added:
        remove()
