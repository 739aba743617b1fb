"""Plots of range tests: what is drawn where, what the axes and the legend say, and what is left alone."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

import vecsweep as vs
from vecsweep.plot import plot_range_test
from vecsweep.results import MemberRecord
from vecsweep.suggest import smooth

LRS = np.geomspace(1e-5, 10, 13)
CURVE = np.array([2.3, 2.3, 2.3, 2.2, 2.0, 1.7, 1.2, 0.8, 0.5, 0.9, 2.5, np.nan, np.nan])  # NaN: diverged
NUM_STEPS = 5


@pytest.fixture(autouse=True)
def _restores_matplotlib():
    with mpl.rc_context():
        yield
    plt.close("all")


def new_axes():
    return Figure(figsize=(8, 5), layout="constrained").add_subplot()


def result(method, lr, losses, lrs, num_seeds, diverged_at, *, is_complete=True):
    seeds = [i % num_seeds for i in range(losses.shape[1])]
    records = zip(lrs, seeds, diverged_at, strict=True)
    return vs.RangeTest(
        members=tuple(MemberRecord(float(rate), "constant", seed, at) for rate, seed, at in records),
        lr=lr,
        train_loss=losses,
        steps_per_epoch=None,
        engine="by hand",
        duration_s=0.0,
        is_complete=is_complete,
        method=method,
    )


def grid(scores, lrs=LRS, *, num_steps=NUM_STEPS, **fields):
    """A grid with these scores, `[lr]` or `[lr, seed]`; where they are NaN the member diverged at step 1."""
    by_seed = np.asarray(scores, dtype=float).reshape(len(lrs), -1)
    flat, rates = by_seed.ravel(), np.repeat(lrs, by_seed.shape[1])
    losses = np.tile(flat, (num_steps, 1))
    losses[0] = 2.3  # untrained
    diverged_at = [1 if np.isnan(loss) else None for loss in flat]
    return result("grid", np.tile(rates, (num_steps, 1)), losses, rates, by_seed.shape[1], diverged_at, **fields)


def ramp(losses, diverged_at, lrs=LRS, **fields):
    """A ramp with these losses, `[step]` or `[step, seed]`."""
    by_seed = np.asarray(losses, dtype=float).reshape(len(lrs), -1)
    num_seeds = by_seed.shape[1]
    lr = np.tile(lrs[:, None], (1, num_seeds))
    return result("ramp", lr, by_seed, lr[-1], num_seeds, diverged_at, **fields)


def line_of(ax, label):
    """The one line whose legend entry begins so."""
    (line,) = [line for line in ax.get_lines() if str(line.get_label()).startswith(label)]
    return line


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bands(ax):
    return [artist for artist in ax.collections if isinstance(artist, PolyCollection)]


def upper_edge(ax):
    """The losses, from and to, that make up the upper tenth of the axes."""
    return ax.transData.inverted().transform(ax.transAxes.transform([(0, 0.9), (0, 1)]))[:, 1]


def test_the_axes_given_are_the_axes_returned():
    ax = new_axes()
    assert plot_range_test(grid(CURVE), ax) is ax
    assert grid(CURVE).plot(ax) is ax


def test_without_axes_a_figure_is_made_that_saves_and_that_pyplot_does_not_know_of(tmp_path):
    before, backend = plt.get_fignums(), mpl.get_backend()
    grid(CURVE).plot().figure.savefig(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 0
    assert plt.get_fignums() == before
    assert mpl.get_backend() == backend


def test_no_setting_of_matplotlib_changes():
    before = dict(mpl.rcParams)
    grid(CURVE).plot()
    assert dict(mpl.rcParams) == before


def test_importing_vecsweep_does_not_import_matplotlib():
    code = "import sys, vecsweep; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_result_is_not_changed():
    found = grid(np.stack([CURVE, CURVE + 0.1], axis=1))
    before = found.train_loss.copy(), found.lr.copy()
    found.plot()
    np.testing.assert_array_equal(found.train_loss, before[0])
    np.testing.assert_array_equal(found.lr, before[1])


def test_the_curve_of_a_grid_is_its_scores():
    found = grid(np.stack([CURVE, CURVE + 0.1], axis=1))
    lrs, losses = line_of(found.plot(), "mean loss").get_data()
    np.testing.assert_array_equal(lrs, LRS)
    np.testing.assert_array_equal(losses, found.scores)


def test_a_ramp_has_a_thin_curve_of_scores_and_a_bold_one_that_passes_through_the_suggestion():
    found = ramp(CURVE, [11])
    ax = found.plot()
    bold = line_of(ax, "loss, smoothed (0.8)")
    (thin,) = [line for line in ax.get_lines() if line.get_label() == "loss"]
    np.testing.assert_array_equal(thin.get_ydata(), found.scores)
    np.testing.assert_array_equal(bold.get_ydata(), smooth(found.scores, 0.8))
    assert thin.get_linewidth() < bold.get_linewidth()
    suggestion = found.suggest()
    assert bold.get_ydata()[list(LRS).index(suggestion.lr)] == pytest.approx(suggestion.loss)


@pytest.mark.parametrize(
    ("lrs", "scale"),
    [
        (LRS, "log"),
        (np.linspace(0.01, 0.6, 13), "linear"),
        (np.linspace(1e-7, 10, 13), "linear"),
    ],
)
def test_the_lr_axis_is_logarithmic_unless_the_lrs_are_equally_far_apart(lrs, scale):
    assert grid(CURVE, lrs).plot().get_xscale() == scale


@pytest.mark.parametrize("num_lrs", [1, 2, 3, 64])
def test_any_number_of_lrs_is_drawn_and_all_of_them_are_in_view(num_lrs):
    lrs = np.geomspace(1e-6, 10, num_lrs)
    ax = grid(np.linspace(2, 1, num_lrs), lrs).plot()
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    assert low < lrs[0] <= lrs[-1] < high
    assert ax.get_xscale() == "log"


@pytest.mark.parametrize("found", [grid(CURVE), ramp(CURVE, [11])], ids=["grid", "ramp"])
def test_the_default_suggestion_is_named_in_the_legend_and_marked_at_its_lr_and_loss(found):
    ax = found.plot()
    suggestion = found.suggest()
    (text,) = [text for text in legend_texts(ax) if text.startswith("suggestion")]
    assert f"{suggestion.lr:.3g} ({suggestion.rule}" in text
    assert line_of(ax, "suggestion").get_xydata().tolist() == [[suggestion.lr, suggestion.loss]]
    assert [suggestion.lr] * 2 in [list(line.get_xdata()) for line in ax.get_lines()]


def test_a_doubtful_suggestion_is_called_doubtful_and_another_is_not():
    healthy, rising = grid(CURVE[:11], LRS[:11]), grid(np.linspace(1, 2, 13))
    assert not healthy.suggest().doubts
    assert rising.suggest().doubts
    assert line_of(healthy.plot(), "suggestion").get_label().endswith("(basin)")
    assert line_of(rising.plot(), "suggestion").get_label().endswith("(basin, doubtful)")


def test_the_rules_asked_for_are_marked_more_lightly_and_the_default_one_only_once():
    found = grid(CURVE)
    ax = plot_range_test(found, rules=["lowest", "basin"])
    lowest = line_of(ax, "lowest")
    assert lowest.get_xdata()[0] == found.suggest("lowest").lr
    assert lowest.get_linewidth() < line_of(ax, "suggestion").get_linewidth()
    assert not any(text.startswith(("steepest", "minimum", "basin:")) for text in legend_texts(ax))


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="Did you mean 'valley'"):
        plot_range_test(grid(CURVE), rules=["vally"])
    with pytest.raises(ValueError, match="'valley' reads ramps"):
        plot_range_test(grid(CURVE), rules=["valley"])


def test_suggestions_are_told_apart_in_grey_by_line_and_marker():
    ax = plot_range_test(ramp(CURVE, [11]), rules=["lowest", "steepest", "valley"])
    lines = [line_of(ax, name) for name in ("suggestion", "lowest", "steepest", "valley")]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)


@pytest.mark.parametrize("found", [grid(CURVE), ramp(CURVE, [11])], ids=["grid", "ramp"])
def test_one_seed_has_no_band(found):
    ax = found.plot()
    assert bands(ax) == []
    assert not any("seeds" in text for text in legend_texts(ax))


def test_several_seeds_have_a_band_from_the_lowest_to_the_highest():
    seeds = np.stack([CURVE, CURVE + 0.3, CURVE - 0.2], axis=1)
    ax = grid(seeds).plot()
    (band,) = bands(ax)
    vertices = band.get_paths()[0].vertices
    for lr, losses in zip(LRS[:11], seeds[:11], strict=True):
        at_lr = vertices[vertices[:, 0] == lr, 1]
        assert (at_lr.min(), at_lr.max()) == (losses.min(), losses.max())
    assert "lowest to highest of 3 seeds" in legend_texts(ax)


def test_the_band_goes_on_with_the_seeds_that_remain():
    other = CURVE.copy()
    other[9:] = np.nan
    (band,) = bands(grid(np.stack([CURVE, other], axis=1)).plot())
    assert band.get_paths()[0].vertices[:, 0].max() == LRS[10]


def test_every_diverged_lr_of_a_grid_has_a_cross_at_the_upper_edge():
    other = CURVE.copy()
    other[10] = np.nan
    ax = grid(np.stack([CURVE, other], axis=1)).plot()
    crosses = line_of(ax, "a seed diverged: 3 of 13 lrs")
    np.testing.assert_array_equal(crosses.get_xdata(), LRS[10:])
    low, high = upper_edge(ax)
    assert ((low < crosses.get_ydata()) & (crosses.get_ydata() < high)).all()


def test_a_seed_of_a_ramp_has_a_cross_at_the_lr_and_loss_at_which_it_left_or_at_the_upper_edge():
    stays, leaves, explodes, breaks = (CURVE.copy() for _ in range(4))
    stays[11:] = 2.4
    leaves[7:] = [2.1, *[np.nan] * 5]
    explodes[8:] = [1e9, *[np.nan] * 4]
    breaks[9:] = np.nan
    ax = ramp(np.stack([stays, leaves, explodes, breaks], axis=1), [None, 7, 8, 9]).plot()
    crosses = line_of(ax, "diverged: 3 of 4 seeds")
    np.testing.assert_array_equal(crosses.get_xdata(), LRS[[7, 8, 9]])
    assert crosses.get_ydata()[0] == 2.1
    low, high = upper_edge(ax)
    assert ((low < crosses.get_ydata()[1:]) & (crosses.get_ydata()[1:] < high)).all()


def test_nothing_is_called_diverged_when_nothing_diverged():
    assert not any("diverged" in text for text in legend_texts(grid(np.linspace(2, 1, 13)).plot()))


@pytest.mark.parametrize("shape", [(13,), (13, 3)], ids=["one seed", "three seeds"])
@pytest.mark.parametrize("method", ["grid", "ramp"])
def test_everything_diverged_draws_axes_that_say_so(method, shape):
    losses = np.full(shape, np.nan)
    found = grid(losses) if method == "grid" else ramp(losses, [0] * (losses.size // 13))
    ax = found.plot()
    ax.figure.draw_without_rendering()
    assert "Every learning rate diverged" in ax.texts[0].get_text()
    assert "1e-05" in ax.texts[0].get_text()
    assert any("diverged" in text for text in legend_texts(ax))


def test_a_seed_that_diverged_at_every_lr_is_told_from_all_that_did():
    ax = grid(np.stack([CURVE, np.full(13, np.nan)], axis=1)).plot()
    assert "A seed diverged at every learning rate" in ax.texts[0].get_text()


def test_exploding_losses_leave_the_view_and_do_not_squash_the_curve():
    curve = CURVE.copy()
    curve[10:] = [40.0, 1e4, 1e12]
    ax = grid(curve).plot()
    low, high = ax.get_ylim()
    assert low < 0.5
    assert 2.3 < high < 6
    assert ax.get_yscale() == "linear"


def test_the_view_reaches_to_the_untrained_loss_where_every_lr_trains():
    curve = np.array([0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 1.9, 2.2, 900.0])
    low, high = grid(curve).plot().get_ylim()
    assert low < 0.1
    assert 2.3 < high < 4


def test_all_of_a_flat_curve_is_in_view():
    curve = 2.3 + 0.01 * np.sin(np.arange(13))
    low, high = grid(curve).plot().get_ylim()
    assert low < curve.min() < curve.max() < high


@pytest.mark.parametrize("loss", [0.0, 2.3, -4.0])
def test_a_curve_without_any_spread_is_drawn(loss):
    ax = grid(np.full(13, loss)).plot()
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    assert low < loss < high


def test_the_loss_axis_is_logarithmic_only_over_more_than_two_decades():
    deep = CURVE.copy()
    deep[8] = 0.001
    assert grid(deep).plot().get_yscale() == "log"
    assert grid(CURVE).plot().get_yscale() == "linear"
    assert grid(deep - 1).plot().get_yscale() == "linear"  # has losses below zero


def test_labels_and_title_say_what_was_measured():
    ax = grid(np.stack([CURVE, CURVE, CURVE], axis=1), num_steps=100).plot()
    assert ax.get_xlabel() == "learning rate"
    assert ax.get_ylabel() == "loss, mean of the last tenth of 100 steps"
    assert ax.get_title() == "LR range test (grid): 13 lrs, 100 steps, 3 seeds"
    ax = ramp(CURVE, [11]).plot()
    assert ax.get_ylabel() == "loss at the step that tried it"
    assert ax.get_title() == "LR range test (ramp): 13 lrs, one a step, 1 seed"


@pytest.mark.parametrize("found", [grid(CURVE), ramp(CURVE, [11])], ids=["grid", "ramp"])
def test_the_legend_covers_no_point_of_the_curve(found):
    ax = found.plot()
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    for line in ax.get_lines():
        if str(line.get_label()).startswith("loss"):
            points = ax.transData.transform(line.get_xydata())
            assert not any(box.contains(x, y) for x, y in points[np.isfinite(points).all(axis=1)])


def test_an_interrupted_result_says_so():
    assert "interrupted" in grid(CURVE, is_complete=False).plot().get_title()
    one_step = ramp([2.3], [None], LRS[:1], is_complete=False).plot()
    assert one_step.get_title() == "LR range test (ramp): 1 lr, one a step, 1 seed, interrupted"


def test_a_result_from_a_file_has_the_same_plot(tmp_path):
    found = grid(np.stack([CURVE, CURVE + 0.1], axis=1))
    drawn, again = found.plot(), vs.RangeTest.load(found.save(tmp_path / "found.npz")).plot()
    assert legend_texts(drawn) == legend_texts(again)
    assert drawn.get_title() == again.get_title()
    for one, other in zip(drawn.get_lines(), again.get_lines(), strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


@pytest.mark.parametrize("method", ["grid", "ramp"])
def test_a_real_range_test_is_drawn_over_the_whole_range_tested(method):
    model = torch.nn.Linear(2, 1)
    batches = [(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[1.0], [2.0]]))]
    task = vs.Task(model, batches, torch.nn.functional.mse_loss, optimizer=torch.optim.SGD(model.parameters()))
    how = {"num_lrs": 12, "num_steps": 20} if method == "grid" else {"num_steps": 80}
    found = vs.range_test(task, start_lr=1e-4, end_lr=10, method=method, seeds=2, progress=False, **how)
    ax = found.plot()
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    assert low < 1e-4 < 10 < high
    assert any(text.startswith("suggestion") for text in legend_texts(ax))
    assert any("diverged" in text for text in legend_texts(ax))
