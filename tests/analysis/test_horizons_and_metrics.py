"""The horizon map and its flat region, final metrics, and the choice of baselines."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from analysis import report, sections
from analysis.core import horizon_map
from analysis.run_folder import study
from analysis.sections import generalization, horizon, schedules
from analysis.statistics.generalization import effect, metrics_by_cell
from analysis.statistics.pairs import best_training, pair, reference_training, score
from analysis.statistics.resampling import Interval
from analysis.statistics.steps_to_target import median_curves, steps_to_target


def computed(run):
    """The study, and its tables as attributes: the core's, and those of the sections of this file."""
    read = study.read(run)
    made = report.Report(read)
    names = sections.frames(made.core, [horizon, generalization])
    return read, SimpleNamespace(**names, report=made)


def test_one_axis_for_every_scheme(make_run):
    _, found = computed(make_run(lengths=[1.0]))
    horizons = found.horizon_map
    assert sorted(set(horizons["horizon_fraction"])) == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert set(horizons["scheme"]) == {"ema", "lawa"}
    ema = horizons[(horizons["scheme"] == "ema") & (horizons["workload"] == "lm")]
    np.testing.assert_allclose(ema["ratio"], [0.95, 0.9, 0.9, 0.92, 1.02])


def test_flat_region_without_noise_is_the_ties_and_what_the_evaluation_grid_cannot_tell_from_them(make_run):
    _, found = computed(make_run(lengths=[1.0]))
    ema = found.horizon_map[(found.horizon_map["scheme"] == "ema") & (found.horizon_map["workload"] == "lm")]
    assert ema["flat"].tolist() == [False, True, True, True, False]  # 0.92 lies within the grid's error of 0.90
    region = found.flat_region[found.flat_region["scheme"] == "ema"].iloc[0]
    assert (region["flat_from"], region["flat_to"]) == (0.01, 0.04)
    assert region["best_ratio"] == pytest.approx(0.9)


def test_flat_region_widens_with_the_spread_over_seeds(make_run):
    _, found = computed(make_run(lengths=[1.0], spread=0.015))
    ema = found.horizon_map[(found.horizon_map["scheme"] == "ema") & (found.horizon_map["workload"] == "lm")]
    assert ema["flat"].tolist() == [False, True, True, True, False]


def test_one_seed_has_no_flat_region(make_run):
    _, found = computed(make_run(lengths=[1.0], seeds=[0]))
    assert found.horizon_map["flat"].isna().all()
    assert found.flat_region.empty
    assert found.horizon_map["best"].sum() >= 4


def test_a_lower_bound_is_never_the_best():
    ratios = pd.DataFrame(
        {
            "versus": "same schedule",
            "workload": "lm",
            "training": 0,
            "setting": [0, 1],
            "geometric_mean": [0.7, 0.9],
            "geometric_mean_low": [0.6, 0.8],
            "geometric_mean_high": [0.8, 1.0],
            "median": [0.7, 0.9],
            "num_pairs": 3,
            "bound": ["at least", "exact"],
        }
    )
    cells = pd.DataFrame(
        {
            "setting": [0, 1],
            "scheme": "ema",
            "scheme_label": ["EMA 1 %", "EMA 2 %"],
            "horizon_fraction": [0.01, 0.02],
            "horizon_steps": [10.0, 20.0],
            "every_steps": [2, 2],
        }
    )
    assert horizon_map(ratios, cells)["best"].tolist() == [False, True]


def test_best_and_final_metric_of_a_cell(make_run):
    read, found = computed(make_run(lengths=[1.0], noise=0.05))
    cells = found.generalization_by_cell.set_index("cell_id")
    for cell_id in read.cells["cell_id"][::7]:
        mine = read.records[read.records["cell_id"] == cell_id]
        higher = bool(cells.loc[cell_id, "higher_is_better"])
        assert cells.loc[cell_id, "best_metric"] == (mine["metric"].max() if higher else mine["metric"].min())
        assert cells.loc[cell_id, "final_metric"] == mine["metric"].iloc[-1]
        at_best = mine[mine["step"] == cells.loc[cell_id, "best_step"]]
        assert at_best["metric"].iloc[0] == cells.loc[cell_id, "best_metric"]


def test_differences_are_paired_by_seed(make_run, average):
    read, found = computed(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.2)], seed_shift=0.02))
    by_cell = found.generalization_by_cell.set_index(["setting", "seed"])["final_metric"]
    raw = int(read.cells[(read.cells["scheme"] == "none") & (read.cells["workload"] == "lm")]["setting"].iloc[0])
    row = found.generalization[
        (found.generalization["workload"] == "lm") & (found.generalization["scheme"] == "ema")
    ].iloc[0]
    expected = np.mean([by_cell[row["setting"], s] - by_cell[raw, s] for s in (0, 1, 2)])
    assert row["final_difference"] == pytest.approx(expected)
    assert row["num_pairs"] == 3
    assert row["effect"] == "worse"  # the loss is higher


def test_no_effect_where_the_interval_covers_zero():
    assert effect(Interval(0.1, -0.1, 0.3), True) == "none"
    assert effect(Interval(0.2, 0.1, 0.3), True) == "better"
    assert effect(Interval(0.2, 0.1, 0.3), False) == "worse"
    assert effect(Interval(-0.2, -0.3, -0.1), False) == "better"
    assert effect(Interval(0.2, np.nan, np.nan), False) is None
    assert effect(Interval(0.0, 0.0, 0.0), False) == "none"


def test_unfinished_and_diverged_runs_have_no_final_metric(make_run):
    _, found = computed(make_run(lengths=[1.0], stop={"lm-1.0-0": 500}, diverge={"lm-1.0-1": 300}))
    lm = found.generalization_by_cell[found.generalization_by_cell["workload"] == "lm"]
    assert lm[lm["seed"] < 2]["final_metric"].isna().all()
    assert lm[lm["seed"] == 2]["final_metric"].notna().all()
    rows = found.generalization[found.generalization["workload"] == "lm"]
    assert set(rows["num_seeds"]) == {1}
    assert rows["effect"].isna().all()


def test_envelope_is_the_best_baseline_so_far(make_run):
    read = study.read(make_run(averages=[]))
    envelope = schedules.envelope(read.cells, median_curves(read.cells, read.records))
    bound = envelope[envelope["workload"] == "lm"].set_index("step")["envelope"]
    assert bound[500] == pytest.approx(1.3)  # the end of the half-length run
    assert bound[600] == pytest.approx(1.3)  # no other baseline is better yet
    assert bound[750] == pytest.approx(1.15)
    assert bound[1000] == pytest.approx(1.0)
    vit = envelope[envelope["workload"] == "imagenet_vit"].set_index("step")["envelope"]
    assert vit[100] == pytest.approx(0.1 + 0.37 / 5)  # the half-length run is ahead of the others
    assert vit[600] == pytest.approx(0.47)
    raw = read.records.merge(read.cells[["cell_id", "workload"]], on="cell_id")
    for step, value in bound.items():
        seen = raw[(raw["workload"] == "lm") & (raw["step"] <= step)]["metric"].min()
        assert value == pytest.approx(seen)


def test_no_envelope_for_one_schedule(make_run):
    read = study.read(make_run(lengths=[1.0]))
    assert schedules.envelope(read.cells, median_curves(read.cells, read.records)).empty


def test_median_over_seeds(make_run):
    read, found = computed(make_run(lengths=[1.0], noise=0.05))
    row = found.median_curves.iloc[100]
    cells = read.cells[read.cells["setting"] == row["setting"]]["cell_id"]
    mine = read.records[read.records["cell_id"].isin(cells) & (read.records["step"] == row["step"])]
    assert row["median"] == pytest.approx(mine["metric"].median())
    assert row["num_seeds"] == 3


def test_reference_is_the_longest_and_best_baseline_the_fastest(make_run):
    read, found = computed(make_run())
    reference = reference_training(read.cells, found.baselines)
    best = best_training(found.baselines)
    lengths = read.cells.drop_duplicates("training").set_index("training")["length_fraction"]
    assert {lengths[t] for t in reference.values()} == {1.0}
    assert {lengths[t] for t in best.values()} == {0.5}


def test_without_a_target_the_best_metric_decides(make_run, task):
    read, found = computed(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)]))
    best = best_training(found.baselines)
    lengths = read.cells.drop_duplicates("training").set_index("training")["length_fraction"]
    assert lengths[best["lm"]] == 1.0


def test_the_chosen_horizon_is_the_nearest_in_the_logarithm(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("ema", h, 0.9) for h in (0.006, 0.015, 0.1)])
    _, found = computed(run)
    assert set(found.chosen["horizon_fraction"]) == {0.015}
    assert found.chosen["near"].all()
    far = make_run(lengths=[1.0], averages=[average("ema", 0.05, 0.9)])
    assert not computed(far)[1].chosen["near"].any()


def test_auxiliary_metrics_are_compared_at_the_end_with_the_last_iterate_of_the_same_seed(make_run):
    read = study.read(make_run(lengths=[1.0], spread=0.02, noise=0.01))
    is_lm = read.records["cell_id"].isin(read.cells.loc[read.cells["workload"] == "lm", "cell_id"])
    beside = (3 - read.records["metric"] + 0.001 * read.records["step"]).where(is_lm)
    records = read.records.assign(metric_accuracy=beside)
    made = report.Report(study.Study(read.plan, read.cells, records, read.trials))
    table = generalization.tables(made.core)["auxiliary_metrics"]
    assert set(table["workload"]) == {"lm"}
    assert set(table["metric"]) == {"accuracy"}
    assert table["setting"].is_unique
    raw = table[table["scheme"] == "none"].iloc[0]
    assert np.isnan(raw["difference"])
    one = table[table["scheme"] == "ema"].iloc[0]
    cells = read.cells[read.cells["state"] == "finished"]
    final = records[records["step"] == records["step"].max()].set_index("cell_id")["metric_accuracy"]
    mine = cells[cells["setting"] == one["setting"]].set_index("seed")["cell_id"].map(final)
    bare = cells[cells["setting"] == raw["setting"]].set_index("seed")["cell_id"].map(final)
    assert one["num_seeds"] == len(mine) == 3
    assert one["final"] == pytest.approx(mine.mean())
    assert one["difference"] == pytest.approx((mine - bare).mean())
    assert one["difference_low"] < one["difference"] < one["difference_high"]
    still = read.cells.assign(state="unfinished")
    assert generalization.auxiliary_metrics(still, records, made.core.pairs).empty


def test_test_metrics_by_hand(make_run, average):
    """Seeds 0, 1, 2 score .5, .6, .7 raw and .1 more averaged, on the test split, whatever validation says."""
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], stop={"lm-1.0-2": 500})
    read = study.read(run)
    last = read.records[read.records["step"] == read.records.groupby("cell_id")["step"].transform("max")]
    of = read.cells.set_index("cell_id").loc[last["cell_id"]]
    seed, averaged = of["seed"].to_numpy(), (of["scheme"] == "ema").to_numpy()
    metric = 0.5 + 0.1 * seed + (0.1 + 1e-8 * seed) * averaged  # equal gains would have no interval
    test = last.assign(split="test", metric=metric)
    scores = score(read.cells, metrics_by_cell(read.cells, read.records), steps_to_target(read.cells, read.records))
    table = generalization.test_metrics(read.cells, test, pair(read.cells, scores))
    labels = read.cells.drop_duplicates("setting").set_index("setting")["scheme_label"]
    rows = table.assign(label=table["setting"].map(labels)).set_index(["workload", "label"])
    vit = rows.loc[("imagenet_vit", "EMA 1 %")]
    assert (vit["num_seeds"], vit["num_pairs"]) == (3, 3)
    assert vit["test_metric"] == pytest.approx(0.7)
    assert vit["test_metric_low"] < 0.7 < vit["test_metric_high"]
    assert vit["test_difference"] == pytest.approx(0.1)
    assert vit["effect"] == "better"  # accuracy
    lm = rows.loc[("lm", "EMA 1 %")]
    assert (lm["num_seeds"], lm["num_pairs"]) == (2, 2)  # seed 2 has not finished: its record is no final one
    assert lm["test_metric"] == pytest.approx(0.65)
    assert lm["effect"] == "worse"  # loss
    raw = rows.loc[("lm", "no averaging")]
    assert raw["test_metric"] == pytest.approx(0.55)
    assert np.isnan(raw["test_difference"])
    assert not [name for name in table.columns if name.startswith(("best_", "final_"))]
    assert generalization.test_metrics(read.cells, read.test, pair(read.cells, scores)).empty


def test_without_auxiliary_metrics_there_is_no_table(make_run):
    _, found = computed(make_run(lengths=[1.0]))
    assert found.auxiliary_metrics.empty
    assert found.test_metrics.empty


def test_how_far_the_flat_region_reaches_and_whether_the_pre_specified_horizon_lies_inside():
    picked = pd.DataFrame({"workload": list("abcd"), "scheme": "ema", "horizon_fraction": 0.01})
    flat = pd.DataFrame({"workload": list("abcd"), "scheme": "ema", "training": range(4)})
    flat["flat_from"], flat["flat_to"] = [0.005, 0.01, 0.02, 0.01], [0.02, 0.04, 0.04, 0.04]

    def told(number):
        return list(horizon._flat(flat.head(number), picked.head(number)))

    assert told(0) == []
    assert told(1) == ["The flat region of EMA is 0.5 % to 2 % on a; the pre-specified 1 % lies inside."]
    assert told(3) == [
        "The flat region of EMA is 0.5 % to 2 % on a, 1 % to 4 % on b, 2 % to 4 % on c; the pre-specified 1 % lies "
        "inside on 2 of 3, outside on c."
    ]
    assert told(4)[0].startswith("Of the flat regions of EMA on 4 workloads: 2 % alone lies in all of them; ")
    flat["flat_from"], flat["flat_to"] = 0.01, 0.04
    assert told(4) == [
        "The flat region of EMA is 1 % to 4 % on all 4 workloads; the pre-specified 1 % lies inside on all 4."
    ]


def test_one_horizon_has_nothing_to_be_told(make_run, average):
    _, found = computed(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    assert found.report.words(horizon) == []


def test_the_final_metric_is_told_by_workload_and_over_all(make_run, average):
    _, found = computed(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.2)], spread=0.02))
    first, over = found.report.words(generalization)
    assert first == (
        "EMA 1 %, pre-specified, against the last iterate at the end of training: worse is shown on all 2."
    )
    assert over.startswith("Over 2 workloads it changes the metric by a factor of 1.")
    assert over.endswith("(below 1 is better): an effect is shown.")
    _, found = computed(make_run(lengths=[1.0], averages=[]))
    assert found.report.words(generalization) == []


def test_a_caption_names_only_what_is_there(make_run, average):
    run = make_run(lengths=[1.0], seeds=[0], averages=[average("ema", h, 0.9) for h in (0.01, 0.02)])
    _, found = computed(run)
    assert "urve" not in sections.call(horizon.caption, found.report.known)
    assert "strip" not in sections.call(horizon.caption, found.report.known)
    bent = [average("ema", h, 0.9 + 0.05 * np.log(h / 0.02) ** 2) for h in (0.01, 0.02, 0.04)]
    _, found = computed(make_run(lengths=[1.0], averages=bent, seed_shift=0.02))
    assert "The curve is the smooth fit" in sections.call(horizon.caption, found.report.known)
    assert "strip" in sections.call(horizon.caption, found.report.known)
