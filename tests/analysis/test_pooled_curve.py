import numpy as np
import pandas as pd
import pytest

from analysis import pooled, robustness, study, tables
from analysis.findings import curve_conclusions
from analysis.pairs import chosen_settings, pair, reference_training
from analysis.pooled_curve import COLUMNS, pooled_curve
from analysis.saving_curve import Curve, measure

SHARES = np.array([0.5, 1.0])


def made(logs, workload, setting, misses=None, raw_misses=None, versus="same schedule", hours=None):
    logs = np.asarray(logs, dtype=float)
    none = np.zeros(logs.shape, dtype=bool)
    misses, raw_misses = (none if one is None else np.asarray(one) for one in (misses, raw_misses))
    hours = logs if hours is None else np.asarray(hours, dtype=float)
    shares = SHARES[: logs.shape[1]]
    return Curve(versus, workload, 0, setting, shares, shares, misses, raw_misses, logs, hours)


def chosen(*settings, near=True):
    return pd.DataFrame({"setting": settings, "scheme": "ema", "near": near})


def test_a_geometric_mean_of_workloads_whatever_their_number_of_seeds():
    one = made([[np.log(0.5), 0.0]], "a", 0)
    two = made([[np.log(0.8), 0.0], [np.log(0.2), np.log(4)]], "b", 1, hours=[[0.0, 0.0], [0.0, 0.0]])
    table = pooled_curve([one, two], chosen(0, 1))
    assert list(table.columns) == COLUMNS
    np.testing.assert_allclose(table["ratio"], [np.sqrt(0.5 * 0.4), np.sqrt(2)])
    np.testing.assert_allclose(table["hours_ratio"], [np.sqrt(0.5), 1])
    assert table["num_workloads"].tolist() == [2, 2]
    assert table["num_pairs"].tolist() == [3, 3]
    assert table[["low", "high", "seeds_low", "seeds_high"]].isna().all(axis=None)  # two workloads, one of one seed


def test_no_pair_that_misses_vanishes():
    missed = np.array([[False, True], [False, True]])
    one = made([[0.0, np.nan], [0.0, 0.1]], "a", 0, misses=missed, raw_misses=[[False, True], [False, False]])
    two = made([[0.0, 0.2], [0.0, 0.2]], "b", 1, raw_misses=[[False, True], [False, False]])
    row = pooled_curve([one, two], chosen(0, 1)).iloc[1]
    assert row[["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]].tolist() == [
        4,
        1,
        1,
        1,
        1,
    ]
    assert row["bound"] == "mixed"
    assert row["ratio"] == pytest.approx(np.exp((0.1 + 0.2) / 2))


def test_a_workload_without_a_ratio_is_counted_out_and_one_with_fewer_levels_stays():
    none = made([[0.1, np.nan], [0.1, np.nan]], "a", 0)
    short = made([[0.3], [0.3]], "b", 1)
    long = made([[0.2, 0.2], [0.2, 0.2]], "c", 2)
    table = pooled_curve([none, short, long], chosen(0, 1, 2))
    assert table["num_workloads"].tolist() == [3, 1]
    np.testing.assert_allclose(np.log(table["ratio"]), [0.2, 0.2])


def test_the_band_is_a_hierarchical_bootstrap_and_its_width_that_of_theory():
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 0.2, size=(8, 1, 1))
    curves = [made(effect + rng.normal(0, 0.02, size=(3, 2)), f"w{i}", i) for i, effect in enumerate(effects)]
    table = pooled_curve(curves, chosen(*range(8)))
    means = np.stack([curve.log_ratio.mean(axis=0) for curve in curves])
    half = 2.365 * means.std(axis=0, ddof=1) / np.sqrt(8)  # Student's t, 7 degrees; seeds add little
    log = np.log(table[["low", "high"]].to_numpy())
    np.testing.assert_allclose(log[:, 1] - log[:, 0], 2 * half, rtol=0.08)
    seeds = np.log(table["seeds_high"] / table["seeds_low"])
    within = np.sqrt(np.mean([curve.log_ratio.var(axis=0, ddof=1) / 3 for curve in curves], axis=0) / 8)
    np.testing.assert_allclose(seeds, 2 * 2.12 * within, rtol=0.1)  # 16 degrees
    assert (seeds < 0.3 * (log[:, 1] - log[:, 0])).all()
    again = pooled_curve(curves, chosen(*range(8)))
    assert again.equals(table)


def test_only_settings_fixed_beforehand_take_part_and_one_workload_is_none():
    both = [made([[0.1, 0.1]], "a", 0), made([[0.1, 0.1]], "b", 1)]
    assert len(pooled_curve(both, chosen(0, 1))) == 2
    assert pooled_curve(both, chosen(0, 1, near=False)).empty
    assert pooled_curve(both, chosen(0)).empty
    assert pooled_curve([], chosen(0)).empty


def test_the_best_baseline_is_a_curve_of_its_own_only_where_it_differs():
    same = [made([[0.1, 0.1]], "a", 0), made([[0.1, 0.1]], "b", 1)]
    best = [curve._replace(versus="best baseline") for curve in same]
    assert set(pooled_curve(same + best, chosen(0, 1))["versus"]) == {"same schedule"}
    other = [best[0], best[1]._replace(log_ratio=np.array([[0.3, 0.3]]))]
    table = pooled_curve(same + other, chosen(0, 1))
    assert table["versus"].tolist() == ["same schedule"] * 2 + ["best baseline"] * 2
    np.testing.assert_allclose(np.log(table["ratio"]), [0.1, 0.1, 0.2, 0.2])


def test_at_the_level_of_the_target_it_is_the_pooled_ratio(make_run, average, task):
    three = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "wmt", "ogbg")]  # raw meets it at 75 %
    averages = [average("ema", 0.01, 0.9), average("lawa", 0.01, 0.8)]
    read = study.read(make_run(tasks=three, lengths=[1.0], averages=averages, spread=0.05))
    c = tables.core(read)
    near = chosen_settings(read.cells, reference_training(read.cells, c.scores))
    curve = pooled_curve(measure(read.cells, read.records, c.pairs, np.array([0.75])), near)
    at = curve[curve["versus"] == "same schedule"].set_index("scheme")
    over = pooled.pool(c.by_seed, c.steps, pooled.picks(near, robustness.horizon_map(c.ratios, read.cells)))
    fixed = pooled.overall(over).query("horizon == 'fixed beforehand' and versus == 'same schedule'")
    for statistic, prefix in (("geometric mean", ""), ("device-hours", "hours_")):
        target = fixed[fixed["statistic"] == statistic].set_index("scheme")
        for scheme in ("ema", "lawa"):
            assert at.loc[scheme, f"{prefix}ratio"] == pytest.approx(target.loc[scheme, "value"])
            for end in ("low", "high"):
                assert at.loc[scheme, f"{prefix}{end}"] == pytest.approx(target.loc[scheme, end], rel=0.01)


def test_measured_curves_hold_the_levels_that_are_known(make_run, average, tasks):
    read = study.read(make_run(tasks=[tasks["lm"]], lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    found = tables.core(read)
    pairs = pair(read.cells, found.scores)
    early = measure(read.cells, read.records, pairs, np.array([0.01, 0.5]))[0]  # 1 %: before the first evaluation
    assert early.share.tolist() == [0.5]
    assert early.log_ratio.shape == (3, 1)


def curve_rows(ratio, low, high, at_least=0, **more):
    shares = [0.25, 0.5, 0.75, 1.0]
    columns = {
        "share": shares,
        "ratio": ratio,
        "low": low,
        "high": high,
        "num_at_least": at_least,
        "num_workloads": 9,
    }
    return pd.DataFrame({"seeds_low": np.nan, "seeds_high": np.nan} | columns | more)


@pytest.mark.parametrize(
    ("rows", "end"),
    [
        (
            curve_rows([0.7, 0.8, 0.95, 1.0], [0.6, 0.7, 0.9, 0.95], [0.8, 0.9, 0.99, 1.05]),
            "From 100 % on its interval covers 1 (1.00 [0.95, 1.05] there): no effect is shown.",
        ),
        (  # below again after a level that covers 1: the tail alone counts
            curve_rows([0.7, 0.9, 0.8, 1.0], [0.6, 0.7, 0.7, 1.01], [0.8, 1.1, 0.9, 1.05], [0, 0, 0, 2]),
            "From 100 % on its interval covers 1 or lies above it (1.00 [1.01, 1.05] there): no effect is shown. Some "
            "averages miss levels from 100 % on: lower bounds there.",
        ),
        (
            curve_rows([0.7, 0.8, 0.9, 0.9], [0.6, 0.7, 0.8, 0.85], [0.8, 0.9, 0.95, 0.95]),
            "It still saves at the baseline's best: 0.90 [0.85, 0.95].",
        ),
        (
            curve_rows([0.9, 1.0, 1.0, 1.0], [0.8, 0.9, 0.9, 0.9], [1.1, 1.1, 1.1, 1.1]),
            "At every level its interval covers 1 (0.90 [0.80, 1.10] there): no effect is shown.",
        ),
        (curve_rows([0.7, 0.8, 0.9, 0.9], np.nan, np.nan), "One seed gives no interval."),
        (
            curve_rows([0.7] * 4, np.nan, np.nan, seeds_low=0.6, seeds_high=0.8),
            "It still saves at the baseline's best: 0.70 [0.60, 0.80].",
        ),
    ],
)
def test_where_it_pays_most_and_from_where_on_nothing_is_left(rows, end):
    text = curve_conclusions.over_workloads(rows, "EMA", "", "steps")
    lead = "the ratio is lowest" if rows["high"][0] > 1 else "it pays most"
    start = f"EMA in steps, over 9 workloads: {lead} at the level the baseline reaches after 25 % of its training, "
    assert text.startswith(f"{start}{rows['ratio'][0]:.2f}")
    assert text.endswith(end)
