"""The compile policy, in one place: how a traced step is compiled.

Inductor is handed the graph itself. `torch.compile` would look at the graph's Python again, and check its assumptions
about every tensor at each call, which takes a tenth of a small step.

It compiles in a thread of its own, since that takes tens of seconds and cannot be broken off: an exception inside of
an import, or of what enters or leaves one of PyTorch's modes, may leave the compiler unusable. Whoever does not want
its code any more just leaves; the compiler ends by itself, and Inductor finds its code on disk the next time. Only at
the exit of the process it is broken off: Python ends threads where they stand, which C++ takes for a crash.
"""

import atexit
import contextvars
import ctypes
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

_LOOK_S = 0.05  # between two looks whether the code is still wanted
_EXIT_S = 2.0  # that the exit of a process waits for a compiler that was broken off
_turn = threading.Lock()  # Inductor's settings are those of the process


class GivenUp(Exception):  # noqa: N818 - an answer to whoever waits, not a failure
    """The code is not wanted any more; nothing of the graph that was to be compiled has run."""


class _Compiled(nn.Module):
    """A graph, compiled at its first call for tensors like those of that call."""

    def __init__(self, graph: GraphModule, is_wanted: Callable[[], bool]) -> None:
        super().__init__()
        self._graph = graph
        self._is_wanted = is_wanted
        self._code: Callable[..., Any] | None = None

    def forward(self, *tensors: Tensor) -> Any:
        """Compute what the graph computes.

        Raises:
            GivenUp: at the first call, if the code is not wanted any more.
        """
        if self._code is None:
            with FakeTensorMode():  # the first of the process: begun in another thread, PyTorch 2.11 for CUDA crashes
                pass
            self._code = _while_wanted(self._is_wanted, lambda: _compile(self._graph, tensors))
        return self._code(*tensors)


def compile_graph(graph: GraphModule, is_wanted: Callable[[], bool]) -> Callable[..., list[Tensor]]:
    """Hand a graph to Inductor, or each of the graphs it is made of; it is compiled at the first call.

    Args:
        graph: a traced step; of those it is made of, only the last may write to its inputs.
        is_wanted: asked again and again, by the thread that waits, while Inductor compiles.
    """
    parts = list(graph.named_children())
    if not parts:
        return _Compiled(graph, is_wanted)
    for name, part in parts:
        assert isinstance(part, GraphModule)
        setattr(graph, name, _Compiled(part, is_wanted))
    return graph.forward


def _compile(graph: GraphModule, tensors: tuple[Tensor, ...]) -> Callable[..., Any]:
    import torch._inductor  # takes longer to import than torch itself

    device = tensors[0].device
    with torch.no_grad(), torch.cuda.device(device if device.type == "cuda" else -1):  # which no thread inherits
        return torch._inductor.compile(graph, list(tensors))


def _while_wanted(is_wanted: Callable[[], bool], function: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Call a function in a thread of its own; wait for what it returns or raises, as long as that is wanted."""
    context, is_given_up = contextvars.copy_context(), threading.Event()
    result: Future[Callable[..., Any]] = Future()

    def call() -> None:
        with _turn:
            if is_given_up.is_set():  # while it waited for one that was given up before it
                return
            try:
                result.set_result(context.run(function))
            except BaseException as error:
                result.set_exception(error)

    thread = threading.Thread(target=call, name="vecsweep-compile", daemon=True)
    thread.start()
    try:
        while is_wanted():
            try:
                return result.result(_LOOK_S)
            except TimeoutError:
                if result.done():  # and it is the compiler's own
                    raise
        raise GivenUp
    finally:  # also after an exception that a signal raised
        is_given_up.set()
        if not result.done():
            atexit.register(_break_off, thread)


def _break_off(thread: threading.Thread) -> None:
    before, until_s = sys.unraisablehook, time.monotonic() + _EXIT_S
    sys.unraisablehook = lambda unraisable: None  # it may come while a callback runs, which drops it and says so
    while thread.is_alive() and time.monotonic() < until_s:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(_LOOK_S)
    sys.unraisablehook = before
