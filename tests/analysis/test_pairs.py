"""Ratios of pairs, their bounds and intervals, on runs whose ratios are known in closed form."""

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.core import core
from analysis.run_folder import study
from analysis.statistics import device_hours
from analysis.statistics.pairs import metric_changes, over_workloads, overall_bound, ratios_by_seed, steps_ratios
from analysis.statistics.resampling import FEWEST, Z, small_sample_factor
from analysis.statistics.steps_to_target import grid_sd
from tests.analysis.conftest import Plan, write_run


def measured(run):
    found = core(study.read(run))
    return found.study, found.by_seed, found.ratios


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Two workloads on three schedules."""
    return measured(write_run(tmp_path_factory.mktemp("every"), Plan()))


@pytest.fixture(scope="module")
def longest(tmp_path_factory):
    """The same on the longest schedule alone, all seeds equal."""
    return measured(write_run(tmp_path_factory.mktemp("longest"), Plan(lengths=[1.0])))


def at(read, table, scheme, horizon, workload="lm", versus="same schedule", length=1.0):
    cells = read.cells
    mine = cells[
        (cells["scheme"] == scheme)
        & (cells["horizon_fraction"] == horizon)
        & (cells["workload"] == workload)
        & (cells["length_fraction"] == length)
    ]
    return table[table["setting"].isin(mine["setting"]) & (table["versus"] == versus)]


def test_known_ratios_on_every_schedule_and_workload(every):
    read, _, ratios = every
    for workload in ("lm", "imagenet_vit"):
        for length in (0.5, 0.75, 1.0):
            for scheme, expected in (("ema", 0.9), ("lawa", 0.91)):
                row = at(read, ratios, scheme, 0.01, workload, length=length).iloc[0]
                assert row["geometric_mean"] == pytest.approx(expected)
                assert row["mean"] == pytest.approx(expected)
                assert row["bound"] == "exact"
                assert row["num_pairs"] == row["num_exact"] == 3


def test_arithmetic_geometric_mean_median_and_interval(make_run):
    read, by_seed, ratios = measured(make_run(lengths=[1.0], spread=0.1))
    row = at(read, ratios, "ema", 0.01).iloc[0]
    seeds = at(read, by_seed, "ema", 0.01)["ratio"].to_numpy()
    np.testing.assert_allclose(seeds, [0.81, 0.9, 0.99])
    assert row["mean"] == pytest.approx(0.9)
    assert row["geometric_mean"] == pytest.approx((0.81 * 0.9 * 0.99) ** (1 / 3))
    assert row["median"] == pytest.approx(0.9)
    # Three of the same seed come up once in 27: more often than the 2.5 % of a tail. Then widened for 3 seeds.
    centre, factor = (0.81 * 0.9 * 0.99) ** (1 / 3), small_sample_factor(3, 2)
    assert row["geometric_mean_low"] == pytest.approx(centre * (0.81 / centre) ** factor)
    assert row["geometric_mean_high"] == pytest.approx(centre * (0.99 / centre) ** factor)


def test_pairing_by_seed_takes_out_what_seeds_share(make_run):
    read, by_seed, ratios = measured(make_run(lengths=[1.0], seed_shift=0.2))
    assert at(read, by_seed, "ema", 0.01)["baseline_steps"].nunique() == 3
    row = at(read, ratios, "ema", 0.01).iloc[0]
    assert row["geometric_mean_low"] == pytest.approx(0.9, rel=0.03)  # what the evaluation grid leaves
    assert row["geometric_mean_high"] == pytest.approx(0.9, rel=0.03)


def test_equal_seeds_are_as_sure_as_the_evaluation_grid(longest):
    """The average meets the target in (660, 680], the baseline in (740, 760], in every seed: one error, shared."""
    read, by_seed, ratios = longest
    error = np.hypot(grid_sd(660, 680), grid_sd(740, 760))
    np.testing.assert_allclose(at(read, by_seed, "ema", 0.01)["grid_sd"], error)
    row = at(read, ratios, "ema", 0.01).iloc[0]
    for end, sign in (("low", -1), ("high", 1)):
        assert row[f"geometric_mean_{end}"] == pytest.approx(0.9 * np.exp(sign * Z * error))
        assert row[f"mean_{end}"] == pytest.approx(0.9 * (1 + sign * Z * error))
        assert row[f"held_geometric_mean_{end}"] == pytest.approx(0.9 * np.exp(sign * Z * error))


def test_the_ratio_lies_within_what_the_grid_leaves_open(make_run):
    _, by_seed, _ = measured(make_run(lengths=[1.0], noise=0.01, shape="bent"))
    exact = by_seed[by_seed["bound"] == "exact"]
    assert len(exact) > 0
    assert (exact["ratio_low"] <= exact["ratio"]).all()
    assert (exact["ratio"] <= exact["ratio_high"]).all()


def test_best_baseline_is_the_raw_setting_with_fewest_median_steps(every):
    read, _, ratios = every
    steps_half = 500 * 3 / 3.7  # length 0.5 goes from 5.0 to 1.3 and so meets 2.0 after 3/3.7 of it
    row = at(read, ratios, "ema", 0.01, versus="best baseline").iloc[0]
    assert row["geometric_mean"] == pytest.approx(675 / steps_half)
    itself = ratios[(ratios["versus"] == "best baseline") & (ratios["geometric_mean"].round(9) == 1)]
    assert len(itself) >= 2  # the best baseline against itself, on both workloads
    assert (
        itself[itself["setting"].isin(read.cells.loc[read.cells["scheme"] == "none", "setting"])]["geometric_mean_low"]
        .isna()
        .all()
    )


def test_a_run_against_itself_is_one():
    run = {"cell_id": "a", "status": "met", "censored": False, "held_censored": False, "lower": 10.0, "upper": 20.0}
    run |= {"held_lower": 10.0, "held_upper": 20.0}
    steps = pd.DataFrame([run | {"counted_steps": 15.0, "held_counted_steps": 15.0}])
    names = {"versus": "best baseline", "workload": "lm", "training": 0, "setting": 0, "seed": 0}
    pairs = pd.DataFrame([names | {"cell_id": "a", "baseline_cell_id": "a"}])
    hours = pd.DataFrame({"cell_id": ["a"], "device_hours": [0.5]})
    row = ratios_by_seed(pairs, steps, hours).iloc[0]
    assert row["ratio"] == row["held_ratio"] == row["hours_ratio"] == 1
    assert (row["ratio_low"], row["ratio_high"]) == (0.5, 2.0)
    assert row["grid_sd"] == row["held_grid_sd"] == 0


def test_one_seed_has_a_ratio_and_no_interval(make_run):
    read, _, ratios = measured(make_run(lengths=[1.0], seeds=[4]))
    row = at(read, ratios, "ema", 0.01).iloc[0]
    assert row["geometric_mean"] == pytest.approx(0.9)
    assert np.isnan(row["geometric_mean_low"])


def test_only_the_average_misses_a_lower_bound(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.5)])  # 750 · 1.5 > 1000
    read, by_seed, ratios = measured(run)
    assert set(by_seed[by_seed["versus"] == "same schedule"]["bound"]) == {"at least"}
    row = at(read, ratios, "ema", 0.01).iloc[0]
    assert row["geometric_mean"] == pytest.approx(1000 / 750)
    assert (row["bound"], row["num_at_least"], row["num_exact"]) == ("at least", 3, 0)


def test_both_miss_no_ratio_and_counted(make_run, task, average):
    hard = task("lm", "loss", False, 5.0, 1.0, 0.9)  # every run ends at 1.0
    _, by_seed, ratios = measured(make_run(tasks=[hard], lengths=[1.0], averages=[average("ema", 0.01, 0.9)]))
    assert set(by_seed["bound"]) == {"both missed"}
    assert by_seed["ratio"].isna().all()
    assert set(ratios["num_both_missed"]) == {3}
    assert set(ratios["bound"]) == {"none"}


def test_bounds_from_hand_made_pairs():
    kinds = pd.Series(["exact", "at most", "exact"])
    assert overall_bound(kinds) == "at most"
    assert overall_bound(pd.Series(["at least", "at most"])) == "mixed"
    assert overall_bound(pd.Series(["both missed", "pending"])) == "none"
    assert overall_bound(pd.Series(["exact", "pending"])) == "exact"


def test_diverged_baseline_is_counted_at_the_budget(make_run):
    read, by_seed, _ = measured(make_run(lengths=[1.0], diverge={"lm-1.0-0": 720}))
    first = at(read, by_seed, "ema", 0.01).set_index("seed").loc[0]
    assert first["bound"] == "at most"  # the average met it at 675, its raw run diverged before 750
    assert first["ratio"] == pytest.approx(675 / 1000)


def test_unfinished_pairs_wait_and_are_counted(make_run):
    read, by_seed, ratios = measured(make_run(lengths=[1.0], stop={"lm-1.0-0": 700}))
    row = at(read, ratios, "ema", 0.01).iloc[0]
    assert (row["num_pairs"], row["num_exact"], row["num_pending"]) == (3, 2, 1)
    assert row["geometric_mean"] == pytest.approx(0.9)
    waiting = by_seed[by_seed["bound"] == "pending"]
    assert set(waiting["seed"]) == {0}
    assert waiting["ratio"].isna().all()


def test_device_hours_of_a_user(longest):
    read, by_seed, ratios = longest
    row = at(read, by_seed, "ema", 0.01).iloc[0]
    assert row["baseline_device_hours"] == pytest.approx(750 * 0.01 * 2 / 3600)
    assert row["device_hours"] == pytest.approx(675 * (0.01 + 0.001) * 2 / 3600)
    assert at(read, ratios, "ema", 0.01).iloc[0]["hours_ratio"] == pytest.approx(0.9 * 1.1)


def test_a_missed_target_pays_for_all_it_trained(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("ema", 0.01, 1.5)])
    read, by_seed, _ = measured(run)
    assert at(read, by_seed, "ema", 0.01).iloc[0]["device_hours"] == pytest.approx(1000 * 0.011 * 2 / 3600)


def test_the_sweeps_bill(longest):
    read, *_ = longest
    bill = device_hours.sweep_hours(read.cells, read.records, read.trials)
    hours = bill.set_index(["way", "part"])["device_hours"] * 3600 / 2
    trajectories, cells = 6, 66
    assert hours["paid", "all"] == pytest.approx(36.0 * trajectories)
    assert hours["one trial a trajectory", "training"] == pytest.approx(10.0 * trajectories)
    assert hours["one trial a cell", "training"] == pytest.approx(10.0 * cells)
    assert hours["one trial a cell", "averaging"] == pytest.approx(1.0 * (cells - trajectories))
    assert hours["one trial a cell", "evaluation"] == pytest.approx(5.0 * cells)
    assert hours["one trial a trajectory", "evaluation"] == pytest.approx(5.0 * cells)


def test_unit_is_gpu_hours_only_on_gpus():
    cells = pd.DataFrame({"device": ["gpu", "gpu"]})
    assert device_hours.unit(cells) == "GPU-hours"
    assert device_hours.unit(pd.DataFrame({"device": ["cpu"]})) == "CPU-core-hours"
    assert device_hours.unit(pd.DataFrame({"device": ["cpu", "gpu"]})) == "device-hours"


def hand_made(**values):
    return pd.DataFrame(
        [(name, seed, value) for name, mine in values.items() for seed, value in enumerate(mine)],
        columns=["workload", "seed", "value"],
    )


def test_a_change_is_below_one_where_the_first_is_better_whatever_the_metric():
    top, bottom = hand_made(lm=[2.0, 3.0]), hand_made(lm=[4.0, 3.0])
    lower = metric_changes(top, bottom, higher_is_better={"lm": False})["value"]
    higher = metric_changes(top, bottom, higher_is_better={"lm": True})["value"]
    assert list(np.exp(lower)) == pytest.approx([0.5, 1.0])
    assert list(np.exp(higher)) == pytest.approx([2.0, 1.0])


def test_seeds_that_only_one_side_has_make_no_pair():
    assert len(metric_changes(hand_made(lm=[1.0, 1.0, 1.0]), hand_made(lm=[1.0], wmt=[1.0]), {"lm": False})) == 1


def test_steps_count_misses_at_the_budget_and_name_the_bound(make_run, average):
    slow = average("ema", 0.04, 2.0)  # meets at step 1,500 of 1,000: missed
    found = core(study.read(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.8), slow])))
    cells = found.cells[found.cells["workload"] == "lm"]
    fast, slow = (cells[np.isclose(cells["horizon_fraction"].astype(float), h)] for h in (0.01, 0.04))
    table = steps_ratios(slow, fast, found.steps, found.hours)
    assert set(table["bound"]) == {"at least"}
    assert list(np.exp(table["value"])) == pytest.approx([1000 / 600] * 3, rel=0.01)


def test_over_workloads_is_the_pooled_geometric_mean(make_run, task, average):
    tasks = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("a", "b", "c", "d")]
    run = make_run(tasks=tasks, lengths=[1.0], averages=[average("ema", 0.01, 0.8)], spread=0.1, seed_shift=0.05)
    (of,) = report.of_run(run)
    cells = dict(list(of.core.cells.groupby("scheme")))
    found = over_workloads(steps_ratios(cells["ema"], cells["none"], of.core.steps, of.core.hours))
    pooled = of.frames["pooled"]
    row = pooled[pooled["statistic"] == "geometric mean"].iloc[0]
    assert list(found) == pytest.approx([row["value"], row["low"], row["high"]], rel=1e-9)
    assert found.low < found.value < found.high


def test_over_workloads_against_a_loop():
    rng = np.random.default_rng(3)
    data = {f"w{i}": list(rng.normal(-0.1 + 0.1 * rng.normal(), 0.05, size=3)) for i in range(5)}
    found = over_workloads(hand_made(**data))
    draws = []
    for _ in range(8_000):
        names = rng.choice(list(data), size=5)
        draws.append(np.mean([np.mean(rng.choice(data[name], size=3)) for name in names]))
    value = np.mean([np.mean(mine) for mine in data.values()])
    low, high = value + small_sample_factor(5, 4) * (np.quantile(draws, [0.025, 0.975]) - value)
    assert np.log(found.value) == pytest.approx(value)
    assert np.log([found.low, found.high]) == pytest.approx([low, high], abs=0.06 * (high - low))


def test_two_workloads_resample_seeds_alone_and_one_seed_gives_no_interval():
    two = over_workloads(hand_made(a=[-0.1, -0.12, -0.11], b=[-0.5, -0.52, -0.51]))
    assert two.high < 0.8  # an interval over workloads would reach from a's ratio to b's
    assert FEWEST == 3
    assert np.isnan(over_workloads(hand_made(a=[-0.1])).low)
    assert np.isnan(over_workloads(hand_made(a=[])).value)


def test_over_workloads_of_equal_seeds_the_grid_is_left():
    equal = hand_made(a=[-0.1] * 3, b=[-0.1] * 3, c=[-0.1] * 3, d=[-0.1] * 3)
    assert np.isnan(over_workloads(equal).low)  # of a metric, which has no grid
    found = over_workloads(equal.assign(grid_sd=0.02))
    assert np.log([found.low, found.high]) == pytest.approx([-0.1 - Z * 0.01, -0.1 + Z * 0.01])
