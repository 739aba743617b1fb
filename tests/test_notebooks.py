"""Notebooks: the examples run as they stand, and results show themselves there, with all text escaped."""

import ast
import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from report_subjects import make_runs
from torch import nn

import vecsweep as vs

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class _Shown(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.sources += [value for name, value in attrs if name == "src"]

    def handle_data(self, data):
        self.text += data


def run_cell(source, namespace):
    """Run a cell as Jupyter does; return the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_every_result_shows_itself(path, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    namespace, shown = {}, []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [], "notebooks are kept without outputs"
            shown.append(run_cell("".join(cell["source"]), namespace))
    results = [own for own in shown if isinstance(own, vs.Sweep | vs.Answer)]
    assert results
    for result in results:
        assert _Shown(result._repr_html_()).tags.count("img") == 1


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["compare", "find-lr", "range-test"]


def make_task():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    model = nn.Linear(3, 2)
    return vs.Task(model, batches, nn.functional.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: vs.find_lr(make_task(), num_steps=64), "as good"),
        (lambda: vs.range_test(make_task(), num_lrs=6, num_steps=20), "Suggestion: "),
        (lambda: vs.range_test(make_task(), method="ramp", num_steps=30), "Suggestion: "),
        (lambda: vs.range_test(make_task(), start_lr=1e30, end_lr=1e33, num_lrs=3, num_steps=40), "diverged"),
        (make_runs, "to the best"),
        (lambda: make_runs(metrics=("height",)), "12 members"),
        (lambda: make_runs(lrs=[0.1 * 2**k for k in range(8)]), "and 6 more"),
        (lambda: make_runs(diverged=range(12)), "2 of 2 diverged"),
    ],
    ids=["answer", "grid", "ramp", "all diverged", "sweep", "no side", "many", "sweep that diverged"],
)
def test_result_shows_words_and_a_picture(make, words):
    shown = _Shown(make()._repr_html_())
    assert words in shown.text
    (source,) = shown.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG_SIGNATURE)


def test_ranking_is_a_table_of_its_standings():
    ranking = make_runs().ranking("val_loss")
    shown = _Shown(ranking._repr_html_())
    assert shown.tags.count("tr") == 1 + len(ranking.standings)
    assert f"{ranking.best.mean:.4g}" in shown.text


def test_names_are_text_whatever_they_contain():
    hostile = "<img src=x onerror='alert(1)'>"
    runs = make_runs(schedules=(hostile, "constant"))
    shown = _Shown(runs._repr_html_())
    assert set(shown.tags) <= {"p", "br", "table", "thead", "tbody", "tr", "th", "td", "img"}
    assert hostile in shown.text
    assert len(shown.sources) == 1
