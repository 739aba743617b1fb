"""What a result read from a file must be, before anything is computed with it, and a model that is written to one."""

import sys
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vecsweep._types import Method, Mode


def check_is_dense(model: nn.Module) -> None:
    """Raise TypeError if a model has what safetensors has no words for."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, torch.Tensor) and tensor.layout != torch.strided:
            raise TypeError(
                f"A safetensors file holds dense tensors; {name!r} is {tensor.layout}. Write it by "
                "`torch.save(runs.model(i).state_dict(), path)`."
            )


def check_content(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise KeyError or ValueError unless header and arrays are of one sweep, in kinds and in shapes.

    Args:
        header: as `Sweep.save` writes it.
        arrays: likewise.
    """
    members = header["members"]
    _hold(isinstance(members, list) and len(members) > 0, "members")
    for member in members:
        _hold(isinstance(member, list) and len(member) == 6 and _is_member(*member), "members")
    _hold(_are_alike([member[5] for member in members]), "members")
    phases, steps_per_epoch = header["phases"], header["steps_per_epoch"]
    _hold(isinstance(phases, list) and all(_is_count(phase) for phase in phases), "phases")
    _hold(steps_per_epoch is None or (_is_number(steps_per_epoch) and steps_per_epoch > 0), "steps_per_epoch")
    _hold(isinstance(header["engine"], str), "engine")
    _hold(_is_number(header["duration_s"]), "duration_s")
    _hold(isinstance(header["is_complete"], bool), "is_complete")
    in_doubt_from = header.get("in_doubt_from")
    _hold(in_doubt_from is None or _is_count(in_doubt_from), "in_doubt_from")
    folds = header.get("folds")
    _hold(folds is None or (_is_count(folds) and folds > 1), "folds")
    about = header.get("about", {})
    _hold(isinstance(about, dict) and all(isinstance(own, str) for own in about.values()), "about")
    _hold("method" not in header or header["method"] in get_args(Method), "method")

    num_steps = arrays["lr"].shape[0] if arrays["lr"].ndim else 0
    num_evaluations = arrays["evaluated_at"].size
    for name, array in arrays.items():
        if name == "evaluated_at":
            is_fit = array.ndim == 1 and np.issubdtype(array.dtype, np.integer)
        else:
            rows = num_evaluations if name.startswith("metrics/") else num_steps
            is_fit = array.shape == (rows, len(members)) and np.issubdtype(array.dtype, np.floating)
        _hold(is_fit, name)
    at = arrays["evaluated_at"]
    _hold(at.size == 0 or bool(at[0] >= 0 and at[-1] <= num_steps and (np.diff(at) > 0).all()), "evaluated_at")
    _hold(not ((arrays["lr"] < 0) | np.isinf(arrays["lr"])).any(), "lr")
    _hold(phases[:1] == [0] and phases == sorted(phases) and phases[-1] <= num_steps, "phases")
    _hold(all(_is_within(member[3], member[4], num_steps) for member in members), "members")


def check_answer(header: Mapping[str, Any]) -> None:
    """Raise KeyError or ValueError unless a header is of an answer, in kinds; its sweeps are looked at one by one.

    Args:
        header: as `Answer.save` writes it.
    """
    for name in ("lr", "start", "tolerance", "noise", "budget", "cost"):
        _hold(type(header[name]) in (int, float), name)
    for name in ("schedule", "metric"):
        _hold(isinstance(header[name], str), name)
    _hold(header["mode"] in get_args(Mode), "mode")
    _hold(_is_number(header["lr"]) and header["lr"] > 0, "lr")
    interval, doubts, trials = header["interval"], header["doubts"], header["trials"]
    _hold(isinstance(interval, list) and len(interval) == 2 and all(map(_is_number, interval)), "interval")
    _hold(_is_count(header["num_steps"]) and header["num_steps"] > 0, "num_steps")
    _hold(isinstance(header["hyper"], dict) and all(map(_is_number, header["hyper"].values())), "hyper")
    _hold(isinstance(doubts, list) and all(isinstance(own, str) for own in doubts), "doubts")
    _hold(isinstance(trials, list) and len(trials) > 0, "trials")
    for trial in trials:
        _hold(isinstance(trial, list) and len(trial) == 7 and _is_trial(*trial), "trials")
    _hold(isinstance(header["runs"], list), "runs")


def _is_trial(lr: Any, schedule: Any, hyper: Any, rungs: Any, scores: Any, gap: Any, is_late: Any) -> bool:
    return (
        _is_member(lr, schedule, 0, None, None, hyper)
        and isinstance(rungs, list)
        and isinstance(scores, list)
        and len(rungs) == len(scores) > 0
        and all(_is_number(rung) and 0 < rung <= 1 for rung in rungs)
        and all(type(own) in (int, float) for own in (*scores, gap))
        and isinstance(is_late, bool)
    )


def _is_member(lr: Any, schedule: Any, seed: Any, diverged_at: Any, stopped_at: Any, hyper: Any) -> bool:
    return (
        _is_number(lr)
        and lr > 0
        and isinstance(schedule, str)
        and _is_count(seed)
        and all(step is None or _is_count(step) for step in (diverged_at, stopped_at))
        and isinstance(hyper, dict)
        and all(map(_is_number, hyper.values()))
    )


def _is_within(diverged_at: int | None, stopped_at: int | None, num_steps: int) -> bool:
    return (diverged_at is None or diverged_at < num_steps) and (stopped_at is None or stopped_at <= num_steps)


def _are_alike(hypers: list[dict[str, float]]) -> bool:
    return all(hyper.keys() == hypers[0].keys() for hyper in hypers)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _hold(is_fit: bool, name: str) -> None:
    if not is_fit:
        raise ValueError(f"`{name}` is not what a result has")
