"""Plots of sweeps, plans and schedules: what is drawn where, what the axes and the legend say, and what is refused."""

from itertools import product

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import vecsweep as vs
from vecsweep import schedules as sc
from vecsweep.plan import Plan
from vecsweep.plot import plot_plan, plot_schedule, plot_sweep
from vecsweep.results import MemberRecord
from vecsweep.suggest import smooth

NAN = np.nan
KINDS = ["curves", "final", "plan", "heatmap"]


def records(lrs=(0.1,), schedules=("constant",), seeds=1, diverged=None, stopped=None, **vary):
    """Members for each combination; `diverged` and `stopped` are steps by index."""
    rows = product(lrs, schedules, product(*vary.values()), range(seeds))
    return tuple(
        MemberRecord(lr, name, seed, (diverged or {}).get(i), (stopped or {}).get(i), dict(zip(vary, own, strict=True)))
        for i, (lr, name, own, seed) in enumerate(rows)
    )


def sweep_of(members, losses=None, *, num_steps=20, **fields):
    """A sweep with these losses, `[step, member]`; by default they fall from 2, the slower the later the member."""
    if losses is None:
        losses = 2.0 - np.linspace(0, 1, num_steps)[:, None] / (1 + np.arange(len(members)))
    losses = np.asarray(losses, dtype=float)
    common = {
        "members": members,
        "lr": np.tile([m.lr for m in members], (len(losses), 1)),
        "train_loss": losses,
        "steps_per_epoch": None,
        "engine": "by hand",
        "duration_s": 0.0,
    }
    return vs.Sweep(**(common | fields))


def scored(members, final, name="val_loss", **fields):
    """A sweep whose metric came to these values, by a first evaluation of 1."""
    final = np.asarray(final, dtype=float)
    values = np.stack([np.ones(len(final)), final])
    return sweep_of(members, metrics={name: values}, evaluated_at=np.array([10, 20]), **fields)


def legend_texts(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def legend_lines(ax):
    texts = [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]
    return dict(zip(texts, ax.get_legend().legend_handles, strict=True))


def curves(ax):
    """The lines that are curves: drawn in full, with more than one point."""
    return [line for line in ax.get_lines() if len(line.get_xdata()) > 1 and line.get_alpha() is None]


def crosses(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "x"]


def bands(ax):
    return [artist for artist in ax.collections if isinstance(artist, PolyCollection)]


def color_bars(ax):
    return [other for other in ax.figure.axes if other.get_label() == "<colorbar>"]


def cell_texts(ax):
    """The texts of a heat map by column and row."""
    return {text.get_position(): text.get_text().replace("\n", " ") for text in ax.texts}


@pytest.fixture(scope="module")
def runs():
    torch.manual_seed(0)
    inputs = torch.randn(24, 3)
    batches = [(part, part.sum(1, keepdim=True)) for part in inputs.split(8)]
    task = vs.Task(
        lambda: torch.nn.Linear(3, 1),
        batches,
        torch.nn.functional.mse_loss,
        optimizer=lambda params: torch.optim.SGD(params, momentum=0.5),
        val_batches=batches[:1],
    )
    return vs.sweep(task, lrs=[0.01, 0.1, 1e4], schedules=["constant", "one-cycle"], seeds=2, epochs=6, progress=False)


@pytest.mark.parametrize("kind", KINDS)
def test_real_sweep_is_drawn_on_the_axes_given(kind, runs):
    ax = Figure(figsize=(8, 5)).add_subplot()
    assert plot_sweep(runs, ax, kind=kind) is ax
    ax.figure.draw_without_rendering()
    assert ax.get_title() == "12 members: 3 lrs, 2 schedules, 2 seeds"


@pytest.mark.parametrize("kind", KINDS)
def test_without_axes_a_figure_is_made_that_saves_and_that_pyplot_does_not_know_of(kind, runs, tmp_path):
    runs.plot(kind=kind).figure.savefig(tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 0
    assert plt.get_fignums() == []


@pytest.mark.parametrize("kind", KINDS)
def test_result_is_not_changed(kind, runs):
    before = runs.train_loss.copy(), runs.lr.copy(), runs.metrics["val_loss"].copy()
    runs.plot(kind=kind)
    for was, is_now in zip(before, (runs.train_loss, runs.lr, runs.metrics["val_loss"]), strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_unknown_kind_is_an_error_that_names_those_there_are(runs):
    with pytest.raises(ValueError, match=r"'curves', 'final', 'plan', 'heatmap'; got 'curve'.*Did you mean 'curves'"):
        plot_sweep(runs, kind="curve")


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_metric_is_an_error(kind, runs):
    with pytest.raises(ValueError, match=r"got 'accuracy'"):
        runs.plot(kind=kind, metric="accuracy", mode="max")


@pytest.mark.parametrize("kind", ["final", "heatmap"])
def test_metric_whose_name_does_not_tell_which_side_is_better_needs_a_mode(kind):
    runs = scored(records([0.1, 0.2], ["constant", "cosine"]), [1, 2, 3, 4], "val_thing")
    with pytest.raises(ValueError, match='`mode` must be "min" or "max"'):
        runs.plot(kind=kind, metric="val_thing")
    runs.plot(kind=kind, metric="val_thing", mode="max")


def test_title_says_what_does_not_vary_and_that_a_run_was_interrupted():
    members = records([0.1], ["cosine"], 2, weight_decay=[0.0, 0.01, 0.1])
    title = sweep_of(members, is_complete=False).plot().get_title()
    assert title == "6 members: lr 0.1, cosine, 3 values of weight_decay, 2 seeds, interrupted"


@pytest.mark.parametrize("kind", ["curves", "final", "plan"])
def test_legend_is_beside_the_axes_where_the_figure_makes_room_and_else_inside(kind, runs):
    for layout, is_beside in (("constrained", True), (None, False)):
        few = runs.select(schedule="constant")
        ax = few.plot(Figure(figsize=(8, 5), layout=layout).add_subplot(), kind=kind)
        ax.figure.draw_without_rendering()
        box = ax.get_legend().get_window_extent()
        assert (box.x0 >= ax.get_window_extent().x1 - 1) == is_beside
        assert box.x1 <= ax.figure.bbox.x1


def test_curve_of_a_metric_is_the_mean_over_seeds_with_a_band_from_lowest_to_highest():
    values = np.array([[1.0, 3.0], [0.5, 1.5]])
    runs = sweep_of(records(seeds=2), metrics={"val_loss": values}, evaluated_at=np.array([10, 20]))
    ax = runs.plot()
    (line,) = curves(ax)
    assert line.get_xydata().tolist() == [[10, 2.0], [20, 1.0]]
    (band,) = bands(ax)
    assert {(10.0, 1.0), (10.0, 3.0), (20.0, 0.5), (20.0, 1.5)} <= set(map(tuple, band.get_paths()[0].vertices))
    assert legend_texts(ax) == ["lowest to highest of 2 seeds"]
    assert ax.get_ylabel() == "mean val_loss"


def test_training_loss_is_smoothed_over_a_fiftieth_of_the_run_and_thin_as_it_was():
    losses = 1 + np.random.default_rng(0).random((200, 1))
    ax = sweep_of(records(), losses).plot()
    (line,) = curves(ax)
    np.testing.assert_array_equal(line.get_ydata(), smooth(losses[:, 0], 0.75))
    assert ax.get_ylabel() == "train_loss, smoothed (0.75)"
    (thin,) = [other for other in ax.get_lines() if other.get_linewidth() < 1]
    np.testing.assert_array_equal(thin.get_ydata(), losses[:, 0])
    assert legend_texts(ax) == ["not smoothed"]


def test_short_or_crowded_curves_have_no_thin_lines():
    assert not any(line.get_linewidth() < 1 for line in sweep_of(records()).plot().get_lines())
    many = sweep_of(records(np.geomspace(0.01, 1, 7).tolist()), num_steps=200)
    assert not any(line.get_linewidth() < 1 for line in many.plot().get_lines())


@pytest.mark.parametrize(
    ("steps_per_epoch", "label", "last"),
    [(5, "epoch, of 5 steps", 19 / 5), (2.5, "epoch, of 2.5 steps", 19 / 2.5), (11, "step", 19), (None, "step", 19)],
)
def test_axis_counts_epochs_where_there_are_two(steps_per_epoch, label, last):
    ax = sweep_of(records(), steps_per_epoch=steps_per_epoch).plot()
    assert ax.get_xlabel() == label
    assert curves(ax)[0].get_xdata()[-1] == pytest.approx(last)


def test_lrs_are_told_by_colour_and_schedules_by_line_style():
    ax = sweep_of(records([0.1, 0.01, 1.0], ["constant", "cosine"])).plot()
    by_name = {line.get_label(): line for line in curves(ax)}
    entries = legend_lines(ax)
    assert list(entries)[:5] == ["lr 0.01", "lr 0.1", "lr 1", "constant", "cosine"]
    for lr, schedule in product(["lr 0.01", "lr 0.1", "lr 1"], ["constant", "cosine"]):
        line = by_name[f"{lr}, {schedule}"]
        assert to_rgba(line.get_color()) == to_rgba(entries[lr].get_color())
        assert line.get_linestyle() == entries[schedule].get_linestyle()
    assert len({tuple(to_rgba(line.get_color())) for line in curves(ax)}) == 3


def test_colours_of_lrs_become_lighter_with_the_lr():
    ax = sweep_of(records([0.3, 0.001, 0.1, 0.01])).plot()
    by_lr = sorted(curves(ax), key=lambda line: float(line.get_label().split()[1].rstrip(",")))
    lightness = [np.dot(to_rgba(line.get_color())[:3], (0.3, 0.6, 0.1)) for line in by_lr]
    assert lightness == sorted(lightness)
    assert lightness[-1] < 0.75, "still seen on white"


def test_eight_schedules_at_one_lr_have_a_colour_and_line_style_each():
    names = [f"schedule {i}" for i in range(8)]
    ax = sweep_of(records([0.1], names)).plot()
    assert legend_texts(ax)[:8] == names
    assert len({(to_rgba(line.get_color()), line.get_linestyle()) for line in curves(ax)}) == 8
    assert len({to_rgba(line.get_color()) for line in curves(ax)}) >= 7


def test_hyperparameter_is_told_by_colour_where_nothing_else_varies():
    ax = sweep_of(records(weight_decay=[0.1, 0.0])).plot()
    assert legend_texts(ax) == ["weight_decay 0", "weight_decay 0.1"]
    assert len({to_rgba(line.get_color()) for line in curves(ax)}) == 2


def test_many_lrs_have_a_logarithmic_colour_bar_in_place_of_entries():
    ax = sweep_of(records(np.geomspace(1e-4, 1, 20).tolist(), ["constant", "cosine"])).plot()
    (bar,) = color_bars(ax)
    assert bar.get_ylabel() == "learning rate"
    assert bar.get_yscale() == "log"
    assert legend_texts(ax) == ["constant", "cosine"]
    assert color_bars(sweep_of(records(np.geomspace(1e-4, 1, 10).tolist())).plot()) == []


def test_colour_bar_of_values_with_zero_is_linear():
    (bar,) = color_bars(sweep_of(records(weight_decay=np.linspace(0, 1, 11).tolist())).plot())
    assert (bar.get_ylabel(), bar.get_yscale()) == ("weight_decay", "linear")


def test_diverged_member_has_a_cross_where_it_ended_or_at_the_edge():
    losses = np.full((20, 3), 2.0)
    losses[:, 0] -= np.linspace(0, 1, 20)
    losses[5:, 1], losses[4, 1] = NAN, 2.1
    losses[7:, 2], losses[6, 2] = NAN, 1e9
    ax = sweep_of(records([0.01, 0.1, 1.0], diverged={1: 5, 2: 7}), losses).plot()
    within, above = crosses(ax)
    assert within.get_xydata().tolist() == [[5, 2.1]]
    assert above.get_xdata().tolist() == [7]
    low, high = ax.get_ylim()
    assert low + 0.9 * (high - low) < above.get_ydata()[0] < high < 10
    assert "diverged: 2 of 3 members" in legend_texts(ax)


def test_member_that_diverged_before_it_was_measured_has_a_cross_on_the_worse_side():
    for name, is_high in (("val_loss", True), ("val_accuracy", False)):
        values = np.array([[0.5, NAN], [0.6, NAN]])
        members = records([0.01, 0.1], diverged={1: 3})
        ax = sweep_of(members, metrics={name: values}, evaluated_at=np.array([10, 20])).plot(metric=name)
        (cross,) = crosses(ax)
        low, high = ax.get_ylim()
        assert (cross.get_ydata()[0] > (low + high) / 2) == is_high


def test_stopped_member_has_a_square_at_its_last_value():
    values = np.array([[1.0, 1.0], [0.9, 1.2], [0.8, NAN]])
    members = records([0.01, 0.1], stopped={1: 10})
    ax = sweep_of(members, metrics={"val_loss": values}, evaluated_at=np.array([5, 10, 15])).plot()
    (square,) = [line for line in ax.get_lines() if line.get_marker() == "s"]
    assert square.get_xydata().tolist() == [[10, 1.2]]
    assert "stopped early: 1 of 2 members" in legend_texts(ax)


def test_line_stands_where_training_was_taken_up_again():
    ax = sweep_of(records(), phases=(0, 8, 16), steps_per_epoch=4).plot()
    upright = [line.get_xdata() for line in ax.get_lines() if len(set(line.get_xdata())) == 1]
    assert [list(x) for x in upright] == [[2, 2], [4, 4]]
    assert "taken up again" in legend_texts(ax)
    assert sweep_of(records()).plot().get_legend() is None


def test_exploding_losses_do_not_squash_the_rest():
    losses = np.linspace(2, 1, 20)[:, None] * np.ones(3)
    losses[10:, 2] = 1e8
    low, high = sweep_of(records([0.01, 0.1, 1.0]), losses).plot().get_ylim()
    assert low < 1
    assert 2 < high < 5


def test_shares_are_all_in_view_and_what_explodes_downward_is_not():
    values = np.stack([np.linspace(0.1, 0.98, 10), np.full(10, 0.97)], axis=1)
    common = {"evaluated_at": np.arange(10)}
    low, high = (
        sweep_of(records([0.1, 1.0]), metrics={"val_accuracy": values}, **common).plot(metric="val_accuracy").get_ylim()
    )
    assert low < 0.1 < 0.98 < high
    values[:2, 0] = -1e6
    low, high = sweep_of(records([0.1, 1.0]), metrics={"val_r2": values}, **common).plot(metric="val_r2").get_ylim()
    assert -10 < low < 0.9


@pytest.mark.parametrize(("lowest", "scale"), [(0.5, "linear"), (0.01, "log"), (1e-9, "log"), (-1.0, "linear")])
def test_value_axis_is_logarithmic_over_a_wide_range_of_positive_values(lowest, scale):
    ax = sweep_of(records(), np.linspace(2.0, lowest, 20)[:, None]).plot()
    ax.figure.draw_without_rendering()
    assert ax.get_yscale() == scale
    assert ax.get_ylim()[0] < lowest


def test_logarithmic_axis_of_few_decades_has_ticks_in_plain_numbers_between_them():
    ax = sweep_of(records(), np.linspace(2.0, 0.03, 20)[:, None]).plot()
    ax.figure.draw_without_rendering()
    assert {"0.05", "0.1", "0.2", "0.5", "1"} <= {label.get_text() for label in ax.get_yticklabels()}


def test_curve_of_any_name_is_drawn():
    runs = sweep_of(records([0.1, 0.2]), hyper={"momentum": np.full((20, 2), 0.9)})
    assert runs.plot(metric="momentum").get_ylabel() == "momentum"
    assert runs.plot(metric="lr").get_ylabel() == "lr"


def test_axes_say_so_where_every_member_diverged():
    ax = sweep_of(records([0.1, 1.0], diverged={0: 0, 1: 0}), np.full((3, 2), NAN)).plot()
    ax.figure.draw_without_rendering()
    assert "all 2 members diverged" in ax.texts[0].get_text()
    assert "0.1" in ax.texts[0].get_text()


def test_final_values_stand_at_their_lr_with_a_line_for_each_schedule():
    ax = scored(records([0.01, 0.1], ["constant", "cosine"]), [0.4, 0.3, 0.2, 0.1]).plot(kind="final")
    constant, cosine = curves(ax)
    assert constant.get_xydata().tolist() == [[0.01, 0.4], [0.1, 0.2]]
    assert cosine.get_xydata().tolist() == [[0.01, 0.3], [0.1, 0.1]]
    assert legend_texts(ax)[:2] == ["constant", "cosine"]
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.01", "0.1"]
    assert ax.get_ylabel() == "final val_loss"


def test_lrs_are_in_their_order_whatever_the_order_they_came_in():
    (line,) = curves(scored(records([1.0, 0.01, 0.1]), [0.1, 0.2, 0.3]).plot(kind="final"))
    assert line.get_xydata().tolist() == [[0.01, 0.2], [0.1, 0.3], [1.0, 0.1]]


@pytest.mark.parametrize(("mode", "x", "best"), [("min", 0.1, 0.2), ("max", 1.0, 0.9)])
def test_best_setting_is_ringed(mode, x, best):
    ax = scored(records([0.01, 0.1, 1.0]), [0.4, 0.2, 0.9]).plot(kind="final", mode=mode)
    (ring,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("best")]
    assert ring.get_xydata().tolist() == [[x, best]]
    assert f"best: {best}, lr {x:g}" in legend_texts(ax)


def test_settings_no_worse_than_the_best_are_ringed_lightly():
    members = records([0.01, 0.1, 1.0], seeds=3)
    ax = scored(members, [0.9, 0.9, 0.91, 0.1, 0.2, 0.3, 0.21, 0.12, 0.3]).plot(kind="final")
    (ring,) = [line for line in ax.get_lines() if str(line.get_label()).startswith("no worse")]
    assert ring.get_xdata().tolist() == [1.0]
    assert "no worse beyond chance (95%): 1" in legend_texts(ax)


def test_where_a_seed_diverged_there_is_a_gap_a_band_of_the_rest_and_a_cross():
    members = records([0.01, 0.1, 1.0], ["constant", "cosine"], seeds=2, diverged={8: 4, 9: 4, 11: 4})
    final = [0.3, 0.4, 0.3, 0.4, 0.1, 0.2, 0.1, 0.3, NAN, NAN, 0.5, NAN]
    ax = scored(members, final).plot(kind="final")
    for line in curves(ax):
        assert np.isnan(line.get_ydata()).tolist() == [False, False, True]
    assert [band.get_paths()[0].vertices[:, 0].max() for band in bands(ax)] == [0.1, 1.0]
    first, second = crosses(ax)
    assert first.get_xdata()[0] == second.get_xdata()[0] == 1.0
    assert first.get_ydata()[0] != second.get_ydata()[0], "stacked"
    assert "a seed diverged: 2 of 6 settings" in legend_texts(ax)


def test_lone_value_among_many_that_diverged_is_seen():
    lrs = np.geomspace(1e-4, 1, 40).tolist()
    final = [NAN if i in (20, 22) else 0.5 for i in range(40)]
    (line,) = curves(scored(records(lrs, diverged={20: 1, 22: 1}), final).plot(kind="final"))
    assert line.get_marker() == "."


def test_crosses_stand_at_the_worse_edge():
    for name, is_high in (("val_loss", True), ("val_accuracy", False)):
        ax = scored(records([0.1, 1.0], diverged={1: 4}), [0.5, NAN], name).plot(kind="final", metric=name)
        low, high = ax.get_ylim()
        assert (crosses(ax)[0].get_ydata()[0] > (low + high) / 2) == is_high


def test_settings_of_a_single_lr_stand_side_by_side_with_a_point_for_each_seed():
    ax = scored(records([0.1], ["constant", "cosine"], seeds=2), [0.4, 0.6, 0.1, 0.3]).plot(kind="final")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["constant", "cosine"]
    means = [line.get_ydata()[0] for line in ax.get_lines() if line.get_linewidth() > 2]
    assert means == pytest.approx([0.5, 0.2])
    seeds = [list(line.get_ydata()) for line in ax.get_lines() if line.get_alpha() == 0.6]
    assert seeds == [[0.4, 0.6], [0.1, 0.3]]
    assert "best: 0.2, cosine" in legend_texts(ax)


def test_final_values_of_members_that_all_diverged_are_said_to_be_missing():
    ax = scored(records([0.1, 1.0], diverged={0: 2, 1: 3}), [NAN, NAN]).plot(kind="final")
    ax.figure.draw_without_rendering()
    assert "All 2 members diverged" in ax.texts[0].get_text()


def test_final_values_none_of_which_is_finite_are_said_to_be_so():
    ax = scored(records([0.1, 1.0]), [np.inf, np.inf]).plot(kind="final")
    ax.figure.draw_without_rendering()
    assert ax.texts[0].get_text() == "No final val_loss is finite."


def test_plan_has_the_lr_of_each_setting_at_each_step():
    members = records([0.1, 0.2], seeds=2)
    lr = np.linspace(1, 0.5, 20)[:, None] * [m.lr for m in members]
    ax = sweep_of(members, lr=lr).plot(kind="plan")
    first, second = curves(ax)
    np.testing.assert_array_equal(first.get_ydata(), lr[:, 0])
    np.testing.assert_array_equal(second.get_ydata(), lr[:, 2])
    assert ax.get_ylabel() == "learning rate"
    assert legend_texts(ax) == ["lr 0.1", "lr 0.2"]


def test_settings_with_one_lr_share_a_line():
    members = records([0.1, 0.2], weight_decay=[0.0, 0.1])
    runs = sweep_of(members, hyper={"weight_decay": np.tile([0.0, 0.1, 0.0, 0.1], (20, 1))})
    ax = runs.plot(kind="plan")
    assert len(curves(ax)) == 2
    assert legend_texts(ax) == ["lr 0.1", "lr 0.2"]
    assert len(ax.figure.axes) == 1, "constant weight decay is not drawn"


def test_plan_of_a_metric_is_refused():
    runs = scored(records(), [0.5])
    with pytest.raises(ValueError, match="A plan is of hyperparameters, lr; got 'val_loss'"):
        runs.plot(kind="plan", metric="val_loss")


def test_plan_is_logarithmic_over_a_wide_range_of_peaks_and_ends_above_a_fall_to_zero():
    members = records([0.001, 0.01, 0.1])
    lr = np.linspace(1, 0, 20)[:, None] * [m.lr for m in members]
    ax = sweep_of(members, lr=lr).plot(kind="plan")
    ax.figure.draw_without_rendering()
    assert ax.get_yscale() == "log"
    assert 1e-6 < ax.get_ylim()[0] < 1e-4
    assert sweep_of(members[1:], lr=lr[:, 1:]).plot(kind="plan").get_yscale() == "linear"


def with_momentum():
    members = records([0.1, 0.2], ["one-cycle", "cosine"])
    momentum = np.full((20, 4), 0.9)
    momentum[:, [0, 2]] = np.linspace(0.95, 0.85, 20)[:, None]
    return sweep_of(members, hyper={"momentum": momentum})


def test_changing_momentum_has_a_panel_beneath_where_all_lrs_share_a_line():
    ax = with_momentum().plot(kind="plan")
    top, below = ax.figure.axes
    assert top is ax
    assert below.get_ylabel() == "momentum"
    assert below.get_xlabel() == "step"
    falling, constant = below.get_lines()
    np.testing.assert_array_equal(falling.get_ydata(), np.linspace(0.95, 0.85, 20))
    assert set(constant.get_ydata()) == {0.9}
    assert falling.get_linestyle() != constant.get_linestyle()


def test_changing_momentum_has_a_second_axis_on_axes_that_were_given():
    ax = Figure().add_subplot()
    assert plot_plan(with_momentum(), ax) is ax
    _, right = ax.figure.axes
    assert right.get_ylabel() == "momentum"
    assert right.get_position().bounds == ax.get_position().bounds
    assert ax.get_zorder() > right.get_zorder(), "the legend is in front of the lines"
    assert "momentum (right)" in legend_texts(ax)


def test_hyperparameter_that_is_asked_for_is_drawn_alone():
    ax = with_momentum().plot(kind="plan", metric="momentum")
    assert ax.get_ylabel() == "momentum"
    assert len(ax.figure.axes) == 1
    assert len(curves(ax)) == 4


def test_plan_before_it_is_trained_is_drawn_too():
    plan = Plan.constant(np.array([0.1, 0.2]), [0, 1], num_steps=5)
    ax = plot_plan(plan)
    assert [set(line.get_ydata()) for line in curves(ax)] == [{0.1}, {0.2}]
    assert ax.get_title() == "4 members: 2 lrs, constant, 2 seeds"


def test_heat_map_has_lrs_in_columns_and_the_mean_over_seeds_in_cells():
    members = records([0.1, 0.01], ["constant", "cosine"], seeds=2)
    ax = scored(members, [0.1, 0.3, 0.4, 0.4, 0.5, 0.5, 0.6, 0.6]).plot(kind="heatmap")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["constant", "cosine"]
    assert cell_texts(ax) == {(0, 0): "0.5", (1, 0): "0.2", (0, 1): "0.6", (1, 1): "0.4"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "schedule")


def test_numbers_grow_upward_and_schedules_read_downward():
    bottom, top = scored(records([0.1, 0.2], weight_decay=[0.0, 0.1]), [1, 2, 3, 4]).plot(kind="heatmap").get_ylim()
    assert bottom < top
    top, bottom = scored(records([0.1, 0.2], ["a", "b"]), [1, 2, 3, 4]).plot(kind="heatmap").get_ylim()
    assert bottom < top


@pytest.mark.parametrize(("mode", "column", "side"), [("min", 0, "lower"), ("max", 1, "higher")])
def test_best_cell_is_the_brightest_and_framed(mode, column, side):
    members = records([0.1, 0.2], ["constant", "cosine"])
    ax = scored(members, [0.1, 0.5, 0.9, 0.5], "val_thing").plot(kind="heatmap", metric="val_thing", mode=mode)
    (image,) = ax.get_images()
    lightness = np.dot(image.cmap(image.norm(image.get_array()))[..., :3], (0.3, 0.6, 0.1))
    assert np.unravel_index(lightness.argmax(), lightness.shape) == (0, column)
    (frame,) = [patch for patch in ax.patches if patch.get_label() == "best"]
    assert frame.get_xy() == (column - 0.5, -0.5)
    (bar,) = color_bars(ax)
    assert bar.get_ylabel() == f"mean final val_thing, {side} is better"


def test_diverged_cells_are_hatched_and_say_so():
    members = records([0.1, 1.0], ["constant", "cosine"], seeds=2, diverged={4: 1, 5: 1, 7: 1})
    ax = scored(members, [0.1, 0.2, 0.3, 0.3, NAN, NAN, 0.4, NAN]).plot(kind="heatmap")
    assert cell_texts(ax)[1, 0] == "diverged"
    assert cell_texts(ax)[1, 1] == "1 of 2 diverged"
    hatched = [patch for patch in ax.patches if isinstance(patch, Rectangle) and patch.get_hatch()]
    assert sorted(patch.get_xy() for patch in hatched) == [(0.5, -0.5), (0.5, 0.5)]


def test_heat_map_of_members_that_all_diverged_is_drawn():
    members = records([0.1, 1.0], ["constant", "cosine"], diverged=dict.fromkeys(range(4), 0))
    ax = scored(members, [NAN] * 4).plot(kind="heatmap")
    ax.figure.draw_without_rendering()
    assert list(cell_texts(ax).values()) == ["diverged"] * 4


def test_exploded_cell_does_not_squash_the_colours_of_the_rest():
    members = records([0.1, 1.0], ["constant", "cosine"])
    ax = scored(members, [0.5, 0.6, 0.9, 1e7]).plot(kind="heatmap")
    (image,) = ax.get_images()
    assert image.norm.vmax < 10
    assert cell_texts(ax)[1, 1] == "1e+07"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (records([0.1, 0.2]), r"vary lr \(2 values\)\. Draw `kind=\"final\"`"),
        (records([0.1]), r"vary none"),
        (
            records([0.1, 0.2], ["a", "b"], momentum=[0.5, 0.9]),
            r"vary lr \(2 values\), schedule \(2 values\), momentum \(2 values\)\. .*select\(momentum=0\.5\)",
        ),
    ],
)
def test_heat_map_refuses_all_but_two_things_that_vary_and_says_which_do(members, message):
    with pytest.raises(ValueError, match=message):
        scored(members, np.ones(len(members))).plot(kind="heatmap")


def test_remedy_of_the_refusal_is_one():
    runs = scored(records([0.1, 0.2], ["a", "b"], momentum=[0.5, 0.9]), np.arange(8) + 1)
    assert len(cell_texts(runs.select(momentum=0.5).plot(kind="heatmap"))) == 4


def test_schedule_is_drawn_over_its_progress_under_its_name():
    schedule = sc.cosine(1, 0)
    ax = schedule.plot()
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), schedule(line.get_xdata()))
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0, 1)
    assert ax.get_title() == schedule.name
    assert len(ax.figure.axes) == 1


def test_momentum_of_a_schedule_has_the_right_axis():
    schedule = sc.one_cycle()
    ax = Figure().add_subplot()
    assert plot_schedule(schedule, ax) is ax
    _, right = ax.figure.axes
    (line,) = right.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), schedule.momentum(line.get_xdata()))
    assert right.get_ylabel() == "momentum (dashed)"


def test_scheduler_of_torch_is_drawn_step_by_step_with_its_momentum():
    def one_cycle(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40)

    ax = vs.schedules.from_torch(one_cycle, "step").plot(num_steps=40)
    assert (ax.get_title(), ax.get_xlabel()) == ("OneCycleLR", "step")
    (line,) = ax.get_lines()
    assert line.get_ydata().max() == pytest.approx(0.5)
    (right,) = (other for other in ax.figure.axes if other is not ax)
    assert right.get_lines()[0].get_ydata().min() == pytest.approx(0.85)
    with pytest.raises(ValueError, match="must be fed a metric while members train"):
        vs.schedules.plateau().plot()


def test_final_values_far_from_the_best_are_in_view_unless_they_explode():
    def final(worst):
        losses = np.array([[0.7, 0.7, 0.7], [0.23, 0.25, worst]])
        members = records(lrs=(0.1, 0.01, 0.001))
        runs = vs.Sweep(
            members=members,
            lr=np.tile([m.lr for m in members], (2, 1)),
            train_loss=losses,
            steps_per_epoch=None,
            engine="by hand",
            duration_s=0.0,
        )
        return plot_sweep(runs, kind="final").get_ylim()[1]

    assert final(0.75) > 0.75
    assert final(1e6) < 10
