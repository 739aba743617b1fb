"""The modes of PyTorch that a caller may be inside of, set aside while a run lasts.

A sweep is told its precision by `precision`, and nothing by where it is called. Inside a caller's `torch.autocast` a
step would besides compute with the weights of the first one for ever: autocast keeps its casts of them until the
outermost context is left.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DEVICE_TYPES = ("cpu", "cuda", "xpu", "hpu", "mps", "mtia", "maia", "xla")


@contextmanager
def modes_set_aside() -> Iterator[None]:
    """Leave `torch.autocast`, `torch.no_grad` and `torch.inference_mode` for as long as the context lasts."""
    with _autocast_set_aside(), torch.inference_mode(mode=False), torch.enable_grad():
        yield


@contextmanager
def _autocast_set_aside() -> Iterator[None]:
    known = [kind for kind in _DEVICE_TYPES if torch.amp.is_autocast_available(kind)]
    enabled = [kind for kind in known if torch.is_autocast_enabled(kind)]
    depth = torch.autocast_increment_nesting() - 1
    for _ in range(depth + 1):  # so that a step's own context is the outermost, and takes its casts along as it is left
        torch.autocast_decrement_nesting()
    for kind in enabled:
        torch.set_autocast_enabled(kind, False)
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
        for _ in range(depth):
            torch.autocast_increment_nesting()
