"""Experiments on real data, each of which `vecsweep demo NAME` runs, tells and draws.

A demo is a function of a `Stage`: it says what it does as it does it, leaves its files in a folder, and returns what it
found as a document for JSON.
"""

from collections.abc import Callable
from typing import Any

from vecsweep.cli.demos.cyclical import cyclical
from vecsweep.cli.demos.digits import digits_demo
from vecsweep.cli.demos.finder import finder
from vecsweep.cli.demos.policies import policies
from vecsweep.cli.demos.regression import regression
from vecsweep.cli.demos.stage import Stage

DEMOS: dict[str, Callable[[Stage], dict[str, Any]]] = {
    "digits": digits_demo,
    "regression": regression,
    "policies": policies,
    "cyclical": cyclical,
    "finder": finder,
}
