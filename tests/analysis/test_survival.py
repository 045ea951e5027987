import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import baselines, device_hours, savings, study
from analysis.resampling import bootstrap, small_sample_factor
from analysis.steps_to_target import steps_to_target
from analysis.survival import (
    areas,
    kaplan_meier,
    medians,
    observations,
    ratio_of_means,
    restricted_mean_ratios,
    restricted_means,
)

# Weeks to relapse of 21 patients on 6-MP, + censored (Freireich et al. 1963), and S as textbooks print it.
MET = [6, 6, 6, 7, 10, 13, 16, 22, 23]
CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PRINTED = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}


def observed(met, censored, setting=0):
    return pd.DataFrame(
        {
            "setting": setting,
            "point": np.array([*met, *censored], dtype=float),
            "met": [True] * len(met) + [False] * len(censored),
        }
    )


def test_the_textbook_curve():
    curve = kaplan_meier(observed(MET, CENSORED)).set_index("step")
    for week, survival in PRINTED.items():
        assert curve.loc[week, "survival"] == pytest.approx(survival, abs=5e-4)
    assert curve.loc[6, ["at_risk", "met", "censored"]].tolist() == [21, 3, 1]
    assert curve.loc[10, ["at_risk", "met", "censored"]].tolist() == [15, 1, 1]
    assert medians(curve.reset_index()).tolist() == [23]


times = st.lists(st.integers(1, 12), max_size=8)


@settings(deadline=None, max_examples=40)
@given(times, times)
def test_agrees_with_scipy(met, censored):
    if not met and not censored:
        return
    curve = kaplan_meier(observed(met, censored))
    data = stats.CensoredData(uncensored=met, right=censored)
    theirs = stats.ecdf(data).sf
    np.testing.assert_array_equal(curve["step"], theirs.quantiles)
    np.testing.assert_allclose(curve["survival"], theirs.probabilities, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(times, times, st.integers(1, 15))
def test_the_area_is_the_integral_of_scipys_curve(met, censored, until):
    if not met and not censored:
        return
    area = areas(kaplan_meier(observed(met, censored)), pd.Series({0: float(until)}))[0]
    survival = stats.ecdf(stats.CensoredData(uncensored=met, right=censored)).sf
    last = max([*met, *censored])
    if last < until and survival.evaluate(last) > 0:
        assert np.isnan(area)  # unknown between the last seed and T
    else:
        middles = np.arange(until) + 0.5  # steps are whole numbers, so S is constant between them
        assert area == pytest.approx(survival.evaluate(middles).sum())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_where_all_meet_or_are_censored_at_the_budget_it_is_the_mean(steps):
    met, censored = [s for s in steps if s < 10], [10] * sum(s >= 10 for s in steps)
    area = areas(kaplan_meier(observed(met, censored)), pd.Series({0: 10.0}))[0]
    assert area == pytest.approx(np.minimum(steps, 10).mean())


def test_a_seed_censored_early_passes_its_share_to_those_still_at_risk():
    # 2 meets; 3 is censored; 6 meets: S = 1 to 2, 2/3 to 6, then 2/3 · (1 − 1/1) = 0.
    curve = kaplan_meier(observed([2, 6], [3]))
    assert curve["survival"].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert areas(curve, pd.Series({0: 10.0}))[0] == pytest.approx(2 + 4 * 2 / 3)
    assert areas(curve, pd.Series({0: 5.0}))[0] == pytest.approx(2 + 3 * 2 / 3)


def test_settings_do_not_mix_and_their_rows_may_come_in_any_order():
    both = pd.concat([observed([2, 6], [3], 5), observed(MET, CENSORED, 1)]).sample(frac=1, random_state=0)
    curve = kaplan_meier(both)
    alone = [kaplan_meier(observed(MET, CENSORED, 1)), kaplan_meier(observed([2, 6], [3], 5))]
    pd.testing.assert_frame_equal(curve, pd.concat(alone, ignore_index=True))
    assert areas(curve, pd.Series({1: 4.0, 5: 5.0})).to_dict() == pytest.approx({1: 4.0, 5: 4.0})


def measured(run):
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records)
    hours = device_hours.hours_to_target(read.cells, read.records, steps)
    pairs = baselines.pair(read.cells, baselines.score(read.cells, read.records, steps))
    by_seed = savings.ratios_by_seed(pairs, steps, hours)
    labels = read.cells.drop_duplicates("setting")[["setting", "scheme", "horizon_fraction"]]
    means = restricted_means(read.cells, steps).merge(labels, on="setting")
    ratios = restricted_mean_ratios(by_seed, steps).merge(labels, on="setting")
    return means, ratios[ratios["versus"] == "same schedule"], by_seed


def test_known_runs_and_what_the_grid_leaves_open(make_run, average):
    means, ratios, _ = measured(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    for row in means.to_dict("records"):
        raw = row["scheme"] == "none"
        assert row["restricted_mean"] == pytest.approx(750 if raw else 675)
        assert (row["restricted_mean_left"], row["restricted_mean_right"]) == (
            pytest.approx(740 if raw else 660),
            pytest.approx(760 if raw else 680),
        )
        assert row["budget_share"] == pytest.approx(0.75 if raw else 0.675)
        assert (row["num_met"], row["num_missed"], row["num_unfinished"]) == (3, 0, 0)
    np.testing.assert_allclose(ratios["ratio"], 0.9)
    np.testing.assert_allclose(ratios["ratio_left"], 660 / 760)
    np.testing.assert_allclose(ratios["ratio_right"], 680 / 740)


def test_the_interval_of_the_mean_is_the_bootstrap_over_seeds(make_run):
    means, _, _ = measured(make_run(lengths=[1.0], averages=[], seed_shift=0.1))
    expected = bootstrap(np.array([675.0, 750.0, 825.0]))
    for row in means.to_dict("records"):
        found = [row["restricted_mean"], row["restricted_mean_low"], row["restricted_mean_high"]]
        assert found == pytest.approx(list(expected))


def test_a_missed_and_a_diverged_seed_are_censored_at_the_budget(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], diverge={"lm-1.0-0": 300})
    means, ratios, _ = measured(run)
    lm = means[means["workload"] == "lm"].set_index("scheme")
    assert lm.loc["none", "restricted_mean"] == pytest.approx((1000 + 750 + 750) / 3)
    assert lm.loc["none", ["num_met", "num_missed"]].tolist() == [2, 1]
    row = ratios[ratios["workload"] == "lm"].iloc[0]  # where both miss, T stands on both sides
    assert row["ratio"] == pytest.approx((1000 + 675 + 675) / (1000 + 750 + 750))
    assert (row["num_pairs"], row["num_pending"]) == (3, 0)


def test_a_shorter_schedule_that_misses_is_counted_at_the_step_budget(make_run, task):
    hard = task("lm", "loss", False, 5.0, 1.0, 1.2)  # length 0.5 ends at 1.3
    means, ratios, _ = measured(make_run(tasks=[hard], lengths=[0.5]))
    assert set(means["restricted_mean"]) == {1000.0}
    assert means["median"].isna().all()
    np.testing.assert_allclose(ratios["ratio"], 1.0)


def test_an_unfinished_seed_is_censored_where_it_stands(make_run):
    means, ratios, _ = measured(make_run(lengths=[1.0], stop={"lm-1.0-0": 700}))
    lm = means[means["workload"] == "lm"].set_index(["scheme", "horizon_fraction"])
    raw = lm.loc["none"].iloc[0]
    assert (raw["num_unfinished"], raw["num_met"]) == (1, 2)
    assert raw["restricted_mean"] == pytest.approx(750)  # the two at risk after 700 meet at 750
    assert np.isnan(raw["restricted_mean_low"])
    pending = ratios[(ratios["workload"] == "lm") & (ratios["horizon_fraction"] == 0.01)]
    assert set(pending["num_pending"]) == {1}


def test_while_the_last_at_risk_is_training_the_mean_is_unknown(make_run):
    means, _, _ = measured(make_run(lengths=[1.0], seeds=[0], averages=[], stop={"lm-1.0-0": 700}))
    lm = means[means["workload"] == "lm"].iloc[0]
    assert np.isnan(lm["restricted_mean"])
    assert np.isnan(lm["restricted_mean_left"])


def test_no_target_no_rows(make_run, task):
    means, ratios, _ = measured(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)], lengths=[1.0]))
    assert len(means) == len(ratios) == 0
    assert "restricted_mean" in means
    assert "ratio_low" in ratios


def test_budgets_that_differ_are_both_cut_at_the_smaller(make_run):
    read = study.read(make_run(lengths=[1.0], averages=[]))
    steps = steps_to_target(read.cells, read.records)
    assert set(observations(read.cells, steps)["step_budget"]) == {1000}
    a, b = steps["cell_id"].iloc[0], steps["cell_id"].iloc[1]
    steps.loc[steps["cell_id"] == b, "step_budget"] = 700  # met at 750: beyond it
    row = {"versus": "best baseline", "workload": "lm", "training": 0, "setting": 0, "seed": 0}
    row |= {"cell_id": a, "baseline_cell_id": b, "steps": 750.0, "baseline_steps": 750.0, "bound": "exact"}
    found = restricted_mean_ratios(pd.DataFrame([row]), steps).iloc[0]
    assert (found["restricted_mean"], found["baseline_restricted_mean"]) == (700, 700)
    assert (found["ratio"], found["ratio_left"], found["ratio_right"]) == (1, 1, 1)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_ratios_interval_against_scipys_paired_bootstrap(n):
    rng = np.random.default_rng(n)
    bottom = rng.lognormal(6, 0.3, size=n)
    top = bottom * rng.lognormal(-0.1, 0.1, size=n)
    ratio, low, high = ratio_of_means(top[:, None], bottom[:, None])[:, 0]
    assert ratio == pytest.approx(top.mean() / bottom.mean())
    theirs = stats.bootstrap(
        (top, bottom),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=1,
        vectorized=True,
    ).confidence_interval
    factor = small_sample_factor(n, n - 1)
    assert low == pytest.approx(ratio * (theirs.low / ratio) ** factor, rel=0.02)
    assert high == pytest.approx(ratio * (theirs.high / ratio) ** factor, rel=0.02)
    assert np.isnan(ratio_of_means(top[:1, None], bottom[:1, None])[1:]).all()


def test_intervals_of_settings_with_different_numbers_of_seeds_stay_with_them(make_run):
    run = make_run(lengths=[1.0], spread=0.1, stop={"lm-1.0-2": 60}, seed_shift=0.1)
    _, ratios, by_seed = measured(run)
    steps = by_seed[by_seed["versus"] == "same schedule"]
    for row in ratios.to_dict("records"):
        mine = steps[(steps["setting"] == row["setting"]) & (steps["bound"] != "pending")]
        top, bottom = mine["steps"].to_numpy(), mine["baseline_steps"].to_numpy()
        expected = ratio_of_means(top[:, None], bottom[:, None])[:, 0]
        assert [row["ratio"], row["ratio_low"], row["ratio_high"]] == pytest.approx(list(expected))
        assert row["num_pairs"] - row["num_pending"] == len(mine)


def test_a_hundred_thousand_cells_take_no_time():
    rng = np.random.default_rng(0)
    many = pd.DataFrame({"setting": np.repeat(np.arange(33_000), 3), "point": rng.uniform(1, 100, 99_000)})
    many["met"] = rng.uniform(size=len(many)) < 0.8
    start = time.process_time()
    curve = kaplan_meier(many)
    assert len(areas(curve, pd.Series(100.0, index=np.arange(33_000)))) == 33_000
    assert time.process_time() - start < 5  # a few tenths on an idle core
