"""Pictures of results, plans and schedules: Axes in, Axes out.

Nothing here trains, shows a window or touches pyplot's state. The colours are those that the colour-blind tell apart;
in grey, line styles and markers do.

Reference:
    Okabe and Ito, Color Universal Design, 2008, https://jfly.uni-koeln.de/color/
    Nuñez, Anderton and Renslow 2018, Optimizing colormaps with consideration for color vision deficiency,
    https://arxiv.org/abs/1712.01662
"""

from vecsweep.plot.plan import plot_plan, plot_rows, plot_schedule
from vecsweep.plot.race import plot_race
from vecsweep.plot.range_test import plot_range_test
from vecsweep.plot.sweep import plot_sweep

__all__ = ["plot_plan", "plot_race", "plot_range_test", "plot_rows", "plot_schedule", "plot_sweep"]
