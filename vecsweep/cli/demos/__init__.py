"""Experiments on real data, each of which `vecsweep demo NAME` runs, tells and draws.

Each module has a function `run` of a `Stage`: it says what it does as it does it, leaves its files in a folder, and
returns what it found as a document for JSON.
"""

from collections.abc import Callable
from typing import Any

from vecsweep.cli.demos import cyclical, digits, finder, policies, regression
from vecsweep.cli.demos.stage import Stage

DEMOS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "digits": digits.run,
    "regression": regression.run,
    "policies": policies.run,
    "cyclical": cyclical.run,
    "finder": finder.run,
}
