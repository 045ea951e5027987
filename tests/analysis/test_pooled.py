"""One number for many workloads, several ways to count, against closed forms and loops."""

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.sections import pooled as section
from analysis.statistics import pooled
from analysis.statistics.resampling import Z, small_sample_factor, stratified_geometric_mean
from analysis.statistics.verdicts import by_luck
from tests.analysis.conftest import Average, Plan, Task, chart_of, write_run

T = 1000.0
MISS = None


def pairs_of(data, hours=None, horizon="pre-specified", grid=0.0):
    """{workload: [(steps, baseline steps), …]}, MISS for a missed target -> by_seed, steps, picked.

    hours: workload -> device-hours a step; the average costs 1.1 times as much a step. Sustained crossings are 10 %
    later on the average's side alone. grid: the error of a log ratio.
    """
    rows, cells = [], []
    for setting, (workload, seeds) in enumerate(data.items()):
        rate = (hours or {}).get(workload, 0.001)
        for seed, (top, bottom) in enumerate(seeds):
            kind = {(False, False): "exact", (True, False): "at least", (False, True): "at most"}
            bound = kind.get((top is MISS, bottom is MISS), "both missed")
            a, b = (T if top is MISS else float(top)), (T if bottom is MISS else float(bottom))
            rated = bound != "both missed"
            row = {"versus": "same schedule", "workload": workload, "training": setting, "setting": setting}
            row |= {"seed": seed, "cell_id": f"{workload}{seed}a", "baseline_cell_id": f"{workload}{seed}b"}
            row |= {"steps": a, "baseline_steps": b, "bound": bound, "ratio": a / b if rated else np.nan}
            row |= {"device_hours": 1.1 * a * rate, "baseline_device_hours": b * rate}
            row |= {"hours_ratio": 1.1 * a / b if rated else np.nan, "held_ratio": 1.1 * a / b if rated else np.nan}
            row |= {"grid_sd": grid, "held_grid_sd": 2 * grid}
            rows.append(row)
            for cell, steps in (("cell_id", top), ("baseline_cell_id", bottom)):
                point = np.nan if steps is MISS else float(steps)
                ends = {"point": point, "lower": np.nan, "upper": np.nan}
                cells.append({"cell_id": row[cell], "step_budget": T, **ends})
    picked = pd.DataFrame({"horizon": horizon, "scheme": "ema", "workload": list(data)})
    return pd.DataFrame(rows), pd.DataFrame(cells), picked.assign(setting=range(len(data)))


def values(table, scope="all", workload=None, column="value"):
    mine = table[table["scope"] == scope]
    if workload is not None:
        mine = mine[mine["workload"] == workload]
    return dict(zip(mine["statistic"], mine[column], strict=True))


HAND = {
    "easy": [(200, 400), (300, 400)],  # .5, .75
    "hard": [(MISS, 800), (900, MISS)],  # ≥ 1.25, ≤ .9
    "never": [(MISS, MISS), (MISS, MISS)],
}


def test_each_rule_by_hand():
    found = values(pooled.pool(*pairs_of(HAND, hours={"easy": 0.001, "hard": 0.001, "never": 0.01})))
    assert found["mean ratio"] == pytest.approx(((0.5 + 0.75) / 2 + (1.25 + 0.9) / 2) / 2)
    assert found["geometric mean"] == pytest.approx((0.5 * 0.75 * 1.25 * 0.9) ** 0.25)
    assert found["median ratio"] == pytest.approx(1.0)  # of 250/400, 950/900 and 1000/1000
    assert found["sustained geometric mean"] == pytest.approx(1.1 * found["geometric mean"])
    assert found["RMST"] == pytest.approx((250 / 400 * 950 / 900 * 1) ** (1 / 3))
    assert found["device-hours"] == pytest.approx(1.1 * found["geometric mean"])
    assert found["suite device-hours"] == pytest.approx(1.1 * (0.25 + 0.95 + 10) / (0.4 + 0.9 + 10))


def test_what_each_number_rests_on_and_what_it_is():
    table = pooled.pool(*pairs_of(HAND))
    count, bound = values(table, column="num_workloads"), values(table, column="bound")
    assert (count["mean ratio"], count["RMST"]) == (2, 3)
    assert bound["geometric mean"] == bound["suite device-hours"] == "mixed"
    assert bound["RMST"] == "exact"  # by definition
    assert set(values(table, column="num_missed").values()) == {4}
    alone = values(table, "alone", "never", "bound")
    assert alone["mean ratio"] == "none"
    assert alone["suite device-hours"] == "mixed"
    missed = pooled.pool(*pairs_of({"a": [(MISS, 500)] * 2, "b": [(400, 500)] * 2}))
    assert values(missed, column="bound")["mean ratio"] == "at least"


def several(num_workloads, num_seeds, between=0.15, within=0.08, rng=None):
    rng = rng or np.random.default_rng(5)
    data = {}
    for number in range(num_workloads):
        effect = -0.1 + between * rng.normal()
        bottom = rng.uniform(400, 600, size=num_seeds)
        logs = effect + within * rng.normal(size=num_seeds)
        data[f"w{number}"] = [(float(b * np.exp(x)), float(b)) for b, x in zip(bottom, logs, strict=True)]
    return data


def test_the_hierarchical_interval_against_loops():
    data = several(6, 4)
    data["w0"][1] = (MISS, 500.0)
    table = pooled.pool(*pairs_of(data))
    rng = np.random.default_rng(1)
    names, draws = list(data), {"geometric mean": [], "mean ratio": [], "RMST": []}
    for _ in range(6_000):
        geo, mean, restricted = [], [], []
        for name in rng.choice(names, size=len(names)):
            seeds = data[name]
            drawn = [seeds[i] for i in rng.integers(len(seeds), size=len(seeds))]
            top = np.array([T if a is MISS else a for a, _ in drawn])
            bottom = np.array([b for _, b in drawn])
            geo.append(np.log(top / bottom).mean())
            mean.append((top / bottom).mean())
            restricted.append(np.log(top.mean() / bottom.mean()))
        draws["geometric mean"].append(np.exp(np.mean(geo)))
        draws["mean ratio"].append(np.mean(mean))
        draws["RMST"].append(np.exp(np.mean(restricted)))
    factor = small_sample_factor(6, 5)
    for name, drawn in draws.items():
        value = values(table)[name]
        low, high = np.quantile(drawn, [0.025, 0.975])
        if name == "mean ratio":
            expected = (value + factor * (low - value), value + factor * (high - value))
        else:
            expected = (value * (low / value) ** factor, value * (high / value) ** factor)
        found = values(table, column="low")[name], values(table, column="high")[name]
        assert found == pytest.approx(expected, abs=0.06 * (expected[1] - expected[0]))


def test_seeds_alone_is_the_interval_of_the_answer():
    data = several(4, 3)
    table = pooled.pool(*pairs_of(data))
    expected = stratified_geometric_mean([np.array([a / b for a, b in seeds]) for seeds in data.values()])
    found = [values(table, column=c)["geometric mean"] for c in ("value", "seeds_low", "seeds_high")]
    assert found == pytest.approx(list(expected), rel=1e-9)


def test_resampling_workloads_too_is_wider_where_they_differ():
    table = pooled.pool(*pairs_of(several(6, 4, between=0.3, within=0.02)))
    width = values(table, column="high")["mean ratio"] - values(table, column="low")["mean ratio"]
    narrow = values(table, column="seeds_high")["mean ratio"] - values(table, column="seeds_low")["mean ratio"]
    assert width > 5 * narrow


def test_two_workloads_or_one_seed():
    two = pooled.pool(*pairs_of(several(2, 3)))
    assert two["low"].isna().all()  # of two workloads nothing is known on others
    assert values(two, column="seeds_low")["mean ratio"] > 0
    third = pooled.pool(*pairs_of(several(2, 3) | {"never": [(MISS, MISS)] * 3}))
    assert np.isnan(values(third, column="low")["mean ratio"])  # has no ratio of its own
    assert values(third, column="low")["RMST"] > 0
    one = pooled.pool(*pairs_of(several(4, 1)))
    assert one["seeds_low"].isna().all()
    assert values(one, column="low")["mean ratio"] > 0
    assert not (pooled.pool(*pairs_of(several(1, 3)))["scope"] == "without").any()


def test_leave_one_out_pools_the_others():
    data = several(3, 3) | {"odd": [(300, 600), (290, 600), (310, 600)]}
    by_seed, steps, picked = pairs_of(data)
    table = pooled.pool(by_seed, steps, picked)
    for name in data:
        rest = pooled.pool(by_seed[by_seed["workload"] != name], steps, picked)
        assert values(table, "without", name) == pytest.approx(values(rest))


def test_what_waits_takes_no_part_and_is_counted():
    by_seed, steps, picked = pairs_of(several(3, 3))
    without = pooled.pool(by_seed[by_seed["seed"] != 2], steps, picked)
    gone = ["bound", "ratio", "held_ratio", "hours_ratio", "steps"]
    by_seed.loc[by_seed["seed"] == 2, gone] = ["pending", *[np.nan] * 4]
    table = pooled.pool(by_seed, steps, picked)
    assert values(table) == pytest.approx(values(without))
    assert set(values(table, column="num_pending").values()) == {3}
    assert len(pooled.pool(by_seed[by_seed["seed"] == 2], steps, picked)) == 0


@pytest.mark.parametrize("grid", [0.01, 0.3])
def test_equal_seeds_have_the_grid_as_their_interval(grid):
    """Errors of equal seeds are shared, those of workloads are not; sustained crossings have their own."""
    equal = {f"w{i}": [(400 + 50 * i, 500 + 50 * i)] * 3 for i in range(4)}
    table = pooled.pool(*pairs_of(equal, grid=grid))
    low, high = (np.log(values(table, column=f"seeds_{end}")["geometric mean"]) for end in ("low", "high"))
    assert (high - low) / 2 == pytest.approx(Z * grid / np.sqrt(4))
    low, high = (np.log(values(table, column=f"seeds_{end}")["sustained geometric mean"]) for end in ("low", "high"))
    assert (high - low) / 2 == pytest.approx(Z * 2 * grid / np.sqrt(4))
    alone = values(table, "alone", "w0", "seeds_high")["mean ratio"] - 0.8
    assert alone == pytest.approx(0.8 * Z * grid)
    assert pooled.pool(*pairs_of(equal))["seeds_low"].isna().all()


def test_no_workload_drops_out_of_the_best_by_missing():
    chosen = pd.DataFrame({"workload": ["a", "b"], "scheme": "ema", "setting": [0, 2], "near": True})
    horizons = pd.DataFrame(
        {
            "workload": ["a", "a", "b", "b"],
            "training": [0, 0, 1, 1],
            "scheme": "ema",
            "setting": [0, 1, 2, 3],
            "ratio": [0.9, 0.8, 1.4, 1.3],  # of b all are lower bounds
            "best": [False, True, False, False],
        }
    )
    found = pooled.picks(chosen, horizons)
    best = found[found["horizon"] == pooled.BEST].set_index("workload")["setting"]
    assert best.to_dict() == {"a": 1, "b": 3}
    fixed = found[found["horizon"] == pooled.FIXED].set_index("workload")["setting"]
    assert fixed.to_dict() == {"a": 0, "b": 2}


ROW = {"geometric_mean": 0.9, "num_pairs": 3, "versus": "same schedule"}


def counted(*rows, near=True):
    """(low, high, bound, at_least, at_most, both_missed, pending) a family -> the table families."""
    names = ["geometric_mean_low", "geometric_mean_high", "bound", "num_at_least", "num_at_most", "num_both_missed"]
    table = pd.DataFrame(rows, columns=[*names, "num_pending"]).assign(setting=range(len(rows)), **ROW)
    table["geometric_mean"] = table[["geometric_mean_low", "geometric_mean_high"]].mean(axis=1)
    chosen = pd.DataFrame({"setting": range(len(rows)), "scheme": "ema", "near": near})
    return pooled.families(table, chosen)


def test_families_are_counted_by_what_is_shown():
    row = counted(
        (0.8, 0.9, "exact", 0, 0, 0, 0),
        (0.8, 0.9, "at most", 0, 1, 0, 0),  # some baseline missed: it saves that much or more
        (0.8, 0.9, "at least", 1, 0, 0, 0),  # some average missed: it may save less
        (0.8, 1.1, "exact", 0, 0, 1, 0),
        (0.995, 1.005, "exact", 0, 0, 0, 0),  # nothing beyond 1 %
        (0.995, 1.005, "at most", 0, 1, 0, 0),  # may lie lower
        (1.1, 1.2, "at least", 2, 0, 0, 0),
        (1.1, 1.2, "at most", 0, 1, 0, 0),  # may lie lower
        (np.nan, np.nan, "exact", 0, 0, 0, 0),  # one seed
        (np.nan, np.nan, "none", 0, 0, 3, 0),  # nobody meets the target
        (np.nan, np.nan, "none", 0, 0, 0, 3),  # all wait: not a family yet
    ).iloc[0]
    numbers = {"num_fewer": 2, "num_excluded": 1, "num_more": 1, "num_undecided": 6, "num_with_missed": 7}
    assert row.drop(["versus", "scheme", "by_luck"]).to_dict() == {"num_families": 10, **numbers}
    assert row["by_luck"] == by_luck(2, 10)


def test_only_what_was_pre_specified_counts():
    assert counted((0.8, 0.9, "exact", 0, 0, 0, 0), near=False).empty


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A report of four families with one schedule."""
    tasks = [Task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "ogbg", "wmt", "criteo1tb")]
    made = [Average(*of) for of in (("ema", 0.01, 0.9), ("lawa", 0.01, 0.92), ("ema", 0.04, 0.85))]
    run = write_run(tmp_path_factory.mktemp("four"), Plan(tasks=tasks, lengths=[1.0], averages=made, spread=0.02))
    (found,) = report.of_run(run)
    return found


def test_a_run_to_tables_and_sentences(four):
    table = four.frames["pooled"]
    assert set(table["versus"]) == {"same schedule"}  # the best baseline is that of the same schedule
    ema = table[table["scheme"] == "ema"].set_index(["horizon", "statistic"])["value"]
    centre = (0.98 * 1.02) ** (1 / 3)
    assert ema["pre-specified", "geometric mean"] == pytest.approx(0.9 * centre)
    assert ema["pre-specified", "device-hours"] == pytest.approx(0.99 * centre)
    assert ema["selected post hoc", "mean ratio"] == pytest.approx(0.85)
    assert table["rule"].notna().all()
    left = four.frames["leave_one_out"].query("statistic == 'mean ratio' and scheme == 'ema'")
    assert set(left["without"]) == {"lm", "ogbg", "wmt", "criteo1tb"}
    np.testing.assert_allclose(left["change"], 0, atol=1e-6)
    first, second, third = four.words(section)
    assert first.startswith("EMA, pre-specified, over 4 workloads: 0.90 [0.8")
    assert first.endswith("(95 % over workloads and seeds): a saving is shown.")
    assert second.startswith("One by one: EMA saves, shown, on 4 of 4, by luck less than once in 1,000; LAWA, over all")
    assert third.startswith("Counted in 7 ways these runs give 0.90 (")
    assert third.endswith("device-hours); no single workload decides it.")


def test_the_figure_shows_what_the_tables_say(four):
    spec = chart_of(four, "pooled")
    titles = [panel["title"]["text"] for panel in spec["concat"]]
    assert titles == ["horizon pre-specified", "horizon selected post hoc"]
    rows = [row for data in spec["datasets"].values() for row in data if "scheme_name" in row]
    whole = [row["value"] for row in rows if row["row"] == "all: mean ratio" and "without" not in row]
    expected = four.frames["pooled"].query("statistic == 'mean ratio'")["value"]
    assert sorted(whole) == pytest.approx(sorted(expected))
    assert {row["without"] for row in rows if "without" in row} == {"lm", "ogbg", "wmt", "criteo1tb"}


def test_against_the_best_schedule_too_where_it_is_another(make_run):
    (found,) = report.of_run(make_run())  # two workloads, whose half-length schedules are the best ones
    assert chart_of(found, "pooled") is None
    assert set(found.frames["pooled"]["versus"]) == {"same schedule", "best baseline"}
    first = found.words(section)[0]
    assert (
        "(95 % over the seeds of these workloads): a saving is shown; of the best non-averaged schedule's 1." in first
    )
    assert first.endswith(": a loss is shown.")


def test_one_family_that_carries_the_result_is_named(four):
    left = four.frames["leave_one_out"].copy()
    mine = (left["without"] == "wmt") & (left["statistic"] == "geometric mean")
    left.loc[mine, ["value", "low", "high"]] = 0.98, 0.9, 1.07
    said = section.sentences(four.frames["pooled"], left, four.frames["families"])
    assert said[2].endswith("; without wmt the verdict is another.")
