"""Results: what the verbs return, how they are ranked, and how they are read from files.

A module for each: `curves`, what members did; `sweep` and `range_test`, which have pictures, weights and files besides;
`answer`, which learning rate a run should have; `joining`, sweeps of several tasks in one; `ranking`, which settings
chance cannot tell apart; `views`, what pictures and reports read off curves; `frames`, curves for pandas; `_html`,
results in a notebook; `_files` and `_answer_file`, how a result lies on disk; `reading`, results of whichever kind.
"""

from vecsweep._types import PlotKind
from vecsweep.results.answer import Answer
from vecsweep.results.joining import join
from vecsweep.results.member import MemberRecord
from vecsweep.results.range_test import RangeTest
from vecsweep.results.reading import load
from vecsweep.results.sweep import Sweep

__all__ = ["Answer", "MemberRecord", "PlotKind", "RangeTest", "Sweep", "join", "load"]
