"""ν × k and ν × γ: which settings form a grid, and whether the snapshot interval matters at equal horizon."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.run_folder import study
from analysis.sections import snapshots
from tests.analysis.conftest import chart_of

BUDGET = 1000


def lawa(average, k, every, ratio=0.9):
    return average("lawa", k * every / BUDGET, ratio, every=every)


def ema(average, decay, every, ratio=0.9):
    return average("ema", every * (1 + decay) / (1 - decay) / BUDGET, ratio, every=every)


def computed(run):
    """The study's report, and its tables."""
    made = report.Report(study.read(run))
    return made, SimpleNamespace(**snapshots.tables(made.core))


def said(made):
    return made.words(snapshots)


def test_the_grid_is_what_has_several_of_both(make_run, average):
    grid = [lawa(average, k, every) for k in (3, 10) for every in (2, 8)]
    alone = [lawa(average, 5, 2), lawa(average, 20, 1), ema(average, 0.5, 2), ema(average, 0.9, 2)]
    _, found = computed(make_run(lengths=[1.0], seeds=[0, 1], averages=[*grid, *alone]))
    lm = found.snapshot_grid[found.snapshot_grid["workload"] == "lm"]
    # k = 5 has one interval, every 1 has one k, and the EMAs have one interval alone
    assert sorted(zip(lm["memory"], lm["every_steps"], strict=True)) == [(3, 2), (3, 8), (10, 2), (10, 8)]
    assert lm["ratio"].round(3).eq(0.9).all()
    np.testing.assert_allclose(lm["horizon_fraction"], lm["memory"] * lm["every_steps"] / BUDGET)


def test_emas_form_a_grid_by_their_decay(make_run, average):
    averages = [ema(average, decay, every) for decay in (0.5, 0.9) for every in (2, 8)]
    _, found = computed(make_run(lengths=[1.0], seeds=[0, 1], averages=averages))
    assert set(found.snapshot_grid["memory"]) == {0.5, 0.9}
    assert len(found.snapshot_grid) == 2 * 4


def test_missed_seeds_are_counted_and_drawn_as_crosses(make_run, average):
    averages = [lawa(average, k, every, 1.4 if every == 8 else 0.9) for k in (3, 10) for every in (2, 8)]
    made, found = computed(make_run(lengths=[1.0], averages=averages))  # 1.4 · 750 steps > 1,000: never met
    lm = found.snapshot_grid[found.snapshot_grid["workload"] == "lm"].set_index(["every_steps", "memory"])
    assert lm["num_missed"].to_dict() == {(2, 3): 0, (2, 10): 0, (8, 3): 3, (8, 10): 3}
    spec = chart_of(made, "snapshots")
    rows = [row for data in spec["datasets"].values() for row in data]
    texts = {row["missed"] for row in rows if "missed" in row and row.get("every_steps") == 8}
    assert texts == {"✕ 3/3"}
    seeds = [row for row in rows if "seed" in row]
    assert len(seeds) == 2 * 4 * 3  # every seed of every setting of both workloads
    assert {row["met"] for row in seeds if row["every_steps"] == 8} == {False}


def test_groups_of_equal_horizon_lie_within_a_factor_of_their_shortest():
    assert snapshots.equal_horizons(pd.Series([0.01, 0.0129, 0.0131, 0.017, 0.04])) == [0, 0, 1, 1, 2]


def test_the_rarest_snapshots_against_the_most_frequent_at_one_horizon(make_run, average):
    averages = [lawa(average, 12, 2, 0.8), lawa(average, 6, 4, 0.82), lawa(average, 3, 8, 0.88)]
    averages += [lawa(average, 24, 4, 0.9), lawa(average, 12, 8, 0.9), lawa(average, 5, 2, 0.85)]
    made, found = computed(make_run(lengths=[1.0], averages=averages))
    lm = found.snapshot_interval[found.snapshot_interval["workload"] == "lm"]
    assert list(zip(lm["finest"], lm["coarsest"], lm["num_settings"], strict=True)) == [(2, 8, 3), (4, 8, 2)]
    assert lm["ratio"].tolist() == pytest.approx([0.88 / 0.8, 1.0])
    assert lm["spread"].tolist() == pytest.approx([0.88 / 0.8, 1.0])
    assert lm["effect"].tolist() == ["rarer is slower", "none"]
    assert said(made) == [
        "Rarer snapshots at the same horizon: of 4 groups, slower is shown in 2, faster in 0, a change of over 1 % is "
        "excluded in 0, 2 undecided.",
        "Furthest apart: lm LAWA 2.4 %, every 8 against 2 steps, 1.100 [1.100, 1.100] of the steps. Where "
        "nothing differs, 2 or more come by luck 1.4 times in 100.",
    ]


def test_equal_seeds_decide_nothing_and_an_interval_within_a_margin_excludes_an_effect(make_run, average):
    averages = [lawa(average, 12, 2), lawa(average, 3, 8)]
    made, found = computed(make_run(lengths=[1.0], averages=averages))
    assert "of 2 groups, slower is shown in 0, faster in 0" in said(made)[0]
    assert said(made)[0].endswith("2 undecided.")
    within = found.snapshot_interval.assign(ratio=1.001, ratio_low=0.997, ratio_high=1.005)
    assert "excluded in 2, 0 undecided" in snapshots.sentences(within, made.known["look"])[0]


def test_a_miss_counts_at_the_budget_and_no_pair_is_dropped(make_run, average):
    averages = [lawa(average, 12, 2), lawa(average, 3, 8, 1.4)]
    _, found = computed(make_run(lengths=[1.0], averages=averages))
    row = found.snapshot_interval[found.snapshot_interval["workload"] == "lm"].iloc[0]
    assert (row["num_pairs"], row["num_missed"]) == (3, 3)
    assert row["ratio"] == pytest.approx(1000 / (0.9 * 750))


def test_without_a_grid_there_is_no_map(make_run, average):
    made, _ = computed(make_run(lengths=[1.0], seeds=[0, 1], averages=[average("ema", 0.01, 0.9)]))
    assert snapshots.chart(made.frames["snapshot_grid"], made.frames["ratios_by_seed"], made.known["look"]) is None
    assert said(made) == []
