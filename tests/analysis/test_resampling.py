import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.statistics.resampling import (
    RESAMPLES,
    Interval,
    Z,
    bootstrap,
    bootstrap_columns,
    bootstrap_each,
    bootstrap_groups,
    counted_quantiles,
    draws_of,
    grid_floor,
    interval,
    multisets,
    resample,
    resampled,
    small_sample_factor,
    stratified_geometric_mean,
    widening,
    with_interval,
)

SAMPLE = np.random.default_rng(3).lognormal(sigma=0.4, size=20)


def percentile(sample, of=np.mean):
    """The interval of one sample, not widened."""
    sample = np.asarray(sample)
    return interval(of(sample), draws_of(sample, 0, of)[:, None], 1.0)[:, 0]


@pytest.mark.parametrize(("near", "function"), [(0.04, np.mean), (0.04, stats.gmean), (0.15, np.median)])
def test_agrees_with_scipy(near, function):
    value, low, high = percentile(SAMPLE, function)
    theirs = stats.bootstrap((SAMPLE,), function, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert value == pytest.approx(function(SAMPLE))
    assert [low, high] == pytest.approx([theirs.low, theirs.high], abs=near * width)


@pytest.mark.parametrize(("statistic", "of"), [("mean", np.mean), ("geometric_mean", stats.gmean)])
def test_a_sample_has_the_interval_of_its_draws_widened(statistic, of):
    value, factor, logs = of(SAMPLE), widening(20), statistic == "geometric_mean"
    expected = interval(value, draws_of(SAMPLE, 0, of)[:, None], factor, logs=logs)[:, 0]
    assert bootstrap(SAMPLE, statistic) == pytest.approx(tuple(expected))
    assert bootstrap(SAMPLE, statistic) == bootstrap(SAMPLE, statistic)


def test_one_value_has_no_interval_and_none_has_no_value():
    one = bootstrap(np.array([0.9]))
    assert one.value == 0.9
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert np.isnan(bootstrap(np.array([])).value)
    assert bootstrap(np.array([np.nan, 0.9, np.nan])).value == 0.9


@pytest.mark.parametrize("values", [[0.98, 0.98], [0.1, 0.3 - 0.2, 0.1], [0.0] * 5, [np.inf, np.inf]])
@pytest.mark.parametrize("statistic", ["mean", "geometric_mean"])
def test_equal_values_have_no_interval(values, statistic):
    """Certainty from 2 seeds: how far others would lie is not known. Rounding is no spread either."""
    sample = np.array(values)
    found = bootstrap(sample, statistic)
    assert found.value == pytest.approx(values[0])
    assert np.isnan(found[1:]).all()
    assert np.isnan(percentile(sample, np.median)[1:]).all()
    if np.isfinite(sample).all():
        apart = np.append(sample[:-1], sample[-1] + 0.1)
        columns = bootstrap_columns(np.stack([sample, apart], axis=1))
        assert np.isnan(columns[1:]).all(axis=0).tolist() == [True, False]


def test_equal_values_share_what_the_grid_leaves_and_others_have_errors_of_their_own():
    equal, apart, error = np.full(4, 0.1), np.array([0.1, 0.5, 0.9, 1.3]), np.full(4, 0.02)
    assert grid_floor(equal, error) == pytest.approx(Z * 0.02)
    assert grid_floor(apart, error) == pytest.approx(Z * 0.02 / 2)
    pairs = np.array([0.1, 0.1, 0.5, np.nan])  # two share an error, a third has its own
    assert grid_floor(pairs, error) == pytest.approx(Z * 0.02 * np.sqrt(5) / 3)
    assert np.isnan(grid_floor(np.array([np.nan]), error[:1]))
    found = bootstrap(np.exp(equal), "geometric_mean", error)
    assert np.log(found) == pytest.approx([0.1, 0.1 - Z * 0.02, 0.1 + Z * 0.02])
    wide = np.exp(apart)
    assert bootstrap(wide, "geometric_mean", error) == bootstrap(wide, "geometric_mean")  # the seeds say more
    assert np.isnan(bootstrap(np.array([1.1]), "geometric_mean", error[:1]).low)  # one seed has none
    two = stratified_geometric_mean([np.exp(equal)] * 2, grids=[error] * 2)
    assert np.log(two) == pytest.approx([0.1, 0.1 - Z * 0.02 / np.sqrt(2), 0.1 + Z * 0.02 / np.sqrt(2)])
    groups = bootstrap_groups(np.exp(np.append(equal, apart)), np.repeat([0, 1], 4), 2, grid=np.full(8, 0.02))
    value = np.exp(0.1)
    assert groups[:, 0] == pytest.approx([value, value * (1 - Z * 0.02), value * (1 + Z * 0.02)])


def test_equal_values_in_every_stratum_have_no_interval_and_in_one_they_have():
    assert np.isnan(stratified_geometric_mean([np.array([0.9, 0.9]), np.array([0.5, 0.5])])[1:]).all()
    some = stratified_geometric_mean([np.array([0.9, 0.9]), np.array([0.5, 0.6])])
    assert some.low < some.value < some.high


def naive_median_interval(values):
    """All resamples one by one, sorted, the two that stand nearest to 2.5 % and 97.5 %."""
    rows = resample(len(values), 10_000, 0)
    medians = sorted(float(np.median([values[i] for i in row])) for row in rows)
    return medians[249], medians[9_750]


def test_an_infinite_end_is_an_end():
    values = np.array([1.0, 1.1, 0.9, np.inf, 1.05, 1.2, np.inf])
    value, low, high = percentile(values, np.median)
    assert naive_median_interval(values) == (pytest.approx(low, rel=0.02), np.inf)
    assert high == np.inf
    wide = interval(value, draws_of(values, 0, np.median)[:, None], 2.0)[:, 0]
    assert wide.tolist() == [value, pytest.approx(value - 2 * (value - low)), np.inf]
    for statistic in ("mean", "geometric_mean"):  # of the resamples without ∞ the least is a bound still
        mean = bootstrap(values, statistic)
        assert mean.value == mean.high == np.inf
        assert 0.9 <= mean.low < np.inf
    assert with_interval(Interval(1.1, 0.9, np.inf)) == "1.10 [0.90, ∞]"


def test_quantiles_of_draws_of_which_some_are_infinite():
    draws = np.array([[2.0, 1.0], [np.inf, 2.0], [1.0, 3.0], [np.inf, 4.0], [np.nan, 5.0]])
    found = counted_quantiles(draws, np.ones(5, dtype=np.int64), np.array([0.0, 1 / 3, 0.5, 1.0]))
    assert found[:, 0].tolist() == [1.0, 2.0, np.inf, np.inf]
    np.testing.assert_allclose(found[:, 1], np.quantile(draws[:, 1], [0.0, 1 / 3, 0.5, 1.0]))
    assert interval(1.0, draws[:4], 1.0)[1:, 0] == pytest.approx([1.075, np.inf])


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_the_interval_lies_within_the_values_and_around_the_mean(values):
    found = Interval(*percentile(values))
    if max(values) - min(values) <= 1e-9 * max(values):
        assert np.isnan(found.low)
        return
    assert min(values) - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= max(values) + 1e-9


@pytest.mark.parametrize(("n", "plain"), [(3, 75), (6, 85), (40, 94)])
def test_coverage_of_the_percentiles_and_of_the_widened_interval(n, plain):
    samples = np.random.default_rng(0).normal(size=(n, 1500))
    mean, *ends = bootstrap_columns(samples)
    for factor, expected in ((1.0, plain), (widening(n), 95)):
        low, high = (mean + factor / widening(n) * (end - mean) for end in ends)
        assert 100 * ((low <= 0) & (high >= 0)).mean() == pytest.approx(expected, abs=3)


def test_coverage_over_strata():
    samples = np.random.default_rng(0).normal(size=(1500, 2, 3))
    found = [stratified_geometric_mean(list(np.exp(0.1 * sample))) for sample in samples]
    assert 100 * np.mean([i.low <= 1 <= i.high for i in found]) == pytest.approx(95, abs=3)


def test_expanded_is_the_students_interval_in_the_limit_of_a_normal_sample():
    sample = stats.norm.ppf((np.arange(200) + 0.5) / 200)
    student = stats.t.interval(0.95, 199, loc=sample.mean(), scale=stats.sem(sample))
    assert bootstrap(sample)[1:] == pytest.approx(student, abs=0.006)


def test_the_factor_by_hand():
    # √(3/2) · t.975(2 degrees) / z.975
    assert small_sample_factor(3, 2) == pytest.approx(np.sqrt(1.5) * 4.302653 / 1.959964, rel=1e-6)
    assert small_sample_factor(1e6, 1e6) == pytest.approx(1, abs=1e-5)
    assert widening(3) == small_sample_factor(3, 2)
    assert widening(5, 3, 4) == small_sample_factor(3, 9)  # the smallest sample, all degrees of freedom
    assert np.isnan([widening(), widening(1), widening(5, 1)]).all()


def test_columns_are_the_means_and_intervals_of_each_column():
    matrix = np.random.default_rng(1).normal(size=(5, 3))
    matrix[0, 1] = np.nan
    mean, low, high = bootstrap_columns(matrix)
    for column in range(3):
        single = bootstrap(matrix[:, column])
        assert mean[column] == pytest.approx(single.value)
        assert low[column] == pytest.approx(single.low, abs=0.12)
        assert high[column] == pytest.approx(single.high, abs=0.12)
    np.testing.assert_allclose(low[0], bootstrap(matrix[:, 0]).low, rtol=1e-9)


def test_columns_without_or_with_one_value():
    mean, low, _ = bootstrap_columns(np.array([[np.nan, 1.0], [np.nan, np.nan]]))
    assert np.isnan(mean[0])
    assert mean[1] == 1
    assert np.isnan(low).all()
    assert np.isnan(bootstrap_columns(np.array([[1.0, 2.0]]))[1]).all()


def test_strata_weigh_alike_whatever_their_size():
    found = stratified_geometric_mean([np.array([0.5, 0.5]), np.array([2.0] * 7)])
    assert found.value == pytest.approx(1)
    assert np.isnan(stratified_geometric_mean([np.array([0.5]), np.array([2.0, 2.0])]).low)
    assert np.isnan(stratified_geometric_mean([]).value)


def test_two_strata_are_narrower_than_one():
    values = np.array([0.8, 0.9, 1.0])
    one, two = stratified_geometric_mean([values]), stratified_geometric_mean([values, values])
    assert two.value == pytest.approx(one.value)
    assert two.high - two.low < one.high - one.low


def test_resamples_are_shared_and_cannot_be_changed():
    rows = resample(3, 10, 0)
    assert rows is resample(3, 10, 0)
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_each_different_resample_is_weighed_by_how_often_it_was_drawn():
    weights, counts = multisets(3, 10_000, 0)
    assert weights.shape == (10, 3)  # C(5, 3)
    assert counts.sum() == 10_000
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    values = np.array([1.0, 2.0, 5.0])
    direct = np.quantile(values[resample(3, RESAMPLES, 0)].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(interval(0.0, (weights @ values)[:, None], 1.0, counts)[1:, 0], direct)


@pytest.mark.parametrize("num_resamples", [1, 2, 20, 41, 81, 999])
@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 1.0, 2.0], [0.1, 0.1, 0.5, 0.9]])
def test_counted_resamples_have_the_quantiles_of_listed_ones(values, num_resamples):
    sample, tails = np.array(values), np.array([0.025, 0.975])
    draws = sample[resample(len(sample), num_resamples, 0)].mean(axis=1)
    weights, counts = multisets(len(sample), num_resamples, 0)
    found = counted_quantiles((weights @ sample)[:, None], counts, tails)
    np.testing.assert_allclose(found[:, 0], np.quantile(draws, tails))


def test_levels_are_resampled_or_kept():
    """Seeds alone: each stratum's draws stay its own. Workloads too: every draw is one of any stratum's."""
    strata = [np.array([1.0, 1.1]), np.array([5.0, 5.1, 5.2]), np.array([9.0, 9.1])]
    kept, both = resampled(strata), resampled(strata, ("workload", "seed"))
    assert kept.shape == both.shape == (RESAMPLES, 3)
    for place, values in enumerate(strata):
        assert values.min() <= kept[:, place].min() < kept[:, place].max() <= values.max()
    which = both // 4  # 0, 1, 2: the stratum a mean is of
    assert [100 * (which == place).mean() for place in range(3)] == pytest.approx([100 / 3] * 3, abs=1.5)
    assert len(np.unique(both[which == 1])) > 3  # seeds within the drawn ones differ too


@pytest.mark.parametrize("statistic", ["mean", "geometric_mean"])
def test_groups_have_the_intervals_that_each_has_alone(statistic):
    rng = np.random.default_rng(5)
    group, values = rng.integers(0, 30, 130), rng.lognormal(size=130)
    values[rng.random(130) < 0.3] = np.nan  # groups of no, one and several values
    values[group == 3] = 1.25  # no interval
    found = bootstrap_groups(values, group, 31, statistic)
    alone = np.array([bootstrap(values[group == number], statistic) for number in range(31)]).T
    np.testing.assert_allclose(found, alone, rtol=1e-13)
    assert np.isnan(found[:, 30]).all()  # without a row
    assert bootstrap_groups(values[:0], group[:0], 0, statistic).shape == (3, 0)


def test_many_matrices_have_the_intervals_that_each_has_alone(monkeypatch):
    rng = np.random.default_rng(6)
    matrices = [rng.normal(size=size) for size in [(3, 5), (5, 2), (3, 37), (1, 4), (4, 0)]]
    matrices[0][1, 2] = matrices[2][0, :9] = np.nan
    alone = [bootstrap_columns(matrix) for matrix in matrices]
    monkeypatch.setattr("analysis.statistics.resampling.AT_ONCE", 100)  # several blocks
    for found, one in zip(bootstrap_each(matrices), alone, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-13)
    assert bootstrap_each([]) == []
