"""A page as one HTML file: what can be read is in it as text, what is drawn as data, and the scripts that draw it.

All text is escaped, here and again in the script before Plotly sees it. The page's policy names the hashes of its own
scripts: no other script runs in it, whatever a name may contain, and nothing is fetched.

Reference:
    Content Security Policy Level 3, https://www.w3.org/TR/CSP3/
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from vecsweep._version import __version__
from vecsweep.report.blocks import Block, Cell, Chart, CurveChart, Facts, Page, Table
from vecsweep.results._files import replace_file

_SCRIPTS = ("colors.js", "chart.js", "figures.js", "curves.js", "tables.js", "page.js")  # each uses those before it
_UNREADABLE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(page: Page, path: str | os.PathLike[str]) -> Path:
    """Write a page; return where, with ".html" added if the path has no suffix.

    Raises:
        ImportError: Plotly is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".html")
    text = render_page(page, _plotly()).encode(errors="replace")  # a name may have half a surrogate pair

    def write(part: Path) -> None:
        part.write_bytes(text)

    return replace_file(path, write)


def render_page(page: Page, plotly: str) -> str:
    """Return a page as HTML.

    Args:
        page: what is in it.
        plotly: Plotly's script.
    """
    own = "\n".join(map(_read, _SCRIPTS))
    scripts = [plotly.replace("\r\n", "\n"), f'"use strict";\n(() => {{\n{own}}})();\n']
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash_of, scripts))}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    drawn = {f"block-{i}": _data_of(block) for i, block in enumerate(page.blocks)}
    content = _to_json({name: data for name, data in drawn.items() if data is not None})
    sections = "\n".join(_render_block(f"block-{i}", block) for i, block in enumerate(page.blocks))
    links = "".join(f'<a href="#block-{i}">{escape(block.title)}</a>' for i, block in enumerate(page.blocks))
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in page.remarks)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="vecsweep {escape(__version__)}">
<title>{escape(page.title)} - vecsweep</title>
<link rel="icon" href="data:,">
<style>{_read("page.css")}</style>
</head>
<body>
<a class="skip" href="#block-0">Skip to the results</a>
<header>
<div class="bar"><span class="kind">{escape(page.title)}</span><button type="button" id="theme">Dark</button></div>
<h1>{escape(page.answer)}</h1>
{f'<ul class="remarks">{remarks}</ul>' if remarks else ""}
<nav aria-label="Contents">{links}</nav>
</header>
<noscript><p class="note">The pictures need JavaScript; the tables do not.</p></noscript>
<main>
{sections}
</main>
<footer>Written by vecsweep {escape(__version__)}. This file is complete: it loads nothing.</footer>
<script type="application/json" id="content">{content}</script>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


def _render_block(name: str, block: Block) -> str:
    note = "" if isinstance(block, Facts) else f'<p class="note">{escape(block.note)}</p>'
    return f'<section id="{name}">\n<h2>{escape(block.title)}</h2>\n{note}\n{_render_body(name, block)}\n</section>'


def _render_body(name: str, block: Block) -> str:
    if isinstance(block, Facts):
        facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in block.facts.items())
        return f"<dl>{facts}</dl>"
    if isinstance(block, Table):
        return _render_table(block)
    return f'<div class="chart" data-chart="{name}" data-alt="{escape(block.alt)}"></div>'


def _render_table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col" aria-sort="none"{_class_of(column)}><button type="button">{escape(name)}</button></th>'
        for name, column in zip(table.columns, zip(*table.rows, strict=True), strict=True)
    )
    rows = "\n".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in table.rows)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"
        f'<button type="button" class="csv" data-file="{escape(table.file)}">Download CSV</button>'
    )


def _class_of(column: Sequence[Cell]) -> str:
    return "" if any(isinstance(value, str) for value in column) else ' class="number"'


def _render_cell(value: Cell) -> str:
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    if value is None or not math.isfinite(value):
        return '<td class="number" data-value="">-</td>'
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f'<td class="number" data-value="{value!r}">{text}</td>'


def _data_of(block: Block) -> dict[str, Any] | None:
    """What the page's script draws of a block; None of what is text."""
    if isinstance(block, Chart):
        return {"kind": "figures", "figures": [asdict(figure) for figure in block.figures]}
    if isinstance(block, CurveChart):
        return {"kind": "curves", "parts": list(block.parts)}
    return None


def _to_json(value: Any) -> str:
    """Return JSON that may stand inside a script element; there is no NaN in JSON."""
    text = json.dumps(_without_nan(value), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character, escaped in _UNREADABLE.items():
        text = text.replace(character, escaped)
    return text


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_nan(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hash_of(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    return (files("vecsweep.report") / "page" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError(
            "A report needs Plotly, which draws its pictures. Run: pip install 'vecsweep[report]'"
        ) from error
    return str(get_plotlyjs())
