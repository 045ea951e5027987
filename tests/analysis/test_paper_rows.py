import numpy as np
import pyarrow.parquet as pq
import pytest
import vl_convert

from analysis import chart as panels
from analysis import pooled, robustness, study, tables
from analysis.figures.paper_figures import ratios_beside
from analysis.pages import page_tables
from analysis.pairs import chosen_settings, reference_training
from analysis.paper_rows import (
    AGREE,
    EQUAL,
    INSIDE,
    LARGER,
    METRIC,
    NONE,
    OPEN,
    OPPOSITE,
    RATIO,
    SHARE,
    SMALLER,
    SUITE,
    findings,
    paper_rows,
    where,
)
from analysis.resampling import Interval


@pytest.fixture
def three(task):
    """Three of the paper's workloads: a raw run meets the target at 75, 50 and 25 % of T."""
    goals = [("lm", 2.0), ("wmt", 3.0), ("fastmri", 4.0)]
    return [task(name, "loss", False, 5.0, 1.0, target) for name, target in goals]


def rows_of(run):
    """The rows without the other tables of a study, which take longer."""
    read = study.read(run)
    c = tables.core(read)
    chosen = chosen_settings(read.cells, reference_training(read.cells, c.scores))
    over = pooled.pool(c.by_seed, c.steps, pooled.picks(chosen, robustness.horizon_map(c.ratios, read.cells)))
    return paper_rows(read.cells, c.steps, c.scores, c.ratios, c.general, pooled.overall(over), chosen)


def at(rows, quantity, workload, scheme):
    keys = (rows["quantity"] == quantity) & (rows["workload"] == workload) & (rows["scheme"] == scheme)
    (row,) = rows[keys].to_dict("records")
    return row


def test_ratio_and_share_stand_beside_the_papers(make_run, average, three):
    averages = [average("ema", 0.01, 0.7), average("lawa", 0.01, 0.9), average("ema", 0.04, 0.5)]
    rows = rows_of(make_run(tasks=three, lengths=[1.0], averages=averages, spread=0.05, seed_shift=0.02))
    row = at(rows, RATIO, "lm", "ema")
    assert (row["paper"], row["verdict"]) == (0.69, INSIDE)
    assert row["ours"] == pytest.approx(0.7, abs=0.002)
    assert row["low"] < 0.69 < row["high"]
    assert at(rows, RATIO, "wmt", "lawa")["verdict"] == LARGER  # 0.71 in the paper
    share = at(rows, SHARE, "wmt", "none")
    assert (share["paper"], share["verdict"]) == (0.89, SMALLER)
    assert share["ours"] == pytest.approx(0.5)
    assert share["low"] < 0.5 < share["high"]
    assert at(rows, SHARE, "fastmri", "none")["paper"] == 0.31


def test_the_sign_of_the_metrics_change_is_compared(make_run, average, task):
    up, down = task("ogbg", "mAP", True, 0.1, 0.5, 0.4), task("wmt", "loss", False, 5.0, 1.0, 2.0)
    averages = [average("ema", 0.01, 1.05), average("lawa", 0.01, 1.0)]
    rows = rows_of(make_run(tasks=[up, down], lengths=[1.0], averages=averages, spread=0.01))
    row = at(rows, METRIC, "ogbg", "ema")
    assert row["paper"] == pytest.approx(0.0076)
    assert (row["ours"] < 0, row["verdict"], row["paper_metric"], row["our_metric"]) == (
        True,
        OPPOSITE,
        "mAP",
        "mAP",
    )
    loss = at(rows, METRIC, "wmt", "ema")  # BLEU is better higher, our loss lower: ours is worse all the same
    assert (loss["ours"] > 0, loss["verdict"], loss["paper_metric"]) == (True, OPPOSITE, "BLEU")
    assert at(rows, METRIC, "wmt", "lawa")["verdict"] == NONE
    # A raw run that is not done at the end of its schedule: what is ahead ends ahead.
    ahead = make_run(tasks=[down], lengths=[1.0], averages=[average("ema", 0.01, 0.9)], seed_shift=0.1, shape="bent")
    row = at(rows_of(ahead), METRIC, "wmt", "ema")
    assert row["ours"] < 0
    assert row["verdict"] in (AGREE, NONE)


def test_equal_numbers_of_the_paper_have_no_sign(make_run, average, task):
    criteo = task("criteo1tb", "loss", False, 5.0, 1.0, 2.0)
    rows = rows_of(make_run(tasks=[criteo], lengths=[1.0], averages=[average("ema", 0.01, 1.05)]))
    assert at(rows, METRIC, "criteo1tb", "ema")["verdict"] == EQUAL


def test_the_suite_is_summed_over_three_workloads_or_more(make_run, average, three, task):
    averages = [average("ema", 0.01, 0.8)]
    rows = rows_of(make_run(tasks=three, lengths=[1.0], averages=averages, spread=0.01))
    row = at(rows, SUITE, "3 workloads", "ema")
    assert row["paper"] == pytest.approx(541 / 612)
    assert row["ours"] == pytest.approx(0.8 * 1.1, abs=0.001)
    assert not (rows_of(make_run(tasks=three[:2], lengths=[1.0], averages=averages))["quantity"] == SUITE).any()
    own = [*three[:2], task("mine:Own", "loss", False, 5.0, 1.0, 2.0)]  # another suite than the paper's
    rows = rows_of(make_run(tasks=own, lengths=[1.0], averages=averages))
    assert set(rows["quantity"]) == {RATIO, SHARE, METRIC}


@pytest.mark.parametrize("case", ["short schedules", "other workloads", "another horizon", "another optimizer"])
def test_absent_in_other_studies(case, make_run, average, task, tasks):
    near, lm = [average("ema", 0.01, 0.9)], [tasks["lm"]]
    if case == "short schedules":
        run = make_run(tasks=lm, lengths=[0.5], averages=near)
    elif case == "other workloads":
        run = make_run(tasks=[task("mine:Own", "loss", False, 5.0, 1.0, 2.0)], lengths=[1.0], averages=near)
    elif case == "another horizon":
        run = make_run(tasks=lm, lengths=[1.0], averages=[average("ema", 0.05, 0.9)])
    else:
        run = make_run(tasks=lm, lengths=[1.0], averages=near)
        cells = pq.read_table(run / "cells.parquet")
        place = cells.schema.get_field_index("optimizer")
        pq.write_table(
            cells.set_column(place, cells.schema.field(place), [["sgd"] * len(cells)]), run / "cells.parquet"
        )
    rows = rows_of(run)
    assert rows.empty
    assert findings(rows) == []
    assert ratios_beside(rows) is None


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


def test_sentences_table_and_figure(make_run, average, three):
    averages = [average("ema", 0.01, 0.7), average("lawa", 0.01, 0.9)]
    found = tables.compute(study.read(make_run(tasks=three, lengths=[1.0], averages=averages, spread=0.01)))
    said = findings(found.paper_rows)
    assert said[0] == (
        "EMA: 1 of the paper's 3 steps ratios lies in our interval. Ours is larger on 0, smaller on 2 and undecided "
        "on 0."
    )
    assert "the paper's average changes it on 2 of 2 workloads" in said[1]
    assert said[2].startswith(
        "EMA, device-hours over the suite: the paper's ratio is 0.884, ours over 3 workloads 0.770 ["
    )
    shown = next(table for table in page_tables.shown_tables(found) if table.file.endswith("paper_rows.csv"))
    row = next(row for row in shown.rows if row[:3] == [RATIO, "lm", "EMA"])
    assert row[3] == "0.690"
    assert row[4].startswith("0.700 [")
    row = next(row for row in shown.rows if row[:3] == [METRIC, "wmt", "LAWA"])
    assert (row[3], row[-1]) == ("+0.27", "BLEU / loss")
    chart = ratios_beside(found.paper_rows)
    assert chart is not None
    version = ".".join(panels.alt.SCHEMA_VERSION.split(".")[:2])
    svg = vl_convert.vegalite_to_svg(chart.to_dict(), vl_version=version)
    for name in ("lm", "wmt", "fastmri", "suite, device-hours"):
        assert f">{name}<" in svg
