"""Claims on run folders whose ratios are known, and the evaluator on simulated pairs whose truth is known."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.paper import __main__ as page
from analysis.paper import charts, measure, numbers
from analysis.paper.claims import (
    EXCLUDED,
    IN_PART,
    REFUTED,
    REPRODUCED,
    SHOWN,
    UNDECIDED,
    Claim,
    Comparison,
    Measured,
    claims,
    judge,
    needed,
    vote,
)
from analysis.paper.evidence import evidence
from analysis.paper.numbers import INSIDE, LARGER, OPEN, SMALLER, where
from analysis.presentation import figure_files
from analysis.report import Report
from analysis.run_folder.records import CELLS, RECORDS, read_table
from analysis.run_folder.study import read
from analysis.statistics.pairs import over_workloads
from analysis.statistics.resampling import Interval

STUDIES = ("speedup", "generalization", "horizon", "decay_length", "no_decay", "optimizers", "learning_rate")
HORIZONS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.16, 0.3)


@pytest.fixture
def folder(make_run, task, average):
    """folder(ratio of a horizon, **fields of Plan): every study over three workloads, and the schedules they need."""

    def make(ratio, constant: float = 2.5, **fields) -> Path:
        tasks = [task(name, "loss", False, 5.0, 1.0, 2.0) for name in ("lm", "ogbg", "wmt")]
        schemes = [average("ema", h, ratio(h)) for h in HORIZONS]
        schemes += [average("lawa", h, ratio(h)) for h in (0.005, 0.01, 0.04)]
        run = make_run(tasks=tasks, lengths=[0.25, 0.5, 0.75, 1.0], averages=schemes, **fields)
        cells = read_table(run / "cells.parquet", CELLS).to_pandas()
        records = read_table(run / "records" / "part-0.parquet", RECORDS).to_pandas()
        cells["studies"] = [list(STUDIES) if length == 1 else ["decay_length"] for length in cells["length_fraction"]]
        parts = [(cells, records)]
        for name, change, factor in (
            ("constant", {"final_lr": 1.0, "schedule": "constant"}, constant),
            ("half", {"final_lr": 0.5}, 1.1),
            ("shampoo", {"optimizer": "shampoo"}, 1.0),
            ("slow", {"lr": 0.005}, 1.0),
        ):
            mine = cells[(cells["length_fraction"] == 1) & (cells["scheme"] != "lawa")]
            mine = mine[mine["horizon_fraction"].isna() | mine["horizon_fraction"].isin([0.01, 0.04, 0.16])]
            parts.append(_copied(mine, records, name, change, factor))
        whole = [pd.concat(one, ignore_index=True) for one in zip(*parts, strict=True)]
        _write(run / "cells.parquet", whole[0], CELLS)
        _write(run / "records" / "part-0.parquet", whole[1], RECORDS)
        plan = json.loads((run / "plan.json").read_text())
        entry = {"question": None, "fuse": True, "seeds": [0, 1, 2], "cells": 1, "targets": plan["targets"]}
        plan["studies"] = [{"study": name} | entry for name in STUDIES]
        (run / "plan.json").write_text(json.dumps(plan))
        return run

    return make


def _copied(cells, records, name, change, factor):
    """The same cells under another name and training, with `factor` times the loss."""
    study = {"optimizer": "optimizers", "lr": "learning_rate"}.get(next(iter(change)), "no_decay")
    new = cells.assign(**change, cell_id=cells["cell_id"] + name, trajectory_id=cells["trajectory_id"] + name)
    new["studies"] = [[study]] * len(new)
    rows = records[records["cell_id"].isin(cells["cell_id"])]
    rows = rows.assign(cell_id=rows["cell_id"] + name, trajectory_id=rows["trajectory_id"] + name)
    return new, rows.assign(metric=rows["metric"] * factor, loss=rows["loss"] * factor)


def _write(path, frame, schema):
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), path)


def found(run: Path) -> dict[str, str]:
    frames = {study: Report(read(run, study)).frames for study in ("speedup", "horizon")}
    every = measure.findings(evidence(read(run)), frames, claims("claims.yaml"))
    return {one.claim.name: one.verdict for one in every}


def test_averages_that_are_slower_refute_it(folder):
    verdicts = found(folder(lambda h: 1.1 if h > 0.001 else 0.9, spread=0.02))
    for claim in ("fewer_steps", "fewer_hours", "short_horizons", "other_optimizers", "shorter_decay"):
        assert verdicts[claim] == REFUTED, claim


def test_seeds_that_disagree_decide_nothing(folder):
    verdicts = found(folder(lambda h: 1.0, spread=0.3))
    for claim in ("fewer_steps", "other_optimizers", "generalization", "tightness"):
        assert verdicts[claim] == UNDECIDED, claim


def test_what_the_paper_found_is_reproduced_and_the_page_is_the_same_twice(folder, tmp_path):
    best = {0.001: 0.99, 0.005: 0.83, 0.01: 0.82, 0.02: 0.83, 0.04: 0.85, 0.16: 0.95, 0.3: 1.1}
    run = folder(best.get, spread=0.01, seed_shift=0.01)
    docs = tmp_path / "docs"
    (docs / "workloads").mkdir(parents=True)
    (docs / "workloads" / "lm.md").write_text("# lm\n\n<!-- measured -->\nold\n<!-- end -->\nmore\n")
    (run / "reports" / "horizon" / "figures").mkdir(parents=True)
    (run / "reports" / "horizon" / "figures" / "horizon.svg").write_text("<svg/>")
    arguments = (run, tmp_path / "no open questions", tmp_path / "no logs", docs)
    assert page.write(*arguments) == docs / "results.md"
    first = (docs / "results.md").read_text()
    assert page.write(*arguments) == docs / "results.md"
    assert (docs / "results.md").read_text() == first
    assert dict(re.findall(r"\(#([a-z-]+)\) .* \*\*([a-z ]+)\*\*", first)) == {
        "fewer-steps": REPRODUCED,
        "fewer-hours": IN_PART,  # a tenth more time a step: whether .90 is within 3 points of .88 is open
        "best-horizon": REPRODUCED,
        "short-horizons": REPRODUCED,
        "generalization": UNDECIDED,
        "no-rescue": UNDECIDED,  # no seed fails but where the LR stays high
        "tightness": UNDECIDED,
        "shorter-decay": REFUTED,
        "replaces-decay": IN_PART,  # on no workload at all
        "both-best": IN_PART,
        "other-optimizers": REPRODUCED,
        "learning-rates": IN_PART,  # at two of the five multiples
    }
    assert "(fewer: shown; 0.88 within 0.03: undecided, about " in first
    assert "Not measured: on one of them at most 1 % worse." in first  # neither Criteo nor FastMRI is there
    assert first.count("](img/results/horizon_horizon.svg)") == 2  # two claims are seen in it
    assert (docs / "img" / "results" / "horizon_horizon.svg").read_text() == "<svg/>"
    assert "**36 trainings are missing.**" in first
    assert "| EMA | ogbg | 0.42 | 0.82 [" in first
    measured = (docs / "workloads" / "lm.md").read_text()
    assert measured.startswith("# lm\n\n<!-- measured -->\n\n**Measured by")
    assert "| EMA | 0.99 [0." in measured
    assert measured.endswith("<!-- end -->\nmore\n")


def test_every_claim_names_settings_that_exist_and_fills_its_sentences():
    every = [*claims("claims.yaml"), *claims("predictions.yaml")]
    assert len({claim.name for claim in every}) == len(every) == 16
    for claim in every:
        assert any(test.expect for test in claim.tests), claim.name
        for test in claim.tests:
            assert "{scheme}" not in test.says
            assert not test.function or test.function in measure.FUNCTIONS
            assert all(low < high for low, high in test.expect.values())


def interval(low, high):
    return Interval((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("found", "region", "bound", "expected"),
    [
        (interval(0.8, 0.9), (0, 1), "exact", SHOWN),
        (interval(1.1, 1.2), (0, 1), "exact", EXCLUDED),
        (interval(0.9, 1.1), (0, 1), "exact", UNDECIDED),
        (interval(0.98, 1.02), (0.95, 1.05), "exact", SHOWN),
        (interval(0.9, 1.1), (0.95, 1.05), "exact", UNDECIDED),  # it covers 1: that shows nothing
        (interval(1.06, 1.1), (0.95, 1.05), "exact", EXCLUDED),
        (interval(0.8, 0.9), (0, 1), "at least", UNDECIDED),  # an average missed: the ratio may be anything above
        (interval(0.8, 0.9), (0, 1), "at most", SHOWN),
        (interval(1.1, 1.2), (0, 1), "at least", EXCLUDED),
        (interval(1.1, 1.2), (0, 1), "at most", UNDECIDED),
        (interval(0.8, 0.9), (0, 1), "mixed", UNDECIDED),
        (Interval(0.8, np.nan, np.nan), (0, 1), "exact", UNDECIDED),
    ],
)
def test_a_test_is_shown_inside_its_range_alone(found, region, bound, expected):
    assert vote(found, region, bound) == expected


def claim_of(*regions):
    tests = [Comparison("ratio {ratio}", "speedup", expect={"it": region}) for region in regions]
    return Claim("a", "A claim.", "speedup", "", tests)


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [
        ([SHOWN, SHOWN], REPRODUCED),
        ([SHOWN, EXCLUDED], IN_PART),
        ([SHOWN, UNDECIDED], IN_PART),
        ([EXCLUDED, UNDECIDED], REFUTED),
        ([UNDECIDED, UNDECIDED], UNDECIDED),
    ],
)
def test_a_claims_verdict_follows_from_its_tests(votes, verdict):
    regions = {SHOWN: (0, 1), EXCLUDED: (2, 3), UNDECIDED: (0.85, 1)}
    measured = [Measured([interval(0.8, 0.9)], {"ratio": "x"})] * 2
    found = judge(claim_of(*(regions[one] for one in votes)), measured)
    assert found.verdict == verdict
    assert found.here[0].startswith(f"ratio x (it: {votes[0]}")


def test_of_nothing_measured_there_is_no_finding():
    assert judge(claim_of((0, 1)), [measure.NOTHING]) is None


def pairs_of(truth, seeds, sd, seed=0, between=0.0):
    rng = np.random.default_rng(seed)
    rows = [
        (name, number, mean + shift + noise)
        for (name, mean), shift in zip(truth.items(), between * rng.normal(size=len(truth)), strict=True)
        for number, noise in enumerate(sd * rng.normal(size=seeds))
    ]
    return pd.DataFrame(rows, columns=["workload", "seed", "value"]).assign(bound="exact")


@pytest.mark.parametrize("workloads", [2, 6])
def test_so_many_seeds_do_decide(workloads):
    """What is said to be needed at 4 seeds does it: undecided with fewer, shown by about as many."""
    truth = dict.fromkeys([f"w{number}" for number in range(workloads)], -0.01)
    told = []
    for seed in range(10):
        pairs = pairs_of(truth, 4, 0.03, seed)
        found = Measured([over_workloads(pairs)], {}, pairs=pairs)
        text = needed(found, (0, 1)) if vote(found.intervals[0], (0, 1)) == UNDECIDED else ", about 4 seeds"
        told.append(float(text.split()[2].replace(",", "").replace("than", "1000")))
    shown = [
        vote(over_workloads(pairs_of(truth, round(2 * np.median(told)), 0.03, 100 + seed)), (0, 1)) == SHOWN
        for seed in range(10)
    ]
    assert np.mean(shown) >= 0.5


def test_where_workloads_differ_no_number_of_seeds_decides():
    pairs = pairs_of(dict.fromkeys("abcde", -0.01), 3, 0.001, between=0.05)
    told = needed(Measured([over_workloads(pairs)], {}, pairs=pairs), (0, 1))
    assert told.endswith("such workloads would decide")


def test_what_would_decide_on_one_workload_is_its_own_seeds():
    pairs = pairs_of({"ogbg": 0.005, "lm": 0.3, "wmt": -0.3}, 3, 0.01)  # over workloads nothing would
    none = pd.DataFrame({"cell_id": [], "status": []})
    of = SimpleNamespace(pick=lambda study, **axes: none, compare=lambda *how: pairs, steps=none)
    test = Comparison("x", "no_decay", expect={"it": (0, 1.01)}, quantity="final_metric", any_of=["ogbg"])
    found = measure.measured(test, of, {})
    assert vote(found.intervals[0], (0, 1.01)) == UNDECIDED
    assert needed(found, (0, 1.01)).endswith(" seeds would decide")


FIVE = ("criteo1tb", "fastmri", "imagenet_vit", "lm", "ogbg")


def verdicts_on_decay(truth, sd, times):
    """Of *replaces decay*, each time with other seeds."""
    (claim,) = [one for one in claims("claims.yaml") if one.name == "replaces_decay"]
    found = []
    for seed in range(times):
        pairs = pairs_of({name: np.log(truth[name]) for name in FIVE}, 3, sd, seed)
        deciding = [test for test in claim.tests if test.expect]
        measured = [Measured(measure.any_of(pairs, test.any_of), {"each": "x"}) for test in deciding]
        told = [measure.NOTHING] * (len(claim.tests) - len(measured))
        found.append(judge(claim, [*measured, *told]).verdict)
    return found


@pytest.mark.parametrize("sd", [0.01, 0.03, 0.1])
def test_five_workloads_four_percent_worse_do_not_reproduce_that_averaging_replaces_decay(sd):
    found = verdicts_on_decay(dict.fromkeys(FIVE, 1.04), sd, 200)
    assert found.count(REPRODUCED) / len(found) < 0.05


def test_it_is_reproduced_where_it_is_so_and_only_in_part_where_the_decay_is_replaced_everywhere():
    so = verdicts_on_decay(dict.fromkeys(FIVE, 1.05) | {"fastmri": 1.0, "ogbg": 1.0}, 0.001, 100)
    assert so.count(REPRODUCED) / len(so) > 0.9
    everywhere = verdicts_on_decay(dict.fromkeys(FIVE, 1.0), 0.002, 100)
    assert everywhere.count(IN_PART) / len(everywhere) > 0.9


def test_one_of_many_workloads_is_not_shown_by_luck():
    equal = [verdict for sd in (0.03, 0.1) for verdict in verdicts_on_decay(dict.fromkeys(FIVE, 1.0), sd, 100)]
    assert equal.count(REPRODUCED) == 0
    even = [measure.any_of(pairs_of(dict.fromkeys(FIVE, 0.0), 3, 0.1, seed), FIVE) for seed in range(200)]
    shown = [any(vote(one, (1.01, np.inf)) == SHOWN for one in intervals) for intervals in even]
    assert np.mean(shown) < 0.06


def test_equal_within_a_margin_is_shown_when_truly_equal_and_not_when_only_noisy():
    truth = dict.fromkeys(FIVE, 0.0)
    shown = [vote(over_workloads(pairs_of(truth, 3, 0.003, seed)), (0.99, 1.01)) for seed in range(50)]
    assert shown.count(SHOWN) > 45
    noisy = [vote(over_workloads(pairs_of(truth, 3, 0.05, seed)), (0.99, 1.01)) for seed in range(50)]
    assert noisy.count(SHOWN) <= 2


def test_luck_is_told_with_what_is_counted():
    pairs = pairs_of({"a": -0.2, "b": -0.2, "c": 0.2, **dict.fromkeys("defghi", 0.0)}, 3, 0.02, 1)
    said = measure.on_how_many(pairs, "fewer", "more")
    assert said.startswith(
        "fewer on 2 of 9 (a, b; by luck alone 2 %), more on 1 of 9 (c; by luck alone 20 %), undecided"
    )


def test_the_papers_numbers_are_those_of_its_tables():
    paper = numbers.read()
    assert len(paper["points"]) == 8
    assert np.mean([point["ema"] for point in paper["points"].values()]) == pytest.approx(5.88 / 8)
    assert np.mean([point["lawa"] for point in paper["points"].values()]) == pytest.approx(5.96 / 8)
    assert set(paper["metrics"]) == set(paper["points"]) - {"lm"}


@pytest.mark.parametrize(
    ("ours", "bound", "verdict"),
    [
        (Interval(0.8, 0.7, 0.9), "exact", INSIDE),
        (Interval(0.9, 0.85, 0.95), "exact", LARGER),
        (Interval(0.9, 0.85, 0.95), "at least", LARGER),
        (Interval(0.9, 0.85, 0.95), "at most", OPEN),
        (Interval(0.6, 0.5, 0.7), "exact", SMALLER),
        (Interval(0.6, 0.5, 0.7), "at most", SMALLER),
        (Interval(0.6, 0.5, 0.7), "mixed", OPEN),
        (Interval(0.8, np.nan, np.nan), "exact", OPEN),
    ],
)
def test_where_the_papers_number_lies(ours, bound, verdict):
    assert where(0.8, ours, bound) == verdict


def test_points_of_tightness_and_their_figure(make_run, average, task, tmp_path):
    goals = [("lm", 2.0), ("wmt", 3.0), ("fastmri", 4.0)]  # the baseline meets them at 75, 50 and 25 % of T
    tasks = [task(name, "loss", False, 5.0, 1.0, target) for name, target in goals]
    made = [average("ema", 0.01, 0.9), average("lawa", 0.01, 0.8), average("ema", 0.04, 0.5)]
    of = evidence(read(make_run(tasks=tasks, lengths=[1.0], averages=made, study="speedup")))
    ours = numbers.points(of).query("source == 'this study' and scheme == 'ema'").set_index("workload")
    assert ours["share"].to_dict() == pytest.approx({"lm": 0.75, "wmt": 0.5, "fastmri": 0.25})
    np.testing.assert_allclose(ours["ratio"], 0.9, rtol=1e-5)  # at 1 %, not at the one selected post hoc
    chart = charts.tightness(numbers.points(of))
    figure_files.write(figure_files.spec(chart), tmp_path, "tightness")
    svg = (tmp_path / "tightness.svg").read_text()
    for name in ("ogbg", "conformer", "criteo1tb", "fastmri", "vit", "lm", "EMA", "LAWA"):
        assert f">{name}<" in svg
    assert charts.tightness(numbers.points(of).query("source == 'the paper'")) is None


def test_the_regression_is_scipys_and_its_interval_covers():
    share = np.array([point["share"] for point in numbers.read()["points"].values()])
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        ratio = 0.5 + 0.37 * share + 0.1 * rng.normal(size=8)
        row = numbers.regression(pd.DataFrame({"share": share, "ratio": ratio}))
        assert row["slope"] == pytest.approx(np.polyfit(share, ratio, 1)[0])
        covered.append(row["slope_low"] <= 0.37 <= row["slope_high"])
    assert 0.91 <= np.mean(covered) <= 0.99
    line = numbers.regression(pd.DataFrame({"share": share, "ratio": 0.4 + 0.5 * share}))
    assert np.isnan(line["slope_low"])  # how far other workloads would lie from the line is not known
    assert numbers.regression(pd.DataFrame({"share": [0.5] * 4, "ratio": [0.8, 0.9, 0.7, 0.6]})) is None
    assert numbers.regression(pd.DataFrame({"share": [0.3, 0.5], "ratio": [0.8, 0.9]})) is None


def test_no_rescue_of_so_few_shows_nothing(make_run, average, task):
    """Seeds whose baseline and average miss: 3 leave room for a rate of one in ten, 36 do not."""
    hard = task("lm", "loss", False, 5.0, 1.0, 0.5)
    for seeds, expected in ((3, UNDECIDED), (36, SHOWN)):
        run = make_run(tasks=[hard], lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seeds=list(range(seeds)))
        found = measure.rescued(evidence(read(run)), {}, ["ema"], (0, 0.1))
        assert found.words["failed"] == str(seeds)
        assert vote(found.intervals[0], (0, 0.1)) == expected
    assert needed(found, (0, 0.09)) != ""


def test_pauses_between_attempts_are_no_running_time():
    at = [("00:00", "00:10"), ("00:05", "00:20"), ("00:06", "00:07"), ("01:00", "01:30")]
    trials = pd.DataFrame(
        [(f"2026-01-01T{a}:00+00:00", f"2026-01-01T{b}:00+00:00") for a, b in at],
        columns=["started", "ended"],
    )
    assert page.busy_seconds(trials) == (20 + 30) * 60
