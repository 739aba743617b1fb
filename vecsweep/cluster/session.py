"""Ray, as the rest knows it: a cluster that is there for a while, its devices, and workers on them."""

import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vecsweep import _cores
from vecsweep.cluster.worker import Worker
from vecsweep.execution import Cluster

_ANSWER_S = 10.0  # that a cluster has to answer, and a worker which has waited between two runs
_AUTH_MODE = "RAY_AUTH_MODE"
_RESOURCES = {"cuda": "GPU", "cpu": "CPU"}
_LOCAL_SETTINGS = {  # Ray's own switches, for a Ray that is started here
    # It listens on the loopback address alone: named for the systems where that is so by default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # It announces no change to come.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


class Gone(Exception):  # noqa: N818 - a state of the other side, that is expected
    """A worker, or the machine that it was on, is no longer there."""


def check_ray() -> None:
    """Raise ImportError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ImportError("`cluster` needs Ray. Run: pip install 'vecsweep[cluster]'")


@contextmanager
def connected(cluster: Cluster, num_members: int) -> Iterator["Session"]:
    """Connect to a cluster, or start Ray on this machine; what was started is stopped afterwards.

    Args:
        cluster: which.
        num_members: of the plan; there is no use for more workers.

    Raises:
        ConnectionError: there is none at the address.
        ImportError: Ray is not installed.
    """
    check_ray()
    has_mode = _AUTH_MODE in os.environ
    # Set before Ray is imported, which looks at them then.
    settings = dict(_LOCAL_SETTINGS) if cluster.is_here else {}
    if cluster.indices:
        settings["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, cluster.indices))
    handler = signal.getsignal(signal.SIGTERM)
    shared = _shared.get()
    with ExitStack() as own:
        with _environment(settings), _quiet(), _own_handler_kept():
            import ray

            if not ray.is_initialized():
                (own if shared is None else shared.stack).callback(_disconnect, handler, has_mode=has_mode)
                _start(cluster)
        yield Session(cluster, num_members, shared)


@dataclass(slots=True)
class _Shared:
    """What the runs of a call share: a connection, and workers that have nothing to do between two of them.

    Attributes:
        stack: ends the connection.
        idle: the workers.
        num_cores: that each of them has.
    """

    stack: ExitStack
    idle: list[Any] = field(default_factory=list)
    num_cores: int = 0

    def fit(self, num_cores: int) -> None:
        """Keep those workers that are still there, if they have so many cores."""
        idle, self.idle = self.idle, []
        for worker in idle:
            if num_cores == self.num_cores and _is_there(worker):
                self.idle.append(worker)
            else:
                _kill(worker)
        self.num_cores = num_cores


_shared: ContextVar[_Shared | None] = ContextVar("shared", default=None)


@contextmanager
def connected_once() -> Iterator[None]:
    """Have all runs of a call share one connection, which the first of them makes, and its workers."""
    with ExitStack() as stack:
        shared = _Shared(stack)
        token = _shared.set(shared)
        try:
            yield
        finally:
            _shared.reset(token)
            shared.fit(0)


def _is_there(worker: Any) -> bool:
    """Whether a worker answers."""
    import ray

    with suppress(ray.exceptions.RayError):
        ray.get(worker.__ray_ready__.remote(), timeout=_ANSWER_S)
        return True
    return False


def _kill(worker: Any) -> None:
    """End a worker, whatever it does."""
    import ray

    with suppress(ray.exceptions.RayError, ValueError):
        ray.kill(worker)


def _disconnect(handler: Any, *, has_mode: bool) -> None:
    """Stop what was started, and put back what Ray has changed."""
    import ray

    ray.shutdown()
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
    if not has_mode:
        _forget_mode()


@contextmanager
def _own_handler_kept() -> Iterator[None]:
    """Let Ray have a handler of SIGTERM only where nobody else has: one that keeps the run, say."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if before is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Ray tell of errors alone."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _forget_mode() -> None:
    """Show no token any longer: a process does in which Ray was started, and clusters that have none refuse it."""
    from ray import _raylet

    os.environ.pop(_AUTH_MODE, None)
    if hasattr(inner := _raylet, "AuthenticationTokenLoader"):  # older ones know of no tokens
        inner.Config.initialize("")
        inner.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables that nobody has set."""
    new = {name: value for name, value in settings.items() if name not in os.environ or name == "CUDA_VISIBLE_DEVICES"}
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reach(address: str) -> None:
    """Raise OSError where nothing listens at "host:port" or "ray://host:port": Ray would try again for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()


def _start(cluster: Cluster) -> None:
    import ray
    from ray._private import ray_constants

    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    if not cluster.is_here:
        try:
            _reach(cluster.address)
            ray.init(cluster.address, **quiet)
        except OSError as error:
            raise ConnectionError(
                f"`cluster` must be the address of a Ray cluster that runs; nothing answered at {cluster.address!r}. "
                'Start one with `ray start --head`, or pass "auto" for this machine alone; where it asks for a token, '
                "set RAY_AUTH_MODE=token."
            ) from error
        return
    num_cpus = _cores.num_cores()
    num_gpus = 0 if cluster.kind == "cpu" else len(cluster.indices) or torch.cuda.device_count()
    if cluster.kind == "cpu":
        num_cpus = max(num_cpus, cluster.num_workers or 0)
    if cluster.kind == "cuda" and num_gpus == 0:
        raise ValueError(
            "`device` must be available; got 'cuda', and PyTorch sees no GPU. Leave it out, or pass 'cpu'."
        )
    # What the first of the settings comes to, for a Ray that was imported before.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init("local", num_cpus=max(num_cpus, num_gpus), num_gpus=num_gpus, include_dashboard=False, **quiet)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class Session:
    """A cluster that is there.

    Args:
        cluster: which.
        num_members: of the plan.
        shared: with other runs; None for nothing.
    """

    def __init__(self, cluster: Cluster, num_members: int, shared: _Shared | None = None) -> None:
        import ray

        self._ray = ray
        self._cluster = cluster
        self.kind = cluster.kind or ("cuda" if ray.cluster_resources().get("GPU", 0) >= 1 else "cpu")
        num_here = min(self.num_devices, num_members)
        num_cores = int(ray.cluster_resources().get("CPU", 1))
        is_one = cluster.is_here and not self.is_uneven
        self._num_cores = max(1, num_cores // num_here) if is_one else 1  # of each worker
        self._shared = shared
        if shared is not None:
            shared.fit(self._num_cores)

    @property
    def num_devices(self) -> int:
        """How many workers there is room for now, or will be; one at least."""
        num_there = int(self._ray.cluster_resources().get(_RESOURCES[self.kind], 0))
        return self._cluster.num_workers or max(1, num_there)

    @property
    def is_uneven(self) -> bool:
        """Whether devices may differ in speed."""
        return len([node for node in self._ray.nodes() if node["Alive"]]) > 1

    def share(self, value: object) -> Any:
        """Put something where all workers find it, once for each machine."""
        return self._ray.put(value)

    def hire(self) -> Any:
        """Ask for a worker; it is there as soon as there is a place for it."""
        if self._shared is not None and self._shared.idle:
            return self._shared.idle.pop()
        num_gpus = 1 if self.kind == "cuda" else 0
        actor = self._ray.remote(Worker).options(num_cpus=self._num_cores, num_gpus=num_gpus, max_concurrency=3)
        return actor.remote(self.kind, [str(Path(path).absolute()) for path in sys.path])  # "" is where this process is

    def dismiss(self, worker: Any, *, is_idle: bool) -> None:
        """Have a worker no longer: one that is idle waits for the next run, if there may be one; others are ended."""
        if is_idle and self._shared is not None:
            self._shared.idle.append(worker)
        else:
            _kill(worker)

    def wait(self, answers: list[Any], timeout_s: float) -> list[Any]:
        """Wait until some of the answers are there; return all that are."""
        self._ray.wait(answers, num_returns=1, timeout=timeout_s)
        return self._ray.wait(answers, num_returns=len(answers), timeout=0)[0]

    def take(self, answer: Any) -> Any:
        """Take an answer that is there.

        Raises:
            Gone: the worker is not.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except errors.RayTaskError:  # an error of ours, over there
            raise
        except errors.RayError as error:
            raise Gone(next((line for line in str(error).splitlines() if line), type(error).__name__)) from error
