"""The open questions on run folders whose answers are known, and the exponent of the best horizon in closed form."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from algoperf_logs import FALLING, lines, put

from analysis.paper import __main__ as page
from analysis.paper import charts, measure
from analysis.paper.claims import IN_PART, REFUTED, REPRODUCED, UNDECIDED, claims
from analysis.paper.evidence import evidence
from analysis.paper.measure import horizon_exponent
from analysis.presentation import figure_files
from analysis.run_folder.records import CELLS, RECORDS, read_table
from analysis.run_folder.study import read
from sweeps.importers.algoperf import import_algoperf

BATCH_HORIZONS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
OWN = 8


def _write(path, frame, schema):
    pq.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False), path)


@pytest.fixture
def folder(make_run, task, average):
    """folder(exponent=, live=, averaged=, lawa=, merged=, spread=) -> a run folder of the open questions.

    exponent: of the best horizon in the batch size. live, averaged: loss ÷ that with recomputed statistics. lawa:
    steps ÷ those of EMA. merged: final loss of WSM ÷ that of the decay. spread: of the seeds' ratios.
    """

    def piece(workload, name, schemes, change, factor=1.0, end=1.0, **fields):
        one = task(workload, "loss", False, 5.0, end, 2.0)
        run = make_run(tasks=[one], lengths=[1.0], averages=schemes, study="open_questions", **fields)
        cells = read_table(run / "cells.parquet", CELLS).to_pandas()
        records = read_table(run / "records" / "part-0.parquet", RECORDS).to_pandas()
        cells = cells.assign(**change, own_batch_size=OWN, studies=[["open_questions"]] * len(cells))
        for table in (cells, records):
            for column in ("cell_id", "trajectory_id"):
                table[column] = name + table[column]
        seed = records["cell_id"].map(cells.set_index("cell_id")["seed"])
        records["metric"] *= factor ** (1 + fields.get("spread", 0.0) * (seed - 1))
        # A trifle a cell: seeds that are all equal decide nothing.
        trifle = np.random.default_rng([len(name), ord(name[-1])]).normal(size=len(cells))
        records["metric"] *= 1 + 1e-7 * records["cell_id"].map(dict(zip(cells["cell_id"], trifle, strict=True)))
        return cells, records

    def make(exponent=-1.0, live=1.1, averaged=1.0, lawa=1.0, merged=1.0, spread=0.0):
        def bowl(kappa):
            best = np.log(0.03 * kappa**exponent)
            return [average("ema", h, 0.8 * np.exp(0.02 * (np.log(h) - best) ** 2), every=1) for h in BATCH_HORIZONS]

        parts = [
            # A small batch ends far above the workload's target.
            piece(
                "lm",
                f"b{kappa}",
                bowl(kappa),
                {"batch_size": int(kappa * OWN)},
                end=2 / kappa - 1,
                noise=2e-4,
            )
            for kappa in (0.5, 1.0, 2.0)
        ]
        three = [average(scheme, h, 0.9, every=5) for scheme in ("ema", "lawa") for h in (0.01, 0.04, 0.16)]
        for policy, factor in (("recompute", 1.0), ("live", live), ("average", averaged)):
            mine = piece("imagenet_resnet", policy, three, {"buffers": policy}, factor, spread=spread)
            parts.append(mine)
        centres = [average("ema", h, 0.9, every=5) for h in (0.01, 0.04)]
        centres += [average("lawa", h, 0.9 * lawa, every=5) for h in (0.01, 0.04)]
        parts.append(piece("ogbg", "o", centres, {}, spread=spread))
        held = {"schedule": "constant", "final_lr": 1.0, "lr_decay": 0.0}
        parts.append(piece("imagenet_vit", "raw", [average("ema", 0.04, 0.95, every=5)], held, 1.2))
        for share in (0.1, 0.2):
            decay = {"schedule": "linear", "lr_decay": share}
            parts.append(piece("imagenet_vit", f"d{share}", [], decay, spread=spread))
            for curve in ("linear", "cosine", "sqrt"):
                wsm = [average("ema", share, 1.0, every=5)]
                loss = merged * (1 if curve == "linear" else 1.05)
                cells, records = piece("imagenet_vit", f"w{share}{curve}", wsm, held, loss, none=False, spread=spread)
                # The horizon of a curve need not be the decay that it emulates.
                cells = cells.assign(scheme="wsm", curve=curve, ema_decay=np.nan, k=int(share * 1000 / 5))
                parts.append((cells.assign(horizon_fraction=share / 2), records))
        run = make_run(tasks=[], study="open_questions")
        for at, (path, schema) in enumerate(
            [(run / "cells.parquet", CELLS), (run / "records" / "part-0.parquet", RECORDS)]
        ):
            _write(path, pd.concat([part[at] for part in parts], ignore_index=True), schema)
        return run

    return make


def found(run):
    every = measure.findings(evidence(read(run)), {}, claims("predictions.yaml"))
    return {one.claim.name: one for one in every}


def test_what_the_field_predicts_is_reproduced(folder):
    told = found(folder())
    assert {name: one.verdict for name, one in told.items()} == dict.fromkeys(
        ("batch_size", "batch_norm", "equal_centre", "merged_decay"), REPRODUCED
    )
    assert "to the power −1.0" in told["batch_size"].here[0]
    assert "best at each κ: 0.5 × 8 %, 1 × 4 %, 2 × 2 %" in told["batch_size"].here[0]
    assert "statistics has 1.1" in told["batch_norm"].here[0]
    gained = [line for line in told["merged_decay"].here if line.startswith("With linear weights over")]
    assert [line.split("it gains ")[1] for line in gained] == ["100 %.", "100 %."]


def test_the_opposite_refutes_it(folder):
    told = found(folder(exponent=0.0, live=0.9, averaged=1.1, lawa=1.2, merged=1.1, spread=0.001))
    assert {one.verdict for one in told.values()} == {REFUTED}
    assert len(told) == 4


def test_seeds_that_disagree_decide_nothing(folder):
    told = found(folder(live=1.1, averaged=1.1, merged=1.1, spread=1.5))
    assert {told[name].verdict for name in ("batch_norm", "merged_decay", "equal_centre")} == {UNDECIDED}


def test_statistics_that_matter_but_cannot_be_averaged(folder):
    assert found(folder(averaged=1.1))["batch_norm"].verdict == IN_PART


def test_the_figure_has_every_point(folder, tmp_path):
    points = pd.concat([part for one in found(folder()).values() for part in one.points])
    number = points["claim"].value_counts().to_dict()
    assert number == {"batch_size": 18, "merged_decay": 10, "batch_norm": 6, "equal_centre": 5}
    figure_files.write(figure_files.spec(charts.predictions(points)), tmp_path, "predictions")
    svg = (tmp_path / "predictions.svg").read_text()
    for series in ("batch 4", "batch 16", "live", "average", "WSM linear", "EMA 4 %", "LAWA ÷ EMA"):
        assert f">{series}<" in svg
    assert charts.predictions(points[:0]) is None


def test_the_page_is_made_of_three_folders(folder, make_run, task, average, tmp_path):
    lm = task("lm", "loss", False, 5.0, 1.0, 2.0)
    run = make_run(tasks=[lm], lengths=[1.0], averages=[average("ema", h, 0.9) for h in (0.01, 0.02, 0.04)])
    cells = read_table(run / "cells.parquet", CELLS).to_pandas()
    _write(run / "cells.parquet", cells.assign(studies=[["speedup", "horizon"]] * len(cells)), CELLS)
    plan = json.loads((run / "plan.json").read_text())
    entry = {"question": None, "fuse": True, "seeds": [0, 1, 2], "cells": 1, "targets": plan["targets"]}
    (run / "plan.json").write_text(
        json.dumps(plan | {"studies": [{"study": s} | entry for s in ("speedup", "horizon")]})
    )
    for round_ in range(3):
        put(tmp_path / "logs", submission="baseline", round_=round_)
        seconds = [25 * n + round_ for n in range(1, 5)]
        put(tmp_path / "logs", lines(FALLING, seconds=seconds), "schedule_free_adamw", round_)
    import_algoperf(tmp_path / "logs", tmp_path / "imported")
    docs = tmp_path / "docs"
    docs.mkdir()
    page.write(run, folder(), tmp_path / "imported", docs)
    text = (docs / "results.md").read_text()
    assert "Of 4 findings: 4 reproduced." in text
    assert "](img/results/open_questions_predictions.svg)" in text
    assert (docs / "img" / "results" / "open_questions_predictions.svg").read_text().startswith("<svg")
    assert "needs less time to the target than NadamW on 1 of 1 workloads (by luck alone 2.5 %)" in text
    assert "wmt 0.51 [" in text
    assert "Of 6 best trials that meet their target 0 fall behind it again" in text
    assert "learning-rates" not in text  # of a study that is not there nothing is told


def test_of_several_trainings_a_batch_size_none_stands_for_it(folder):
    run = folder()
    cells = read_table(run / "cells.parquet", CELLS).to_pandas()
    more = cells[(cells["workload"] == "lm") & (cells["scheme"] == "none")].assign(lr=0.02)
    for column in ("cell_id", "trajectory_id"):
        more[column] += "x"
    _write(run / "cells.parquet", pd.concat([cells, more], ignore_index=True), CELLS)
    records = read_table(run / "records" / "part-0.parquet", RECORDS).to_pandas()
    twice = records[(records["cell_id"] + "x").isin(more["cell_id"])]
    twice = twice.assign(cell_id=twice["cell_id"] + "x", trajectory_id=twice["trajectory_id"] + "x")
    _write(run / "records" / "part-0.parquet", pd.concat([records, twice], ignore_index=True), RECORDS)
    assert set(found(run)) == {"batch_norm", "equal_centre", "merged_decay"}


def test_what_is_not_there_yet_is_not_told(folder):
    run = folder()
    cells = read_table(run / "cells.parquet", CELLS).to_pandas()
    records = read_table(run / "records" / "part-0.parquet", RECORDS).to_pandas()
    begun = set(cells.loc[cells["workload"] != "ogbg", "cell_id"])
    records = records[~records["cell_id"].isin(begun) | (records["step"] <= 400)]
    _write(run / "records" / "part-0.parquet", records, RECORDS)
    assert set(found(run)) == {"equal_centre"}


def _table(exponent, noise=0.0, curvature=0.02):
    x, kappa, seed = np.meshgrid(np.log(BATCH_HORIZONS), [0.5, 1.0, 2.0], range(3), indexing="ij")
    y = 7 + 0.1 * seed + 0.3 * np.log(kappa) + curvature * (x - np.log(0.03) - exponent * np.log(kappa)) ** 2
    y += noise * np.random.default_rng(0).normal(size=y.shape)
    columns = {"x": x, "factor": kappa, "seed": seed, "y": y}
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()})


@pytest.mark.parametrize("exponent", [-1.0, -0.4, 0.0, 0.5])
def test_the_exponent_of_the_best_horizon_is_that_of_the_parabolas(exponent):
    found = horizon_exponent(_table(exponent))
    assert found.value == pytest.approx(exponent, abs=1e-9)
    assert np.isnan(found[1:]).all()  # the same for all seeds: how far others would lie is not known


def test_the_exponent_is_the_least_squares_one():
    table = _table(-0.7, noise=0.01)
    log_kappa = np.log(table["factor"])
    levels = pd.get_dummies(table["factor"].astype(str) + table["seed"].astype(str)).to_numpy(dtype=float)
    design = np.column_stack([table["x"], table["x"] ** 2, table["x"] * log_kappa, levels])
    (_, c, d, *_), *_ = np.linalg.lstsq(design, table["y"], rcond=None)
    found = horizon_exponent(table)
    assert found.value == pytest.approx(-d / (2 * c), rel=1e-6)
    assert found.low < found.value < found.high


def test_without_a_minimum_there_is_no_exponent():
    assert np.isnan(horizon_exponent(_table(-1.0, curvature=-0.02)).value)
    loose = horizon_exponent(_table(-1.0, noise=0.5, curvature=0.0001))
    assert np.isnan(loose.low) or loose.high - loose.low > 2
