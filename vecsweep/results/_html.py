"""How results look in a notebook: a few words, a short table, a picture. All text is escaped."""

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from vecsweep._words import cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 10
_DPI = 80


def html_paragraph(text: str) -> str:
    """Return text as a paragraph, with its line breaks."""
    return f"<p>{'<br>'.join(map(escape, text.splitlines()))}</p>"


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    """Return the first rows of a table; the last line says how many are left out."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    shown = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in rows[:_MOST_ROWS])
    left_out = len(rows) - _MOST_ROWS
    more = f'<tr><td colspan="{len(columns)}">and {left_out} more</td></tr>' if left_out > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{shown}{more}</tbody></table>"


def html_picture(axes: "Axes", alt: str) -> str:
    """Return the figure that axes are in as a picture."""
    figure = axes.get_figure(root=True)
    assert figure is not None  # the axes have just been made in one
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _html_cell(value: str | float | int | None) -> str:
    text = value if isinstance(value, str) else "-" if value is None else cell(value)
    return f"<td>{escape(text)}</td>"
