import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vecsweep as vs
from vecsweep import cli
from vecsweep.cli.reports import format_speeds
from vecsweep.cli.timing import Speed, measure_speeds


def small_task(model=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)) if model is None else model
    batches = [(torch.randn(8, 4), torch.randint(2, (8,))) for _ in range(3)]
    return vs.Task(model, batches, F.cross_entropy, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


class Counting(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return super().forward(x)


def test_every_way_is_timed_against_a_plain_loop():
    speeds, best = measure_speeds(small_task(), 8, compile=False)
    assert [(s.engine, s.chunk_size) for s in speeds] == [
        ("plain loop", 1),
        ("sequential", 8),
        ("vectorized", 8),
        ("vectorized", 2),
    ]
    assert best in speeds
    for speed in speeds:
        assert speed.ratio == pytest.approx(speeds[0].step_s / speed.step_s)
        assert speed.from_steps == 0


def test_compiled_step_is_timed_with_the_length_of_run_that_pays_for_it():
    speeds, _ = measure_speeds(small_task(), 4)
    *others, compiled = speeds
    assert compiled.is_compiled
    assert not any(speed.is_compiled for speed in others)
    assert compiled.start_s > max(speed.start_s for speed in others)
    assert compiled.from_steps is None or compiled.from_steps > 0


def test_task_that_cannot_be_batched_has_one_way():
    with pytest.warns(vs.FallbackWarning, match="one after another"):
        speeds, best = measure_speeds(small_task(Counting()), 4, compile=False)
    assert [speed.engine for speed in speeds] == ["plain loop", "sequential"]
    assert best.engine == "sequential"


def test_timing_changes_nothing_of_the_callers():
    model = nn.Linear(4, 2)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    task = small_task(model)
    torch.manual_seed(3)
    measure_speeds(task, 4, compile=False)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_number_of_members_must_be_a_count():
    with pytest.raises(ValueError, match="`num_members` must be a whole number of at least 1; got 0"):
        measure_speeds(small_task(), 0)


def test_table_says_what_to_ask_for():
    speeds = [
        Speed("plain loop", 1, False, 0.0, 0.04, 1.0, 0),
        Speed("sequential", 8, False, 0.0, 0.05, 0.8, 0),
        Speed("vectorized", 16, False, 0.2, 0.01, 4.0, 0),
        Speed("vectorized", 16, True, 5.0, 0.005, 8.0, 960),
        Speed("vectorized", 8, True, 5.0, 0.02, 2.0, None),
    ]
    assert format_speeds(speeds, speeds[3]).splitlines() == [
        "                         start s    step ms  speedup",
        "plain loop                  0.00         40     1.00",
        "one after another           0.00         50     0.80",
        "batched by 16               0.20         10     4.00",
        "batched by 16, compiled     5.00          5     8.00  pays from 960 steps on",
        "batched by 8, compiled      5.00         20     2.00  never pays",
        "Best in a long run: engine='vectorized', chunk_size=16, compile=True",
    ]
    assert format_speeds(speeds, speeds[1]).endswith("Best in a long run: engine='sequential'")


def test_command_prints_a_table_for_each_task_and_number_of_members(capsys):
    assert cli.main(["bench", "digits", "--num-members", "2,4", "--no-compile"]) == 0
    printed = capsys.readouterr().out
    assert "digits, 2 members:" in printed
    assert "digits, 4 members:" in printed
    assert printed.count("Best in a long run:") == 2


def test_command_prints_json_alone_when_asked(capsys):
    assert cli.main(["bench", "digits-cnn", "--num-members", "2", "--no-compile", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (result,) = document["results"]
    assert (result["task"], result["num_members"]) == ("digits-cnn", 2)
    assert result["use"] in result["ways"]


def test_command_refuses_what_is_no_count(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--num-members", "8,none"])
    assert "must be counts such as 8,64; got 'none' at position 2" in capsys.readouterr().err
