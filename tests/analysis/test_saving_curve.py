import numpy as np
import pytest

from analysis import study
from analysis.pairs import pair, score
from analysis.saving_curve import SHARES, levels, measure, saving_curve
from analysis.steps_to_target import steps_to_target


def curve(run, **options):
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records)
    pairs = pair(read.cells, score(read.cells, read.records, steps))
    table = saving_curve(measure(read.cells, read.records, pairs, **options))
    return table.merge(
        read.cells.drop_duplicates("setting")[["setting", "scheme", "horizon_fraction", "length_fraction"]],
        on="setting",
    )


def test_levels_are_the_median_running_best_at_a_share_of_the_training():
    steps = np.array([10.0, 20.0, 30.0, 40.0])
    one = (steps, np.array([4.0, 3.0, 5.0, 1.0]))  # running best 4 3 3 1
    two = (steps, np.array([6.0, 5.0, 5.0, 3.0]))
    found = levels([one, two], 40.0, False, np.array([0.1, 0.25, 0.5, 0.625, 0.75, 1.0]))
    np.testing.assert_allclose(found[1:], [5.0, 4.0, 4.0, 4.0, 2.0])
    assert np.isnan(found[0])  # before the first evaluation
    far = (steps, np.full(4, 100.0))
    np.testing.assert_allclose(levels([one, two, far], 40.0, False, np.array([0.5])), [5.0])
    up = levels([(steps, -one[1])], 40.0, True, np.array([0.5, 1.0]))
    np.testing.assert_allclose(up, [-3.0, -1.0])


def test_a_constant_speedup_gives_a_flat_curve_on_both_directions_and_all_schedules(make_run):
    table = curve(make_run())
    ema = table[(table["scheme"] == "ema") & (table["horizon_fraction"] == 0.01)]
    same = ema[ema["versus"] == "same schedule"]
    assert len(same) == 2 * 3 * len(SHARES)
    same = same[same["share"] < 1]  # the average's end lies between two evaluations
    np.testing.assert_allclose(same["ratio"], 0.9, atol=1e-7)
    np.testing.assert_allclose(same["low"], 0.9, atol=1e-6)
    assert (same["num_exact"] == 3).all()


def test_the_level_is_the_baselines_metric_there(make_run):
    table = curve(make_run(lengths=[1.0], seeds=[0, 1, 2]))
    lm = table[(table["workload"] == "lm") & (table["share"] == 0.5)]
    np.testing.assert_allclose(lm["level"], 5.0 - 4.0 * 0.5)


def test_levels_get_tighter(make_run):
    table = curve(make_run(lengths=[1.0], noise=0.02, shape="bent"))
    for (workload, *_), part in table.groupby(["workload", "setting", "versus"]):
        step = np.diff(part["level"])
        assert (step <= 1e-12).all() if workload == "lm" else (step >= -1e-12).all()


def test_a_slow_average_never_reaches_the_tight_levels(make_run, average):
    table = curve(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.25)], noise=0.0))
    tight = table[table["share"] > 0.8]
    assert (tight["num_at_least"] == 3).all()
    np.testing.assert_allclose(tight["ratio"], 1.0 / tight["share"], atol=1e-9)
    easy = table[table["share"] <= 0.775]
    np.testing.assert_allclose(easy["ratio"], 1.25, atol=1e-9)


def test_seeds_that_miss_the_level_are_counted(make_run):
    table = curve(make_run(lengths=[1.0], seed_shift=0.1))
    last = table[(table["share"] == 1.0) & (table["versus"] == "same schedule")]
    assert (last["num_pairs"] == 3).all()
    counts = last[["num_exact", "num_at_least", "num_at_most", "num_both_missed"]].sum(axis=1)
    assert (counts == 3).all()
    assert (last["num_exact"] < 3).all()


def test_band_widens_with_seeds_that_differ_and_is_absent_for_one(make_run):
    wide = curve(make_run(lengths=[1.0], spread=0.1))
    assert (wide["high"] - wide["low"] > 0.05).any()
    one = curve(make_run(lengths=[1.0], seeds=[0]))
    assert one["low"].isna().all()
    assert one["ratio"].notna().all()


def test_unfinished_cells_take_no_part(make_run):
    table = curve(make_run(lengths=[1.0], stop={"lm-1.0-0": 500}))
    assert set(table[table["workload"] == "lm"]["num_pairs"]) == {2}
    assert set(table[table["workload"] == "imagenet_vit"]["num_pairs"]) == {3}


def test_needs_no_target(make_run, task):
    table = curve(make_run(tasks=[task("lm", "loss", False, 5.0, 1.0, None)], lengths=[1.0]))
    assert table["ratio"].notna().all()


def test_shares_are_an_option(make_run):
    table = curve(make_run(lengths=[1.0]), shares=np.array([0.5]))
    assert set(table["share"]) == {0.5}


def test_the_curve_at_the_targets_level_is_the_ratio_at_the_target(make_run):
    table = curve(make_run(lengths=[1.0], spread=0.05))
    mine = table[(table["share"] == 0.75) & (table["scheme"] == "ema") & (table["horizon_fraction"] == 0.01)]
    expected = 0.9 * (0.95 * 1.0 * 1.05) ** (1 / 3)
    np.testing.assert_allclose(mine[mine["versus"] == "same schedule"]["ratio"], expected)
    assert mine["level"].tolist()[0] == pytest.approx(0.4)


def test_device_hours_are_training_and_averaging_at_the_same_step(make_run):
    # 0.01 s a step to train, 0.001 to average, 2 devices: hours are steps × 0.011 against steps × 0.01.
    table = curve(make_run(lengths=[1.0], spread=0.05))
    ema = table[(table["scheme"] == "ema") & (table["horizon_fraction"] == 0.01) & (table["share"] < 0.9)]
    np.testing.assert_allclose(ema["hours_ratio"], 1.1 * ema["ratio"])
    np.testing.assert_allclose(ema["hours_low"], 1.1 * ema["low"])


def test_a_level_that_is_missed_costs_all_that_was_trained(make_run, average):
    table = curve(make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.25)]))
    tight = table[table["share"] > 0.8]
    np.testing.assert_allclose(tight["hours_ratio"], 1.1 / tight["share"])  # 1,000 steps with averaging


def test_a_short_schedule_that_misses_counts_the_budget_in_steps_and_its_end_in_hours(make_run, average):
    table = curve(make_run(lengths=[0.5], averages=[average("ema", 0.01, 1.25)]))
    tight = table[(table["share"] > 0.8) & (table["versus"] == "same schedule")]
    np.testing.assert_allclose(tight["ratio"], 1000 / (500 * tight["share"]))
    np.testing.assert_allclose(tight["hours_ratio"], 1.1 * 500 / (500 * tight["share"]))
