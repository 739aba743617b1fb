"""The command line: what it prints, writes and returns; mistakes in one line; Ctrl-C."""

import dataclasses
import errno
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_model

import vecsweep as vs
import vecsweep.tasks
import vecsweep.tasks.data
from vecsweep import _names
from vecsweep.__main__ import command
from vecsweep._types import EngineName, Method, Precision, Spacing
from vecsweep.checking import Deviation
from vecsweep.cli import main, progress
from vecsweep.cli.demos import DEMOS
from vecsweep.execution import Execution
from vecsweep.results import PlotKind
from vecsweep.suggest import RAMP_RULES, RULES
from vecsweep.tasks import fetching

COMMANDS = ("demo", "find-lr", "range-test", "sweep", "resume", "steer", "check", "plot", "report", "bench", "data")
GRID_RULES = [name for name, rule in RULES.items() if rule not in RAMP_RULES]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FEW = ["--start-lr", "1e-3", "--end-lr", "10", "--num-lrs", "20", "--num-steps", "10"]

TASK_FILE = """
import time
import torch
import vecsweep as vs

def make_task(step=lambda model, batch: model(batch).pow(2).mean()):
    model = torch.nn.Linear(3, 1)
    batches = [torch.linspace(0, 1, 12).reshape(4, 3)]
    return vs.Task(model, batches, training_step=step, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

def unmappable():
    def step(model, batch):
        loss = model(batch).pow(2).mean()
        return loss if loss.item() < 1e9 else 2 * loss
    return make_task(step)

def not_a_number():
    return make_task(lambda model, batch: model(batch).mean() * float("nan"))

def not_a_scalar():
    return make_task(lambda model, batch: model(batch))

def mistaken():
    def step(model, batch):
        raise ValueError("a mistake of the user's own")
    return make_task(step)

def mismatched():
    return make_task(lambda model, batch: torch.nn.functional.cross_entropy(model(batch), torch.tensor([0])))

def measured():
    import dataclasses
    share = {"share": lambda model, batch: -model(batch).pow(2).mean()}
    return dataclasses.replace(make_task(), val_batches=make_task().batches, metrics=share)

def folded():
    import dataclasses
    def batches(fold):
        return [torch.full((4, 3), 1.0 + fold)]
    return dataclasses.replace(make_task(), batches=batches, val_batches=batches)

def slow():
    def step(model, batch):
        print("under way", flush=True)
        time.sleep(0.01)
        return model(batch).pow(2).mean()
    return make_task(step)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, with a user's file; one thread, so that nothing waits for cores that other work holds."""
    (tmp_path / "own.py").write_text(TASK_FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)
    sys.modules.pop("own", None)


@pytest.fixture
def run(capsys):
    """Run a command in this process; return its exit status, what it printed, and what it told on stderr."""

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return types.SimpleNamespace(status=status, out=captured.out, err=without_progress(captured.err))

    return run


def without_progress(err):
    """What was told on stderr but for the lines that come while people wait, which depend on how long that is."""
    return re.sub(r"^vecsweep: .* \.\.\.\n", "", err, flags=re.MULTILINE)


def run_alone(*arguments):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "vecsweep", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    done.stderr = without_progress(done.stderr)
    return done


def strict_json(text):
    """Parse JSON that holds no NaN or infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def assert_is_one_line_of_error(status, err):
    assert status == 2
    assert err.startswith("vecsweep: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_demo_finds_a_learning_rate_trains_with_it_and_writes_both_files(folder):
    done = run_alone("demo", "--quick")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert re.search(r"^Suggestion: lr 0\.\d+ \(basin: ", done.stdout, re.MULTILINE)
    assert "plain loop" not in done.stdout
    assert "of the 360 held-out digits right" in done.stdout
    assert f"Wrote {Path('demo') / 'digits.png'}." in done.stdout
    assert (folder / "demo" / "digits.png").read_bytes().startswith(PNG_SIGNATURE)
    assert len(vs.RangeTest.load(folder / "demo" / "digits.npz").lrs) == 16


def test_demo_times_a_plain_loop_if_asked(run):
    done = run("demo", "--quick", "--compare")
    assert done.status == 0
    assert "by the plain loop" in done.out
    assert "PyTorch's CPU threads: 1." in done.out


def test_demo_as_json_says_what_it_measured(run, folder):
    done = run("demo", "--quick", "--compare", "--json", "--output-dir", folder / "deep" / "down")
    document = strict_json(done.out)
    assert done.status == 0
    assert document["comparison"]["median_deviation"] < 1e-3
    assert document["trained"]["test_accuracy"] > 0.8
    assert (folder / "deep" / "down" / "digits.png").exists()


def test_range_test_of_a_users_file_in_a_process_of_its_own_saves_what_it_found(folder):
    done = run_alone("range-test", "own.py:make_task", *FEW, "--output", "found.npz", "--png", "found.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = vs.RangeTest.load("found.npz")
    assert len(found.lrs) == 20
    assert re.search(rf"^Suggestion: lr {found.suggest().lr:.3g} \(basin: ", done.stdout, re.MULTILINE)
    assert "Wrote found.npz.\nWrote found.png.\n" in done.stdout
    assert (folder / "found.png").read_bytes().startswith(PNG_SIGNATURE)


def test_range_test_prints_at_most_16_rows_from_the_first_lr_to_the_last(run):
    done = run("range-test", "digits", *FEW)
    lines = done.out.splitlines()
    rows = [line.split() for line in lines[1 : lines.index("")]]
    assert done.status == 0
    assert len(rows) == 16
    assert (float(rows[0][0]), float(rows[-1][0])) == (1e-3, 10.0)
    assert float(rows[-1][1]) > 2 * float(rows[0][1])  # the largest lr explodes
    assert "20 members" in done.out


def test_range_test_leads_with_one_suggestion_and_shows_others_if_asked(run):
    done = run("range-test", "own.py:make_task", *FEW)
    assert done.out.count(" lr 0") + done.out.count(" lr 1") + done.out.count(" lr 2") <= 2
    assert re.search(r"^Suggestion: lr \S+ \(basin: .+\), with loss \S+\.$", done.out, re.MULTILINE)
    assert "largest" not in done.out
    done = run("range-test", "own.py:make_task", *FEW, "--all")
    others = [rule for rule in GRID_RULES if rule != "basin"]
    assert all(re.search(rf"^  lr \S+ +{rule} +\S+ \S+ ", done.out, re.MULTILINE) for rule in others)
    assert not re.search("valley|slide|steepest|minimum", done.out)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_says_what_it_is_for(rule, run):
    method = ["--method", "ramp", "--num-steps", "30"] if RULES[rule] in RAMP_RULES else []
    done = run("range-test", "own.py:make_task", *(FEW if not method else [*FEW[:4], *method]), "--rule", rule)
    assert re.search(rf"^Suggestion: lr \S+ \({rule}: \S+ \S+ \S+ .*\)", done.out, re.MULTILINE)


def test_range_test_writes_no_file_unless_asked(run, folder):
    before = sorted(folder.iterdir())
    assert run("range-test", "own.py:make_task", *FEW).status == 0
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_range_test_marks_the_rule_that_was_asked_for_and_prints_its_doubts(run):
    done = run("range-test", "own.py:make_task", *FEW, "--num-lrs", 5, "--rule", "basin")
    assert re.search(r"^Suggestion: lr \S+ \(basin: ", done.out, re.MULTILINE)
    assert "Doubt: Too few points" in done.out


def test_a_ramp_with_several_seeds_says_when_they_diverged(run):
    done = run("range-test", "digits", "--method", "ramp", "--end-lr", 1e30, "--num-steps", 30, "--seeds", "3,5")
    assert done.status == 0
    assert re.search(r"^Suggestion: lr \S+ \(minimum: ", done.out, re.MULTILINE)
    assert re.search(r"1e\+30 +- +at step \d+ \(2 of 2 seeds\)", done.out)


def test_json_is_one_strict_document_with_null_for_what_diverged_also_beside_a_warning(run):
    done = run("range-test", "own.py:unmappable", *FEW, "--end-lr", 1e9, "--json", "--seeds", 2)
    document = strict_json(done.out)
    assert done.status == 0
    assert document["losses"][-1] is None
    assert document["losses"][0] > 0
    assert len(document["lrs"]) == 20
    assert len(document["members"]) == 40
    assert document["suggestion"] == document["suggestions"]["basin"]
    assert set(document["suggestions"]) == set(GRID_RULES)
    assert done.err.startswith("vecsweep: warning: The members are trained one after another")
    assert done.err.count("\n") == 1


def test_a_range_in_which_everything_diverges_gives_no_suggestion_and_status_1(run):
    done = run("range-test", "own.py:not_a_number", *FEW)
    assert done.status == 1
    assert "No suggestion: " in done.out
    assert "every learning rate diverged" in done.out
    document = strict_json(run("range-test", "own.py:not_a_number", *FEW, "--json").out)
    assert document["suggestion"] is None
    assert document["suggestions"] == {}


class Called(Exception):  # noqa: N818 - not an error: it ends a command where the library would start to work
    """A verb was called; the arguments say with which options."""


def test_options_reach_the_library_and_those_not_given_are_left_to_it(run, monkeypatch):
    def range_test(task, **options):
        raise Called({name: value for name, value in options.items() if name != "callbacks"})

    monkeypatch.setattr(vs, "range_test", range_test)
    with pytest.raises(Called) as called:
        run("range-test", "digits")
    assert called.value.args == ({},)
    given = "--method ramp --seeds 3,4 --chunk-size auto --divergence-factor none --precision bf16 --seed 7"
    with pytest.raises(Called) as called:
        run("range-test", "digits", *given.split(), "--accumulation-steps", 2, "--max-grad-norm", 0.5)
    assert called.value.args[0] == {
        "method": "ramp",
        "seeds": [3, 4],
        "chunk_size": "auto",
        "divergence_factor": None,
        "precision": "bf16",
        "seed": 7,
        "accumulation_steps": 2,
        "max_grad_norm": 0.5,
    }


def test_the_help_states_the_defaults_and_choices_of_the_library(run):
    shown = " ".join(run("range-test", "--help").out.split())
    sources = {**inspect.signature(vs.range_test).parameters, **inspect.signature(Execution).parameters}
    for name in ("num_steps", "seeds", "method", "spacing", "chunk_size", "engine"):
        stated = re.search(rf"--{name.replace('_', '-')} [^-].*?\(default: (\S+)\)", shown[shown.index("TASK") :])
        default = sources[name].default
        assert type(default)(stated[1]) == default, name
    for choices in (Method, Spacing, Precision, EngineName):
        assert f"{{{','.join(get_args(choices))}}}" in shown


def test_check_of_digits_prints_the_report_and_returns_0(run):
    done = run("check", "digits", "--lrs", "1e-2,1e-1", "--num-steps", 3, "--seeds", 2)
    assert done.status == 0
    assert "In float64 the batched pass equals a plain loop on stock PyTorch over 3 steps" in done.out
    assert strict_json(run("check", "digits", "--num-steps", 1, "--json").out)["is_equal"] is True


def test_check_returns_1_when_the_batched_pass_differs(run, monkeypatch):
    deviations = (Deviation("float64", 0, 0.1, "weight", float("inf")),)
    report = vs.CheckReport(deviations, {"float64": 1e-9}, "vectorized", (), 5)
    monkeypatch.setattr(vs, "check", lambda task, **options: report)
    done = run("check", "digits")
    assert done.status == 1
    assert "DIFFERS" in done.out
    document = strict_json(run("check", "digits", "--json").out)
    assert document["is_equal"] is False
    assert document["deviations"][0]["value"] is None


def save_range_test(path):
    task = vs.Task(
        model=torch.nn.Linear(2, 1),
        batches=[torch.ones(4, 2)],
        training_step=lambda model, batch: model(batch).pow(2).mean(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    vs.range_test(task, num_lrs=12, num_steps=5).save(path)
    return task


def test_plot_draws_a_saved_range_test_beside_it_or_where_asked(run, folder):
    save_range_test("found.npz")
    done = run("plot", "found.npz")
    assert (done.status, done.out) == (0, "Wrote found.png.\n")
    assert (folder / "found.png").read_bytes().startswith(PNG_SIGNATURE)
    done = run("plot", "found.npz", "--output", "other.png", "--rule", "basin")
    assert re.match(r"Suggestion: \S+ \(basin; .*\nWrote other.png.\n", done.out)
    assert (folder / "other.png").read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("kind", get_args(PlotKind))
def test_plot_draws_a_sweep_as_it_is_asked_to(kind, run, folder):
    runs = vs.sweep(save_range_test("found.npz"), lrs=[0.1, 0.2], schedules=["constant", "cosine"], num_steps=2)
    runs.save("runs.npz")
    done = run("plot", "runs.npz", "--kind", kind, "--png", "drawn.png")
    assert (done.status, done.out) == (0, "Wrote drawn.png.\n")
    assert (folder / "drawn.png").read_bytes().startswith(PNG_SIGNATURE)


def test_plot_of_a_sweep_has_no_rule(run):
    vs.sweep(save_range_test("found.npz"), lrs=[0.1], num_steps=2).save("runs.npz")
    done = run("plot", "runs.npz", "--rule", "valley")
    assert_is_one_line_of_error(done.status, done.err)
    assert "`--rule` reads a range test; runs.npz holds a Sweep" in done.err


COMPARED = ("sweep", "digits", "--lrs", "0.03,0.3", "--schedules", "constant,one-cycle(div=10, pct_start=0.3)")


def test_sweep_ranks_what_it_compared_and_writes_everything(run, folder):
    files = ("--csv", "all.csv", "--save-best", "best.safetensors", "--tensorboard", "boards", "--output-dir", "out")
    done = run(*COMPARED, "--seeds", 2, "--epochs", 2, "--metric", "val_accuracy", *files)
    assert done.status == 0, done.err
    assert re.search(r"^\* lr 0\.\d+, (constant|one-cycle)", done.out, re.MULTILINE)
    assert "intervals of paired differences" in done.out
    for name in ("curves", "plan", "final", "heatmap"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(PNG_SIGNATURE), name
    runs = vs.Sweep.load(folder / "out" / "sweep.npz")
    assert len(runs.members) == 8
    assert runs.metrics["val_accuracy"].shape == (2, 8)
    header, *rows = (folder / "all.csv").read_text().splitlines()
    assert header == "member,lr,schedule,seed,step,epoch,metric,value,diverged"
    assert len(rows) == len(runs.records())
    assert len(list((folder / "boards").iterdir())) == 8
    model = vs.tasks.digits().model()
    assert load_model(model, folder / "best.safetensors") == (set(), [])


def test_sweep_cross_validates_where_it_is_asked_to(run):
    done = run("sweep", "own.py:folded", "--lrs", "0.01,0.02", "--folds", 3, "--num-steps", 2, "--json")
    assert [member["seed"] for member in strict_json(done.out)["members"]] == [0, 1, 2] * 2
    done = run("sweep", "own.py:make_task", "--lrs", "0.01", "--folds", 3, "--num-steps", 2)
    assert (done.status, "`folds` needs a task whose `batches` is a function of the fold" in done.err) == (2, True)


def test_mode_of_a_metric_that_is_watched_too_is_that_of_both(run):
    watched = ("--patience", 1, "--monitor", "val_share", "--mode", "max")
    done = run("sweep", "own.py:measured", "--lrs", "0.01,0.1", "--epochs", 2, "--metric", "val_share", *watched)
    assert done.status == 0, done.err
    done = run("sweep", "own.py:measured", "--lrs", "0.01,0.1", "--epochs", 2, *watched)
    assert (done.status, "`mode` must be" in done.err) == (2, True)


def test_sweep_writes_no_file_unless_asked(run, folder):
    before = sorted(folder.iterdir())
    done = run("sweep", "own.py:make_task", "--lrs", "0.1,0.2", "--num-steps", 3)
    assert done.status == 0
    assert "Wrote" not in done.out
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_sweep_as_json_gives_ranking_and_members(run):
    vary = ("--vary", "weight_decay=0,1e-2", "--vary", "momentum=0.9")
    document = strict_json(run(*COMPARED[:4], *vary, "--epochs", 1, "--json").out)
    assert document["metric"] == "val_loss"
    assert document["ranking"][0]["setting"]["hyper"].keys() == {"weight_decay", "momentum"}
    assert {(row["lr"], row["weight_decay"]) for row in document["members"]} == {
        *((0.03, 0.0), (0.03, 0.01), (0.3, 0.0), (0.3, 0.01))
    }
    assert all(0 < row["val_accuracy"] <= 1 for row in document["members"])


def test_sweep_of_which_every_member_diverges_returns_1(run):
    done = run("sweep", "own.py:not_a_number", "--lrs", "0.1,0.2", "--num-steps", 3)
    assert done.status == 1
    assert "1 of 1 diverged" in done.out


@pytest.fixture
def answers(monkeypatch):
    """Answer what a command asks, and note what it asked."""
    asked = []

    def give(*texts):
        waiting = list(texts)

        def answer(question):
            asked.append(question)
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        monkeypatch.setattr("builtins.input", answer)
        return asked

    return give


def test_steering_goes_on_from_what_was_kept_and_saves_the_schedule(run, folder, answers):
    asked = answers("2", "0.3,0.03", "0", "1", "0.1,1e9", "1", "0", "", "", "none", "q")
    done = run("steer", "digits")
    assert done.status == 0, done.err
    assert asked[0] == "Epochs [1]: "
    assert asked[1] == "Learning rates [0.001,0.003,0.01,0.03,0.1]: "
    assert "Keep must be a member that did not diverge; 1 did." in done.out
    assert asked[7:9] == ["Epochs [1]: ", "Learning rates [0.01,0.03333,0.1]: "], "around what was kept"
    document = strict_json((folder / "steer" / "schedule.json").read_text())
    assert [(phase["begin"], phase["num_steps"], phase["lr"]) for phase in document["phases"]] == [
        (0, 44, 0.3),
        (44, 22, 0.1),
    ]
    path = vs.Sweep.load(folder / "steer" / "steer.npz")
    expected = vs.sweep(vs.tasks.digits(), lrs=[0.3], epochs=2).branch(0, lrs=[0.1], epochs=1)
    np.testing.assert_allclose(path.train_loss, expected.train_loss, rtol=1e-5)
    model = vs.tasks.digits().model()
    load_model(model, folder / "steer" / "model.safetensors")
    assert (folder / "steer" / "steer.png").read_bytes().startswith(PNG_SIGNATURE)
    assert "lr 0.3 for 44 steps, then lr 0.1 for 22 steps" in done.out


def test_steering_asks_again_after_an_answer_that_makes_no_sense(run, answers):
    asked = answers("many", "1", "fast", "-1", "0.1", "7", "0")
    done = run("steer", "digits")
    assert "Epochs must be a whole number of at least 1; got 'many'." in done.out
    assert "Learning rates must be learning rates such as 1e-3,1e-2; got 'fast' at position 1." in done.out
    assert "Learning rates must be positive and finite; got '-1'." in done.out
    assert "Keep must be a number of the table, or none; got '7'." in done.out
    assert len(asked) == 8, "nobody answers the next phase, and what there is is saved"
    assert "Wrote" in done.out


def test_steering_that_ends_at_a_choice_keeps_the_best(run, folder, answers):
    asked = answers("1", "0.3,0.001", "q")
    done = run("steer", "digits")
    assert asked[-1] == "Keep (or none, to go back) [0]: "
    assert "lr 0.3 for 22 steps" in done.out
    assert (folder / "steer" / "model.safetensors").exists()


def test_steering_without_a_choice_saves_nothing(run, folder, answers):
    answers("q")
    assert "nothing is saved" in run("steer", "digits").out
    assert list((folder / "steer").iterdir()) == []


def test_data_are_fetched_where_they_are_not_there_yet(run, monkeypatch):
    fetched = []
    monkeypatch.setattr("vecsweep.cli.data.is_fetched", lambda name: name == "mnist")
    monkeypatch.setattr("vecsweep.cli.data.fetch", lambda name: fetched.append(name) or Path("cache") / name)
    done = run("data")
    assert done.status == 0
    assert "mnist: there already." in done.out
    assert fetched == [name for name in fetching.SETS if name != "mnist"]


@pytest.mark.parametrize(("name", "what"), [("mnist", "mnist"), ("cifar10", "cifar10")])
def test_missing_data_are_told_in_a_line_with_the_command(name, what, run, monkeypatch, tmp_path):
    monkeypatch.setenv("VECSWEEP_DATA", str(tmp_path / "empty"))
    vs.tasks.data.mnist_data.cache_clear()
    vs.tasks.data.cifar10_data.cache_clear()
    done = run("range-test", name)
    assert_is_one_line_of_error(done.status, done.err)
    assert f"vecsweep data {what}" in done.err


def test_demo_of_the_regression_shows_two_phases(run, folder):
    done = run("demo", "regression", "--quick", "--json")
    document = strict_json(done.out)
    assert len(document["lrs"]) == 4
    assert document["phases"]["30 at 0.03, 30 at 0.01"] < document["phases"]["60 at 0.03"]
    for name in ("picture", "phases_picture"):
        assert (folder / document[name]).read_bytes().startswith(PNG_SIGNATURE)


def adam(params):
    return torch.optim.Adam(params, lr=1e-3)


def test_demo_of_the_finder_shows_what_the_usual_mistakes_cost(run, folder, monkeypatch):
    """On the digits, which need not be fetched."""
    task = dataclasses.replace(vs.tasks.digits(), optimizer=adam)
    monkeypatch.setattr("vecsweep.cli.demos.finder.mnist", lambda: task)
    document = strict_json(run("demo", "finder", "--quick", "--json").out)
    right, first_lr, diverged = document["val_accuracy"].values()
    assert right > 0.8 > 0.4 > max(first_lr, diverged)
    assert document["is_untouched"]
    assert (folder / document["picture"]).read_bytes().startswith(PNG_SIGNATURE)


def test_demo_of_cyclical_rates_reads_their_bounds_off_a_range_test(run, folder, monkeypatch):
    monkeypatch.setattr("vecsweep.cli.demos.cyclical.fashion_mnist_sgd", vs.tasks.digits)
    document = strict_json(run("demo", "cyclical", "--quick", "--json").out)
    assert 1e-6 < document["base_lr"] < document["max_lr"] <= 1
    assert document["val_accuracy"].keys() >= {"triangular", "triangular2", "exp_range"}
    assert document["val_accuracy"]["triangular"] > 0.8
    assert (folder / document["picture"]).read_bytes().startswith(PNG_SIGNATURE)


def test_demo_of_the_policies_compares_all_eight(run, folder, monkeypatch, tmp_path):
    """On the digits, which need not be fetched."""
    task = dataclasses.replace(vs.tasks.digits(), optimizer=lambda params: torch.optim.SGD(params, momentum=0.9))
    monkeypatch.setattr("vecsweep.cli.demos.policies.cifar10", lambda **_: task)
    document = strict_json(run("demo", "policies", "--quick", "--json").out)
    assert len(document["val_accuracy"]) == 8
    assert all(0.5 < accuracy <= 1 for accuracy in document["val_accuracy"].values())
    runs = vs.Sweep.load(folder / "demo" / "policies.npz")
    at_peak = dict(zip([m.schedule for m in runs.members], runs.lr.max(axis=0), strict=True))
    assert at_peak["constant 0.01"] == 0.01
    assert at_peak["multi-step"] == 0.02
    assert {round(at_peak[name], 3) for name in at_peak if name.startswith(("warm", "one", "exp"))} == {0.04}
    assert (folder / document["picture"]).read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND. See vecsweep --help."),
        ("plott", "invalid choice: 'plott'"),
        ("range-test", "the following arguments are required: TASK. See vecsweep range-test --help."),
        ("range-test digits --num-lr 3", "unrecognized arguments: --num-lr 3"),
        ("range-test digit", "Did you mean 'digits'?"),
        ("range-test nowhere.py:make_task", "there is no such file"),
        ("range-test own.py:make_tsk", "Did you mean 'make_task'?"),
        ("range-test own.py:not_a_scalar", "The loss must be a scalar; got shape (4, 1)"),
        ("range-test digits --start-lr abc", "argument --start-lr: invalid float value: 'abc'"),
        ("range-test digits --start-lr 1 --end-lr 0.1", "`start_lr` must be below `end_lr`; got 1 and 0.1"),
        ("range-test digits --num-lrs 1", "`num_lrs` must be a whole number of at least 2; got 1"),
        ("range-test digits --seeds 1,x", "got 'x' at position 2"),
        ("range-test digits --seeds 1,1", "`seeds` must differ from each other"),
        ("range-test digits --method gird", "invalid choice: 'gird'"),
        ("range-test digits --rule valey", "Did you mean 'valley'?"),
        ("range-test digits --smoothing 1", "`smoothing` must be in [0, 1); got 1.0"),
        ("range-test digits --device abacus", "`device` must be"),
        ("range-test digits --chunk-size all", "must be a whole number, or auto; got 'all'"),
        ("range-test digits --divergence-factor no", "must be a number, or none; got 'no'"),
        ("range-test digits --divergence-factor 1", "`divergence_factor` must be a number above 1; got 1.0"),
        ("range-test digits --output no/where.npz", "there is no folder 'no' to write to"),
        ("range-test digits --output .", "'.' is a folder"),
        ("range-test digits --png curve.txt", "'curve.txt' must end in .png, .pdf or .svg"),
        ("demo --output-dir own.py", "own.py cannot be written: File exists"),
        ("demo digit", "invalid choice: 'digit'"),
        ("data imagenet", "A set must be one of mnist, fashion-mnist, cifar10, shakespeare; got 'imagenet'"),
        ("sweep digits --epochs 1", "the following arguments are required: --lrs"),
        ("sweep digits --lrs 0.1", "one of the arguments --epochs --num-steps is required"),
        ("sweep digits --lrs 0.1 --epochs 1 --schedules cosin", "Did you mean 'cosine'?"),
        ("sweep digits --lrs 0.1 --epochs 1 --schedules one-cycle(div=x)", "must be literals; got 'x'"),
        ("sweep digits --lrs 0.1 --epochs 1 --vary momentum", "such as weight_decay=0,1e-2; got 'momentum'"),
        ("sweep digits --lrs 0.1 --epochs 1 --vary beta1=0.9", "hyperparameters of SGD that are numbers"),
        ("sweep digits --lrs 0.1 --epochs 1 --metric val_los", '`mode` must be "min" or "max"'),
        ("sweep digits --lrs 0.1 --epochs 1 --metric val_error", "`metric` must be one of"),
        ("sweep digits --lrs 0.1 --epochs 1 --csv no/where.csv", "there is no folder 'no' to write to"),
        ("sweep digits --lrs 0.1 --epochs 1 --output-dir own.py", "'own.py' is a file; name a folder"),
        ("sweep digits --lrs 0.1 --epochs 1 --save-best best.pt", "'best.pt' must end in .safetensors"),
        (
            "steer digits --metric val_los",
            "must be one of train_loss, val_loss, val_accuracy; got 'val_los'",
        ),
        ("steer own.py:make_task --metric val_loss", "`--metric` must be one of train_loss; got 'val_loss'"),
        ("steer digits --output-dir own.py", "'own.py' is a file; name a folder"),
        ("steer digits --lrs 0.1,x", "must be learning rates such as 1e-3,1e-2; got 'x' at position 2"),
        ("check digits --lrs 1e-3,abc", "argument --lrs: must be learning rates such as 1e-3,1e-2; got 'abc'"),
        ("check digits --lrs 1e-3,-1", "`lrs` must be positive and finite; got -1.0 at index 1"),
        ("check digits --engine sequential", "unrecognized arguments: --engine sequential"),
        ("plot nowhere.npz", "nowhere.npz cannot be read: No such file or directory"),
        ("plot .", ". is no ordinary file"),
        ("plot own.py", "own.py is not a result of vecsweep"),
        ("plot own.py --rule valey", "Did you mean 'valley'?"),
    ],
)
def test_a_mistake_in_what_was_asked_is_told_in_one_line_with_status_2(arguments, message, run):
    done = run(*arguments.split())
    assert_is_one_line_of_error(done.status, done.err)
    assert message in done.err
    assert done.out == ""


def test_a_mistake_is_told_in_one_line_in_a_process_of_its_own_too():
    done = run_alone("range-test", "nowhere.py:make_task")
    assert_is_one_line_of_error(done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("function", "message"), [("mistaken", "a mistake of the user's own"), ("mismatched", "batch_size")]
)
def test_an_error_of_the_tasks_own_code_keeps_its_traceback(function, message, run):
    with pytest.raises(ValueError, match=message):
        run("range-test", f"own.py:{function}", *FEW)


@pytest.mark.parametrize("command", [(), *[(name,) for name in COMMANDS]])
def test_every_help_text_ends_in_an_example(command, run):
    done = run(*command, "--help")
    assert done.status == 0
    assert done.out.splitlines()[-2] == "Example:"
    assert done.out.splitlines()[-1].startswith(" ".join(("  vecsweep", *command)))


def test_the_console_script_is_the_same_command(run):
    (script,) = entry_points(group="console_scripts", name="vecsweep")
    assert script.load() is command
    assert run("--version").out == f"vecsweep {vs.__version__}\n"


AT_ONCE = [["--version"], ["--help"], ["--print-completion", "bash"], *([name, "--help"] for name in COMMANDS)]
MISTAKEN = [
    ["plott"],
    ["range-test", "digits", "--num-lr", "3"],
    ["sweep", "digits", "--lrs", "0.1,x", "--epochs", "1"],
]
QUICK = """
import sys
from vecsweep.cli import main
from vecsweep.cli.demos import DEMOS
for words in {asked}:
    try:
        main(words)
    except SystemExit as stop:
        print("status", stop.code)
print("loaded", *{{"torch", "numpy", "scipy", "matplotlib"}} & sys.modules.keys())
"""


@pytest.mark.parametrize(("asked", "status"), [(AT_ONCE, 0), (MISTAKEN, 2)], ids=["help", "mistakes"])
def test_help_completion_and_mistakes_are_told_without_pytorch(asked, status):
    command = [sys.executable, "-c", QUICK.format(asked=asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.count(f"status {status}\n") == len(asked), done.stdout + done.stderr
    assert done.stdout.endswith("loaded\n"), done.stdout[-200:]


@pytest.mark.parametrize(
    ("shown", "table"),
    [
        (_names.TASKS, vecsweep.tasks.TASKS),
        (_names.DATA_SETS, fetching.SETS),
        (_names.SCHEDULES, vs.schedules.SCHEDULES),
    ],
    ids=["tasks", "data", "schedules"],
)
def test_names_that_the_help_lists_are_those_that_there_are(shown, table):
    assert list(shown) == list(table)


def test_demos_that_the_help_lists_are_modules():
    assert all(callable(import_module(f"vecsweep.cli.demos.{name}").run) for name in DEMOS)


def test_every_command_is_carried_out_by_a_module():
    assert all(callable(import_module(f"vecsweep.cli.{name.replace('-', '_')}").run) for name in COMMANDS)


def test_completion_of_a_shell_knows_commands_and_options(run):
    done = run("--print-completion", "bash")
    assert done.status == 0
    assert all(word in done.out for word in ("find-lr", "range-test", "--num-lrs", "--schedules"))
    shell = subprocess.run(["bash", "-n"], input=done.out, capture_output=True, text=True, check=False)
    assert shell.returncode == 0, shell.stderr


def test_completion_without_its_package_is_told_in_a_line(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    done = run("--print-completion", "bash")
    assert_is_one_line_of_error(done.status, done.err)
    assert "pip install 'vecsweep[completion]'" in done.err


def test_training_says_every_few_seconds_how_far_it_is_where_there_is_no_terminal(run, monkeypatch):
    told = list[str]()
    monkeypatch.setattr(progress, "_EVERY_S", 0.2)
    monkeypatch.setattr(progress, "tell", told.append)
    how = ("--engine", "sequential", "--start-lr", "1e-4", "--end-lr", "1e-3")
    assert run("range-test", "own.py:slow", "--num-lrs", 2, "--num-steps", 64, *how).status == 0
    assert any(re.fullmatch(r"\d+ of 64 steps, 2 members left \.\.\.", line) for line in told)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a single child process")
def test_ctrl_c_saves_what_was_computed_and_returns_130(folder):
    command = [sys.executable, "-m", "vecsweep", "range-test", "own.py:slow", "--num-lrs", "2"]
    with subprocess.Popen(
        [*command, "--num-steps", "100000", "--engine", "sequential"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        for _ in range(80):  # steps, of which a window has 2 x 16
            assert process.stdout.readline() == "under way\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    told = without_progress(err)
    assert re.fullmatch(r"vecsweep: interrupted after \d+ steps; what they found is in \S+\.npz\.\n", told)
    found = vs.RangeTest.load(folder / "range-test-interrupted.npz")
    assert not found.is_complete
    assert np.isfinite(found.train_loss[0]).all()


BUSY = """
import atexit, os, sys
atexit.register(lambda: print(os.environ.get('OMP_WAIT_POLICY')))
os.getloadavg = lambda: ({load}, 0.0, 0.0)
os.sched_getaffinity = lambda _: set(range(4))
{call}
"""
BY_A_COMMAND = "from vecsweep.cli import main\nmain(['plot', 'nowhere.npz'])"
ALONE = "from vecsweep.cli.busy import spare_busy_cores\nspare_busy_cores()"  # what the command calls, without PyTorch


@pytest.mark.parametrize(
    ("call", "load", "chosen", "policy"),
    [
        (BY_A_COMMAND, 4.5, {}, "PASSIVE"),
        (ALONE, 4.5, {}, "PASSIVE"),
        (ALONE, 3.5, {}, None),
        (ALONE, 4.5, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
    ],
    ids=["a command", "busy", "free", "chosen"],
)
def test_threads_sleep_while_they_wait_if_the_cores_are_busy(call, load, chosen, policy):
    program = BUSY.format(load=load, call=call)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=False)
    assert done.stdout == f"{policy}\n", done.stderr
    assert ("4 cores with a load of 4.5" in done.stderr) is (policy == "PASSIVE")


@pytest.mark.parametrize("has_result", [True, False])
def test_interrupted_work_goes_where_the_output_was_to_go(has_result, run, monkeypatch):
    save_range_test("before.npz")
    result = vs.RangeTest.load("before.npz") if has_result else None

    def range_test(task, **options):
        raise vs.Interrupted(result)

    monkeypatch.setattr(vs, "range_test", range_test)
    done = run("range-test", "digits", "--output", "asked.npz")
    assert done.status == 130
    assert done.out == ""
    assert ("is in asked.npz" if has_result else "there is nothing to save") in done.err
    assert Path("asked.npz").exists() is has_result


def test_a_reader_that_goes_away_ends_the_command_without_a_traceback():
    command = [sys.executable, "-m", "vecsweep", "range-test", "own.py:make_task", *FEW]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert without_progress(process.stderr.read()) == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is Linux's")
def test_output_that_cannot_be_printed_is_told_in_one_line():
    command = [sys.executable, "-m", "vecsweep", "range-test", "own.py:make_task", *FEW, "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_is_one_line_of_error(done.returncode, without_progress(done.stderr))
    assert "cannot be printed: No space left on device" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell's way to close a stream")
def test_command_whose_streams_are_closed_does_its_work(folder):
    words = ["sweep", "own.py:make_task", "--lrs", "0.01", "--num-steps", "4", "--output-dir", "silent"]
    closing = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", closing, sys.executable, "-m", "vecsweep", *words]
    assert subprocess.run(command).returncode == 0
    assert len(vs.load(folder / "silent" / "sweep.npz").train_loss) == 4


def test_sweep_that_sigterm_ended_is_resumed_from_another_folder(folder, run, tmp_path_factory, monkeypatch):
    how = ["--epochs", "100", "--engine", "vectorized", "--no-compile", "--json", "--output-dir", "sweep"]
    asked = ["sweep", "digits", "--lrs", "0.03,0.1", *how]
    command = [sys.executable, "-m", "vecsweep", *asked, "--checkpoint", "kept", "--checkpoint-every", "100 steps"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(folder.glob("kept/run-000/step-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert "Traceback" not in err
    done = run("sweep", "digits", "--lrs", "0.5", *how, "--checkpoint", "kept")
    assert_is_one_line_of_error(done.status, done.err)
    assert "kept holds another call: `lrs` was [0.03, 0.1] and is [0.5]" in done.err
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = run("resume", folder / "kept")
    assert done.status == 0, done.err
    assert Path(strict_json(done.out)["output"]) == Path("sweep/sweep.npz")
    whole = vs.sweep(vs.tasks.digits(), lrs=[0.03, 0.1], epochs=100, engine="vectorized", compile=False)
    np.testing.assert_array_equal(vs.load(folder / "sweep" / "sweep.npz").train_loss, whole.train_loss)
    monkeypatch.chdir(folder)


def test_resume_of_what_python_began_says_how_to_go_on(run, folder):
    vs.sweep(vs.tasks.digits(), lrs=[0.1], num_steps=3, checkpoint="kept")
    done = run("resume", "kept")
    assert_is_one_line_of_error(done.status, done.err)
    assert "was begun in Python. Go on there, with `vecsweep.resume(" in done.err
    done = run("resume", "nowhere")
    assert_is_one_line_of_error(done.status, done.err)
    assert "nowhere holds no checkpoint" in done.err


def test_result_that_cannot_be_written_where_it_was_asked_for_is_saved_elsewhere(run, monkeypatch, folder):
    save, asked = vs.Sweep.save, []

    def full(self, path):
        asked.append(Path(path))
        if len(asked) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, path)

    monkeypatch.setattr(vs.Sweep, "save", full)
    done = run("sweep", "own.py:make_task", "--lrs", "0.01,0.1", "--num-steps", "4", "--output-dir", "out")
    assert done.status == 2
    (elsewhere,) = re.findall(r"No space left on device\. The result is in (\S+\.npz) instead", done.err)
    assert len(vs.load(elsewhere).train_loss) == 4


def test_error_of_the_task_saves_what_was_computed(folder):
    (folder / "breaks.py").write_text(
        "import dataclasses\nimport own\n"
        "def task():\n"
        "    plain = own.make_task()\n"
        "    def batches():\n"
        "        yield from list(plain.batches)[:1] * 20\n"
        "        raise LookupError('the data end here')\n"
        "    return dataclasses.replace(plain, batches=batches)\n"
    )
    command = [sys.executable, "-m", "vecsweep", "sweep", "breaks.py:task", "--lrs", "0.01", "--num-steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "vecsweep: stopped by LookupError after 16 steps; what they found is in" in done.stderr
    assert "LookupError: the data end here" in done.stderr, "with its traceback: that code is what has to be mended"
    assert len(vs.load(folder / "sweep-interrupted.npz").train_loss) == 16


def test_output_folder_without_room_is_told_before_the_work(run, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr(vs, "sweep", lambda *_, **__: pytest.fail("it trains"))
    done = run("sweep", "own.py:make_task", "--lrs", "0.01", "--num-steps", "4", "--output-dir", "full")
    assert done.status == 2
    assert "full cannot be written: No space left on device. Choose another place" in done.err


def test_picture_that_fails_half_way_leaves_the_one_that_was_there(run, monkeypatch):
    from matplotlib.figure import Figure

    save_range_test("found.npz")
    run("plot", "found.npz")
    before = Path("found.png").read_bytes()

    def half(self, path, **options):
        Path(path).write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    assert run("plot", "found.npz").status == 2
    assert Path("found.png").read_bytes() == before
    assert not list(Path().glob(".found.png*"))
