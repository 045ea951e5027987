"""The width of the basin of good peak LRs, against hand-worked widths."""

import numpy as np
import pandas as pd
import pytest

from analysis.sections import trainings as basin

LRS = [0.0025, 0.005, 0.01, 0.02, 0.04]  # a grid of 4 octaves
LABELS = {"none": "no averaging", "ema": "EMA 1 %"}


def study_of(runs, higher=False, budget=1000, target=2.0):
    """runs: (scheme, seed) -> for each LR (best metric, counted steps or None where missed)."""
    rows = [
        {
            "scheme": scheme,
            "seed": seed,
            "lr": lr,
            "training": place,
            "best_metric": best,
            "counted_steps": steps,
        }
        for (scheme, seed), values in runs.items()
        for place, (lr, (best, steps)) in enumerate(zip(LRS, values, strict=True))
    ]
    table = pd.DataFrame(rows)
    table = table.assign(
        cell_id=[f"c{place}" for place in range(len(table))],
        workload="lm",
        averaging=(table["scheme"] != "none").astype(int),
        scheme_label=table["scheme"].map(LABELS),
        state="finished",
        higher_is_better=higher,
        target=target,
        step_budget=budget,
        status=np.where(table["counted_steps"].isna(), "missed", "met"),
    )
    axes = pd.DataFrame({"training": range(len(LRS)), "axis": "lr"})
    return table, axes, table.drop(columns=["workload", "seed"]), table[["cell_id", "best_metric"]]


def apart(values, seed):
    """The same but for a trifle: seeds that are all equal have no interval."""
    return [(best + 1e-8 * seed, steps) for best, steps in values]


def widths(runs, **options):
    found = basin.widths(*study_of(runs, **options))
    return {(row["rule"], row["scheme"], row["seed"]): row["width"] for row in found.to_dict("records")}


ONE = [(3.0, None), (2.5, None), (1.5, 600), (1.9, 800), (2.1, None)]


def test_reaching_the_target_is_linear_in_log_lr_between_the_grid_points():
    # From 2.5 to 1.5 the target 2.0 lies half-way, from 1.9 to 2.1 too: 0.5 + 1 + 0.5 octaves.
    assert widths({("none", 0): ONE})[basin.REACHES, "none", 0] == pytest.approx(2.0)


def test_within_ten_per_cent_of_its_own_best_by_interpolated_steps():
    # 660 steps lie 60 of 200 beyond the best towards 800, and 60 of 400 towards the budget of a missed LR.
    assert widths({("none", 0): ONE})[basin.NEAR, "none", 0] == pytest.approx(0.3 + 0.15, rel=1e-6)


def test_a_scheme_near_the_budget_counts_no_missed_lr_as_near():
    runs = {("none", 0): [(3.0, None), (2.5, None), (1.9, 960), (2.5, None), (3.0, None)]}
    found = widths(runs)  # 1.1 · 960 is beyond the budget: the basin ends at the missed LRs, not after them
    assert found[basin.NEAR, "none", 0] == pytest.approx(2.0, rel=1e-6)


def test_where_no_lr_reaches_the_target_both_widths_are_zero():
    found = widths({("none", 0): [(3.0, None)] * 5})
    assert set(found.values()) == {0.0}


def test_a_higher_metric_turns_the_sign():
    runs = {("none", 0): [(1.0, None), (1.5, None), (2.5, 600), (2.1, 800), (1.9, None)]}
    assert widths(runs, higher=True)[basin.REACHES, "none", 0] == pytest.approx(2.0)


def test_widths_agree_with_a_naive_count_on_a_fine_grid():
    x = np.log2(LRS)
    for seed in range(20):
        quality = np.random.default_rng(seed).normal(size=5)
        fine = np.linspace(x[0], x[-1], 200_001)
        share = float((np.interp(fine, x, quality) >= 0.1).mean())
        assert basin.width_where(x, quality, 0.1) == pytest.approx(share * (x[-1] - x[0]), abs=1e-3)
    assert basin.width_where(x, np.array([1, np.nan, 1, 1, np.nan]), 0.5) == 1.0  # no run counts as far below


WIDER = [(2.1, None), (1.8, 900), (1.4, 550), (1.7, 700), (1.9, 900)]


def test_averages_are_paired_with_raw_runs_of_the_same_seed():
    runs = {("none", seed): ONE for seed in (0, 1, 2)}
    runs |= {("ema", seed): apart(WIDER, seed) for seed in (0, 1, 2)}
    table = basin.basins(basin.widths(*study_of(runs)))
    row = table[(table["rule"] == basin.REACHES) & (table["scheme"] == "ema")].iloc[0]
    assert row["width"] == pytest.approx(2 / 3 + 3)
    assert row["difference"] == pytest.approx(2 / 3 + 3 - 2)
    assert (row["effect"], row["num_met"], row["num_runs"], row["num_at_edge"]) == ("wider", 12, 15, 3)
    raw = table[(table["rule"] == basin.REACHES) & (table["scheme"] == "none")].iloc[0]
    assert (raw["num_met"], raw["num_at_edge"]) == (6, 0)
    assert pd.isna(raw["effect"])


def test_narrower_and_no_effect():
    runs = {("none", seed): WIDER for seed in (0, 1, 2)}
    runs |= {("ema", seed): apart(ONE, seed) for seed in (0, 1, 2)}
    table = basin.basins(basin.widths(*study_of(runs))).set_index(["rule", "scheme"])
    assert table.loc[(basin.REACHES, "ema"), "effect"] == "narrower"
    same = {(scheme, seed): ONE for scheme in LABELS for seed in (0, 1, 2)}
    table = basin.basins(basin.widths(*study_of(same))).set_index(["rule", "scheme"])
    assert table.loc[(basin.REACHES, "ema"), "effect"] == "none"
    assert np.isnan(table.loc[(basin.REACHES, "ema"), "difference_low"])  # not certainty from three seeds


def test_a_seed_with_an_lr_still_training_waits_and_is_counted():
    runs = {(scheme, seed): ONE for scheme in LABELS for seed in (0, 1)}
    cells, axes, steps, by_cell = study_of(runs)
    first = (cells["seed"] == 0) & (cells["lr"] == 0.04)
    cells.loc[first, "state"] = "unfinished"
    table = basin.basins(basin.widths(cells, axes, steps, by_cell))
    assert set(table["num_pending"]) == {1}
    assert set(table["num_seeds"]) == {2}
    assert table["difference_low"].isna().all()  # one pair alone has no interval


def test_only_workloads_whose_trainings_differ_in_their_lr():
    cells, axes, steps, by_cell = study_of({("none", 0): ONE})
    empty = basin.widths(cells, axes.assign(axis="optimizer"), steps, by_cell)
    assert empty.empty
    assert basin.basins(empty).empty
