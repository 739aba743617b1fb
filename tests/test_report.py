"""Reports: what is in the file, read back as a browser reads it; numbers against formulas and against the results."""

import base64
import dataclasses
import hashlib
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from report_subjects import HOSTILE, make_runs
from torch import nn

import vecsweep as vs
from vecsweep.cli import main
from vecsweep.cli.parser import make_parser
from vecsweep.report.thinning import extremes, find_stretch, highest, lowest, means

pytest.importorskip("plotly")


class _Reader(HTMLParser):
    """The elements of a page: scripts, tables, headings and every attribute, entities undone."""

    def __init__(self):
        super().__init__()
        self.scripts, self.attributes, self.tags, self.tables, self.text = [], [], [], [], {}
        self._inside = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "link", "input", "br", "img"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        if "script" in self._inside:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif {"td", "th"} & set(self._inside):
            self.tables[-1][-1][-1] += data
        elif self._inside:
            self.text[self._inside[-1]] = self.text.get(self._inside[-1], "") + data


def read(path):
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader._inside == []
    return reader


def charts_of(page):
    content = next(text for attributes, text in page.scripts if attributes.get("id") == "content")
    return list(json.loads(content).values())


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["bdata"]), "<f4")


def table_of(page, *columns):
    (table,) = [table for table in page.tables if set(columns) <= set(table[0])]
    return [[row[table[0].index(name)] for name in columns] for row in table[1:]]


def make_task(batches=None):
    torch.manual_seed(0)
    batches = batches or [(torch.randn(8, 3), torch.randint(2, (8,))) for _ in range(4)]
    return vs.Task(
        lambda: nn.Linear(3, 2),
        batches,
        F.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        val_batches=batches,
    )


@pytest.mark.parametrize(("num_rows", "length"), [(12, 4), (13, 4), (3, 5)])
def test_thinned_line_has_the_lowest_and_the_highest_of_each_stretch_in_their_order(num_rows, length):
    values = np.random.default_rng(1).standard_normal((num_rows, 3))
    values[1, 1] = np.nan
    pairs = extremes(values, length)
    for k, begin in enumerate(range(0, num_rows, length)):
        for column in range(3):
            part = values[begin : begin + length, column]
            places = sorted([int(np.nanargmin(part)), int(np.nanargmax(part))])
            np.testing.assert_array_equal(pairs[2 * k : 2 * k + 2, column], part[places])
            assert lowest(values, length)[k, column] == np.nanmin(part)
            assert highest(values, length)[k, column] == np.nanmax(part)
            assert means(values, length)[k, column] == pytest.approx(np.nanmean(part))


def test_stretch_without_a_value_has_none():
    values = np.full((6, 1), np.nan)
    values[0] = 1.0
    assert np.isnan(means(values, 3)[1]).all()
    assert np.isnan(extremes(values, 3)[2:]).all()


def test_short_curves_are_not_thinned():
    assert find_stretch(1000, 64) == 1
    assert find_stretch(20_000, 4) > 1


def test_page_names_the_hashes_of_its_own_scripts_and_no_other_source(tmp_path):
    page = read(make_runs().to_html(tmp_path / "runs.html"))
    policy = next(value for _, name, value in page.attributes if name == "content" and "default-src" in value)
    run = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert re.search(r"script-src ([^;]*);", policy)[1].split() == [f"'sha256-{own}'" for own in hashes]
    assert "default-src 'none'" in policy
    assert len(run) == 2


def test_page_refers_to_nothing_outside_itself(tmp_path):
    page = read(make_runs().to_html(tmp_path / "runs.html"))
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert [value for value in addresses if not value.startswith(("#", "data:"))] == []


def test_hostile_names_are_text_and_nothing_else(tmp_path):
    runs = make_runs(schedules=(HOSTILE, "a\u2028b\ud800"), hyper=({HOSTILE: 1.0}, {HOSTILE: 2.0}), metrics=(HOSTILE,))
    plain = read(make_runs(hyper=({"a": 1.0}, {"a": 2.0}), metrics=("b",)).to_html(tmp_path / "plain.html", mode="min"))
    page = read(runs.to_html(tmp_path / "hostile.html", metric=HOSTILE, mode="min"))
    assert page.tags.count("script") == plain.tags.count("script") == 3
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in {row[0] for row in table_of(page, "schedule")}
    (curves,) = [chart for chart in charts_of(page) if chart["kind"] == "curves"]
    assert curves["parts"][0]["metrics"][0]["name"] == HOSTILE


def test_table_of_members_has_what_each_came_to(tmp_path):
    runs = make_runs(diverged=(3,), stopped=(4,))
    page = read(runs.to_html(tmp_path / "runs.html"))
    rows = table_of(page, "member", "lr", "schedule", "seed", "val_loss", "diverged at", "stopped at")
    assert len(rows) == len(runs.members)
    for i, (row, member) in enumerate(zip(rows, runs.members, strict=True)):
        assert row[:4] == [str(i), f"{member.lr:.4g}", member.schedule, str(member.seed)]
        assert row[5:] == ["-" if step is None else str(step) for step in (member.diverged_at, member.stopped_at)]
        values = runs.metrics["val_loss"][:, i]
        last = "-" if i == 3 else f"{values[~np.isnan(values)][-1]:.4g}"
        assert row[4] == last


def test_answer_names_the_best_setting_and_how_many_chance_cannot_tell_from_it(tmp_path):
    runs = make_runs(seeds=3)
    ranking = runs.ranking("val_loss")
    heading = read(runs.to_html(tmp_path / "runs.html")).text["h1"]
    assert str(ranking.best.setting) in heading
    assert f"{len(ranking.tied) - 1} other" in heading


def test_page_tells_the_call_the_versions_and_the_engine(tmp_path):
    runs = vs.sweep(make_task(), lrs=[0.1, 0.2], num_steps=4)
    text = read(runs.to_html(tmp_path / "runs.html")).text["dd"]
    for told in ("vecsweep.sweep(task, lrs=[0.1, 0.2], num_steps=4)", torch.__version__, vs.__version__, runs.engine):
        assert told in text


def test_origin_is_kept_in_a_file_and_by_what_goes_on(tmp_path):
    runs = vs.sweep(make_task(), lrs=[0.1], num_steps=4)
    assert vs.load(runs.save(tmp_path / "runs")).about == runs.about
    assert runs.extend(num_steps=2).about == runs.about
    found = vs.range_test(make_task(), num_lrs=3, num_steps=4)
    assert found.about["call"] == "vecsweep.range_test(task, num_lrs=3, num_steps=4)"
    vs.sweep(task := make_task(), lrs=[0.1], num_steps=4).save(tmp_path / "whole")
    whole = vs.load(tmp_path / "whole", task=task)
    assert whole.extend(num_steps=2).about == whole.about == runs.about


def test_origin_names_no_folder_and_nobody_who_looks_on(tmp_path):
    how = {"checkpoint": tmp_path / "kept", "checkpoint_every": "1 steps", "callbacks": [vs.observers.Observer()]}
    runs = vs.sweep(make_task(), lrs=[0.1], num_steps=4, restart=True, **how)
    assert runs.about["call"] == "vecsweep.sweep(task, lrs=[0.1], num_steps=4)"


def test_planned_learning_rate_of_a_stopped_member_follows_its_schedule(tmp_path):
    runs = make_runs(schedules=("cosine",), seeds=1, stopped=(0,))
    held = runs.lr.copy()
    held[20:, 0] = held[20, 0]  # as a sweep has it: the last that was used
    object.__setattr__(runs, "lr", held)
    page = read(runs.to_html(tmp_path / "runs.html"))
    plan = [chart for chart in charts_of(page) if chart["kind"] == "figures"][-1]
    dotted, run, *_ = plan["figures"][0]["traces"]
    expected = 0.01 * (1 + np.cos(np.pi * np.arange(40) / 40)) / 2
    np.testing.assert_allclose(unpacked(run["y"]), expected[:20], rtol=1e-6)
    np.testing.assert_allclose(unpacked(dotted["y"]), expected[19:], rtol=1e-5, atol=1e-9)


def test_a_course_that_no_member_went_on_in_is_not_made_up(tmp_path):
    runs = make_runs(schedules=("cosine",), seeds=1, stopped=(0, 1, 2))
    plan = [chart for chart in charts_of(read(runs.to_html(tmp_path / "runs.html"))) if chart["kind"] == "figures"][-1]
    assert {trace["line"]["dash"] for trace in plan["figures"][0]["traces"]} == {"solid"}


def test_heat_map_has_the_mean_over_seeds_at_the_best_of_what_else_varies(tmp_path):
    runs = make_runs(hyper=({"weight_decay": 0.0}, {"weight_decay": 0.1}))
    charts = [own for own in charts_of(read(runs.to_html(tmp_path / "runs.html"))) if own["kind"] == "figures"]
    (heat,) = [own for own in charts if own["figures"][0]["traces"][0].get("type") == "heatmap"]
    assert [figure["name"] for figure in heat["figures"]] == [
        "lr and schedule",
        "lr and weight_decay",
        "schedule and weight_decay",
    ]
    final = runs.metrics["val_loss"][-1].reshape(3, 2, 2, 2).mean(axis=3)  # [lr, schedule, weight decay]
    drawn = unpacked(heat["figures"][1]["traces"][0]["z"]).reshape(2, 3)
    np.testing.assert_allclose(drawn, final.min(axis=1).T, rtol=1e-6)


def test_sensitivity_is_the_share_lost_on_average_over_the_learning_rates(tmp_path):
    runs = make_runs(schedules=("constant",), diverged=(4,))
    rows = table_of(read(runs.to_html(tmp_path / "runs.html")), "best lr", "lost")
    final = runs.metrics["val_loss"][-1, :4].reshape(2, 2).mean(axis=1)  # the third lr lost a seed
    start = runs.train_loss[0].mean()
    expected = np.mean([(final[0] - final[1]) / (start - final[1]), 0, 1])
    assert rows[0][0] == "0.1"
    assert float(rows[0][1]) == pytest.approx(expected, rel=1e-3)


def test_range_test_has_the_basin_the_cliff_and_every_rule(tmp_path):
    found = vs.range_test(make_task(), start_lr=1e-3, end_lr=1e4, num_lrs=12, num_steps=12, seeds=2)
    page = read(found.to_html(tmp_path / "found.html"))
    assert f"{found.suggest().lr:.3g}" in page.text["h1"]
    rules = {name for (name,) in table_of(page, "rule")}
    assert rules == set(found.rules)
    shapes = charts_of(page)[0]["figures"][0]["layout"]["shapes"]
    basin, scores = found.basin("train_loss"), found.scores
    (band,) = [shape for shape in shapes if shape["type"] == "rect"]
    assert (band["x0"], band["x1"]) == pytest.approx((basin.low, basin.high))
    best, start = int(np.nanargmin(scores)), found.train_loss[0].mean()
    bad = [lr for lr, score in zip(found.lrs[best:], scores[best:], strict=True) if not score < start]
    (cliff,) = [shape for shape in shapes if shape.get("label", {}).get("text") == "cliff"]
    assert cliff["x0"] == pytest.approx(bad[0])


def test_answer_has_the_race_with_every_score_and_its_interval(tmp_path):
    answer = vs.find_lr(make_task(), num_steps=64, budget=4)
    page = read(answer.to_html(tmp_path / "answer.html"))
    figure = charts_of(page)[0]["figures"][0]
    drawn = sorted(y for trace in figure["traces"] if trace["mode"] == "lines+markers" for y in trace["y"])
    measured = sorted(score for trial in answer.trials for score in trial.scores if np.isfinite(score))
    assert drawn == pytest.approx(measured)
    (band,) = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert (band["x0"], band["x1"]) == pytest.approx(answer.interval)
    assert len(table_of(page, "part", "member")) == sum(len(runs.members) for runs in answer.runs)


def test_answer_has_a_report_where_the_scan_was_judged_by_the_training_loss(tmp_path):
    answer = vs.find_lr(dataclasses.replace(make_task(), val_batches=make_task().val_batches * 50), num_steps=64)
    assert not answer.runs[0].metrics
    page = read(answer.to_html(tmp_path / "answer.html"))
    scan = next(own for own in charts_of(page) if "parts" in own)["parts"][-1]
    assert [own["name"] for own in scan["metrics"]] == ["train_loss"]


@pytest.mark.parametrize(
    "runs",
    [
        make_runs(lrs=(0.1,), schedules=("constant",), seeds=1),
        make_runs(lrs=(0.1,), seeds=1, metrics=()),
        make_runs(diverged=range(12)),
        make_runs(seeds=1, diverged=range(6), num_steps=4),
        make_runs(num_steps=1, metrics=()),
    ],
    ids=["one member", "one lr", "all diverged", "all diverged, one seed", "one step"],
)
def test_what_can_go_wrong_in_a_sweep_still_has_a_report(runs, tmp_path):
    page = read(runs.to_html(tmp_path / "runs.html"))
    assert len(table_of(page, "member")) == len(runs.members)


def test_range_test_that_diverged_throughout_says_so(tmp_path):
    found = vs.range_test(make_task(), start_lr=1e30, end_lr=1e33, num_lrs=3, num_steps=40)
    assert (found.diverged_at >= 0).all()
    assert "Every learning rate diverged" in read(found.to_html(tmp_path / "found.html")).text["h1"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_ramp_has_a_report(seeds, tmp_path):
    found = vs.range_test(make_task(), method="ramp", num_steps=40, seeds=seeds)
    assert set(found.rules) == {name for (name,) in table_of(read(found.to_html(tmp_path / "ramp")), "rule")}
    assert (tmp_path / "ramp.html").exists()


def test_many_members_and_steps_fit_into_ten_megabytes(tmp_path):
    runs = make_runs(lrs=np.geomspace(1e-4, 1, 128), seeds=1, num_steps=20_000, metrics=("val_loss", "val_accuracy"))
    assert runs.train_loss.shape == (20_000, 256)
    path = runs.to_html(tmp_path / "runs")
    assert path.stat().st_size < 10e6
    assert "comes in stretches of up to" in path.read_text(encoding="utf-8")


def test_metric_whose_name_does_not_tell_which_side_is_better_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="mode"):
        make_runs(metrics=("val_height",)).to_html(tmp_path / "runs.html", metric="val_height")
    assert make_runs(metrics=("val_height",)).to_html(tmp_path / "runs.html", metric="val_height", mode="max").exists()


def test_without_plotly_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'vecsweep\[report\]'") as raised:
        make_runs().to_html(tmp_path / "runs.html")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_command_that_is_to_write_a_report_says_so_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vecsweep.cli.arguments.find_spec", lambda name: None)
    monkeypatch.setattr(vs, "find_lr", lambda *_, **__: pytest.fail("it trains"))
    with pytest.raises(SystemExit) as ended:
        main(["find-lr", "digits", "--num-steps", "64", "--report", str(tmp_path / "answer.html")])
    assert ended.value.code == 2
    assert "argument --report: a report needs Plotly; run: pip install 'vecsweep[report]'" in capsys.readouterr().err


def test_report_that_is_there_is_replaced_and_a_folder_that_is_not_is_named(tmp_path):
    (tmp_path / "runs.html").write_text("old")
    make_runs().to_html(tmp_path / "runs.html")
    assert (tmp_path / "runs.html").read_text(encoding="utf-8")[:3] != "old"
    with pytest.raises(FileNotFoundError, match="make it first"):
        make_runs().to_html(tmp_path / "nowhere" / "runs.html")


def test_command_writes_a_report_beside_the_result_or_where_it_is_told(tmp_path, capsys):
    saved = make_runs().save(tmp_path / "runs.npz")
    assert main(["report", str(saved)]) == 0
    assert (tmp_path / "runs.html").exists()
    assert main(["report", str(saved), "-o", str(tmp_path / "own.html"), "--metric", "train_loss"]) == 0
    assert "by train_loss" in read(tmp_path / "own.html").text["h1"]
    assert capsys.readouterr().out.splitlines() == [f"Wrote {tmp_path}/runs.html.", f"Wrote {tmp_path}/own.html."]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.npz"], "cannot be read: No such file"),
        (["runs.npz", "--output", "report.pdf"], "must end in .html"),
        (["runs.npz", "--metric", "val_los"], "must be one of val_loss, train_loss"),
    ],
)
def test_command_tells_a_mistake_in_one_line(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_runs().save("runs.npz")
    try:
        status = main(["report", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_find_lr_writes_a_report_where_it_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch, vecsweep as vs\n"
        "def task():\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    batches = [(torch.eye(3), torch.ones(3, 1))]\n"
        "    optimizer = torch.optim.SGD(model.parameters())\n"
        "    return vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=optimizer)\n"
    )
    assert main(["find-lr", "mine.py:task", "--num-steps", "64", "--report", "answer.html"]) == 0
    assert "Wrote answer.html." in capsys.readouterr().out
    assert "Train at a learning rate of" in read(tmp_path / "answer.html").text["h1"]


DOCS = (Path(__file__).parents[1] / "docs" / "report.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL))
def test_code_of_the_page_on_reports_runs(block, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "report.md", "exec"), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.html", "found.html", "runs.html"]


@pytest.mark.parametrize("line", re.findall(r"^vecsweep .*$", DOCS, re.MULTILINE))
def test_command_of_the_page_on_reports_is_understood(line):
    assert make_parser().parse_args(shlex.split(line)[1:]).module


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", DOCS))
def test_link_of_the_page_on_reports_leads_somewhere(link):
    assert (Path(__file__).parents[1] / "docs" / link).exists()
