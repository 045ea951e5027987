"""Any setting against any other: against hand-worked pairs, a loop, and the pooled table."""

import numpy as np
import pandas as pd
import pytest

from analysis import pooled
from analysis.findings import log_findings
from analysis.findings.log_findings import AVERAGING, BASELINE, ratios_of_medians
from analysis.pairs import by_workload, metric_changes, over_workloads, sides, steps_ratios
from analysis.resampling import small_sample_factor
from analysis.study import read
from analysis.tables import compute


def pairs(**values):
    return pd.DataFrame(
        [(name, seed, value) for name, mine in values.items() for seed, value in enumerate(mine)],
        columns=["workload", "seed", "value"],
    )


def test_a_change_is_below_one_where_the_first_is_better_whatever_the_metric():
    top, bottom = pairs(lm=[2.0, 3.0]), pairs(lm=[4.0, 3.0])
    lower = metric_changes(top, bottom, higher_is_better={"lm": False})["value"]
    higher = metric_changes(top, bottom, higher_is_better={"lm": True})["value"]
    assert list(np.exp(lower)) == pytest.approx([0.5, 1.0])
    assert list(np.exp(higher)) == pytest.approx([2.0, 1.0])


def test_seeds_that_only_one_side_has_make_no_pair():
    assert len(metric_changes(pairs(lm=[1.0, 1.0, 1.0]), pairs(lm=[1.0], wmt=[1.0]), {"lm": False})) == 1


def test_steps_count_misses_at_the_budget_and_name_the_bound(make_run, tasks, average):
    slow = average("ema", 0.04, 2.0)  # meets at step 1,500 of 1,000: missed
    study = read(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.8), slow]))
    tables = compute(study)
    cells = study.cells[study.cells["workload"] == "lm"]
    fast, slow = (cells[np.isclose(cells["horizon_fraction"].astype(float), h)] for h in (0.01, 0.04))
    steps = tables.steps_to_target
    hours = steps[["cell_id", "device_hours"]]
    table = steps_ratios(slow, fast, steps, hours)
    assert set(table["bound"]) == {"at least"}
    assert list(np.exp(table["value"])) == pytest.approx([1000 / 600] * 3, rel=0.01)


def test_over_workloads_is_the_pooled_geometric_mean(make_run, task, average):
    tasks = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("a", "b", "c", "d")]
    run = make_run(tasks=tasks, lengths=[1.0], averages=[average("ema", 0.01, 0.8)], spread=0.1, seed_shift=0.05)
    study = read(run)
    tables = compute(study)
    of = dict(list(study.cells.groupby("scheme")))
    hours = tables.steps_to_target[["cell_id", "device_hours"]]
    found = over_workloads(steps_ratios(of["ema"], of["none"], tables.steps_to_target, hours))
    row = tables.pooled[tables.pooled["statistic"] == "geometric mean"].iloc[0]
    assert list(found) == pytest.approx([row["value"], row["low"], row["high"]], rel=1e-9)
    assert found.low < found.value < found.high


def test_over_workloads_against_a_loop():
    rng = np.random.default_rng(3)
    data = {f"w{i}": list(rng.normal(-0.1 + 0.1 * rng.normal(), 0.05, size=3)) for i in range(5)}
    found = over_workloads(pairs(**data))
    draws = []
    for _ in range(8_000):
        names = rng.choice(list(data), size=5)
        draws.append(np.mean([np.mean(rng.choice(data[name], size=3)) for name in names]))
    value = np.mean([np.mean(mine) for mine in data.values()])
    low, high = value + small_sample_factor(5, 4) * (np.quantile(draws, [0.025, 0.975]) - value)
    assert np.log(found.value) == pytest.approx(value)
    assert np.log([found.low, found.high]) == pytest.approx([low, high], abs=0.06 * (high - low))


def test_two_workloads_resample_seeds_alone_and_one_seed_gives_no_interval():
    two = over_workloads(pairs(a=[-0.1, -0.12, -0.11], b=[-0.5, -0.52, -0.51]))
    assert two.high < 0.8  # an interval over workloads would reach from a's ratio to b's
    assert pooled.FEWEST == 3
    assert np.isnan(over_workloads(pairs(a=[-0.1])).low)
    assert np.isnan(over_workloads(pairs(a=[])).value)


def test_sides():
    table = by_workload(pairs(a=[-0.2, -0.21, -0.19], b=[-0.1, 0.1, 0.0], c=[0.3, 0.31, 0.29]))
    assert sides(table) == (["a"], ["b"], ["c"])
    assert list(table["num_pairs"]) == [3, 3, 3]


def test_a_ratio_of_medians_against_every_resample():
    top, bottom = np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, np.inf])
    medians = [[np.median(side[list(rows)]) for rows in np.ndindex(3, 3, 3)] for side in (top, bottom)]
    every = sorted(0.0 if np.isinf(b) else a / b for a in medians[0] for b in medians[1])
    low, high = np.quantile(every, [0.025, 0.975], method="nearest")
    found = ratios_of_medians(top, bottom)
    factor = small_sample_factor(3, 4)
    assert found.value == pytest.approx(2 / 5)
    assert found.low == pytest.approx(0.4 * (low / 0.4) ** factor)  # 0: in some resamples the baseline never meets
    assert found.high == pytest.approx(0.4 * (high / 0.4) ** factor)


def test_a_ratio_of_two_medians_that_never_meet_is_none():
    found = ratios_of_medians(np.array([np.inf] * 3), np.array([np.inf] * 3))
    assert np.isnan(found.value)
    assert (found.low, found.high) == (0.0, np.inf)  # anything may be


MISS = np.inf


@pytest.mark.parametrize(
    ("top", "bottom", "expected"),
    [
        ([MISS] * 5, [100, 101, 102, 103, 104], (np.inf, np.inf, np.inf)),
        ([100, 101, 102, 103, 104], [MISS] * 5, (0.0, 0.0, 0.0)),
        ([1, 1.1, 0.9, MISS, 1], [1, 1, 1.1, MISS, 0.9], (1.0, 0.0, np.inf)),  # one miss a side
        ([MISS, MISS, MISS, 4, 5], [1, 1, 1, 1, 1], (np.inf, 4.0, np.inf)),
    ],
)
def test_an_infinite_bound_is_a_bound(top, bottom, expected):
    found = ratios_of_medians(np.array(top, dtype=float), np.array(bottom, dtype=float))
    assert tuple(found) == pytest.approx(expected)


def test_an_interval_with_misses_covers_every_open_resample():
    top, bottom = np.array([1.0, 2.0, MISS]), np.array([3.0, MISS, 5.0])
    medians = [[np.median(side[list(rows)]) for rows in np.ndindex(3, 3, 3)] for side in (top, bottom)]
    ends = []
    for both_missed in (0.0, np.inf):
        every = sorted(
            both_missed if np.isinf(a) and np.isinf(b) else 0.0 if np.isinf(b) else a / b
            for a in medians[0]
            for b in medians[1]
        )
        ends.append(np.quantile(every, [0.025, 0.975], method="nearest"))
    found = ratios_of_medians(top, bottom)
    factor = small_sample_factor(3, 4)
    value = 2 / 5
    assert found.low == pytest.approx(value * (ends[0][0] / value) ** factor)
    assert found.high == ends[1][1] == np.inf


def studies_of(**seconds):
    rows = [
        (submission, workload, study, value)
        for workload, sides in seconds.items()
        for submission, values in zip((AVERAGING, BASELINE), sides, strict=True)
        for study, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["submission", "workload", "study", "seconds"])


def test_a_side_that_always_misses_is_said_and_not_called_no_difference():
    met = [100.0, 101, 102, 103, 104]
    (text,) = log_findings._built_in_average(
        studies_of(
            wmt=([MISS] * 5, met),
            ogbg=(met, [MISS] * 5),
            fastmri=([MISS] * 5, [100.0, *[MISS] * 4]),
            criteo1tb=(met, met),
            imagenet_vit=([MISS] * 5, [MISS] * 5),
        )
    )
    assert "less time to the target than NadamW on 1 of 4 workloads, more on 1" in text
    assert "no difference is shown on 1; on 1 only one of the two ever meets it" in text
    assert "wmt ∞ [∞, ∞]" in text
    assert "ogbg 0.00 [0.00, 0.00]" in text
    assert "Schedule-Free misses the target of wmt in all 5 studies, NadamW in 0 of 5." in text
    assert "NadamW misses the target of ogbg in all 5 studies, Schedule-Free in 0 of 5." in text
    assert "Schedule-Free misses the target of fastmri in all 5 studies, NadamW in 4 of 5." in text
    assert "imagenet_vit neither" in text
    (text,) = log_findings._built_in_average(studies_of(wmt=([100.0], [200.0])))
    assert "no difference is shown on 0; on 1 one study gives no interval" in text
