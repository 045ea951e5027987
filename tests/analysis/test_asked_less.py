"""Tables of records that a bracket made, or an estimate: what they say of the target is what full records say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import methods
from analysis.core import Core, core
from analysis.run_folder import study
from analysis.sections.saving_curve import tables as saving_curve
from sweeps import bracket


@pytest.fixture(scope="module")
def full(_small_run: Any) -> Core:
    return core(study.read(_small_run))


def bracketed(whole: study.Study) -> study.Study:
    """The same study with the records that a bracket makes."""
    rows = dict(list(whole.records.groupby("cell_id")))
    parts = []
    for _, mine in whole.cells.groupby(["training", "seed"]):
        live, cell = mine.loc[mine["scheme"] == "none", "cell_id"].item(), mine.iloc[0]
        sign, every = (1 if cell["higher_is_better"] else -1), int(cell["evaluate_every_steps"])
        curves = {one: (rows[one]["step"].to_numpy(), sign * rows[one]["metric"].to_numpy()) for one in mine["cell_id"]}
        goals = bracket.levels(bracket.Curve(*curves.pop(live)), int(cell["length_steps"]))
        parts.append(rows[live])
        for name, (grid, quality) in curves.items():
            known = {s for s in grid.tolist() if s in (grid[0], grid[-1]) or s % (bracket.COARSE * every) == 0}
            more = known
            while more:
                known = known | more
                there = np.isin(grid, list(known))
                curve = bracket.Curve(grid[there], quality[there])
                more = bracket.steps_wanted(curve, grid, sign * cell["target"], goals)
            parts.append(rows[name][rows[name]["step"].isin(known)])
    records = pd.concat(parts).sort_values(["cell_id", "step"], ignore_index=True)
    return replace(whole, records=records, cells=whole.cells.assign(evaluate_averages="bracket"))


def test_a_bracket_has_the_steps_to_target_and_ratios_of_all(full: Core) -> None:
    some = core(bracketed(full.study))
    assert len(some.records) < 0.85 * len(full.records)
    pd.testing.assert_frame_equal(some.steps.drop(columns="lost_again"), full.steps.drop(columns="lost_again"))
    pd.testing.assert_frame_equal(some.ratios, full.ratios)  # device-hours too, which are linear between records
    here, there = (saving_curve(one)["saving_curve"] for one in (some, full))
    both = here.merge(there, on=["versus", "workload", "training", "setting", "share"], suffixes=("", "_all"))
    assert len(both) == len(here) == len(there)
    off = (both["ratio"] - both["ratio_all"]).abs()
    assert off.max() < 0.02  # an evaluation interval of the step budget
    assert "every eighth step of the grid" in dict(methods.methods(some, [], {}))["Evaluations"]
    assert "Evaluations" not in dict(methods.methods(full, [], {}))


def test_an_estimate_is_not_shown_as_exact(full: Core) -> None:
    averages = full.cells.loc[full.cells["scheme"] != "none", "cell_id"]
    mine = full.records["cell_id"].isin(averages) & (full.records["step"] % 40 == 0)
    records = full.records.assign(standard_error=np.where(mine, 0.01, np.nan))
    told = dict(methods.methods(core(replace(full.study, records=records)), [], {}))
    share = mine.sum() / full.records["cell_id"].isin(averages).sum()
    assert told["Estimates"].startswith(f"Of averages, {share:.0%} of the evaluations are estimates, not exact values")
    assert "Estimates" not in dict(methods.methods(full, [], {}))
