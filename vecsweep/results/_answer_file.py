"""How an answer lies on disk: what it says in the header, and each of its sweeps as a sweep's own file has it."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vecsweep.results._checks import check_answer
from vecsweep.results._files import Arrays, under
from vecsweep.results.ranking import Setting
from vecsweep.results.sweep import Sweep
from vecsweep.results.trial import Trial

if TYPE_CHECKING:
    from vecsweep.results.answer import Answer

_AS_THEY_ARE = (
    *("lr", "schedule", "hyper", "metric", "mode", "start", "tolerance", "noise", "num_steps", "budget", "cost"),
    *("interval", "doubts"),
)


def pack_answer(answer: "Answer") -> tuple[dict[str, Any], Arrays]:
    """What a file holds of an answer: a header, and arrays by name."""
    packed = [runs._packed() for runs in answer.runs]
    header = {
        "kind": type(answer).__name__,
        **{name: getattr(answer, name) for name in _AS_THEY_ARE},
        "trials": [[own.lr, own.schedule, dict(own.hyper), *rest] for own, *rest in answer.trials],
        "runs": [own for own, _ in packed],
    }
    return header, {f"{k}/{name}": values for k, (_, own) in enumerate(packed) for name, values in own.items()}


def unpack_answer(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """The fields of an answer.

    Raises:
        KeyError, TypeError, ValueError: header and arrays are not of one.
    """
    check_answer(header)
    trials = tuple(
        Trial(Setting(lr, schedule, tuple(hyper.items())), tuple(rungs), tuple(scores), *rest)
        for lr, schedule, hyper, rungs, scores, *rest in header["trials"]
    )
    runs = tuple(Sweep._of(path, own, under(f"{k}/", arrays)) for k, own in enumerate(header["runs"]))
    if not any(member.setting == trials[0].setting for own in runs for member in own.members):
        raise ValueError("the winner is in none of its sweeps")
    return {name: header[name] for name in _AS_THEY_ARE} | {
        "interval": tuple(header["interval"]),
        "doubts": tuple(header["doubts"]),
        "trials": trials,
        "winner": trials[0],
        "runs": runs,
    }
