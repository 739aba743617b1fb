"""What the command line says of results: as text for people, and as JSON for programs. Nothing here prints."""

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from vecsweep.results import CheckReport, RangeTest
from vecsweep.suggest import RULES, Suggestion

_MAX_ROWS = 16  # of a table of learning rates


def format_curve(found: RangeTest) -> str:
    """Return a table of learning rates, evenly picked, with the loss that each leads to."""
    picked = np.linspace(0, len(found.lrs) - 1, min(_MAX_ROWS, len(found.lrs))).round().astype(int)
    rows = [
        f"{found.lrs[i]:>10.3g}  {_number(found.scores[i]):>8}  {_describe_divergence(found, i)}".rstrip() for i in picked
    ]
    return "\n".join((f"{'lr':>10}  {'loss':>8}  diverged", *rows))


def format_suggestions(suggestions: dict[str, Suggestion], selected: str) -> str:
    """Return a line for each rule's suggestion, with a mark at the selected one, and what is doubtful about that."""
    width = max(map(len, suggestions))
    lines = [
        f"{'*' if rule == selected else ' '} {rule:<{width}}  lr {s.lr:<9.3g} loss {s.loss:.3g}"
        for rule, s in suggestions.items()
    ]
    doubts = [f"  Doubt: {doubt}" for doubt in suggestions[selected].doubts]
    return "\n".join(("Suggestions (* is the one taken):", *lines, *doubts))


def suggestions_of(found: RangeTest, selected: str | None, smoothing: float | None) -> tuple[dict[str, Suggestion], str]:
    """Ask every rule; return the answers by rule, and the name of the selected or default one.

    Raises:
        ValueError: every learning rate diverged, or there is no such rule.
    """
    taken = found.suggest(selected, smoothing=smoothing).rule
    return {rule: found.suggest(rule, smoothing=smoothing) for rule in RULES}, taken


def describe_range_test(found: RangeTest, suggestions: dict[str, Suggestion], selected: str | None) -> dict[str, Any]:
    """Return what a range test found, for JSON; no suggestions if everything diverged."""
    return {
        "method": found.method,
        "lrs": found.lrs.tolist(),
        "losses": found.scores.tolist(),
        "members": [member._asdict() for member in found.members],
        "suggestion": None if selected is None else asdict(suggestions[selected]),
        "suggestions": {rule: asdict(suggestion) for rule, suggestion in suggestions.items()},
        "engine": found.engine,
        "duration_s": found.duration_s,
        "is_complete": found.is_complete,
    }


def describe_check(report: CheckReport) -> dict[str, Any]:
    """Return what a check found, for JSON."""
    return {"is_equal": report.is_equal, "verdict": report.verdict, **asdict(report)}


def to_json(document: dict[str, Any]) -> str:
    """Return strict JSON, in which a number that is not finite is null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(document), indent=2, allow_nan=False)


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"


def _describe_divergence(found: RangeTest, i: int) -> str:
    """Say when the members at the i-th learning rate diverged; empty if none did."""
    if found.method == "ramp":  # a member for each seed, which goes over all learning rates
        steps = found.diverged_at[(found.diverged_at >= 0) & (found.diverged_at <= i)]
        num_seeds = len(found.members)
    else:
        of_seeds = found.diverged_at.reshape(len(found.lrs), -1)[i]
        steps, num_seeds = of_seeds[of_seeds >= 0], len(of_seeds)
    if len(steps) == 0:
        return ""
    share = f" ({len(steps)} of {num_seeds} seeds)" if num_seeds > 1 else ""
    return f"at step {steps.min()}{share}"
