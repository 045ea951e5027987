import numpy as np
import pandas as pd
import pytest

from analysis import pooled, study, tables
from analysis.figures import drawing, pooled_figures
from analysis.findings import conclusions
from analysis.pages import page_tables
from analysis.pairs import reference_training
from analysis.resampling import small_sample_factor, stratified_geometric_mean

T = 1000.0
MISS = None


def pairs_of(data, hours=None, horizon="fixed beforehand"):
    """{workload: [(steps, baseline steps), …]}, MISS for a missed target -> by_seed, steps, picked.

    hours: workload -> device-hours a step; the average costs 1.1 times as much a step.
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
            row |= {"hours_ratio": 1.1 * a / b if rated else np.nan}
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
    assert found["restricted mean"] == pytest.approx((250 / 400 * 950 / 900 * 1) ** (1 / 3))
    assert found["survivors only"] == pytest.approx((0.5 + 0.75) / 2)
    assert found["device-hours"] == pytest.approx(1.1 * found["geometric mean"])
    assert found["suite device-hours"] == pytest.approx(1.1 * (0.25 + 0.95 + 10) / (0.4 + 0.9 + 10))
    assert found["suite, solved only"] == pytest.approx(1.1 * (0.25 + 0.95) / (0.4 + 0.9))


def test_what_each_number_rests_on_and_what_it_is():
    table = pooled.pool(*pairs_of(HAND))
    count, bound = values(table, column="num_workloads"), values(table, column="bound")
    assert (count["mean ratio"], count["restricted mean"], count["suite, solved only"]) == (2, 3, 2)
    assert count["survivors only"] == 1
    assert bound["geometric mean"] == bound["suite device-hours"] == "mixed"
    assert bound["restricted mean"] == "exact"  # by definition
    assert set(values(table, column="num_missed").values()) == {4}
    alone = values(table, "alone", "never", "bound")
    assert alone["mean ratio"] == "none"
    assert alone["suite device-hours"] == "mixed"
    missed = pooled.pool(*pairs_of({"a": [(MISS, 500)] * 2, "b": [(400, 500)] * 2}))
    assert values(missed, column="bound")["mean ratio"] == "at least"


def test_every_number_has_its_rule():
    table = pooled.overall(pooled.pool(*pairs_of(HAND)))
    assert table["rule"].notna().all()
    assert list(table["statistic"]) == list(pooled.RULES)


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
    names, draws = list(data), {"geometric mean": [], "mean ratio": [], "restricted mean": []}
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
        draws["restricted mean"].append(np.exp(np.mean(restricted)))
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
    assert values(third, column="low")["restricted mean"] > 0
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
    left = pooled.leave_one_out(table)
    mine = left[left["statistic"] == "geometric mean"].set_index("without")["change"]
    assert mine.idxmax() == "odd"
    whole = values(table)["geometric mean"]
    assert mine["odd"] == pytest.approx(values(table, "without", "odd")["geometric mean"] - whole)


def test_what_waits_takes_no_part_and_is_counted():
    by_seed, steps, picked = pairs_of(several(3, 3))
    without = pooled.pool(by_seed[by_seed["seed"] != 2], steps, picked)
    by_seed.loc[by_seed["seed"] == 2, ["bound", "ratio", "hours_ratio", "steps"]] = ["pending", *[np.nan] * 3]
    table = pooled.pool(by_seed, steps, picked)
    assert values(table) == pytest.approx(values(without))
    assert set(values(table, column="num_pending").values()) == {3}
    assert len(pooled.pool(by_seed[by_seed["seed"] == 2], steps, picked)) == 0


def test_same_rows_in_another_order_same_numbers():
    by_seed, steps, picked = pairs_of(several(4, 3))
    again = pooled.pool(by_seed.sample(frac=1, random_state=0), steps, picked)
    first = pooled.pool(by_seed, steps, picked)
    np.testing.assert_allclose(
        first[["value", "seeds_low"]].to_numpy(float),
        again[["value", "seeds_low"]].to_numpy(float),
        rtol=0.01,
    )
    pd.testing.assert_frame_equal(first, pooled.pool(by_seed, steps, picked))


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


def computed(run):
    read = study.read(run)
    return read, tables.compute(read)


@pytest.fixture
def four(make_run, task, average):
    """A run of four families with one schedule, of which one gains much more than the others."""
    named = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "ogbg", "wmt", "criteo1tb")]
    return make_run(tasks=named, lengths=[1.0], averages=[average(s, h, r) for s, h, r in _SETTINGS], spread=0.02)


_SETTINGS = [("ema", 0.01, 0.9), ("lawa", 0.01, 0.92), ("ema", 0.04, 0.85)]


def test_a_run_to_tables_page_and_sentences(four):
    read, found = computed(four)
    assert set(found.pooled["versus"]) == {"same schedule"}  # the best baseline is that of the same schedule
    fixed = found.pooled[(found.pooled["horizon"] == "fixed beforehand") & (found.pooled["scheme"] == "ema")]
    fixed = fixed.set_index("statistic")
    assert fixed.loc["geometric mean", "value"] == pytest.approx(0.9 * (0.98 * 1.02) ** (1 / 3))
    assert fixed.loc["device-hours", "value"] == pytest.approx(0.99 * (0.98 * 1.02) ** (1 / 3))
    best = found.pooled[(found.pooled["horizon"] == "best-looking") & (found.pooled["scheme"] == "ema")]
    assert best.set_index("statistic").loc["mean ratio", "value"] == pytest.approx(0.85)
    shown = {table.title: table for table in page_tables.shown_tables(found)}
    rules = shown["Pooled over workloads"]
    assert rules.rows[0][-1] == pooled.RULES["mean ratio"]
    assert "without wmt" in shown["Pooled without one workload"].columns
    assert "restricted mean" in shown["The same numbers, workload by workload"].columns
    assert shown["Restricted mean steps to target"].rows[0][3].startswith("675 [")
    said = conclusions.pooled_findings(found)
    assert "EMA, horizon fixed beforehand, over 4 workloads: geometric mean 0.90 [" in said[0]
    assert "9 points between the ways to count" in said[0]
    assert "leaves out 1, whichever is left out" in said[1]
    assert "optimistic" in said[2]
    assert read is not None


def test_one_family_that_carries_the_result_is_named():
    text = {"low": 0.7, "high": 0.99, "value": 0.9, "bound": "exact"}
    left = pd.DataFrame(
        {
            "versus": "same schedule",
            "horizon": "fixed beforehand",
            "scheme": "ema",
            "statistic": "geometric mean",
            "without": ["lm", "ogbg", "wmt"],
            "value": [0.88, 0.9, 0.98],
            "low": [0.7, 0.72, 0.9],
            "high": [0.97, 0.98, 1.07],
        }
    )
    fake = type("Fake", (), {"leave_one_out": left})()
    said = conclusions._without_one(fake, "ema", "EMA", text)[0]
    assert "0.98 [0.90, 1.07] (without wmt); its interval over workloads and seeds leaves out 1" in said
    assert said.endswith("but not without wmt.")


def test_the_forest_shows_what_the_tables_say(four, make_run):
    read, found = computed(four)
    d = drawing.drawing(read, found, reference_training(read.cells, found.baselines))
    chart = pooled_figures.forest(d)
    spec = chart.to_dict()
    assert [panel["title"]["text"] for panel in spec["concat"]] == [
        "horizon fixed beforehand",
        "horizon best-looking",
    ]
    rows = [row for data in spec["datasets"].values() for row in data if "scheme_name" in row]
    whole = [row for row in rows if row["row"] == "all: mean ratio" and "without" not in row]
    assert {row["value"] for row in whole} == set(found.pooled.loc[found.pooled["statistic"] == "mean ratio", "value"])
    assert {row["without"] for row in rows if "without" in row} == {"lm", "ogbg", "wmt", "criteo1tb"}
    read, found = computed(make_run(lengths=[1.0]))  # two workloads
    d = drawing.drawing(read, found, reference_training(read.cells, found.baselines))
    assert pooled_figures.forest(d) is None
