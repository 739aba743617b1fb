"""Notebooks: the examples run as they stand, and results show themselves there, with all text escaped."""

import ast
import base64
import json
import re
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from report_subjects import make_runs
from torch import nn

import vecsweep as vs
from vecsweep.observers import LiveFigure
from vecsweep.results._html import html_picture

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


class Cell:
    """What stands for a notebook: what is shown in its cell, each picture in place of the last."""

    def __init__(self, monkeypatch, *, has_kernel=True):
        self.shown, self.clock = [], 0.0
        shell = SimpleNamespace(kernel=object()) if has_kernel else SimpleNamespace()
        display = SimpleNamespace(HTML=str, display=self.display)
        ipython = SimpleNamespace(get_ipython=lambda: shell, display=display)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        monkeypatch.setattr("vecsweep.observers.live.time.monotonic", self.tick)

    def tick(self):
        self.clock += 0.2
        return self.clock

    def display(self, shown, *, display_id):
        assert display_id
        self.shown.append([shown])
        return SimpleNamespace(update=self.shown[-1].append)


def validated(task):
    return replace(task, val_batches=list(task.batches))


def test_live_figure_is_drawn_anew_while_members_train_and_shows_all_in_the_end(monkeypatch):
    cell = Cell(monkeypatch)
    runs = vs.sweep(
        validated(make_task()), lrs=[0.1, 1e30], num_steps=40, val_every=1, callbacks=[LiveFigure(), TellNobody()]
    )
    ((first, *pictures),) = cell.shown
    assert first == ""
    assert 3 < len(pictures) < 40  # a call of the clock takes 0.2 s, and there is a second between two
    assert [_Shown(picture).tags for picture in pictures] == [["img"]] * len(pictures)
    assert f"{len(runs.train_loss)} steps;" in pictures[-1]


class TellNobody(vs.observers.Observer):
    def losses(self, step, loss, hyper):
        assert not loss.flags.writeable


def test_live_figure_draws_what_the_finished_sweep_draws(monkeypatch):
    cell = Cell(monkeypatch)
    runs = vs.sweep(validated(make_task()), lrs=[0.1, 0.2, 1e30], num_steps=20, val_every=5, callbacks=[LiveFigure()])
    assert picture_of(cell.shown[0][-1]) == picture_of(runs.plot())
    figure = LiveFigure("train_loss")
    runs = vs.sweep(make_task(), lrs=[0.1, 0.2], num_steps=8, callbacks=[figure])
    longer = runs.extend(num_steps=8)
    assert picture_of(cell.shown[-1][-1]) == picture_of(replace(longer, phases=(0,)).plot(metric="train_loss"))


def picture_of(shown):
    """The pixels of what is shown."""
    html = shown if isinstance(shown, str) else html_picture(shown, "")
    return re.search(r"base64,([^\"]*)", html)[1]


def test_scan_and_race_have_a_figure_each(monkeypatch):
    cell = Cell(monkeypatch)
    vs.find_lr(make_task(), num_steps=64, callbacks=[LiveFigure()])
    assert len(cell.shown) >= 2


@pytest.mark.parametrize("has_ipython", [False, True])
def test_live_figure_shows_nothing_outside_of_notebooks(monkeypatch, has_ipython):
    if has_ipython:
        cell = Cell(monkeypatch, has_kernel=False)
    else:
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
    vs.sweep(make_task(), lrs=[0.1], num_steps=4, callbacks=[LiveFigure()])
    assert not has_ipython or cell.shown == []


def test_live_figure_takes_the_name_of_a_metric():
    with pytest.raises(TypeError, match=r"`metric` must be a name, or None; got 3"):
        LiveFigure(3)


def test_kernel_shows_the_live_figure_and_the_results():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("sklearn")
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    notebook.cells = notebook.cells[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the kernel's sockets, and paths of Jupyter's that will change
        nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = notebook.cells[1].outputs
    assert "IProgress" not in "".join(output.text for output in outputs if output.output_type == "stream")
    pictures = [output.data["text/html"] for output in outputs if output.output_type == "display_data"]
    assert any(_Shown(picture).tags == ["img"] for picture in pictures)
    assert "to the best" in outputs[-1].data["text/html"]
