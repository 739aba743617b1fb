"""What a page is made of: charts, curves, tables and facts, each with a title and a word on how to read it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Cell = str | float | int | None
Trace = dict[str, Any]  # as Plotly has it; a colour may be a role: "@0", "@ink", "@scale:0.5", with opacity "@0/0.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One picture.

    Attributes:
        traces: what is drawn; one with a `name` has an entry in the legend, shared within a `legendgroup`.
        layout: axes, shapes and annotations.
        view: what is to be seen of the value axis, from bottom to top; None for all.
        name: in the chooser, where a chart has several.
    """

    traces: Sequence[Trace]
    layout: Mapping[str, Any] = field(default_factory=dict)
    view: tuple[float, float] | None = None
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture, or several to choose from.

    Attributes:
        title: the heading.
        note: how to read it.
        alt: what it shows, for those who do not see it.
        figures: one or more.
    """

    title: str
    note: str
    alt: str
    figures: Sequence[Figure]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveChart:
    """Curves against the step, which the page averages over seeds and smooths.

    Attributes:
        title: the heading.
        note: how to read it.
        alt: what it shows, for those who do not see it.
        parts: what can be chosen, as `curves.describe_part` has it.
    """

    title: str
    note: str
    alt: str
    parts: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows that can be sorted and downloaded.

    Attributes:
        title: the heading.
        note: how to read it.
        columns: their names.
        rows: of numbers and text; None where there is nothing.
        file: the name of the download.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Names and what they stand for.

    Attributes:
        title: the heading.
        facts: in order.
    """

    title: str
    facts: Mapping[str, str]


Block = Chart | CurveChart | Table | Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: what it is of.
        answer: in a sentence.
        remarks: what is doubtful, in sentences.
        blocks: the rest, from the top.
    """

    title: str
    answer: str
    remarks: Sequence[str]
    blocks: Sequence[Block]


def pack(values: ArrayLike) -> dict[str, str]:
    """Return an array as Plotly reads it from JSON: base64 of its float32s, which have digits enough for the eye."""
    with np.errstate(over="ignore"):  # a loss on its way to divergence may be infinite as float32
        array = np.ascontiguousarray(values, dtype="<f4")
    packed = {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode()}
    return packed | ({"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {})
