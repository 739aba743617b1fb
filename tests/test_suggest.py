"""Rules against plain transcriptions of their definitions, smoothing against its formula, doubts, errors."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest

from vecsweep.suggest import (
    RULES,
    Suggestion,
    minimum,
    quarter_of_largest_stable,
    slide,
    smooth,
    steepest,
    suggest,
    third_of_largest_stable,
    trim,
    valley,
)

NUM_CURVES = 400
SCORES = [2.3, 2.3, 2.2, 2.0, 1.7, 1.2, 0.8, 0.7, 0.9, 1.5, 2.5, 4.0]  # a healthy curve: fall, minimum, rise
LRS = np.geomspace(1e-6, 10, len(SCORES))


def random_curves(shortest):
    """Yield curves that fall, then rise, with noise from none to large, every fourth one full of ties."""
    rng = np.random.default_rng(0)
    for index in range(NUM_CURVES):
        num_lrs = int(rng.integers(shortest, 80))
        progress = np.linspace(0, 1, num_lrs)
        fall = 2.3 - 1.8 / (1 + np.exp(-12 * (progress - 0.5)))
        rise = 8 * np.clip(progress - 0.85, 0, None) ** 1.5
        losses = fall + rise + rng.choice([0, 1e-3, 1e-2, 0.3]) * rng.standard_normal(num_lrs)
        yield np.geomspace(1e-7, 10, num_lrs), np.round(losses, 1) if index % 4 == 0 else losses


# The definitions, point by point in plain Python, to compare the vectorised rules with.


def reference_slopes(lrs, losses):
    return [(losses[i + 1] - losses[i]) / math.log(lrs[i + 1] / lrs[i]) for i in range(len(lrs) - 1)]


def reference_valley(lrs, losses):
    longest_ending_at = []
    for i, loss in enumerate(losses):
        longest_ending_at.append(1 + max((longest_ending_at[j] for j in range(i) if losses[j] > loss), default=0))
    length = max(longest_ending_at)
    if length == 1:
        return lrs[0]
    start = longest_ending_at.index(length) - length
    return lrs[start + int(length / 3) + int(length / 3 / 2)]


def reference_slide(lrs, losses, lr_diff=15, thresh=0.005):
    last = len(losses) - 1
    gradient = [
        (losses[min(i + 1, last)] - losses[max(i - 1, 0)]) / (min(i + 1, last) - max(i - 1, 0)) for i in range(last + 1)
    ]
    left = last - lr_diff
    answer = lrs[left]
    while left >= 0 and abs(gradient[left + lr_diff] - gradient[left]) > thresh:
        answer = lrs[left]
        left -= 1
    return answer


def test_steepest_is_the_left_point_of_the_steepest_pair_on_random_curves():
    for lrs, losses in random_curves(shortest=2):
        slopes = reference_slopes(lrs.tolist(), losses.tolist())
        slope = slopes[lrs.tolist().index(steepest(lrs, losses))]
        assert slope == pytest.approx(min(slopes), rel=1e-9)  # slopes that tie may round either way


def test_steepest_is_the_first_of_equals():
    assert steepest(np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 0.0])) == 1.0


def test_steepest_weighs_the_fall_by_the_distance_in_log_lr():
    lrs = np.array([1e-4, 1e-1, 2e-1, 1.0])
    assert steepest(lrs, np.array([3.0, 1.8, 0.9, 0.8])) == 0.1  # 0.9 within a factor 2 beats 1.2 over 3 decades


def test_valley_equals_its_definition_on_random_curves():
    for lrs, losses in random_curves(shortest=1):
        assert valley(lrs, losses) == reference_valley(lrs.tolist(), losses.tolist())


def test_valley_is_the_longest_of_all_falling_subsequences_on_short_curves():
    rng = np.random.default_rng(1)
    for _ in range(NUM_CURVES):
        losses = rng.integers(0, 6, size=rng.integers(2, 8)).astype(float)
        lrs = np.geomspace(1e-3, 1, len(losses))
        valleys = [
            indices
            for length in range(1, len(losses) + 1)
            for indices in itertools.combinations(range(len(losses)), length)
            if all(losses[i] > losses[j] for i, j in itertools.pairwise(indices))
        ]
        length = max(len(indices) for indices in valleys)
        end = min(indices[-1] for indices in valleys if len(indices) == length)
        index = end - length + length // 3 + length // 6 if length > 1 else 0
        assert valley(lrs, losses) == lrs[index]


@pytest.mark.parametrize(
    ("losses", "index"),
    [
        ([9, 9, 8, 7, 5, 3, 2, 9], 3),  # 9 8 7 5 3 2 ends at 6: start 0, section 2, index 0 + 2 + 1
        ([9, 1, 8, 2, 7, 3, 10], 2),  # 9 8 7 3 ends at 5: start counts points, 5 - 4, index 1 + 1 + 0
        ([6, 5, 4, 9, 8, 7], 0),  # of two as long, the one that ends first: start -1, index -1 + 1 + 0
        ([1, 2, 3, 4], 0),  # never falls
        ([2, 2, 2, 2], 0),  # equal losses are no fall
        ([2, 1, 3, 4], 3),  # the first two points alone: index -1, the largest lr, as in fastai
    ],
)
def test_valley_gives_the_answers_worked_out_by_hand(losses, index):
    lrs = np.geomspace(1e-5, 1, len(losses))
    assert valley(lrs, np.array(losses, dtype=float)) == lrs[index]


def test_slide_equals_its_definition_on_random_curves():
    answers = [slide(lrs, losses) for lrs, losses in random_curves(shortest=16)]
    expected = [reference_slide(lrs.tolist(), losses.tolist()) for lrs, losses in random_curves(shortest=16)]
    assert answers == expected


def test_slide_rests_where_the_gradients_at_its_ends_agree():
    losses = np.array([2.0, 2.0, 2.0, 2.0, 3.0, 9.0])  # gradient 0, 0, 0, 0.5, 3.5, 6
    lrs = np.geomspace(1e-5, 1, 6)
    assert slide(lrs, losses, lr_diff=2) == lrs[1]  # from left ends 3, 2 and 1 it moves, at 0 it rests
    assert slide(lrs, losses, lr_diff=2, thresh=1.0) == lrs[2]  # left end 1 differs by 0.5 and rests
    assert slide(lrs, losses, lr_diff=2, thresh=10.0) == lrs[3]  # never moves
    assert slide(lrs, losses, lr_diff=2, adjust_value=0.5) == 0.5 * lrs[1]


def test_slide_reaches_the_smallest_lr_where_nothing_is_calm():
    lrs = np.geomspace(1e-5, 1, 20)
    assert slide(lrs, 1e3 * np.random.default_rng(0).random(20)) == lrs[0]


def test_slide_rejects_an_interval_of_no_points():
    with pytest.raises(ValueError, match=r"`lr_diff` must be at least 1; got 0"):
        slide(LRS, np.array(SCORES), lr_diff=0)


def test_minimum_is_a_tenth_of_the_lr_at_the_first_lowest_loss():
    assert minimum(np.array([0.1, 1.0, 10.0, 100.0]), np.array([3.0, 1.0, 1.0, 2.0])) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("losses", "largest_stable"),
    [
        ([2.0, 1.0, 1.5, 2.5, 9.0], 100.0),  # rises above the first loss at 1000
        ([2.0, 1.0, 2.0, 2.0, 2.0], 10000.0),  # back at the first loss, not above it
        ([2.0, 3.0, 1.0, 1.5, 9.0], 1000.0),  # above the first loss, but before the minimum
        ([2.0, 1.0, 2.5, 1.5, 9.0], 10.0),  # unstable once, however calm after it
        ([2.0, 1.0, 1.5, np.nan, 1.6], 100.0),  # a loss that is not finite
        ([2.0, 1.0, 2.5, np.nan, np.nan], 10.0),  # rises, then diverges
        ([2.0, 1.0, np.inf, 0.5, 0.4], 10.0),  # also before the minimum
        ([np.nan, 2.0, 1.0, 1.5, 2.5], 1000.0),  # begins at the first finite loss
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0),  # the minimum is the first point
        ([5.0, 4.0, 3.0, 2.0, 1.0], 10000.0),  # nothing unstable in the range
        ([-2.0, -3.0, -2.5, -1.5, 0.0], 100.0),  # negative losses
    ],
)
def test_largest_stable_lr_ends_before_the_curve_rises_above_its_start(losses, largest_stable):
    lrs = np.array([1.0, 10.0, 100.0, 1000.0, 10000.0])
    assert third_of_largest_stable(lrs, np.array(losses)) == pytest.approx(largest_stable / 3)
    assert quarter_of_largest_stable(lrs, np.array(losses)) == largest_stable / 4
    assert suggest(lrs, losses, "quarter_of_largest_stable").lr == largest_stable / 4


SINGLE_POINT_ANSWERS = {
    "basin": 0.12,
    "lowest": 0.12,
    "valley": 0.12,
    "steepest": 0.12,
    "slide": 0.12,
    "minimum": 0.012,
    "third_of_largest_stable": 0.04,
    "quarter_of_largest_stable": 0.03,
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_answers_for_a_single_point(rule):
    assert suggest([0.12], [1.0], rule).lr == pytest.approx(SINGLE_POINT_ANSWERS[rule])


@pytest.mark.parametrize("num_lrs", [1, 2, 15])
def test_slide_gives_the_smallest_lr_when_the_curve_is_no_longer_than_its_interval(num_lrs):
    lrs = np.geomspace(1e-3, 1, num_lrs)
    assert slide(lrs, np.linspace(3, 1, num_lrs)) == lrs[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_depends_on_the_lrs_only_by_their_ratios(rule):
    rng = np.random.default_rng(5)
    for lrs, losses in [(np.sort(rng.random(40)), rng.random(40)) for _ in range(20)]:
        assert RULES[rule](1024 * lrs, losses) == pytest.approx(1024 * RULES[rule](lrs, losses), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.9, 0.98])
def test_smooth_equals_a_weighted_mean_of_the_past(smoothing):
    losses = np.random.default_rng(2).normal(size=50)
    expected = []
    for step in range(len(losses)):
        weights = smoothing ** np.arange(step, -1, -1.0)  # the newest weighs 1
        expected.append(np.sum(weights * losses[: step + 1]) / np.sum(weights))
    np.testing.assert_allclose(smooth(losses, smoothing), expected, rtol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.9, 0.98])
def test_smooth_passes_over_losses_that_are_not_finite(smoothing):
    losses = [math.inf, 3.0, 1.0, math.nan, math.nan, 2.0, -math.inf, 5.0]
    average, count, expected = 0.0, 0, []
    for loss in losses:
        if math.isfinite(loss):
            average, count = smoothing * average + (1 - smoothing) * loss, count + 1
            expected.append(average / (1 - smoothing**count))
        else:
            expected.append(math.nan)
    np.testing.assert_allclose(smooth(losses, smoothing), expected, rtol=1e-14)


def test_smooth_keeps_a_constant_from_the_first_value_on():
    np.testing.assert_allclose(smooth(np.full(200, 2.5), 0.98), 2.5, rtol=1e-12)


def test_smooth_with_no_weight_on_the_past_returns_the_losses_bitwise():
    losses = np.random.default_rng(3).normal(size=30)
    np.testing.assert_array_equal(smooth(losses, 0.0), losses)


def test_smooth_averages_each_member_on_its_own():
    losses = np.random.default_rng(4).normal(size=(20, 3))
    losses[5:, 1] = np.nan
    losses[3, 2] = np.inf
    columns = [smooth(losses[:, member], 0.8) for member in range(3)]
    np.testing.assert_array_equal(smooth(losses, 0.8), np.stack(columns, axis=1))


def test_smooth_leaves_its_input_as_it_was():
    losses = np.array([3.0, np.nan, 1.0])
    smooth(losses, 0.5)[:] = 7
    smooth(losses, 0.0)[:] = 7
    np.testing.assert_array_equal(losses, [3.0, np.nan, 1.0])


@pytest.mark.parametrize("shape", [(0,), (0, 4), (5, 0)])
def test_smooth_of_nothing_is_nothing_of_the_same_shape(shape):
    assert smooth(np.zeros(shape), 0.9).shape == shape


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan])
def test_smooth_rejects_a_weight_outside_the_unit_interval(smoothing):
    with pytest.raises(ValueError, match=rf"`smoothing` must be in \[0, 1\); got {smoothing}\. Pass"):
        smooth([1.0], smoothing)


@pytest.mark.parametrize("shape", [(), (2, 2, 2)])
def test_smooth_rejects_arrays_without_one_or_two_axes(shape):
    with pytest.raises(ValueError, match=r"`losses` must be \[step\] or \[step, member\]; got shape \("):
        smooth(np.zeros(shape), 0.5)


def test_suggest_uses_valley_unless_told_otherwise():
    suggestion = suggest(LRS, SCORES)
    assert (suggestion.rule, suggestion.lr) == ("valley", valley(LRS, np.array(SCORES)))


@pytest.mark.parametrize("rule", RULES)
def test_a_healthy_curve_leaves_nothing_to_doubt(rule):
    lrs = np.geomspace(1e-6, 10, 5 * len(SCORES))
    losses = np.interp(np.log(lrs), np.log(LRS), SCORES)
    suggestion = suggest(lrs, losses, rule)
    assert suggestion.rule == rule
    assert suggestion.lr == RULES[rule](lrs, losses)
    assert suggestion.doubts == ()


def test_suggest_leaves_diverged_points_out():
    diverged = [*SCORES[:9], math.nan, math.inf, -math.inf]
    for rule in ("valley", "steepest", "minimum"):
        assert suggest(LRS, diverged, rule).lr == suggest(LRS[:9], SCORES[:9], rule).lr


def test_suggest_applies_the_rule_to_the_smoothed_curve():
    noisy = np.array(SCORES)
    noisy[3] = 0.5
    smoothed = smooth(noisy, 0.6)
    suggestion = suggest(LRS, noisy, minimum, smoothing=0.6)
    assert suggestion.lr == pytest.approx(LRS[np.argmin(smoothed)] / 10)
    assert suggestion.lr != suggest(LRS, noisy, minimum).lr


@pytest.mark.parametrize(
    ("lr", "loss"),
    [(0.01, 4.0), (0.1, 2.0), (math.sqrt(0.001), 3.0), (10**-0.75, 1.75), (1e-9, 4.0), (50.0, 1.0)],
)
def test_the_loss_of_a_suggestion_is_interpolated_over_log_lr(lr, loss):
    suggestion = suggest([0.01, 0.1, 1.0, 10.0], [4.0, 2.0, 1.0, math.nan], lambda lrs, losses: lr)
    assert suggestion.loss == pytest.approx(loss)


def test_a_custom_rule_is_called_with_the_finite_points_and_named_after_itself():
    def largest(lrs, losses):
        assert losses.tolist() == SCORES[:8]
        assert lrs.dtype == losses.dtype == np.float64
        return lrs[-1]

    suggestion = suggest(LRS.tolist(), SCORES[:8] + 4 * [math.nan], largest)
    assert (suggestion.lr, suggestion.rule, suggestion.loss) == (LRS[7], "largest", 0.7)


def test_a_partial_of_a_rule_keeps_its_name():
    assert suggest(LRS, SCORES, functools.partial(slide, lr_diff=3)).rule == "slide"


def test_a_rule_that_writes_to_its_arrays_changes_nothing():
    def writes(lrs, losses):
        lrs[:], losses[:] = 1.0, 0.0
        return 1e-3

    lrs, losses = LRS.copy(), np.array(SCORES)
    suggestion = suggest(lrs, losses, writes)
    assert suggestion.doubts == ()
    np.testing.assert_array_equal(lrs, LRS)
    np.testing.assert_array_equal(losses, SCORES)


def test_a_suggestion_is_frozen():
    suggestion = suggest(LRS, SCORES)
    with pytest.raises(dataclasses.FrozenInstanceError, match="lr"):
        suggestion.lr = 1.0


def test_a_suggestion_is_a_number_and_one_readable_line():
    sure = Suggestion(lr=0.03981, rule="valley", loss=0.4123)
    unsure = dataclasses.replace(sure, doubts=("The curve is flat.", "Too few points."))
    assert float(sure) == 0.03981
    assert str(sure) == "0.0398 (valley; loss 0.412)"
    assert str(unsure) == "0.0398 (valley; loss 0.412). Doubts: The curve is flat. Too few points."


def only_doubt(lrs, losses, rule="valley"):
    """Return the doubt about a curve made to raise exactly one."""
    (doubt,) = suggest(lrs, losses, rule).doubts
    return doubt


def test_few_points_are_doubted_with_their_number():
    losses = SCORES[2:]  # ten points, the fewest that are not doubted
    assert suggest(LRS[2:], losses).doubts == ()
    doubt = only_doubt(LRS[2:], [*losses[:-1], math.nan])
    assert "only 9 of 10 learning rates gave a finite loss" in doubt


def test_a_flat_curve_is_doubted():
    doubt = only_doubt(LRS, 100 + np.array(SCORES))
    assert doubt.startswith("The curve is flat: its losses, from 100.7 to 104, differ by 5% of their magnitude")


def test_a_single_point_is_no_flat_curve():
    assert not any("flat" in doubt for doubt in suggest([0.1], [1.0]).doubts)


def test_losses_that_are_all_zero_are_a_flat_curve():
    assert only_doubt(LRS, np.zeros(len(LRS))).startswith("The curve is flat")


@pytest.mark.parametrize(("spread", "is_doubted"), [(0.049, True), (0.051, False)])
def test_a_curve_is_flat_up_to_five_percent_of_its_magnitude(spread, is_doubted):
    losses = -1 + spread * (np.array(SCORES) - min(SCORES)) / np.ptp(SCORES)
    assert any("flat" in doubt for doubt in suggest(LRS, losses).doubts) == is_doubted


def test_a_lowest_loss_at_the_smallest_lr_is_doubted():
    doubt = only_doubt(LRS, np.linspace(1, 3, len(LRS)))
    assert doubt == (
        "The loss is lowest at the lower edge of the curve, 1e-06: the best lr may be smaller. Lower `start_lr`."
    )


def test_a_lowest_loss_at_the_largest_lr_is_doubted():
    doubt = only_doubt(LRS, np.linspace(3, 1, len(LRS)))
    assert doubt == (
        "The loss is lowest at the upper edge of the range, 10: the best lr may be larger. Raise `end_lr`."
    )


def test_a_lowest_loss_right_below_divergence_is_doubted_in_other_words():
    lrs = np.geomspace(1e-4, 1e7, 12)
    doubt = only_doubt(lrs, [*np.linspace(3, 1, 10), math.nan, math.nan])
    assert doubt.startswith("The loss is lowest at 1e+05, right below 1e+06, which diverged: the best lr is at the")
    assert "end_lr" not in doubt


def test_an_lr_that_diverged_below_larger_ones_that_did_not_is_doubted():
    losses = [*SCORES[:10], math.nan, SCORES[11]]
    assert only_doubt(LRS, losses) == (
        f"The lr {LRS[10]:.3g} diverged although larger ones, up to 10, did not: the curve is noisy there. "
        "Average over more `seeds`."
    )


def test_divergence_of_the_largest_lrs_alone_is_no_reason_to_doubt():
    assert suggest(LRS, [*SCORES[:10], math.nan, math.nan]).doubts == ()


@pytest.mark.parametrize("lr", [2e-7, 50.0])
def test_a_suggestion_less_than_a_decade_outside_the_range_is_not_doubted(lr):
    assert suggest(LRS, [*SCORES[:11], 2.3], lambda lrs, losses: lr).doubts == ()


@pytest.mark.parametrize("lr", [1e-9, 500.0])
def test_a_suggestion_far_outside_the_range_is_doubted(lr):
    doubt = only_doubt(LRS, [*SCORES[:11], 2.3], lambda lrs, losses: lr)
    assert doubt.startswith(f"The suggestion, {lr:.3g}, is far outside the range tested, 1e-06 to 10.")


def test_a_suggestion_at_an_lr_that_diverged_is_doubted():
    losses = [*SCORES[:10], math.nan, math.nan]
    doubt = only_doubt(LRS, losses, lambda lrs, losses: LRS[10])
    assert doubt.startswith(f"The suggestion, {LRS[10]:.3g}, is not below {LRS[10]:.3g}, which diverged.")


def test_a_suggestion_with_a_higher_loss_than_the_smallest_lr_is_doubted():
    losses = [2.0, 1.0, *np.linspace(2, 4, 10)]  # the longest valley is the first two points
    assert only_doubt(LRS, losses).startswith("The loss at the suggestion, 4, is higher than at the smallest lr, 2.")


def test_a_suggestion_with_about_the_loss_of_the_smallest_lr_is_not_doubted():
    assert suggest(LRS, [2.3, 2.35, *SCORES[2:]], lambda lrs, losses: lrs[1]).doubts == ()


def test_a_curve_that_diverged_everywhere_is_an_error_that_names_the_smallest_lr():
    message = r"every learning rate diverged, all 3 from 0\.1 up\. Lower `start_lr` below 0\.1; .* look for NaN"
    with pytest.raises(ValueError, match=message):
        suggest([0.1, 1.0, 10.0], [math.nan, math.inf, math.nan])


@pytest.mark.parametrize(
    ("lrs", "losses", "message"),
    [
        ([0.1, 1.0], [1.0], r"`lrs` and `losses` must be of one length; got 2 and 1"),
        ([], [], r"`lrs` must hold at least one lr; got none"),
        ([[0.1, 1.0]], [1.0, 2.0], r"`lrs` must have one axis; got shape \(1, 2\)"),
        ([0.1, 1.0], [[1.0, 2.0]], r"`losses` must have one axis; got shape \(1, 2\)"),
        ([0.1, -1.0], [1.0, 2.0], r"`lrs` must be positive and finite; got -1\.0 at index 1"),
        ([0.0, 1.0], [1.0, 2.0], r"`lrs` must be positive and finite; got 0\.0 at index 0"),
        ([0.1, math.nan], [1.0, 2.0], r"`lrs` must be positive and finite; got nan at index 1"),
        ([0.1, math.inf], [1.0, 2.0], r"`lrs` must be positive and finite; got inf at index 1"),
        ([0.1, 1.0, 0.5], [1.0, 2.0, 3.0], r"strictly ascending; got 0\.5 at index 2, after 1\.0\. Sort"),
        ([0.1, 0.1], [1.0, 2.0], r"strictly ascending; got 0\.1 at index 1, after 0\.1\. Sort"),
    ],
)
def test_a_curve_that_is_none_is_rejected(lrs, losses, message):
    with pytest.raises(ValueError, match=message):
        suggest(lrs, losses)


def test_suggest_rejects_smoothing_outside_the_unit_interval():
    with pytest.raises(ValueError, match=r"`smoothing` must be in \[0, 1\); got 1\.0"):
        suggest(LRS, SCORES, smoothing=1.0)


@pytest.mark.parametrize(("name", "closest"), [("vally", "valley"), ("steep", "steepest")])
def test_an_unknown_rule_is_answered_with_the_names_and_the_closest(name, closest):
    names = ", ".join(RULES)
    with pytest.raises(ValueError, match=f"`rule` must be one of {names}; got '{name}'. Did you mean '{closest}"):
        suggest(LRS, SCORES, name)


def test_a_rule_that_is_neither_name_nor_function_is_rejected():
    with pytest.raises(TypeError, match=r"`rule` must be a name or a function; got 3\. Pass a name"):
        suggest(LRS, SCORES, 3)


@pytest.mark.parametrize("answer", [None, "0.1", 1j, np.array([0.1]), np.array([0.1, 0.2])])
def test_a_rule_that_returns_no_number_is_named(answer):
    def broken(lrs, losses):
        return answer

    with pytest.raises(TypeError, match=r"The rule `broken` must return one number; it returned "):
        suggest(LRS, SCORES, broken)


@pytest.mark.parametrize("answer", [0.0, -0.1, math.nan, math.inf])
def test_a_rule_that_returns_an_impossible_lr_is_named(answer):
    def broken(lrs, losses):
        return answer

    with pytest.raises(ValueError, match=rf"The rule `broken` must return a positive finite lr; it returned {answer}"):
        suggest(LRS, SCORES, broken)


@pytest.mark.parametrize(
    ("num", "num_finite", "rest"),
    [(100, 100, slice(10, 95)), (100, 60, slice(10, 55)), (57, 57, slice(5, 52)), (9, 9, slice(0, 4))],
)
def test_trimming_leaves_out_the_first_tenth_and_the_last_five_before_the_end(num, num_finite, rest):
    """As fastai slices what it recorded, `[num_it // 10 : -5]`, and cuts at the first NaN."""
    lrs, losses = np.geomspace(1e-7, 10, num), np.linspace(3, 1, num)
    losses[num_finite:] = np.nan
    trimmed = trim(lrs, losses)
    np.testing.assert_array_equal(trimmed[0], lrs[rest])
    np.testing.assert_array_equal(trimmed[1], losses[rest])


def test_a_ramp_is_read_up_to_where_it_explodes_also_if_it_falls_again():
    """The lr rises on, so that a fall from an explosion says nothing."""
    lrs = np.geomspace(1e-4, 1, 40)
    losses = np.r_[np.full(14, 3.0), np.linspace(3, 1, 12), [5, 40, 1e9, 1e6, 900, 30, 4, 3, 3, 3, 3, 3, 3, 3]]
    ended = np.r_[losses[:28], np.full(12, np.nan)]
    for rule in ("valley", "steepest", "slide", "lowest", "minimum"):
        read, expected = (suggest(lrs, own, rule, smoothing=0.5, is_trimmed=True).lr for own in (losses, ended))
        assert read == expected
    assert suggest(lrs, losses, "steepest").lr >= lrs[28]  # of a grid every lr has a run of its own


@pytest.mark.parametrize(("num", "num_finite"), [(6, 6), (2, 2), (100, 14), (100, 0)])
def test_curve_of_which_nothing_would_remain_stays_whole(num, num_finite):
    lrs, losses = np.geomspace(1e-7, 10, num), np.linspace(3, 1, num)
    losses[num_finite:] = np.nan
    np.testing.assert_array_equal(trim(lrs, losses)[0], lrs)


def test_doubts_about_a_trimmed_curve_are_about_the_whole_of_it():
    lrs, losses = np.geomspace(1e-4, 1, 30), np.r_[np.linspace(3, 1, 26), [1.5, 3, 9, 27]]
    answer = suggest(lrs, losses, "lowest", is_trimmed=True)
    assert answer.lr == lrs[24]
    assert not any("edge" in doubt for doubt in answer.doubts)
