"""What is computed cell by cell, against the same written plainly, on ragged records."""

import numpy as np
import pandas as pd
import pytest

from analysis.statistics.generalization import metrics_by_cell
from analysis.statistics.steps_to_target import first_crossing, first_crossings, median_curves


@pytest.fixture(scope="module")
def ragged() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cells of 4 settings × 3 seeds: other grids, gaps, NaN, a divergence, equal values, one without a record."""
    rng = np.random.default_rng(4)
    cells, parts = [], []
    for number in range(12):
        setting, cell_id = number // 3, f"c{number:02}"
        cell = {
            "cell_id": cell_id,
            "workload": "ab"[setting // 2],
            "training": setting // 2,
            "setting": setting,
        }
        cell |= {"seed": number % 3, "step_budget": 100, "last_step": 100, "higher_is_better": setting > 1}
        cells.append(cell | {"state": "diverged" if number == 4 else "finished"})
        steps = np.arange(10, 101, 10)
        if number in (0, 7):
            steps = np.delete(steps, rng.integers(0, 10, 3))
        frame = pd.DataFrame({"cell_id": cell_id, "step": steps, "metric": rng.integers(0, 6, len(steps)) / 4})
        frame["diverged"] = (number == 4) & (frame["step"] > 60)
        frame.loc[frame["diverged"] | ((number == 5) & (frame["step"] == 30)), "metric"] = np.nan
        parts += [frame] if number != 11 else []
    return pd.DataFrame(cells), pd.concat(parts, ignore_index=True)


def test_metrics_by_cell(ragged: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, records = ragged
    found = metrics_by_cell(cells, records).set_index("cell_id")
    for cell in cells.itertuples():
        rows = records[(records["cell_id"] == cell.cell_id) & records["metric"].notna()]
        rows = rows.sort_values(["metric", "step"], ascending=[not cell.higher_is_better, True])
        one = found.loc[str(cell.cell_id)]
        if rows.empty:
            assert one[["best_metric", "best_step", "final_metric"]].isna().all()
            continue
        assert (one["best_metric"], one["best_step"]) == tuple(rows[["metric", "step"]].iloc[0])
        last = rows.loc[rows["step"] == 100, "metric"]
        if len(last) and cell.state == "finished":
            assert one["final_metric"] == last.iloc[0]
        else:
            assert np.isnan(one["final_metric"])


def test_median_curves(ragged: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cells, records = ragged
    found = median_curves(cells, records)
    table = records[~records["diverged"]].merge(cells, on="cell_id")
    plain = table.groupby(["setting", "step"])["metric"].agg(["median", "count"]).reset_index()
    plain = plain[plain["count"] == plain.groupby("setting")["count"].transform("max")]
    assert (
        found[["setting", "step", "num_seeds"]].to_numpy().tolist()
        == plain[["setting", "step", "count"]].to_numpy().tolist()
    )
    np.testing.assert_array_equal(found["median"], plain["median"])
    assert (found["share"] == found["step"] / 100).all()
    assert list(found.columns) == ["workload", "training", "setting", "step", "share", "median", "num_seeds"]


@pytest.mark.parametrize("higher", [True, False])
def test_first_crossings_are_those_of_each_target_alone(higher: bool) -> None:
    rng = np.random.default_rng(2)
    steps, metric = np.arange(5.0, 105.0, 5.0), rng.normal(size=20)
    metric[[0, 3, 9]] = np.nan, np.inf, np.nan
    targets = np.append(np.linspace(-2.5, 2.5, 41), [np.nan, metric[5]])
    found = first_crossings(steps, metric, targets, higher).point
    alone = [first_crossing(steps, metric, target, higher).point for target in targets]
    np.testing.assert_array_equal(found, alone)
    assert 10 < np.isfinite(found).sum() < 43
