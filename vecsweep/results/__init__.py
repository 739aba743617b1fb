"""Results: what the verbs return, how they are ranked, and how they are read from files.

A module for each: `sweep` and `range_test`, the results themselves; `ranking`, what chance cannot tell apart; `_files`.
"""

from vecsweep.results.range_test import RangeTest, load
from vecsweep.results.sweep import MemberRecord, PlotKind, Sweep

__all__ = ["MemberRecord", "PlotKind", "RangeTest", "Sweep", "load"]
