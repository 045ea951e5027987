"""The ratio at every target level, of one workload and over several, as numbers, figure and sentences."""

import numpy as np
import pandas as pd
import pytest
import vl_convert

from analysis import report
from analysis.core import core
from analysis.presentation import chart as charts
from analysis.run_folder import study
from analysis.sections import saving_curve as section
from analysis.statistics import pooled
from analysis.statistics.generalization import metrics_by_cell
from analysis.statistics.pairs import pair, score
from analysis.statistics.resampling import Z
from analysis.statistics.saving_curve import (
    POOLED_COLUMNS,
    SHARES,
    Curve,
    levels,
    measure,
    pooled_curve,
    saving_curve,
)
from analysis.statistics.steps_to_target import grid_sd, steps_to_target
from tests.analysis.conftest import Average, Plan, Task, chart_of, write_run

VERSION = ".".join(charts.alt.SCHEMA_VERSION.split(".")[:2])


def curve(run, **options):
    read = study.read(run)
    steps = steps_to_target(read.cells, read.records)
    pairs = pair(read.cells, score(read.cells, metrics_by_cell(read.cells, read.records), steps))
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
    # Equal seeds share the error of the evaluation grid, 20 steps on either side.
    middle = same[(same["share"] == 0.75) & (same["workload"] == "lm") & (same["training"] == same["training"].max())]
    error = Z * np.hypot(grid_sd(660, 680), grid_sd(740, 760))
    np.testing.assert_allclose(np.log(middle["high"] / middle["low"]), 2 * error, rtol=1e-6)
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
    wide, narrow = curve(make_run(lengths=[1.0], spread=0.1)), curve(make_run(lengths=[1.0]))
    assert (wide["high"] - wide["low"]).mean() > 2 * (narrow["high"] - narrow["low"]).mean()
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


HALVES = np.array([0.5, 1.0])


def made(logs, workload, setting, misses=None, raw_misses=None, versus="same schedule", hours=None, grid=0.0):
    logs = np.asarray(logs, dtype=float)
    none = np.zeros(logs.shape, dtype=bool)
    misses, raw_misses = (none if one is None else np.asarray(one) for one in (misses, raw_misses))
    hours = logs if hours is None else np.asarray(hours, dtype=float)
    shares = HALVES[: logs.shape[1]]
    return Curve(
        versus, workload, 0, setting, shares, shares, misses, raw_misses, logs, hours, np.full(logs.shape, grid)
    )


def chosen(*settings, near=True):
    return pd.DataFrame({"setting": settings, "scheme": "ema", "near": near})


def test_a_geometric_mean_of_workloads_whatever_their_number_of_seeds():
    one = made([[np.log(0.5), 0.0]], "a", 0)
    two = made([[np.log(0.8), 0.0], [np.log(0.2), np.log(4)]], "b", 1, hours=[[0.0, 0.0], [0.0, 0.0]])
    table = pooled_curve([one, two], chosen(0, 1))
    assert list(table.columns) == POOLED_COLUMNS
    np.testing.assert_allclose(table["ratio"], [np.sqrt(0.5 * 0.4), np.sqrt(2)])
    np.testing.assert_allclose(table["hours_ratio"], [np.sqrt(0.5), 1])
    assert table["num_workloads"].tolist() == [2, 2]
    assert table["num_pairs"].tolist() == [3, 3]
    assert table[["low", "high", "seeds_low", "seeds_high"]].isna().all(axis=None)  # two workloads, one of one seed


def test_no_pair_that_misses_vanishes():
    missed = np.array([[False, True], [False, True]])
    one = made([[0.0, np.nan], [0.0, 0.1]], "a", 0, misses=missed, raw_misses=[[False, True], [False, False]])
    two = made([[0.0, 0.2], [0.0, 0.2]], "b", 1, raw_misses=[[False, True], [False, False]])
    row = pooled_curve([one, two], chosen(0, 1)).iloc[1]
    assert row[["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]].tolist() == [4, 1, 1, 1, 1]
    assert row["bound"] == "mixed"
    assert row["ratio"] == pytest.approx(np.exp((0.1 + 0.2) / 2))


def test_a_workload_without_a_ratio_is_counted_out_and_one_with_fewer_levels_stays():
    none = made([[0.1, np.nan], [0.1, np.nan]], "a", 0)
    short = made([[0.3], [0.3]], "b", 1)
    long = made([[0.2, 0.2], [0.2, 0.2]], "c", 2)
    table = pooled_curve([none, short, long], chosen(0, 1, 2))
    assert table["num_workloads"].tolist() == [3, 1]
    np.testing.assert_allclose(np.log(table["ratio"]), [0.2, 0.2])


def test_the_band_is_a_hierarchical_bootstrap_and_its_width_that_of_theory():
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 0.2, size=(8, 1, 1))
    curves = [made(effect + rng.normal(0, 0.02, size=(3, 2)), f"w{i}", i) for i, effect in enumerate(effects)]
    table = pooled_curve(curves, chosen(*range(8)))
    means = np.stack([curve.log_ratio.mean(axis=0) for curve in curves])
    half = 2.365 * means.std(axis=0, ddof=1) / np.sqrt(8)  # Student's t, 7 degrees; seeds add little
    log = np.log(table[["low", "high"]].to_numpy())
    np.testing.assert_allclose(log[:, 1] - log[:, 0], 2 * half, rtol=0.08)
    seeds = np.log(table["seeds_high"] / table["seeds_low"])
    within = np.sqrt(np.mean([curve.log_ratio.var(axis=0, ddof=1) / 3 for curve in curves], axis=0) / 8)
    np.testing.assert_allclose(seeds, 2 * 2.12 * within, rtol=0.12)  # 16 degrees
    assert (seeds < 0.3 * (log[:, 1] - log[:, 0])).all()
    again = pooled_curve(curves, chosen(*range(8)))
    assert again.equals(table)


def test_only_settings_pre_specified_take_part_and_one_workload_is_none():
    both = [made([[0.1, 0.1]], "a", 0), made([[0.1, 0.1]], "b", 1)]
    assert len(pooled_curve(both, chosen(0, 1))) == 2
    assert pooled_curve(both, chosen(0, 1, near=False)).empty
    assert pooled_curve(both, chosen(0)).empty
    assert pooled_curve([], chosen(0)).empty


def test_the_best_baseline_is_a_curve_of_its_own_only_where_it_differs():
    same = [made([[0.1, 0.1]], "a", 0), made([[0.1, 0.1]], "b", 1)]
    best = [curve._replace(versus="best baseline") for curve in same]
    assert set(pooled_curve(same + best, chosen(0, 1))["versus"]) == {"same schedule"}
    other = [best[0], best[1]._replace(log_ratio=np.array([[0.3, 0.3]]))]
    table = pooled_curve(same + other, chosen(0, 1))
    assert table["versus"].tolist() == ["same schedule"] * 2 + ["best baseline"] * 2
    np.testing.assert_allclose(np.log(table["ratio"]), [0.1, 0.1, 0.2, 0.2])


def test_equal_seeds_of_two_workloads_have_the_grid_as_their_band():
    same = [made([[0.1, 0.1]] * 3, name, place, grid=0.02) for place, name in enumerate("ab")]
    table = pooled_curve(same, chosen(0, 1))
    assert table["low"].isna().all()  # of two workloads nothing is known on others
    np.testing.assert_allclose(np.log(table["seeds_high"] / table["seeds_low"]) / 2, Z * 0.02 / np.sqrt(2))


def test_measured_curves_hold_the_levels_that_are_known(make_run, average, tasks):
    found = core(study.read(make_run(tasks=[tasks["lm"]], lengths=[1.0], averages=[average("ema", 0.01, 0.9)])))
    early = measure(found.cells, found.records, found.pairs, np.array([0.01, 0.51]))[0]
    assert early.share.tolist() == [0.51]  # 1 %: before the first evaluation
    assert early.log_ratio.shape == early.grid.shape == (3, 1)
    np.testing.assert_allclose(early.grid, np.hypot(grid_sd(440, 460), grid_sd(500, 520)))


def run_of(folder, names, **more):
    """Workloads whose targets the baseline meets at 75, 50 and 25 %; LAWA's is the shorter way."""
    targets = dict(zip(names, (2.0, 3.0, 4.0), strict=False))
    tasks = [Task(name, "loss", False, 5.0, 1.0, target) for name, target in targets.items()]
    made = [Average(*of) for of in (("ema", 0.01, 0.9), ("lawa", 0.01, 0.8), ("ema", 0.04, 0.95))]
    plan = {"tasks": tasks, "averages": made, "lengths": [1.0], "spread": 0.02} | more
    (found,) = report.of_run(write_run(folder, Plan(**plan)))
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("two"), ("lm", "wmt"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("three"), ("lm", "wmt", "ogbg"))


def test_at_the_level_of_the_target_it_is_the_pooled_ratio(tmp_path):
    tasks = [Task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "wmt", "ogbg")]  # all met at 75 %
    c = run_of(tmp_path / "run", ("lm", "wmt", "ogbg"), tasks=tasks, spread=0.05).core
    curve = pooled_curve(measure(c.cells, c.records, c.pairs, np.array([0.75])), c.chosen)
    at = curve[curve["versus"] == "same schedule"].set_index("scheme")
    over = pooled.pool(c.by_seed, c.steps, pooled.picks(c.chosen, c.horizons)).query("scope == 'all'")
    over = over.query("horizon == 'pre-specified' and versus == 'same schedule'")
    for statistic, prefix in (("geometric mean", ""), ("device-hours", "hours_")):
        target = over[over["statistic"] == statistic].set_index("scheme")
        for scheme in ("ema", "lawa"):
            names = {f"{prefix}ratio": "value"} | {f"{prefix}{end}": end for end in ("low", "high", "seeds_low")}
            for name, other in names.items():  # the same draws
                assert at.loc[scheme, name] == pytest.approx(target.loc[scheme, other])


def test_over_all_workloads_first_then_one_panel_each(two, tmp_path):
    assert [panel["title"]["text"] for panel in chart_of(two, "saving_curve")["concat"]] == [
        "all 2 workloads",
        "lm",
        "wmt",
    ]
    one = run_of(tmp_path / "run", ("lm",))
    assert [panel["title"]["text"] for panel in chart_of(one, "saving_curve")["concat"]] == ["lm"]
    assert one.words(section)[0].startswith("EMA, pre-specified, on lm (95 % over seeds): lowest, 0.")


def test_a_switch_between_steps_and_device_hours_changes_what_is_drawn(two):
    spec = chart_of(two, "saving_curve")
    (unit,) = [one for one in spec["params"] if one["name"] == "saving_unit"]
    assert (unit["bind"]["options"], unit["value"]) == (["steps", "device-hours"], "steps")
    in_steps = vl_convert.vegalite_to_svg(spec, vl_version=VERSION)
    other = {**spec, "params": [{**one, "value": "device-hours"} if one is unit else one for one in spec["params"]]}
    assert vl_convert.vegalite_to_svg(other, vl_version=VERSION) != in_steps


def test_targets_are_marked_where_the_baseline_meets_them(two, tmp_path):
    shares = section.target_shares(two.core.cells, two.known["look"].shown)
    assert shares == pytest.approx({"lm": 0.75, "wmt": 0.5})
    short = run_of(tmp_path / "run", ("lm",), lengths=[0.75])
    share = section.target_shares(short.core.cells, short.known["look"].shown)["lm"]
    assert share == pytest.approx(3 / (4 * 0.9625))  # from 5 to 1.15 over 750 steps, not over 1,000


def test_two_workloads_have_the_band_over_their_seeds(two, three):
    table = section.over_workloads(two.frames["pooled_curve"], two.frames["chosen"])
    assert (table["low"] == table["seeds_low"]).all()
    assert (table["hours_high"] == table["hours_seeds_high"]).all()
    assert table["low"].notna().all()
    wide = section.over_workloads(three.frames["pooled_curve"], three.frames["chosen"])
    assert (wide["low"] == three.frames["pooled_curve"]["low"]).all()


def test_sentences_say_where_it_saves_most_and_up_to_where(three):
    first, second, third = three.words(section)
    assert first.startswith("EMA, pre-specified, over 3 workloads (95 % over workloads and seeds): lowest, 0.")
    assert " of 37 levels, up to " in first
    assert second.startswith("In device-hours: lowest, ")
    assert third.startswith("Workload by workload a saving is shown on this many of 3: ")


def rows(ratio, low, high, at_least=0):
    """A pooled curve of four levels over nine workloads."""
    ends = {"ratio": ratio, "low": low, "high": high, "seeds_low": low, "seeds_high": high}
    table = pd.DataFrame(
        {"share": [0.25, 0.5, 0.75, 1.0], **ends, "bound": "exact", "num_workloads": 9, "num_pairs": 27}
    )
    bound = np.where(np.broadcast_to(at_least, 4) > 0, "at least", "exact")
    return section._verdicts(table.assign(bound=bound), "", True)


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            rows([0.7, 0.8, 0.95, 1.0], [0.6, 0.7, 0.9, 0.95], [0.8, 0.9, 0.99, 1.05]),
            "a saving is shown at 3 of 4 levels, up to 75 %, and the verdict on the tightest is undecided",
        ),
        (  # a level in between that covers 1 is not counted; of lower bounds nothing is shown below 1
            rows([0.7, 0.9, 0.8, 0.9], [0.6, 0.7, 0.7, 0.85], [0.8, 1.1, 0.9, 0.95], [0, 0, 0, 2]),
            "a saving is shown at 2 of 4 levels, up to 75 %, and the verdict on the tightest is undecided",
        ),
        (
            rows([0.7, 0.8, 0.9, 0.9], [0.6, 0.7, 0.8, 0.85], [0.8, 0.9, 0.95, 0.95]),
            "a saving is shown at 4 of 4 levels, up to 100 %, and the verdict on the tightest is a saving",
        ),
        (
            rows([0.9, 1.0, 1.0, 1.0], [0.8, 0.9, 0.9, 0.995], [1.1, 1.1, 1.1, 1.005]),
            "a saving is shown at none of 4 levels, the tightest is excluded",
        ),
        (
            rows([0.9, 1.0, 1.0, 1.1], [0.8, 0.9, 0.9, 1.05], [1.1, 1.1, 1.1, 1.2]),
            "a saving is shown at none of 4 levels, the tightest is a loss",
        ),
        (rows([0.9] * 4, [0.8] * 4, [1.1] * 4).head(1), "no saving is shown at the only level (undecided)"),
        (rows([0.9] * 4, [0.8] * 4, [0.95] * 4).head(1), "a saving is shown at the only level"),
    ],
)
def test_up_to_which_level_a_saving_is_shown(table, text):
    assert section._up_to(table) == text
