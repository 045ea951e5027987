import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.run_folder import study
from analysis.statistics.generalization import metrics_by_cell
from analysis.statistics.pairs import pair, ratios_by_seed, score
from analysis.statistics.resampling import bootstrap
from analysis.statistics.steps_to_target import steps_to_target
from analysis.statistics.survival import kaplan_meier, restricted_mean, restricted_means, restricted_pairs

# Weeks to relapse of 21 patients on 6-MP, + censored (Freireich et al. 1963), and S as textbooks print it.
MET = [6, 6, 6, 7, 10, 13, 16, 22, 23]
CENSORED = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
PRINTED = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}


def curve(met, censored):
    """step -> S from this step on, whatever the order of the seeds."""
    order = np.random.default_rng(0).permutation(len(met) + len(censored))
    times = np.array([*met, *censored], dtype=float)[order]
    return kaplan_meier(times, np.array([True] * len(met) + [False] * len(censored))[order])


def test_the_textbook_curve():
    survival = dict(zip(*curve(MET, CENSORED), strict=True))
    for week, printed in PRINTED.items():
        assert survival[week] == pytest.approx(printed, abs=5e-4)


times = st.lists(st.integers(1, 12), max_size=8)


@settings(deadline=None, max_examples=40)
@given(times, times, st.integers(1, 15))
def test_the_curve_and_its_area_are_scipys(met, censored, until):
    if not met and not censored:
        return
    ours = curve(met, censored)
    survival = stats.ecdf(stats.CensoredData(uncensored=met, right=censored)).sf
    found = dict(zip(*ours, strict=True))
    np.testing.assert_array_equal(list(found), survival.quantiles)
    np.testing.assert_allclose(list(found.values()), survival.probabilities, atol=1e-12)
    area, last = restricted_mean(*ours, until), max([*met, *censored])
    if last < until and survival.evaluate(last) > 0:
        assert np.isnan(area)  # unknown between the last seed and T
    else:
        middles = np.arange(until) + 0.5  # steps are whole numbers, so S is constant between them
        assert area == pytest.approx(survival.evaluate(middles).sum())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_where_all_meet_or_are_censored_at_the_budget_it_is_the_mean(steps):
    met, censored = [s for s in steps if s < 10], [10] * sum(s >= 10 for s in steps)
    assert restricted_mean(*curve(met, censored), 10.0) == pytest.approx(np.minimum(steps, 10).mean())


def test_a_seed_censored_early_passes_its_share_to_those_still_at_risk():
    # 2 meets; 3 is censored; 6 meets: S = 1 to 2, 2/3 to 6, then 2/3 · (1 − 1/1) = 0.
    found = curve([2, 6], [3])
    assert found[1].tolist() == pytest.approx([2 / 3, 2 / 3, 0])
    assert restricted_mean(*found, 10.0) == pytest.approx(2 + 4 * 2 / 3)
    assert restricted_mean(*found, 5.0) == pytest.approx(2 + 3 * 2 / 3)


def measured(run):
    read = study.read(run)
    labels = read.cells.drop_duplicates("setting")[["setting", "scheme", "horizon_fraction"]]
    return restricted_means(read.cells, steps_to_target(read.cells, read.records)).merge(labels, on="setting")


def test_known_runs_and_what_the_grid_leaves_open(make_run, average):
    means = measured(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    for row in means.to_dict("records"):
        raw = row["scheme"] == "none"
        assert row["restricted_mean"] == pytest.approx(750 if raw else 675)
        assert (row["restricted_mean_left"], row["restricted_mean_right"]) == (
            pytest.approx(740 if raw else 660),
            pytest.approx(760 if raw else 680),
        )
        assert row["budget_share"] == pytest.approx(0.75 if raw else 0.675)
        assert (row["num_met"], row["num_missed"], row["num_unfinished"]) == (3, 0, 0)


def test_the_interval_of_the_mean_is_the_bootstrap_over_seeds(make_run):
    means = measured(make_run(lengths=[1.0], averages=[], seed_shift=0.1))
    expected = bootstrap(np.array([675.0, 750.0, 825.0]))
    for row in means.to_dict("records"):
        found = [row["restricted_mean"], row["restricted_mean_low"], row["restricted_mean_high"]]
        assert found == pytest.approx(list(expected))


def test_a_missed_and_a_diverged_seed_are_censored_at_the_budget(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], diverge={"lm-1.0-0": 300})
    means = measured(run)
    lm = means[means["workload"] == "lm"].set_index("scheme")
    assert lm.loc["none", "restricted_mean"] == pytest.approx((1000 + 750 + 750) / 3)
    assert lm.loc["none", ["num_met", "num_missed"]].tolist() == [2, 1]


def test_a_shorter_schedule_that_misses_is_counted_at_the_step_budget(make_run, task):
    hard = task("lm", "loss", False, 5.0, 1.0, 1.2)  # length 0.5 ends at 1.3
    means = measured(make_run(tasks=[hard], lengths=[0.5]))
    assert set(means["restricted_mean"]) == {1000.0}
    assert means["median"].isna().all()


def test_an_unfinished_seed_is_censored_where_it_stands(make_run):
    means = measured(make_run(lengths=[1.0], stop={"lm-1.0-0": 700}))
    lm = means[means["workload"] == "lm"].set_index(["scheme", "horizon_fraction"])
    raw = lm.loc["none"].iloc[0]
    assert (raw["num_unfinished"], raw["num_met"]) == (1, 2)
    assert raw["restricted_mean"] == pytest.approx(750)  # the two at risk after 700 meet at 750
    assert np.isnan(raw["restricted_mean_low"])


def test_while_the_last_at_risk_is_training_the_mean_is_unknown(make_run):
    means = measured(make_run(lengths=[1.0], seeds=[0], averages=[], stop={"lm-1.0-0": 700}))
    lm = means[means["workload"] == "lm"].iloc[0]
    assert np.isnan(lm["restricted_mean"])
    assert np.isnan(lm["restricted_mean_left"])


def test_no_target_no_rows(make_run, task):
    means = measured(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)], lengths=[1.0]))
    assert len(means) == 0
    assert "restricted_mean" in means


def test_both_sides_of_a_pair_are_cut_at_the_smaller_budget():
    known = {"a": (1000, 650.0), "b": (700, 750.0), "c": (1000, np.nan), "d": (1000, 900.0)}
    steps = pd.DataFrame([(i, *of) for i, of in known.items()], columns=["cell_id", "step_budget", "point"])
    found = restricted_pairs(pd.DataFrame({"cell_id": ["a", "c"], "baseline_cell_id": ["b", "d"]}), steps)
    assert found["counted"].tolist() == [650, 1000]  # met at 650; missed
    assert found["baseline_counted"].tolist() == [700, 900]  # met at 750, beyond the smaller budget; met


def test_the_mean_of_the_restricted_steps_of_finished_pairs_is_the_rmst(make_run, average):
    read = study.read(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], diverge={"lm-1.0-0": 300}))
    steps = steps_to_target(read.cells, read.records)
    pairs = pair(read.cells, score(read.cells, metrics_by_cell(read.cells, read.records), steps))
    by_seed = ratios_by_seed(pairs, steps, steps[["cell_id"]].assign(device_hours=1.0))
    mine = restricted_pairs(by_seed[by_seed["versus"] == "same schedule"], steps)
    means = restricted_means(read.cells, steps).set_index("setting")["restricted_mean"]
    averages = mine.groupby("setting")["counted"].mean()
    pd.testing.assert_series_equal(averages, means[averages.index], check_names=False)
