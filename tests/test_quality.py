"""The bench of suggestions: its problems, their truth, and that it runs."""

import json
import sys
from pathlib import Path

import pytest

QUALITY = Path(__file__).parents[1] / "bench" / "quality"


@pytest.fixture(scope="module")
def judge():
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(QUALITY))
    try:
        import judge

        yield judge
    finally:
        sys.path.remove(str(QUALITY))


def test_every_problem_has_its_truth(judge):
    truths, problems = json.loads(judge.FILE.read_text()), list(judge.problems())
    assert {problem.name for problem in problems} == set(truths)
    assert len({problem.task for problem in problems if not problem.is_held_out}) == 12
    assert len({problem.task for problem in problems if problem.is_held_out}) == 6
    for own in truths.values():
        assert len(own["lrs"]) == len(own["final"]) >= 13
        assert own["lrs"][-1] >= 1e5 * own["lrs"][0]
        assert {len(seeds) for seeds in own["final"]} == {3}


def test_best_lr_has_no_regret_and_an_untrained_one_all(judge):
    own = {"lrs": [1e-3, 1e-2, 1e-1, 1.0], "start": 2.0, "final": [[2.0], [1.0], [1.5], [None]]}
    truth = judge.Truth(own)
    assert truth.regret(1e-2) == 0
    assert truth.regret(1e-3) == pytest.approx(1)
    assert truth.regret(10**-1.5) == pytest.approx(0.25)
    assert truth.regret(1.0) == 3


def test_methods_are_judged(judge, capsys, monkeypatch, tmp_path):
    output = tmp_path / "rows.json"
    arguments = [
        "--problems",
        "diabetes",
        "--methods",
        "find_lr 2",
        "--seeds",
        "2",
        "--threads",
        "1",
        "--output",
        str(output),
    ]
    monkeypatch.setattr(sys, "argv", ["judge.py", *arguments])
    judge.main()
    found = json.loads(output.read_text())
    assert (found["num_problems"], found["num_seeds"]) == (4, 2)
    assert found["rows"]["find_lr 2"]["cost"] <= 2
    assert found["rows"]["find_lr 2"]["median"] < 0.3
    assert "| find_lr 2 |" in capsys.readouterr().out
