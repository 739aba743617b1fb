"""What seeds say: means, bands, paired differences and ties; and reading metrics off a sweep."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats

import vecsweep as vs
from vecsweep.results import MemberRecord
from vecsweep.results.ranking import mode_of
from vecsweep.suggest import cyclical_bounds

NAN = np.nan


def make_runs(final, *, seeds=(0, 1, 2), num_evaluations=3, diverged=(), stopped=None):
    """A sweep of settings by seeds whose last val_loss is `final`, `[setting, seed]`."""
    final = np.asarray(final, dtype=float)
    lrs = [0.01 * 10**k for k in range(len(final))]
    members, columns = [], []
    for lr, row in zip(lrs, final, strict=True):
        for seed, value in zip(seeds, row, strict=True):
            at = 5 if (lr, seed) in diverged else None
            stop = (stopped or {}).get((lr, seed))
            members.append(MemberRecord(lr, "constant", seed, at, stop))
            curve = value + np.arange(num_evaluations)[::-1, None].astype(float)
            if at is not None:
                curve[:] = NAN
            if stop is not None:
                curve[stop // 4 :] = NAN
            columns.append(curve)
    values = np.concatenate(columns, axis=1)
    num_steps = 4 * num_evaluations
    losses = np.tile(np.linspace(2, 1, num_steps)[:, None], (1, len(members)))
    for i, member in enumerate(members):
        losses[num_steps if member.stopped_at is None else member.stopped_at :, i] = NAN
        losses[num_steps if member.diverged_at is None else member.diverged_at + 1 :, i] = NAN
    return vs.Sweep(
        members=tuple(members),
        lr=np.tile([m.lr for m in members], (num_steps, 1)),
        train_loss=losses,
        metrics={"val_loss": values, "val_accuracy": 1 / (1 + values), "val_oddness": values},
        evaluated_at=4 * np.arange(1, num_evaluations + 1),
        steps_per_epoch=4.0,
        engine="by hand",
        duration_s=0.0,
    )


def test_means_interval_and_tie_of_two_settings_are_those_of_the_paired_t_test():
    for other in ([0.52, 0.62, 0.43], [0.51, 0.58, 0.43]):
        final = np.array([[0.50, 0.61, 0.40], other])
        ranking = make_runs(final).ranking("val_loss", confidence=0.9)
        assert ranking.mode == "min"
        best, worse = ranking.standings
        for standing in ranking.standings:
            own = final[standing.members[0] // 3]
            assert standing.mean == pytest.approx(own.mean())
            assert (standing.median, standing.low, standing.high) == (np.median(own), own.min(), own.max())
        assert best.is_tied
        test = stats.ttest_rel(final[1], final[0])
        interval = test.confidence_interval(0.9)
        assert worse.difference - worse.margin == pytest.approx(interval.low)
        assert worse.difference + worse.margin == pytest.approx(interval.high)
        assert worse.is_tied == (test.pvalue > 0.1)


def test_settings_say_together_how_far_chance_goes():
    """The residuals of an ordinary regression on settings and seeds give the variance that all intervals share."""
    rng = np.random.default_rng(0)
    num_settings, num_seeds = 5, 3
    final = rng.normal(size=(num_settings, 1)) + rng.normal(size=num_seeds) + 0.1 * rng.normal(size=(5, 3))
    ranking = make_runs(final).ranking("val_loss")
    rows, columns = np.indices(final.shape).reshape(2, -1)
    design = np.concatenate([np.eye(num_settings)[rows], np.eye(num_seeds)[columns][:, 1:]], axis=1)
    _, (squares,), rank, _ = np.linalg.lstsq(design, final.ravel(), rcond=None)
    freedom = final.size - rank
    assert freedom == 8
    together = 0.95 ** (1 / (num_settings - 1))
    margin = stats.t.ppf((1 + together) / 2, freedom) * np.sqrt(2 * squares / freedom / num_seeds)
    assert [standing.margin for standing in ranking.standings[1:]] == pytest.approx([margin] * 4)


def test_setting_that_varies_clearly_more_speaks_for_itself():
    final = np.array([[0.50, 0.61, 0.40], [0.53, 0.62, 0.42], [0.54, 0.66, 0.45], [0.57, 0.65, 0.46], [9.0, 1.0, 30.0]])
    by_lr = {standing.setting.lr: standing for standing in make_runs(final).ranking().standings}
    wild = by_lr[0.01 * 10**4]
    t = stats.t.ppf((1 + 0.95 ** (1 / 4)) / 2, 2)
    assert wild.margin == pytest.approx(t * (final[4] - final[0]).std(ddof=1) / np.sqrt(3))
    without = {standing.setting.lr: standing for standing in make_runs(final[:4]).ranking().standings}
    assert by_lr[0.1].margin == pytest.approx(without[0.1].margin, rel=0.1)


def test_untrained_setting_is_told_from_the_best_by_two_seeds():
    """Each interval by itself has one degree of freedom, and holds almost anything."""
    final = [[0.83, 0.80], [0.70, 0.74], [0.53, 0.56], [0.55, 0.55], [0.60, 0.66], [0.75, 0.71]]
    ranking = make_runs(final, seeds=(0, 1)).ranking()
    tied = {standing.setting.lr for standing in ranking.tied}
    assert 1.0 in tied
    assert 0.01 not in tied
    assert stats.ttest_rel(final[0], final[2]).confidence_interval(0.95).low < 0


def test_settings_that_are_equal_are_tied_as_often_as_was_asked_for():
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        final = rng.normal(size=4) + 0.1 * rng.normal(size=(6, 4))
        wrong += not all(standing.is_tied for standing in make_runs(final, seeds=range(4)).ranking().standings)
    # The best of six was chosen by the same numbers, which makes differences to it larger than they are.
    assert wrong / 400 < 0.15


def test_common_random_numbers_tell_apart_what_the_spread_over_seeds_hides():
    """Seeds differ by far more than settings do, and yet the better one is known."""
    of_seed = np.array([0.2, 0.9, 2.5, 1.4])
    ranking = make_runs([of_seed + 0.02, of_seed + np.array([0.0, 0.001, -0.001, 0.0])], seeds=range(4)).ranking()
    assert ranking.best.setting.lr == 0.1
    assert [standing.is_tied for standing in ranking.standings] == [True, False]
    assert stats.ttest_ind(of_seed + 0.02, of_seed).pvalue > 0.9


def test_more_of_an_accuracy_is_better():
    runs = make_runs([[0.5, 0.6, 0.4], [0.1, 0.2, 0.3]])
    ranking = runs.ranking("val_accuracy")
    assert (ranking.mode, ranking.best.setting.lr) == ("max", 0.1)
    assert runs.best("val_accuracy") == runs.best("val_loss") == 3
    assert runs.best("val_oddness", mode="max") == 1


@pytest.mark.parametrize(
    ("name", "mode"),
    [("val_loss", "min"), ("train_mse", "min"), ("val_top5_error", "min"), ("val_F1", "max"), ("val_accuracy", "max")],
)
def test_name_of_a_metric_says_which_way_is_better(name, mode):
    assert mode_of(name, None) == mode
    assert mode_of(name, "max") == "max"


def test_name_that_does_not_say_which_way_is_better_is_refused():
    runs = make_runs([[0.5]], seeds=[0])
    with pytest.raises(ValueError, match=r'`mode` must be "min" or "max" for \'val_oddness\''):
        runs.best("val_oddness")
    with pytest.raises(ValueError, match="`mode` must be one of 'min', 'max'; got 'less'"):
        runs.ranking("val_oddness", mode="less")
    with pytest.raises(ValueError, match="`confidence` must be between 0 and 1; got 95"):
        runs.ranking(confidence=95)


def test_one_seed_gives_an_order_and_no_ties():
    ranking = make_runs([[0.5], [0.4], [0.7]], seeds=[0]).ranking()
    assert [standing.mean for standing in ranking.standings] == [0.4, 0.5, 0.7]
    assert [standing.is_tied for standing in ranking.standings] == [True, None, None]
    assert "With one seed nothing tells a difference from chance" in str(ranking)


def test_seeds_that_are_all_alike_say_nothing_of_chance():
    ranking = make_runs([[0.5] * 3, [0.4] * 3]).ranking()
    assert ranking.are_seeds_alike
    assert [standing.is_tied for standing in ranking.standings] == [True, None]
    assert "All seeds gave the same numbers: give the task a function that builds its model" in str(ranking)
    assert not make_runs([[0.5] * 3, [0.4, 0.4, 0.5]]).ranking().are_seeds_alike


def test_setting_with_a_diverged_seed_comes_last_and_is_not_tied():
    runs = make_runs([[0.5, 0.6, 0.4], [0.1, 0.2, 0.3]], diverged={(0.1, 1)})
    ranking = runs.ranking()
    assert [standing.setting.lr for standing in ranking.standings] == [0.01, 0.1]
    assert (ranking.standings[1].num_diverged, ranking.standings[1].is_tied) == (1, False)
    assert np.isnan(ranking.standings[1].mean)
    assert "1 of 3 diverged" in str(ranking)


def test_metric_that_is_nan_is_not_taken_for_divergence():
    runs = make_runs([[NAN, NAN], [NAN, NAN]], seeds=[0, 1])
    ranking = runs.ranking()
    assert [(standing.num_diverged, standing.num_missing) for standing in ranking.standings] == [(0, 2), (0, 2)]
    assert "NaN for 2 of 2" in str(ranking)
    assert "All seeds gave the same numbers" not in str(ranking)
    with pytest.raises(ValueError, match="'val_loss' is NaN for all that did not diverge"):
        runs.best("val_loss")


def test_ranking_of_nothing_but_divergence_has_no_ties():
    ranking = make_runs([[0.5], [0.4]], seeds=[0], diverged={(0.01, 0), (0.1, 0)}).ranking()
    assert [standing.is_tied for standing in ranking.standings] == [False, False]
    assert "1 of 1 diverged" in str(ranking)


def test_infinite_values_are_worse_than_all_others_and_no_tie():
    ranking = make_runs([[np.inf, 0.5, 0.4], [0.1, 0.2, 0.3], [0.2, 0.1, 0.4]]).ranking()
    assert ranking.best.setting.lr == 0.1
    assert [standing.is_tied for standing in ranking.standings] == [True, True, False]
    worst = make_runs([[np.inf, np.inf], [np.inf, np.inf]], seeds=[0, 1]).ranking()
    assert [standing.is_tied for standing in worst.standings] == [False, False]


def test_settings_that_differ_in_far_digits_are_told_apart():
    runs = make_runs([[0.5, 0.6, 0.4], [0.1, 0.2, 0.3]])
    members = tuple(member._replace(lr=0.1 + 1e-6 * (member.lr > 0.05), schedule="cosine") for member in runs.members)
    assert dataclasses.replace(runs, members=members).ranking().names == ["lr 0.1", "lr 0.1"]


def test_table_names_settings_by_what_differs():
    lines = str(make_runs([[0.5, 0.6, 0.4], [0.1, 0.2, 0.3]]).ranking()).splitlines()
    assert lines[1].startswith("* lr 0.1 ")
    assert lines[2][2:].startswith("lr 0.01 ")


def test_final_value_of_a_stopped_member_is_its_last():
    runs = make_runs([[0.5, 0.6, 0.4]], stopped={(0.01, 1): 8})
    assert runs.final("val_loss").tolist() == [0.5, 1.6, 0.4]
    assert runs.final("train_loss")[1] == runs.train_loss[7, 1]


def test_band_holds_what_stopped_and_ends_where_a_seed_diverged():
    (band,) = make_runs([[0.5, 0.7, 0.3]], stopped={(0.01, 1): 8}).bands()
    assert band.steps.tolist() == [4, 8, 12]
    assert band.mean == pytest.approx([2.5, 1.5, (0.5 + 1.7 + 0.3) / 3])
    assert band.median == pytest.approx([2.5, 1.5, 0.5])
    assert band.high == pytest.approx([2.7, 1.7, 1.7])
    (band,) = make_runs([[0.5, 0.7, 0.3]], diverged={(0.01, 1)}).bands()
    assert np.isnan(band.mean).all()
    assert band.low == pytest.approx([2.3, 1.3, 0.3])
    (band,) = make_runs([[0.5, 0.7, 0.3]], stopped={(0.01, 1): 8}).bands("train_loss")
    assert band.low[8:] == pytest.approx(np.linspace(2, 1, 12)[8:])
    assert band.high[8:] == pytest.approx(np.linspace(2, 1, 12)[[7] * 4])


def test_records_hold_every_curve_of_a_member_up_to_its_end(tmp_path):
    runs = make_runs([[0.5, 0.6, 0.4]], stopped={(0.01, 1): 8}, diverged={(0.01, 2)})
    rows = runs.records()
    of = {
        (i, name): [(row["step"], row["epoch"]) for row in rows if (row["member"], row["metric"]) == (i, name)]
        for i in range(3)
        for name in ("train_loss", "lr", "val_loss")
    }
    assert of[0, "val_loss"] == [(4, 0), (8, 1), (12, 2)], "a metric belongs to the epoch that it ends"
    assert of[1, "val_loss"] == [(4, 0), (8, 1)]
    assert of[2, "val_loss"] == []
    assert [len(of[i, "train_loss"]) for i in range(3)] == [12, 8, 6]
    assert [row["step"] for row in rows if row["diverged"] and row["metric"] == "train_loss"] == [5]
    with runs.to_csv(tmp_path / "all.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)


def test_unknown_metric_is_told_with_those_there_are():
    runs = make_runs([[0.5]], seeds=[0])
    with pytest.raises(ValueError, match=r"`metric` must be one of val_loss.*got 'val_los'\. Did you mean 'val_loss'"):
        runs.final("val_los")


def test_metrics_and_ends_come_back_from_a_file(tmp_path):
    runs = make_runs([[0.5, 0.6, 0.4], [1, 2, 3]], stopped={(0.01, 1): 8}, diverged={(0.1, 2)})
    again = vs.load(runs.save(tmp_path / "runs"))
    assert again.members == runs.members
    assert again.evaluated_at.tolist() == [4, 8, 12]
    for name, values in runs.metrics.items():
        np.testing.assert_array_equal(again.metrics[name], values)
    assert str(again.ranking()) == str(runs.ranking())


def test_sweep_introduces_itself_in_a_line():
    assert repr(make_runs([[0.5, 0.6, 0.4], [1, 2, 3]])) == (
        "Sweep(6 members: 2 lrs, 1 schedule, 3 seeds; 12 steps; train_loss, val_loss, val_accuracy, val_oddness)"
    )


LRS = np.geomspace(1e-5, 10, 13)


def test_bounds_are_where_accuracy_starts_to_rise_and_where_it_falls():
    accuracy = [0.1, 0.11, 0.1, 0.12, 0.3, 0.5, 0.7, 0.72, 0.71, 0.7, 0.5, 0.1, NAN]
    bounds = cyclical_bounds(LRS, accuracy)
    assert (bounds.base_lr, bounds.max_lr) == (pytest.approx(LRS[3]), pytest.approx(LRS[9]))


def test_bounds_end_before_what_diverged_and_at_the_range():
    rising = np.linspace(0.1, 0.9, 13)
    assert cyclical_bounds(LRS, rising).max_lr == LRS[-1]
    rising[9:] = NAN
    assert cyclical_bounds(LRS, rising).max_lr == LRS[8]
    assert cyclical_bounds(LRS, rising).base_lr == LRS[0]


def test_dip_on_the_way_up_moves_the_base():
    accuracy = [0.1, 0.3, 0.1, 0.1, 0.4, 0.6, 0.6, 0.6, 0.6, 0.2, 0.1, 0.1, 0.1]
    assert cyclical_bounds(LRS, accuracy).base_lr == LRS[3]


@pytest.mark.parametrize("accuracy", [np.full(13, 0.1), np.linspace(0.9, 0.1, 13), np.full(13, NAN)])
def test_curve_that_never_rises_has_no_bounds(accuracy):
    with pytest.raises(ValueError, match="`accuracies` must rise somewhere"):
        cyclical_bounds(LRS, accuracy)


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, NAN, "0.05"])
def test_tolerance_is_a_share(tolerance):
    with pytest.raises(ValueError, match="`tolerance` must be between 0 and 1"):
        cyclical_bounds(LRS, np.linspace(0.1, 0.9, 13), tolerance=tolerance)


def test_basin_of_a_sweep_is_read_off_its_final_values():
    final = [[1.9, 1.9], [0.6, 0.5], [0.5, 0.58], [1.2, 1.3]]  # from lr 0.01 on, by decades; untrained 2
    runs = make_runs(final, seeds=(0, 1))
    basin = runs.basin("val_loss")
    gap = (0.55 - 0.54) / (2 - 0.54)
    weight = np.exp(-gap / 0.02)
    assert basin.lr == pytest.approx(10 ** ((weight * -1 + 0) / (1 + weight)))
    assert basin.low == pytest.approx(10 ** (-1 - (0.02 - gap) / ((1.9 - 0.55) / 1.46)))
    assert basin.high == pytest.approx(10 ** (0.02 / ((1.25 - 0.54) / 1.46)))
    assert runs.basin("val_loss", position=0).lr == basin.low
    assert runs.basin("val_loss", position=0.25).lr == pytest.approx(basin.low**0.75 * basin.high**0.25)
    wide = runs.basin("val_loss", tolerance=0.4)
    assert wide.low < basin.low < basin.high < wide.high
    assert runs.basin("val_accuracy").low < 1 < runs.basin("val_accuracy").high


def test_basin_ends_before_what_diverged():
    runs = make_runs([[0.6] * 3, [0.5] * 3, [0.4] * 3], diverged={(1.0, 1)})
    assert runs.basin().lr == pytest.approx(0.1)
    assert runs.basin().high == pytest.approx(0.1)
    with pytest.raises(ValueError, match="There is no basin"):
        make_runs([[0.6]], seeds=[0], diverged={(0.01, 0)}).basin()


@pytest.mark.parametrize(("options", "what"), [({"tolerance": 0}, "`tolerance`"), ({"position": 1.5}, "`position`")])
def test_wrong_argument_of_a_basin_is_told(options, what):
    with pytest.raises(ValueError, match=what):
        make_runs([[0.5] * 3]).basin(**options)


def test_basin_is_one_of_learning_rates_alone():
    runs = make_runs([[0.5] * 3, [0.6] * 3])
    members = tuple(m._replace(schedule="cosine" if m.lr > 0.05 else "constant") for m in runs.members)
    mixed = dataclasses.replace(runs, members=members)
    with pytest.raises(ValueError, match="2 combinations"):
        mixed.basin()
    assert mixed.select(schedule="cosine").basin().lr == pytest.approx(0.1)
