"""The least time that a step can take: its operations and its bytes over the rates that this machine reaches."""

import copy
import functools
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

import vecsweep as vs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_MATRIX, _COPIED = (8192, 2**28) if DEVICE == "cuda" else (2048, 2**26)  # rows; numbers of 4 bytes


def roofline_s(task: vs.Task, num_members: int) -> float:
    """Seconds of a step of all members, if nothing but products and the update took time, one hidden by the other.

    Products are those of an ordinary step that torch counts, which on a CPU leaves out its fused LSTM; bytes are
    those that the update reads and writes: parameter, gradient, and each state of the shape of the parameter.
    """
    model = copy.deepcopy(task.model)
    device = next(model.parameters()).device
    optimizer = task.optimizer(model.parameters())
    inputs, targets = (leaf.to(device) for leaf in next(iter(task.batches)))
    with FlopCounterMode(display=False) as counter:
        task.loss_fn(model(inputs), targets).backward()
    optimizer.step()
    num_bytes = 0
    for p in (p for p in model.parameters() if p.requires_grad):
        states = sum(isinstance(s, torch.Tensor) and s.shape == p.shape for s in optimizer.state[p].values())
        num_bytes += p.nbytes * (3 + 2 * states)
    flops_s, bytes_s = _rates()
    # What is frozen is computed once for all members, but counted here for each.
    return num_members * max(counter.get_total_flops() / flops_s, num_bytes / bytes_s)


@functools.cache
def _rates() -> tuple[float, float]:
    """Operations and bytes in a second: of a large product as torch is set, and of a copy, both ways counted."""
    a, b = (torch.randn(_MATRIX, _MATRIX, device=DEVICE) for _ in range(2))
    source = torch.randn(_COPIED, device=DEVICE)
    target = torch.empty_like(source)
    product_s = _fastest(lambda: torch.mm(a, b, out=a.new_empty(a.shape)))
    return 2 * _MATRIX**3 / product_s, 8 * _COPIED / _fastest(lambda: target.copy_(source))


def _fastest(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(6):
        _wait()
        started = time.perf_counter()
        run()
        _wait()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
