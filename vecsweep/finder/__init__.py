"""The drop-in for torch-lr-finder 0.2.2: one sequential range test on the caller's own model, with its interface.

A program changes its import, `import vecsweep.finder as torch_lr_finder` or `from vecsweep.finder import LRFinder`, and
gets the same history for the same seeds. What was a trap there is mended; `LRFinder` lists what. Many learning rates at
once, each from the same weights, are `vecsweep.range_test`.

Reference:
    torch-lr-finder 0.2.2, https://github.com/davidtvs/pytorch-lr-finder, whose behaviour is matched.
"""

from vecsweep.finder.loaders import DataLoaderIter, TrainDataLoaderIter, ValDataLoaderIter
from vecsweep.finder.lr_finder import LRFinder
from vecsweep.finder.ramps import ExponentialLR, LinearLR
from vecsweep.finder.snapshot import StateCacher

__all__ = [
    "DataLoaderIter",
    "ExponentialLR",
    "LRFinder",
    "LinearLR",
    "StateCacher",
    "TrainDataLoaderIter",
    "ValDataLoaderIter",
]
