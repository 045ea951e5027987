"""Claims on run folders whose ratios are known, and the evaluator on simulated pairs whose truth is known."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.paper import __main__ as page
from analysis.paper import measure
from analysis.paper.claims import (
    IN_PART,
    REFUTED,
    REPRODUCED,
    UNDECIDED,
    claims,
)
from analysis.paper.evidence import evidence
from analysis.records import CELLS, RECORDS, read_table
from analysis.study import read

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
    frames = {study: page._frames(run, study) for study in ("speedup", "horizon")}
    every = measure.findings(evidence(read(run)), frames, claims("claims.yaml"))
    return {one.claim.name: one.verdict for one in every}


def test_show(folder):
    import sys
    best = {0.001: 0.99, 0.005: 0.83, 0.01: 0.82, 0.02: 0.83, 0.04: 0.85, 0.16: 0.95, 0.3: 1.1}
    run = folder(best.get, spread=0.01, seed_shift=0.01)
    import shutil; shutil.rmtree('/tmp/papershow', ignore_errors=True); shutil.copytree(run, '/tmp/papershow/run'); (Path('/tmp/papershow')/'docs').mkdir()
    print(page.write(run, None, None, Path('/tmp/papershow/docs')).read_text())


def test_what_the_paper_found_is_reproduced(folder):
    best = {0.001: 0.99, 0.005: 0.83, 0.01: 0.82, 0.02: 0.83, 0.04: 0.85, 0.16: 0.95, 0.3: 1.1}
    verdicts = found(folder(best.get, spread=0.01, seed_shift=0.01))
    assert verdicts["fewer_steps"] == REPRODUCED
    assert verdicts["fewer_hours"] == REPRODUCED  # a tenth more time a step: .90, within 3 points of .88
    assert verdicts["short_horizons"] == REPRODUCED
    assert verdicts["other_optimizers"] == REPRODUCED
    assert verdicts["learning_rates"] == IN_PART  # at two of the five multiples
    assert verdicts["replaces_decay"] == IN_PART  # no workload at all
    assert verdicts["no_rescue"] == UNDECIDED  # no seed fails but where the LR stays high


def test_averages_that_are_slower_refute_it(folder):
    verdicts = found(folder(lambda h: 1.1 if h > 0.001 else 0.9, spread=0.02))
    for claim in ("fewer_steps", "fewer_hours", "short_horizons", "other_optimizers", "shorter_decay"):
        assert verdicts[claim] == REFUTED, claim


def test_seeds_that_disagree_decide_nothing(folder):
    verdicts = found(folder(lambda h: 1.0, spread=0.3))
    for claim in ("fewer_steps", "other_optimizers", "generalization", "shorter_decay", "tightness"):
        assert verdicts[claim] == UNDECIDED, claim
