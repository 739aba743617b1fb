"""Budget: what is said of a run's memory, before its first step and where there turns out to be too little."""

import logging

import torch

from vecsweep._engine.caller.memory import is_out_of_memory
from vecsweep._engine.caller.room import free_bytes, free_on_gpu
from vecsweep._engine.members.footprint import Footprint
from vecsweep._errors import warn_of_trouble
from vecsweep._words import counted, sized

_LOGGER = logging.getLogger("vecsweep")
_MUCH = 0.05  # of what is free


class _TooLarge(torch.OutOfMemoryError):
    """There is no memory for a step of a single member."""


def check_room(footprint: Footprint, num_members: int, device: torch.device, *, may_offload: bool = False) -> None:
    """Warn where there is less memory than the members' states alone take.

    Args:
        footprint: of the members.
        num_members: of the run.
        device: on which they train.
        may_offload: whether those of a GPU may be in the host's memory instead.
    """
    states, free = num_members * (footprint.weights + (footprint.moments or 0)), free_bytes(device)
    if may_offload and free is not None and states > free:
        free = free_bytes(torch.device("cpu"))
    if free is not None and states > free:
        warn_of_trouble(
            f"The weights and moments of {counted(num_members, 'member')} take {sized(states)}, and {sized(free)} of "
            "memory is free: the run may be ended for want of it. Train fewer members at a time, adapters over a "
            "frozen base, or on several machines by `cluster`."
        )


def is_memory_told() -> bool:
    """Whether anybody reads what `tell_memory` logs."""
    return _LOGGER.isEnabledFor(logging.INFO)


def must_offload(footprint: Footprint, num_members: int, device: torch.device) -> bool:
    """Whether a GPU has no room for a step of one member beside the states of all."""
    return device.type == "cuda" and footprint.total(num_members, 1) > free_on_gpu(device)


def tell_memory(
    footprint: Footprint, num_members: int, num_at_once: int, device: torch.device, *, is_offloaded: bool = False
) -> None:
    """Log what a run takes, and what there is; the record says by `is_much` whether that is a good part of it.

    Args:
        footprint: of the members.
        num_members: of the run.
        num_at_once: that are stepped together.
        device: on which they train.
        is_offloaded: whether the others wait in the memory of the host.
    """
    free, total = free_bytes(device), footprint.total(num_members, num_at_once, is_offloaded=is_offloaded)
    is_much = free is None or total > _MUCH * free
    said = footprint.describe(num_members, num_at_once, free, is_offloaded=is_offloaded)
    _LOGGER.info("memory: %s", said, extra={"is_much": is_much})


def in_words(error: Exception, footprint: Footprint, num_members: int) -> Exception:
    """Say how large a member is where there is no memory for one; any other error is as it was.

    Args:
        error: that ended a run.
        footprint: of the members.
        num_members: of the run.
    """
    if not is_out_of_memory(error) or isinstance(error, _TooLarge):
        return error
    kept = f" and {sized(footprint.activations)} of activations" if footprint.activations else ""
    told = _TooLarge(
        f"There is not enough memory for a step of one member besides the states of {num_members}. A member has "
        f"{sized(footprint.weights)} of parameters, as much again of gradients and of each moment that its optimizer "
        f"keeps{kept}. Train fewer members at a time, or with smaller batches; {error}"
    )
    told.__cause__ = error
    return told
