import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import methods
from analysis.intervals import bootstrap, bootstrap_columns, multisets, resample, stratified_geometric_mean

SAMPLE = np.random.default_rng(3).lognormal(sigma=0.4, size=20)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize(
    ("statistic", "function"),
    [("mean", np.mean), ("geometric_mean", stats.gmean), ("median", np.median)],
)
def test_agrees_with_scipy(method, statistic, function):
    ours = bootstrap(SAMPLE, statistic, method=method, num_resamples=20_000)
    theirs = stats.bootstrap(
        (SAMPLE,), function, method=method.replace("bca", "BCa"), n_resamples=20_000, rng=1
    ).confidence_interval
    width = theirs.high - theirs.low
    near = (0.15 if statistic == "median" else 0.04) * width  # resampled medians take few values
    assert ours.value == pytest.approx(function(SAMPLE))
    assert ours.low == pytest.approx(theirs.low, abs=near)
    assert ours.high == pytest.approx(theirs.high, abs=near)


def test_same_seed_same_interval_another_seed_another():
    assert bootstrap(SAMPLE) == bootstrap(SAMPLE)
    assert bootstrap(SAMPLE).low != bootstrap(SAMPLE, seed=1).low


def test_every_option_changes_the_result():
    plain = bootstrap(SAMPLE)
    assert bootstrap(SAMPLE, method="bca").low != plain.low
    assert bootstrap(SAMPLE, level=0.5).low > plain.low
    assert bootstrap(SAMPLE, num_resamples=50).low != plain.low
    assert bootstrap(SAMPLE, "median").value != plain.value
    with pytest.raises(ValueError, match="geometric_mean"):
        bootstrap(SAMPLE, "mode")  # type: ignore[arg-type]


def test_one_value_has_no_interval_and_none_has_no_value():
    one = bootstrap(np.array([0.9]))
    assert one.value == 0.9
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    assert np.isnan(bootstrap(np.array([])).value)
    assert bootstrap(np.array([np.nan, 0.9, np.nan])).value == 0.9


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap(np.array([0.9, 0.9, 0.9]), "geometric_mean")[1:] == pytest.approx((0.9, 0.9))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_the_interval_lies_within_the_values_and_around_the_mean(values):
    found = bootstrap(np.array(values), num_resamples=400)
    assert min(values) - 1e-9 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high <= max(values) + 1e-9


def test_coverage_near_the_level_with_many_values_and_below_it_with_three():
    rng = np.random.default_rng(0)

    def covered(n):
        samples = rng.normal(size=(400, n))
        hits = 0
        for sample in samples:
            found = bootstrap(sample, num_resamples=1_000)
            hits += found.low <= 0 <= found.high
        return hits / len(samples)

    assert 0.90 <= covered(40) <= 0.98
    assert 100 * covered(3) == pytest.approx(methods.COVERAGE[3], abs=5)  # what the report tells its reader
    assert 100 * covered(6) == pytest.approx(methods.COVERAGE[6], abs=5)


def test_columns_are_the_means_and_intervals_of_each_column():
    matrix = np.random.default_rng(1).normal(size=(5, 3))
    matrix[0, 1] = np.nan
    mean, low, high = bootstrap_columns(matrix, num_resamples=10_000)
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
    assert found == pytest.approx((1, 1, 1))
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
    direct = np.quantile(values[resample(3, 10_000, 0)].mean(axis=1), [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(values)[1:], direct)


@pytest.mark.parametrize("num_resamples", [1, 2, 20, 41, 81, 999])
@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 1.0, 2.0], [0.1, 0.1, 0.5, 0.9]])
def test_counted_resamples_have_the_quantiles_of_listed_ones(values, num_resamples):
    sample = np.array(values)
    draws = sample[resample(len(sample), num_resamples, 0)].mean(axis=1)
    found = bootstrap(sample, num_resamples=num_resamples)
    np.testing.assert_allclose(found[1:], np.quantile(draws, [0.025, 0.975]))
