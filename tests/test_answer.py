"""find_lr: the learning rate that it names, held against plain loops at every learning rate, and what it costs."""

import copy
import errno
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

import vecsweep as vs
from vecsweep.cli import main
from vecsweep.race import STRATEGIES, Race, Scan, Strategy, scan_lrs, scan_spacing, scan_steps, strategy_for
from vecsweep.results.ranking import Setting
from vecsweep.suggest.basin import read_basin

pytestmark = pytest.mark.usefixtures("float64")

NUM_STEPS = 160
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": torch.optim.Adam,
}


def data(num_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 8, generator=generator)
    noise = 0.3 * torch.randn(num_rows, generator=generator)
    return inputs, (inputs @ torch.arange(8.0).cos() + inputs[:, 1].square() - 1 + noise > 0).long()


def accuracy(outputs, targets):
    return (outputs.argmax(dim=1) == targets).double().mean()


def make_task(optimizer="momentum", *, scale=1.0, **options):
    torch.manual_seed(0)
    model = options.pop("model", nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)))
    inputs, targets = data(1024, 1)
    kind = OPTIMIZERS[optimizer]
    how = {
        "loss_fn": lambda outputs, targets: scale * F.cross_entropy(outputs, targets),
        "optimizer": lambda params: kind(params),
        "val_batches": [data(1024, 2)],
        "metrics": {"accuracy": accuracy},
    }
    batches = options.pop("batches", list(zip(inputs.split(16), targets.split(16), strict=True)))
    return vs.Task(model, batches, **(how | options))


def find_lr(task=None, **options):
    return vs.find_lr(task or make_task(), **({"num_steps": NUM_STEPS, "progress": False} | options))


def cosine(step):
    return (1 + math.cos(math.pi * step / (NUM_STEPS - 1))) / 2


def plain_loop(task, lr, schedule=lambda step: 1.0, num_steps=NUM_STEPS):
    """The model that people's own loop trains, and its validation loss."""
    model = copy.deepcopy(task.model)
    optimizer = task.optimizer(model.parameters())
    for step in range(num_steps):
        inputs, targets = task.batches[step % len(task.batches)]
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step)
        optimizer.zero_grad()
        task.loss_fn(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(np.mean([float(task.loss_fn(model(x), y)) for x, y in task.val_batches]))
    return model, loss if math.isfinite(loss) else math.inf


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("name", "schedule"), [("constant", lambda step: 1.0), ("cosine", cosine)])
def test_answer_is_as_good_as_the_best_of_plain_loops(optimizer, name, schedule):
    task = make_task(optimizer)
    answer = find_lr(task, schedule=name)
    lrs = 10 ** np.arange(-4, 2.01, 0.25)
    losses = [plain_loop(task, lr, schedule)[1] for lr in lrs]
    untrained = plain_loop(task, 0.0)[1]
    for lr in (answer.lr, answer.winner.setting.lr):
        regret = (plain_loop(task, lr, schedule)[1] - min(losses)) / (untrained - min(losses))
        assert regret < 0.05
    assert answer.start == pytest.approx(untrained, rel=0.01)
    assert answer.interval[0] <= answer.lr <= answer.interval[1]


def test_model_is_the_winner_trained_to_the_end_under_the_schedule():
    task = make_task()
    answer = find_lr(task, schedule="cosine")
    expected, loss = plain_loop(task, answer.winner.setting.lr, cosine)
    assert answer.finished
    assert answer.winner.scores[-1] == pytest.approx(loss, rel=1e-9)
    for own, other in zip(answer.model().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_model_of_a_race_that_ended_early_is_trained_when_it_is_asked_for():
    task = make_task()
    answer = find_lr(task, schedule="cosine", budget=1.2)
    assert not answer.finished
    assert "The race ended at 25% of the run" in str(answer)
    expected, _ = plain_loop(task, answer.winner.setting.lr, cosine)
    for own, other in zip(answer.model().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_rest_of_a_run_is_trained_once(monkeypatch, tmp_path):
    answer, extend, calls = find_lr(budget=1.2), vs.Sweep.extend, []
    monkeypatch.setattr(vs.Sweep, "extend", lambda *args, **options: calls.append(options) or extend(*args, **options))
    answer.model()
    answer.model()
    answer.save_model(tmp_path / "model")
    assert calls == [{"num_steps": NUM_STEPS * 3 // 4}]


@pytest.mark.parametrize("scale", [1e-10, 1e-5, 1e5, 1e10])
def test_no_range_is_needed(scale):
    """The gradient of a loss times c is c times as large, so that plain SGD wants an lr c times as small."""
    usual, scaled = find_lr(make_task("sgd")), find_lr(make_task("sgd", scale=scale))
    assert scaled.lr * scale == pytest.approx(usual.lr, rel=0.8)


@pytest.mark.parametrize("budget", [0.6, 1, 2, 3, 4, 6, 8, 12, 20])
@pytest.mark.parametrize("num_steps", [40, 300])
def test_budget_is_kept(budget, num_steps):
    answer = find_lr(num_steps=num_steps, budget=budget if num_steps > 100 else budget + 2)
    assert answer.cost <= answer.budget
    num_taken = sum(int((~np.isnan(runs.train_loss)).sum()) for runs in answer.runs)
    assert answer.cost == pytest.approx((num_taken + 1) / num_steps)  # and a step that shows what untrained weights do


@pytest.mark.parametrize(
    "schedule",
    [
        vs.schedules.from_torch(lambda optimizer: StepLR(optimizer, 64, 0.1), interval="step"),
        vs.schedules.from_torch(lambda optimizer: StepLR(optimizer, 2, 0.5), interval="epoch"),
        vs.schedules.plateau(factor=0.5, patience=0),
        vs.schedules.cosine(1, 0.1),
        lambda progress: 1 - progress / 2,
    ],
)
def test_any_schedule_races(schedule):
    inputs, targets = data(512, 1)
    task = make_task(batches=DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True))
    answer = find_lr(task, schedules={"own": schedule}, num_steps=None, epochs=5)
    assert answer.num_steps == 160
    assert answer.finished
    assert answer.winner.gap == 0
    place = next(i for i, m in enumerate(answer.runs[1].members) if m.setting == answer.winner.setting)
    alone = vs.sweep(task, lrs=[answer.winner.setting.lr], schedules={"own": schedule}, epochs=5, progress=False)
    np.testing.assert_array_equal(answer.runs[1].lr[:, place], alone.lr[:, 0])
    np.testing.assert_allclose(answer.runs[1].train_loss[:, place], alone.train_loss[:, 0], rtol=1e-9)


def test_precision_and_clipping_reach_the_race():
    torch.set_default_dtype(torch.float32)
    answer = find_lr(precision="bf16", max_grad_norm=1.0, engine="sequential")
    assert all(runs.engine.startswith("sequential") for runs in answer.runs)
    assert answer.finished


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("seeds", [1, 3])
def test_run_of_few_steps_has_an_answer_too(num_steps, seeds):
    answer = find_lr(num_steps=num_steps, budget=150, seeds=seeds)
    assert answer.interval[0] <= answer.lr <= answer.interval[1]
    assert answer.finished


def test_fallback_is_warned_of_at_the_callers_line():
    class Jumpy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, inputs):
            outputs = self.layer(inputs)
            return 2 * outputs if outputs.mean() > 0 else outputs

    with pytest.warns(vs.FallbackWarning, match="data-dependent") as caught:
        vs.find_lr(make_task(model=Jumpy()), num_steps=40, progress=False)
    assert {warning.filename for warning in caught} == {__file__}


def test_seeds_race_together():
    answer = find_lr(seeds=3, budget=10)
    race = answer.runs[1]
    assert {member.seed for member in race.members} == {0, 1, 2}
    final = race.final("val_loss")
    own = [i for i, member in enumerate(race.members) if member.lr == answer.winner.setting.lr]
    assert answer.winner.scores[-1] == pytest.approx(final[own].mean())


def test_what_else_is_compared_is_named_with_what_it_matters():
    answer = find_lr(schedules=["constant", "cosine"], vary={"momentum": [0.0, 0.9]}, budget=10)
    mattered = answer.mattered()
    assert set(mattered) == {"schedule", "momentum"}
    assert set(mattered["schedule"]) == {"constant", "cosine"}
    assert mattered["schedule"][answer.schedule] == 0
    assert mattered["momentum"][answer.hyper["momentum"]] == 0
    assert all(gap >= 0 for values in mattered.values() for gap in values.values())
    for name in ("constant", "cosine", "momentum"):
        assert name in str(answer)


def test_what_matters_is_told_of_those_that_started_alike():
    """Of two settings that train alike, one is the winner's, around which others race later."""
    answer = find_lr(make_task("sgd", scale=1.7), vary={"weight_decay": [0.0, 1e-12]}, budget=8)
    late = [trial for trial in answer.trials if trial.is_late]
    started = {member.setting for member in answer.runs[1].members}
    assert late
    assert all(trial.setting not in started for trial in late)
    assert answer.winner in late
    assert min(trial.gap for trial in answer.trials if not trial.is_late) > 0.01
    assert max(answer.mattered()["weight_decay"].values()) < 1e-6


def test_comparison_that_ended_early_is_doubted():
    early, whole = (find_lr(schedules=["constant", "cosine"], budget=budget) for budget in (3, 6))
    assert any("compared after 25% of the run" in doubt for doubt in early.doubts)
    assert not any("was compared" in doubt for doubt in (*whole.doubts, *find_lr(budget=1).doubts))


def test_without_validation_the_training_loss_decides():
    answer = find_lr(make_task(val_batches=None, metrics={}))
    assert answer.metric == "train_loss"
    race = answer.runs[1]
    place = next(i for i, member in enumerate(race.members) if member.setting == answer.winner.setting)
    assert answer.winner.scores[-1] == pytest.approx(race.train_loss[-NUM_STEPS // 4 :, place].mean())


def test_scan_goes_by_the_training_loss_where_validation_is_much():
    inputs, targets = data(8192, 2)
    task = make_task(val_batches=DataLoader(TensorDataset(inputs, targets), batch_size=512))
    answer, usual = find_lr(task), find_lr(make_task(val_batches=[(inputs[:200], targets[:200])]))
    assert answer.runs[0].metrics == {}
    assert usual.runs[0].metrics.keys() == {"val_loss", "val_accuracy"}
    assert answer.metric == "val_loss"
    assert answer.start == pytest.approx(plain_loop(task, 0.0)[1], rel=0.01)
    assert answer.cost <= 4
    assert abs(math.log10(answer.lr / usual.lr)) < 0.7


def test_more_of_an_accuracy_is_better():
    answer = find_lr(monitor="val_accuracy")
    assert answer.mode == "max"
    finished = [trial.scores[-1] for trial in answer.trials if trial.rungs[-1] == 1]
    assert answer.winner.scores[-1] == max(finished) > answer.start


def test_nothing_of_the_callers_changes():
    task = make_task()
    before = [p.clone() for p in task.model.parameters()]
    state = torch.get_rng_state()
    find_lr(task)
    assert all(torch.equal(own, old) for own, old in zip(task.model.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_same_call_gives_the_same_answer():
    first, second = find_lr(), find_lr()
    assert first.lr == second.lr
    assert first.trials == second.trials


def test_task_that_nothing_trains_is_refused():
    task = make_task(loss_fn=lambda outputs, _: outputs.sum() * math.nan)
    with pytest.raises(ValueError, match="No learning rate trains this task"):
        find_lr(task)


@pytest.mark.parametrize("monitor", ["val_loss", "val_share"])
def test_metric_that_is_never_finite_is_named(monitor):
    inputs, targets = data(64, 2)
    val_batches = [(inputs * math.nan if monitor == "val_loss" else inputs, targets)]
    metrics = {"share": lambda outputs, targets: outputs.sum() * 0 / 0}
    with pytest.raises(ValueError, match=f"Nothing can be judged by '{monitor}'"):
        find_lr(make_task(val_batches=val_batches, metrics=metrics), monitor=monitor, mode="min")


def spoiled_at(step):
    """A task whose run meets NaN at one step."""
    task = make_task()
    batches = [task.batches[k % len(task.batches)] for k in range(NUM_STEPS)]
    batches[step] = (batches[step][0] * math.nan, batches[step][1])
    return make_task(batches=batches)


@pytest.mark.filterwarnings("ignore:.*diverged at step:RuntimeWarning")
@pytest.mark.parametrize("step", [22, 50, 100, 159])
def test_race_that_nobody_ends_alive_names_the_best_of_those_that_did_not_diverge_and_has_no_model(step):
    answer = find_lr(spoiled_at(step))
    sound = [own for own in answer.trials if all(map(math.isfinite, own.scores))]
    rungs = [rung for rung in (1 / 8, 1 / 4, 1 / 2) if rung * NUM_STEPS <= step]
    end = max([own.rungs[-1] for own in sound], default=rungs[-1])
    scored = {own.setting: own.scores[-1 if sound else own.rungs.index(end)] for own in sound or answer.trials}
    at_end = {own.setting for own in sound or answer.trials if end in own.rungs}
    assert answer.winner.setting == min(at_end, key=scored.__getitem__)
    assert answer.interval[0] <= answer.lr <= answer.interval[1] < math.inf
    assert math.isfinite(answer.winner.gap) == bool(sound)
    assert not answer.finished
    told = (
        f"went on after {end:.0%} of the run diverged" if sound else f"left after {end:.0%} of the run diverged later"
    )
    assert any(told in doubt for doubt in answer.doubts)
    assert "where the budget did" not in str(answer)
    texts = [text.get_text() for text in answer.plot().get_legend().get_texts()]
    assert [text for text in texts if text.startswith("after")] == [f"after {NUM_STEPS * r:.0f} steps" for r in rungs]
    with pytest.raises(ValueError, match=f"the run diverged at step {step} of {NUM_STEPS}"):
        answer.model()


def overstrained(factor, *, at):
    """A regression whose inputs grow from some step on: learning rates that were good before diverge there."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_STEPS, 16, 8, generator=generator)
    inputs[at:] *= factor
    batches = list(zip(inputs, inputs @ torch.linspace(-1, 1, 8).unsqueeze(1), strict=True))
    how = {"loss_fn": F.mse_loss, "val_batches": batches[:1], "metrics": {}}
    torch.manual_seed(0)
    return make_task("sgd", model=nn.Linear(8, 1), batches=batches, **how)


@pytest.mark.parametrize("at", [48, 88])
def test_one_that_was_sent_home_goes_again_where_all_others_diverged_later(at):
    task = overstrained(5, at=at)
    answer = find_lr(task, budget=4)
    started = answer.runs[1].members
    diverged, sent_home = (
        [own.lr for own in started if own.diverged_at is not None],
        [own for own in started if own.stopped_at],
    )
    assert len(diverged) + len(sent_home) == len(started)
    assert answer.finished
    assert answer.cost <= 4
    assert answer.lr < min(diverged)
    expected, _ = plain_loop(task, answer.winner.setting.lr)
    for own, other in zip(answer.model().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_lr_that_diverged_is_not_named_where_the_budget_is_over():
    answer = find_lr(overstrained(3, at=88), budget=4)
    assert answer.lr < min(own.setting.lr for own in answer.trials if math.isinf(own.gap))
    assert not answer.finished
    assert "Who went on after 50% of the run diverged." in str(answer)
    assert any("was the best of those that were sent home" in doubt for doubt in answer.doubts)
    expected, _ = plain_loop(overstrained(3, at=88), answer.winner.setting.lr)
    for own, other in zip(answer.model().parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An answer to a comparison, and the file that it was written to."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    answer = find_lr(num_steps=64, schedules=["constant", "cosine"], vary={"momentum": [0.5, 0.9]}, budget=9)
    torch.set_default_dtype(before)
    return answer, answer.save(tmp_path_factory.mktemp("answers") / "answer")


def test_saved_answer_comes_back_whole_but_for_the_weights(saved):
    answer, path = saved
    assert path.suffix == ".npz"
    again = vs.Answer.load(path)
    for name in ("lr", "interval", "schedule", "hyper", "doubts", "trials", "winner", "metric", "mode", "start"):
        assert getattr(again, name) == getattr(answer, name)
    assert str(again) == str(answer)
    assert again.mattered() == answer.mattered()
    assert vs.Answer.load(str(path).removesuffix(".npz")).lr == answer.lr
    for own, other in zip(again.runs, answer.runs, strict=True):
        assert own.members == other.members
        np.testing.assert_array_equal(own.train_loss, other.train_loss)
        np.testing.assert_array_equal(own.metrics.get("val_loss", 0), other.metrics.get("val_loss", 0))
    drawn, expected = ([line.get_xydata() for line in own.plot().lines] for own in (again, answer))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(drawn, expected, strict=True))
    with pytest.raises(ValueError, match="The weights of the members are not here"):
        again.model()


def test_infinite_gaps_and_missing_scores_are_saved_too(tmp_path):
    answer = find_lr(overstrained(3, at=88), budget=4)
    again = vs.Answer.load(answer.save(tmp_path / "answer.npz"))
    assert [own.gap for own in again.trials] == [own.gap for own in answer.trials]
    assert str(again) == str(answer)
    with pytest.raises(ValueError, match="The weights of the members are not here"):
        again.model()


@pytest.mark.parametrize("read", [vs.load, vs.Sweep.load, vs.RangeTest.load])
def test_file_of_an_answer_is_no_sweep(read, saved):
    with pytest.raises(vs.ResultFileError, match=r"holds an Answer, not .*Read it with `vecsweep\.Answer\.load`"):
        read(saved[1])


def test_file_of_a_sweep_is_no_answer(saved, tmp_path):
    path = saved[0].runs[0].save(tmp_path / "sweep.npz")
    with pytest.raises(
        vs.ResultFileError, match=r"holds a Sweep, not an Answer\. Read it with `vecsweep\.Sweep\.load`"
    ):
        vs.Answer.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        *({"lr": value} for value in (None, "0.1", -1.0, math.nan, True)),
        *({"interval": value} for value in (0.1, [0.1], [0.1, "0.2"], [0.1, math.inf])),
        *({"trials": value} for value in ([], [[0.1]], 3, [[0.1, "constant", {}, [1.0], [], 0.0, False]])),
        *({"trials": [[0.1, "constant", {}, [rung], [0.5], 0.0, False]]} for rung in (1.0, 2.0, "1")),
        *({"runs": value} for value in (None, [], [{}], [{"kind": "RangeTest"}], [3])),
        *({"doubts": "none"}, {"doubts": [3]}, {"hyper": {"momentum": "much"}}, {"mode": "most"}, {"num_steps": 0}),
        *({"metric": 3}, {"cost": [1]}),
    ],
    ids=str,
)
def test_damaged_file_of_an_answer_is_refused(damage, saved, tmp_path):
    with np.load(saved[1]) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header"))) | damage
    np.savez(tmp_path / "odd.npz", header=json.dumps(header), **arrays)
    with pytest.raises(vs.ResultFileError, match=r"odd\.npz"):
        vs.Answer.load(tmp_path / "odd.npz")


@pytest.mark.parametrize("name", ["lr", "trials", "runs", "noise"])
def test_file_of_an_answer_that_lacks_a_field_is_refused(name, saved, tmp_path):
    with np.load(saved[1]) as file:
        arrays = dict(file)
    header = json.loads(str(arrays.pop("header")))
    del header[name]
    np.savez(tmp_path / "poor.npz", header=json.dumps(header), **arrays)
    with pytest.raises(vs.ResultFileError, match=rf"poor\.npz is damaged: '{name}'"):
        vs.Answer.load(tmp_path / "poor.npz")


def test_commands_draw_and_report_a_saved_answer(saved, tmp_path, capsys):
    pytest.importorskip("plotly")
    path = saved[0].save(tmp_path / "answer.npz")
    assert main(["plot", str(path)]) == 0
    assert main(["report", str(path)]) == 0
    assert (tmp_path / "answer.png").stat().st_size > 10_000
    assert f"a learning rate of {saved[0].lr:.3g}" in (tmp_path / "answer.html").read_text(encoding="utf-8")
    capsys.readouterr()
    for command, option in (("plot", "--rule=basin"), ("plot", "--kind=final"), ("report", "--metric=val_loss")):
        assert main([command, str(path), option]) == 2
        assert f"`{option.partition('=')[0]}`" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The member of seed 0 diverged at step 100:RuntimeWarning")
def test_model_that_diverges_in_what_was_left_of_the_run_is_refused(tmp_path):
    answer = find_lr(spoiled_at(100), budget=1.2)
    assert not answer.finished
    assert "The race ended at 25% of the run" in str(answer)
    for ask in (answer.model, lambda: answer.save_model(tmp_path / "model")):
        with pytest.raises(ValueError, match="the run diverged at step 100 of 160"):
            ask()
    assert not list(tmp_path.iterdir())


def test_task_that_learns_nothing_is_doubted():
    inputs, _ = data(1024, 1)
    labels = torch.randint(2, (2, 1024), generator=torch.Generator().manual_seed(3))
    batches = list(zip(inputs.split(16), labels[0].split(16), strict=True))
    task = make_task(batches=batches, val_batches=[(inputs, labels[1])])
    nn.init.zeros_(task.model[2].weight)  # it begins at the loss of a guess
    nn.init.zeros_(task.model[2].bias)
    assert any("hardly gains" in doubt for doubt in find_lr(task, num_steps=64).doubts)


def test_picture_shows_each_rung_and_the_answer():
    answer = find_lr()
    ax = answer.plot()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [text for text in texts if text.startswith("after")] == [f"after {n} steps" for n in (20, 40, 80, 160)]
    assert f"answer, {answer.lr:.3g}" in texts
    assert ax.get_xscale() == "log"
    scores = [score for own in answer.trials for score in own.scores if math.isfinite(score)]
    assert min(scores) < answer.start / 3
    assert ax.get_yscale() == "log"  # the last rungs stand apart from each other, far below the first
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1  # it covers nothing


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"budget": 0}, ValueError, "`budget`"),
        ({"budget": 0.1}, ValueError, "at least"),
        ({"budget": np.float32(0.1)}, ValueError, "at least"),
        ({"budget": "4"}, ValueError, "`budget`"),
        ({"budget": 1, "vary": {"momentum": [0.1, 0.2, 0.3]}}, ValueError, "3 combinations"),
        ({"tolerance": 1}, ValueError, "`tolerance`"),
        ({"schedule": "cosin"}, ValueError, "cosine"),
        ({"num_steps": None}, ValueError, "Exactly one"),
        ({"epochs": 3}, ValueError, "Exactly one"),
        ({"monitor": "val_acuracy", "mode": "max"}, ValueError, "not measured"),
        ({"monitor": "train_accuracy"}, ValueError, "not measured"),
        ({"mode": "less"}, ValueError, "`mode`"),
        ({"schedule": "cosine", "schedules": ["constant"]}, ValueError, "cannot both be given"),
        ({"vary": {"lr": [0.1]}}, ValueError, "`lrs`|lr"),
        ({"vary": {"batch_size": [8, 16]}}, ValueError, "a task of its own"),
        ({"epoch": 3}, TypeError, "Did you mean 'epochs'"),
    ],
)
def test_wrong_argument_is_told(options, error, what):
    with pytest.raises(error, match=what):
        find_lr(**options)


def test_iterator_is_refused():
    with pytest.raises(ValueError, match="again and again"):
        find_lr(
            make_task() if False else vs.Task(nn.Linear(8, 2), iter([data(8, 1)]), F.cross_entropy, OPTIMIZERS["sgd"])
        )


def test_command_says_the_answer_and_writes_what_is_asked_for(tmp_path, capsys):
    pytest.importorskip("sklearn")
    torch.set_default_dtype(torch.float32)
    png, weights = tmp_path / "answer.png", tmp_path / "best.safetensors"
    arguments = ["digits", "--num-steps", "64", "--schedule", "cosine", "--png", str(png), "--model", str(weights)]
    arguments += ["--output", str(tmp_path / "answer.npz")]
    assert main(["find-lr", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["interval"][0] <= found["lr"] <= found["interval"][1]
    assert found["cost"] <= found["budget"] == 4
    assert png.stat().st_size > 10_000
    assert weights.exists()
    assert vs.Answer.load(found["output"]).lr == found["lr"]
    assert main(["find-lr", "digits", "--num-steps", "64", "--budget", "1.5"]) == 0
    assert "The race ended" in capsys.readouterr().out


@pytest.mark.parametrize("told", ["lr ", '"lr":'])
def test_command_tells_the_answer_whose_model_cannot_be_written(told, tmp_path, capsys, monkeypatch):
    pytest.importorskip("sklearn")
    torch.set_default_dtype(torch.float32)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(vs.Answer, "save_model", full)
    arguments = ["digits", "--num-steps", "64", "--model", str(tmp_path / "best.safetensors")]
    assert main(["find-lr", *arguments, *["--json"] * told.startswith('"')]) == 2
    shown = capsys.readouterr()
    assert told in shown.out
    assert "No space left on device" in shown.err


# What decides, without training.


def test_each_strategy_takes_more_work_than_the_one_before_it():
    costs = [own.cost(math.floor(2.0 / own.spacing) + 1, 1000) for own in STRATEGIES]
    assert all(a < b for a, b in pairwise(costs))


@pytest.mark.parametrize("budget", [1.0, 2.0, 4.0, 8.0, 20.0])
def test_strategy_is_the_most_thorough_that_is_paid_for(budget):
    scan = Scan({float(lr): abs(math.log10(lr) + 1.0) for lr in scan_lrs(0.4)})
    chosen = strategy_for(budget, [scan], 1000)
    assert chosen.cost(len(scan.window(chosen.spacing)), 1000) <= budget
    dearer = STRATEGIES[STRATEGIES.index(chosen) + 1 :]
    assert all(own.cost(len(scan.window(own.spacing)), 1000) > budget for own in dearer)


@pytest.mark.parametrize(("num_steps", "budget"), [(10, 24), (40, 6), (60, 4), (NUM_STEPS, 4)])
def test_brief_run_may_cost_more_runs(num_steps, budget):
    answer = find_lr(num_steps=num_steps)
    assert answer.cost <= answer.budget == budget


def test_scan_takes_its_share_of_the_budget_at_most():
    for budget in (1.0, 2.0, 4.0, 8.0):
        spacing = scan_spacing(budget, 1000)
        assert spacing == 1.0 or len(scan_lrs(spacing)) * scan_steps(1000) / 1000 <= 0.25 * budget


def test_scan_finds_the_cliff_and_what_may_be_best_below_it():
    scores = {1e-3: 2.0, 1e-2: 1.9, 1e-1: 1.5, 1.0: 3.0, 10.0: math.inf}
    scan = Scan(scores)
    assert (scan.start, scan.best, scan.cliff) == (2.0, 0.1, 1.0)
    window = scan.window(0.25)
    assert window[0] >= 0.1 * 10**-1.51
    assert window[-1] <= 0.1 * 10**0.51
    assert Scan(scores | {1.0: 1.6, 10.0: 1.7}).cliff is None


def test_best_far_below_the_cliff_is_noise():
    scores = {float(lr): 2.0 - 0.1 * (lr == 1e-4) for lr in 10.0 ** np.arange(-6, 1)} | {10.0: 9.0, 100.0: math.inf}
    assert Scan(scores).best == pytest.approx(10 * 10**-1.6)


def test_scan_of_a_plateau_goes_by_where_training_breaks():
    worse_and_worse = {1e-6: 0.685, 1e-4: 0.68501, 1e-2: 0.6855, 0.1: 0.72, 1.0: 0.79, 10.0: 20.0, 100.0: math.inf}
    scan = Scan(worse_and_worse)
    assert scan.cliff == 1.0
    assert scan.window(0.5)[0] < 0.1 < scan.window(0.5)[-1]
    assert scan.missing(0.4).size == 0


def test_answer_to_a_task_that_starts_on_a_plateau_trains_it():
    # A product of two of sixteen inputs: 8 steps with a large lr make the loss worse at first, whatever it is later.
    torch.manual_seed(0)
    inputs = torch.randn(512, 16)
    data = torch.utils.data.TensorDataset(inputs, (inputs[:, 0] * inputs[:, 1] > 0).long())
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    loader = torch.utils.data.DataLoader(data, 32, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    answer = vs.find_lr(vs.Task(model, loader, F.cross_entropy, optimizer=optimizer), epochs=6, schedule="one-cycle")
    outputs = answer.model()(inputs)
    assert (outputs.argmax(1) == data.tensors[1]).double().mean() > 0.9


def test_scan_widens_where_it_ends_too_soon():
    falling = Scan({float(lr): 2.0 - 0.1 * i for i, lr in enumerate(scan_lrs(0.4))})
    assert falling.missing(0.4).min() > 100
    exploded = Scan({float(lr): math.inf for lr in scan_lrs(0.4)})
    assert exploded.missing(0.4).max() < 1e-6
    good = Scan({float(lr): abs(math.log10(lr) + 2.0) + (100 if lr > 0.2 else 0) for lr in scan_lrs(0.4)})
    assert good.missing(0.4).size == 0


def test_late_comers_compete_for_the_same_places():
    race = Race(Strategy(0.25, (0.5, 1.0), (0.5,)))
    settings = {lr: Setting(lr, "constant") for lr in (0.1, 0.2, 0.3, 0.4, 0.5)}
    race.admit(4)
    going_on = race.judge(0.5, {settings[lr]: lr for lr in (0.1, 0.2, 0.3, 0.4)})
    assert going_on == {settings[0.1], settings[0.2]}
    assert race.judge(0.5, {settings[0.5]: 0.15}) == {settings[0.5]}
    race.judge(1.0, {settings[0.1]: 0.5, settings[0.2]: 0.4})
    assert race.winner == settings[0.2]
    gaps = race.gaps(start=1.1)
    assert gaps[settings[0.2]] == 0
    assert gaps[settings[0.1]] == pytest.approx(0.1 / 0.7)
    assert gaps[settings[0.3]] == pytest.approx(0.2 / 1.0)


def test_what_is_left_of_the_budget_looks_between_the_best_and_its_better_neighbour():
    race = Race(Strategy(1.0, (1.0,), ()))
    settings = {lr: Setting(lr, "constant") for lr in (0.01, 0.1, 1.0)}
    race.admit(3)
    race.judge(1.0, dict(zip(settings.values(), (0.5, 0.3, 0.4), strict=True)))
    assert race.beside_winner(start=1.0).lr == pytest.approx(10**-0.5)
    race.judge(1.0, {settings[1.0]: math.inf})
    assert race.beside_winner(start=1.0).lr == pytest.approx(10**-1.5)
    alone = Race(Strategy(1.0, (1.0,), ()))
    alone.admit(1)
    alone.judge(1.0, {settings[0.1]: 0.3})
    assert alone.beside_winner(start=1.0) is None


def test_leftover_of_a_budget_is_spent():
    answers = [find_lr(budget=budget) for budget in (5, 5.5, 6, 6.9)]
    assert all(answer.budget - 1 < answer.cost <= answer.budget for answer in answers)
    assert any(len(answer.runs) > 2 for answer in answers)


def test_members_that_diverged_never_go_on():
    race = Race(Strategy(0.25, (0.5, 1.0), (1.0,)))
    settings = [Setting(lr, "constant") for lr in (0.1, 0.2)]
    race.admit(2)
    assert race.judge(0.5, dict(zip(settings, (1.0, math.inf), strict=True))) == {settings[0]}
    assert race.gaps(2.0)[settings[1]] == math.inf


@pytest.mark.parametrize(("gaps", "expected"), [([0.5, 0, 0.5], 0.1), ([0.0, 0.0, 0.5], 10**-1.5)])
def test_centre_of_the_basin_lies_between_those_that_are_as_good(gaps, expected):
    basin = read_basin(np.array([0.01, 0.1, 1.0]), np.array(gaps), best=1)
    assert basin.lr == pytest.approx(expected, rel=0.01)


def test_interval_ends_where_the_gap_crosses_the_tolerance():
    basin = read_basin(np.array([1e-3, 1e-2, 1e-1, 1.0]), np.array([0.2, 0.0, 0.04, math.inf]), best=1, tolerance=0.02)
    assert basin.low == pytest.approx(10**-2.1)
    assert basin.high == pytest.approx(10**-1.5)
    beside_cliff = read_basin(np.array([1e-2, 1e-1]), np.array([0.0, math.inf]), best=0)
    assert beside_cliff == pytest.approx((1e-2, 1e-2, 1e-2))
