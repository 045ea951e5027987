"""Two run folders whose ratios to each other are known in closed form."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.compare import compare
from analysis.run_folder.records import CELLS, TRIALS, BadRun
from analysis.statistics.resampling import bootstrap


@pytest.fixture
def lm(make_run, tasks):
    def make(**fields):
        return make_run(**{"tasks": [tasks["lm"]], "lengths": [1.0], **fields})

    return make


def rewrite(run, name, schema, change):
    path = run / name
    frame = pq.read_table(path).to_pylist()
    for row in frame:
        change(row)
    pq.write_table(pa.Table.from_pylist(frame, schema=schema), path)


def plan_of(run, change):
    plan = json.loads((run / "plan.json").read_text())
    change(plan)
    (run / "plan.json").write_text(json.dumps(plan))


def test_a_run_against_itself_is_the_same_to_the_last_bit(lm, average):
    run = lm(averages=[average("ema", 0.01, 0.9)])
    found = compare(run, run)
    assert found.differences.empty
    assert (found.num_shared, found.num_identical) == (6, 6)
    assert found.only_a.empty
    assert found.only_b.empty
    assert found.settings["steps_ratio"].tolist() == [1, 1]
    assert found.settings["final_difference"].tolist() == [0, 0]
    assert set(found.settings["steps"]) == set(found.settings["metric"]) == {"none"}
    text = found.text()
    assert "Targets, versions and devices are the same." in text
    assert "6 cells are in both, 6 the same to the last bit; 0 only in A, 0 only in B." in text
    assert "steps-to-target of B shown fewer in 0, more in 0, not told apart in 2" in text
    diverged = lm(averages=[], diverge={"lm-1.0-0": 300})
    assert compare(diverged, diverged).num_identical == 3


def test_known_ratios_whatever_the_ids(lm, average):
    a = lm(averages=[average("ema", 0.01, 0.9), average("lawa", 0.02, 0.95)])
    b = lm(averages=[average("ema", 0.01, 0.81), average("lawa", 0.02, 1.0)], study="again", spread=1e-7)

    def renamed(row):
        row["cell_id"] = "other " + row["cell_id"]
        row["trajectory_id"] = "other " + row["trajectory_id"]

    rewrite(b, "cells.parquet", CELLS, renamed)
    rewrite(b, "trials.parquet", TRIALS, lambda row: row.update(trajectory_id="other " + row["trajectory_id"]))
    rewrite(b, "records/part-0.parquet", pq.read_schema(b / "records" / "part-0.parquet"), renamed)
    found = compare(a, b)
    table = found.settings.set_index("scheme")
    assert table.loc["EMA 1 %", "steps_ratio"] == pytest.approx(0.9)
    assert table.loc["LAWA 2 %", "steps_ratio"] == pytest.approx(1 / 0.95)
    assert table["steps"].to_dict() == {"no averaging": "none", "EMA 1 %": "fewer", "LAWA 2 %": "more"}
    assert found.num_shared == 9
    assert found.num_identical == 3  # the raw runs
    assert table.loc["EMA 1 %", "hours_ratio"] == pytest.approx(0.9)
    text = found.text()
    assert "steps-to-target of B shown fewer in 1, more in 1, not told apart in 1" in text
    assert "0.900 [0.8" in text


def test_pairs_are_of_the_same_seed_and_intervals_are_of_the_pairs(lm, average):
    a = lm(averages=[average("ema", 0.01, 0.9)], seed_shift=0.1)
    b = lm(averages=[average("ema", 0.01, 0.9)], seed_shift=0.1, spread=0.05)
    row = compare(a, b).settings.set_index("scheme").loc["EMA 1 %"]
    expected = bootstrap(np.array([0.95, 1.0, 1.05]), "geometric_mean")
    found = row[["steps_ratio", "steps_ratio_low", "steps_ratio_high"]].astype(float)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert row["steps"] == "undecided"


def test_final_metrics_are_compared_in_the_metrics_direction(make_run, average, task):
    def run(end, higher):
        one = task("lm", "metric", higher, 5.0 if not higher else 0.0, end, 2.0)
        return make_run(tasks=[one], lengths=[1.0], averages=[])

    lower = compare(run(1.0, False), run(0.8, False)).settings.iloc[0]
    assert lower["final_difference"] == pytest.approx(-0.2)
    assert lower["metric"] == "better"
    higher = compare(run(3.0, True), run(2.5, True)).settings.iloc[0]
    assert higher["final_difference"] == pytest.approx(-0.5)
    assert higher["metric"] == "worse"


def test_what_only_one_run_has(make_run, lm, average, tasks):
    a = make_run(tasks=[tasks["lm"], tasks["vit"]], lengths=[1.0], averages=[average("ema", 0.01, 0.9)])
    b = lm(averages=[average("ema", 0.02, 0.9)], seeds=[1, 2, 3], lengths=[0.5, 1.0])
    found = compare(a, b)
    assert found.num_shared == 2  # the raw runs of lm, seeds 1 and 2
    only = found.only_a.set_index(["workload", "scheme"])["seeds"].to_dict()
    assert only == {
        ("lm", "no averaging"): "0",
        ("lm", "EMA 1 %"): "0, 1, 2",
        ("imagenet_vit", "no averaging"): "0, 1, 2",
        ("imagenet_vit", "EMA 1 %"): "0, 1, 2",
    }
    only = found.only_b.set_index(["schedule", "scheme"])["seeds"].to_dict()
    assert only == {
        ("cosine, length 100 %", "no averaging"): "3",
        ("cosine, length 100 %", "EMA 2 %"): "1, 2, 3",
        ("cosine, length 50 %", "no averaging"): "1, 2, 3",
        ("cosine, length 50 %", "EMA 2 %"): "1, 2, 3",
    }
    assert "; 10 only in A, 10 only in B." in found.text()


def test_nothing_shared(lm, make_run, tasks):
    found = compare(lm(averages=[]), make_run(tasks=[tasks["vit"]], lengths=[1.0], averages=[]))
    assert found.num_shared == 0
    assert found.settings.empty
    assert "0 cells are in both; 3 only in A, 3 only in B." in found.text()


def test_another_target_is_said_first_and_both_are_measured_at_as(make_run, average, task):
    def run(target):
        return make_run(
            tasks=[task("lm", "loss", False, 5.0, 1.0, target)],
            lengths=[1.0],
            averages=[average("ema", 0.01, 0.9)],
        )

    found = compare(run(2.0), run(0.5))
    assert found.settings["steps_ratio"].tolist() == [1, 1]  # nobody reaches .5
    first = found.differences.iloc[0]
    assert first.tolist() == ["target of lm", "2", "0.5"]
    text = found.text()
    assert text.index("cells are in both") < text.index("target of lm") < text.index("steps B/A")
    without = compare(run(None), run(3.0))
    assert without.settings["steps_ratio"].tolist() == [1, 1]  # B's, where A has none
    neither = compare(run(None), run(None))
    assert neither.settings["steps_ratio"].isna().all()
    assert neither.settings["final_difference"].tolist() == [0, 0]
    assert neither.settings["num_pairs"].tolist() == [3, 3]
    assert "steps-to-target: no interval" in neither.text()


def test_versions_and_devices_that_differ_are_said(lm):
    a, b = lm(averages=[]), lm(averages=[])

    def newer(row):
        row["versions"] = json.dumps({"torch": "2.14.0"})
        row["device_name"] = "a GPU"

    rewrite(b, "trials.parquet", TRIALS, newer)
    rewrite(b, "cells.parquet", CELLS, lambda row: row.update(device="gpu", num_devices=1.0))
    told = {"rule": "another", "seeds": [5, 6, 7]}
    plan_of(b, lambda plan: [one["targets"]["lm"].update(told) for one in (plan, *plan["studies"])])
    found = compare(a, b)
    said = {what: (one, other) for what, one, other in found.differences.to_numpy()}
    assert said == {
        "target rule of lm": (
            "median over seeds of the best validation metric of the baseline at schedule length 0.75",
            "another",
        ),
        "target seeds of lm": ("100, 101, 102", "5, 6, 7"),
        "version of torch": ("2.13.0", "2.14.0"),
        "device": ("a CPU", "a GPU"),
        "kind of device": ("cpu", "gpu"),
        "devices a trial": ("2", "1"),
    }
    assert found.num_shared == found.num_identical == 3


def test_a_missed_target_is_a_bound_and_an_unfinished_run_waits(lm, average):
    a = lm(averages=[average("ema", 0.01, 0.9)])
    b = lm(averages=[average("ema", 0.01, 1.5)])
    row = compare(a, b).settings.set_index("scheme").loc["EMA 1 %"]
    assert row["bound"] == "at least"
    assert row["steps_ratio"] == pytest.approx(1000 / 675)
    assert "≥ 1.481" in compare(a, b).text()
    half = lm(averages=[average("ema", 0.01, 0.9)], stop={"lm-1.0-0": 300})
    found = compare(a, half)
    assert found.settings["num_pairs"].tolist() == [3, 3]
    assert found.settings["num_exact"].tolist() == [2, 2]
    assert ("cells unfinished", "0", "2") in [tuple(row) for row in found.differences.to_numpy()]
    assert found.num_identical == 4


def test_shares_that_differ_in_the_last_bits_are_the_same(lm, average):
    a, b = (lm(averages=[average("ema", 0.01, 0.9)]) for _ in range(2))
    rewrite(
        b,
        "cells.parquet",
        CELLS,
        lambda row: row.update(lr=np.nextafter(row["lr"], 1.0), final_lr=row["final_lr"]),
    )
    assert compare(a, b).num_shared == 6
    rewrite(b, "cells.parquet", CELLS, lambda row: row.update(lr=0.02))
    assert compare(a, b).num_shared == 0


def test_presets_do_not_mix_and_do_not_rename(lm, average):
    a, b = lm(averages=[], seeds=[0, 1]), lm(averages=[], seeds=[0, 1])
    rewrite(b, "cells.parquet", CELLS, lambda row: row.update(preset="full" if row["seed"] else "mini"))
    found = compare(a, b)
    assert found.num_shared == 1
    assert set(found.settings["workload"]) == {"lm"}


def test_not_a_run_folder(tmp_path, lm):
    with pytest.raises(BadRun):
        compare(lm(averages=[]), tmp_path)


def test_the_result_is_frozen(lm):
    run = lm(averages=[])
    found = compare(run, run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.a = "x"
    assert isinstance(found.settings, pd.DataFrame)
