"""Ratio against tightness: points from runs with known crossings, regressions against scipy and naive resampling."""

import numpy as np
import pandas as pd
import pytest
import vl_convert
from scipy import stats

from analysis import chart as panels
from analysis import saving_curve, study, tables, tightness
from analysis.figures.tightness_figures import tightness as figure
from analysis.pairs import chosen_settings, reference_training
from analysis.resampling import resample, small_sample_factor
from analysis.tightness import CURVES, PAPER, TARGETS, curve_points, findings, paper_points, regressions
from analysis.tightness import target_points as at_targets


def measured(run):
    read = study.read(run)
    found = tables.core(read)
    chosen = chosen_settings(read.cells, reference_training(read.cells, found.scores))
    curve = saving_curve.saving_curve(saving_curve.measure(read.cells, read.records, found.pairs))
    return at_targets(read.cells, found.steps, found.ratios, chosen), curve_points(read.cells, curve, chosen)


def test_the_papers_points_stand_beside_those_of_the_same_schemes(make_run, average, task):
    three = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "wmt", "ogbg")]
    read = study.read(make_run(tasks=three, averages=[average("ema", 0.01, 0.9)], lengths=[1.0]))
    found = tables.core(read)
    chosen = chosen_settings(read.cells, reference_training(read.cells, found.scores))
    curve = saving_curve.saving_curve(saving_curve.measure(read.cells, read.records, found.pairs))
    every = tightness.points(read.cells, found.steps, found.ratios, curve, chosen)
    assert every.groupby("source").size().to_dict() == {PAPER: 8, TARGETS: 3, CURVES: 75}
    assert set(every["scheme"]) == {"ema"}
    two = chosen[chosen["workload"] != "ogbg"]
    assert tightness.points(read.cells, found.steps, found.ratios, curve, two).empty


def points(share, ratio, workload=None, scheme="ema", source=TARGETS):
    names = [f"w{number}" for number in range(len(share))] if workload is None else workload
    table = pd.DataFrame({"workload": names, "share": share, "ratio": ratio})
    return table.assign(scheme=scheme, source=source, low=np.nan, high=np.nan, bound="exact")


def test_the_papers_eight_points():
    found = paper_points()
    assert found.groupby("scheme").size().to_dict() == {"ema": 8, "lawa": 8}
    assert set(found["source"]) == {PAPER}
    at = found.set_index(["workload", "scheme"])
    assert at.loc[("ogbg", "lawa"), ["share", "ratio"]].tolist() == [0.36, 0.43]
    assert at.loc[("librispeech_deepspeech", "lawa"), ["share", "ratio"]].tolist() == [0.89, 0.89]
    means = found.groupby("scheme")["ratio"].mean()  # 82 % in the paper over seven workloads, without OGBG's .43
    assert means["lawa"] == pytest.approx(5.96 / 8)
    assert means["ema"] == pytest.approx(5.88 / 8)


def test_slope_and_variance_explained_are_scipys():
    found = regressions(paper_points()).set_index("scheme")
    for scheme, part in paper_points().groupby("scheme"):
        theirs = stats.linregress(part["share"], part["ratio"])
        mine = found.loc[scheme]
        assert mine["slope"] == pytest.approx(theirs.slope)
        assert mine["intercept"] == pytest.approx(theirs.intercept)
        assert mine["r2"] == pytest.approx(theirs.rvalue**2)
        assert mine["r2_by_chance"] == pytest.approx(1 / 7)
        assert mine["slope_low"] < mine["slope"] < mine["slope_high"]
        assert 0 <= mine["r2_low"] < mine["r2"] < mine["r2_high"] <= 1


def test_intervals_are_those_of_resampling_whole_workloads():
    rng = np.random.default_rng(1)
    names = np.repeat([f"w{n}" for n in range(6)], [1, 2, 3, 4, 5, 6])
    share = rng.uniform(0.3, 0.9, size=21)
    ratio = 0.5 + 0.4 * share + 0.05 * rng.normal(size=21)
    row = regressions(points(share, ratio, names, source=CURVES)).iloc[0]
    slopes, correlations = [], []
    for draw in resample(6, 10_000, 0)[::4]:
        places = np.concatenate([np.flatnonzero(names == f"w{n}") for n in draw])
        if len(set(share[places])) > 1:
            slopes.append(np.polyfit(share[places], ratio[places], 1)[0])
            correlations.append(np.corrcoef(share[places], ratio[places])[0, 1])
    factor = small_sample_factor(5, 4)
    tails = np.quantile(slopes, [0.025, 0.975])
    expected = row["slope"] + factor * (tails - row["slope"])
    np.testing.assert_allclose([row["slope_low"], row["slope_high"]], expected, atol=0.03)
    centre = np.arctanh(np.sqrt(row["r2"]))
    tails = centre + factor * (np.arctanh(np.quantile(correlations, [0.025, 0.975])) - centre)
    np.testing.assert_allclose([row["r2_low"], row["r2_high"]], np.tanh(np.maximum(tails, 0)) ** 2, atol=0.03)


def test_points_on_a_line_leave_nothing_unexplained():
    share = np.array([0.3, 0.5, 0.6, 0.9])
    row = regressions(points(share, 0.4 + 0.5 * share)).iloc[0]
    assert (row["intercept"], row["slope"], row["r2"]) == pytest.approx((0.4, 0.5, 1.0))
    assert np.isnan([row["slope_low"], row["slope_high"]]).all()  # how far other workloads would lie is not known
    assert (row["num_workloads"], row["num_points"], row["share_from"], row["share_to"]) == (4, 4, 0.3, 0.9)


def test_a_sign_that_is_open_reaches_down_to_nothing_explained():
    share = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    row = regressions(points(share, [0.8, 0.9, 0.8, 0.9, 0.8, 0.9])).iloc[0]
    assert row["slope_low"] < 0 < row["slope_high"]
    assert row["r2_low"] == 0


def test_over_many_studies_the_slopes_interval_covers_as_often_as_it_says():
    share = paper_points().query("scheme == 'ema'")["share"].to_numpy()
    rng = np.random.default_rng(0)
    covered, explained = [], []
    for _ in range(150):
        row = regressions(points(share, 0.5 + 0.37 * share + 0.1 * rng.normal(size=8))).iloc[0]
        covered.append(row["slope_low"] <= 0.37 <= row["slope_high"])
        true = 0.37**2 * share.var() / (0.37**2 * share.var() + 0.1**2)
        explained.append(row["r2_low"] <= true <= row["r2_high"])
    assert 0.89 <= np.mean(covered) <= 0.99
    assert 0.87 <= np.mean(explained) <= 0.99


def test_what_the_workload_explains_beside_is_that_of_an_intercept_each():
    rng = np.random.default_rng(2)
    names = np.repeat(["a", "b", "c", "d"], 5)
    share = rng.uniform(0.3, 0.9, size=20)
    ratio = 0.5 + 0.4 * share + np.repeat([0.1, -0.1, 0.0, 0.2], 5) + 0.02 * rng.normal(size=20)
    row = regressions(points(share, ratio, names, source=CURVES)).iloc[0]
    design = np.column_stack([share, *(names == name for name in "abcd")])
    residual = ratio - design @ np.linalg.lstsq(design, ratio, rcond=None)[0]
    assert row["r2_with_workload"] == pytest.approx(1 - residual.var() / ratio.var())
    assert np.isnan(row["r2_by_chance"])
    assert np.isnan(regressions(points(share[:5], ratio[:5])).iloc[0]["r2_with_workload"])


def test_two_workloads_or_one_share_are_no_regression():
    assert regressions(points([0.3, 0.5], [0.8, 0.9])).empty
    assert regressions(points([0.5] * 4, [0.8, 0.9, 0.7, 0.6])).empty
    assert findings(regressions(points([0.3, 0.5], [0.8, 0.9]))) == []


def test_our_points_at_the_target_are_the_raw_runs_share_and_the_ratio_there(make_run, average, task):
    made = [average("ema", 0.01, 0.9), average("lawa", 0.01, 0.8), average("ema", 0.04, 0.5)]
    tasks = [task("lm", "loss", False, 5.0, 1.0, 2.0), task("wmt", "loss", False, 5.0, 1.0, 3.0)]
    found, _ = measured(make_run(tasks=tasks, lengths=[1.0], averages=made))
    assert found[["scheme", "workload"]].to_numpy().tolist() == [
        ["ema", "lm"],
        ["ema", "wmt"],
        ["lawa", "lm"],
        ["lawa", "wmt"],
    ]
    np.testing.assert_allclose(found["share"], [0.75, 0.5, 0.75, 0.5])  # of a line from 5 to 1
    np.testing.assert_allclose(found["ratio"], [0.9, 0.9, 0.8, 0.8])  # at 1 %, not at the best-looking 4 %
    assert set(found["bound"]) == {"exact"}


def test_a_raw_run_that_misses_counts_at_the_budget(make_run, average, tasks):
    run = make_run(tasks=[tasks["lm"]], lengths=[1.0], averages=[average("ema", 0.01, 0.7)], seed_shift=0.4)
    found, _ = measured(run)
    # Seeds reach it at 450, 750 and 1050, the last past the end: the median is the second's.
    assert found["share"].tolist() == pytest.approx([0.75])
    assert found["bound"].tolist() == ["at most"]


def test_curves_are_on_the_budgets_axis_within_the_papers_range(make_run, average, tasks):
    made = [average("ema", 0.01, 0.9)]
    _, full = measured(make_run(tasks=[tasks["lm"]], lengths=[1.0], averages=made))
    assert full["share"].min() == pytest.approx(0.3)
    assert full["share"].max() == pytest.approx(0.9)
    np.testing.assert_allclose(full["ratio"], 0.9)
    _, half = measured(make_run(tasks=[tasks["lm"]], lengths=[0.5], averages=made))
    assert half["share"].max() == pytest.approx(0.5)  # all of a half-length schedule


def test_a_level_at_which_the_raw_run_stays_is_one_point():
    curve = pd.DataFrame(
        {
            "versus": "same schedule",
            "workload": "lm",
            "training": 0,
            "setting": 1,
            "share": [0.5, 0.6, 0.7, 0.8],
            "level": [2.0, 1.5, 1.5, 1.4],
            "ratio": [0.8, 0.9, 0.9, 0.95],
            "low": 0.7,
            "high": 1.0,
            "num_at_least": [0, 0, 0, 1],
            "num_at_most": [0, 1, 1, 1],
        }
    )
    cells = pd.DataFrame({"setting": [1], "length_steps": [1000], "step_budget": [1000]})
    chosen = pd.DataFrame({"setting": [1], "scheme": ["ema"], "near": [True]})
    found = curve_points(cells, curve, chosen)
    assert found["share"].tolist() == [0.5, 0.6, 0.8]
    assert found["bound"].tolist() == ["exact", "at most", "mixed"]
    assert curve_points(cells, curve, chosen.assign(near=False)).empty


def test_sentences_say_no_effect_or_what_is_left():
    paper = findings(regressions(paper_points()))
    assert len(paper) == 2
    assert paper[0].startswith("The paper, EMA: the target's tightness explains 47 % [")
    assert "over 8 workloads (14 % by chance alone)" in paper[0]
    assert paper[0].endswith("no effect can be told from luck.")
    share = np.linspace(0.3, 0.9, 8)
    wiggle = 0.01 * np.array([1, -1, 1, 1, -1, -1, 1, -1])
    steep = findings(regressions(points(share, 0.4 + 0.5 * share + wiggle)))[0]
    assert steep.endswith("less is left to save.")
    slope = np.polyfit(share, 0.4 + 0.5 * share + wiggle, 1)[0]
    assert f"changes it by +{0.1 * slope:.3f} [" in steep
    falling = findings(regressions(points(share, 0.9 - 0.5 * share + wiggle)))[0]
    assert falling.endswith("more is left to save.")


def test_the_figure_shows_every_workload_of_both(make_run, average):
    ours, curves = measured(make_run(lengths=[1.0], averages=[average("ema", 0.01, 0.9)], spread=0.02))
    every = pd.concat([paper_points(), ours, curves], ignore_index=True)
    chart = figure(every, regressions(every))
    assert chart is not None
    spec = chart.to_dict()
    assert [panel["title"]["text"] for panel in spec["concat"]] == ["EMA", "LAWA"]
    version = ".".join(panels.alt.SCHEMA_VERSION.split(".")[:2])
    svg = vl_convert.vegalite_to_svg(spec, vl_version=version)
    for name in ("ogbg", "conformer", "criteo1tb", "fastmri", "vit", "lm"):
        assert f">{name}<" in svg
    assert figure(every[:0], regressions(every)) is None
    assert tightness.SHARES == (0.3, 0.9)
