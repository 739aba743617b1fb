"""Reports: a result as one HTML file that opens anywhere, without a network.

Nothing here trains. `pages` says what a report of each kind of result holds; `against_lr`, `race`, `curves`, `plans`,
`settings` and `members` read it off results, as data that Plotly draws; `document` writes it, with the scripts and the
style in `page/`.

The page draws with Plotly, whose script is written into the file. All text of users is escaped, and the page's own
security policy runs no script but the two that are in it, and loads nothing from anywhere.
"""

from vecsweep.report.pages import report_answer, report_range_test, report_sweep

__all__ = ["report_answer", "report_range_test", "report_sweep"]
