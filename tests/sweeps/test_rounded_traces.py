"""Traces whose weights are rounded, how big a trace is, and a disk that has no room for one."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trained import done

from analysis import methods
from analysis.core import core
from analysis.run_folder import study
from analysis.run_folder.records import load, load_cells
from sweeps import cli, room
from sweeps.blocks import SpecError
from sweeps.expected import as_json
from sweeps.run import rounded
from sweeps.spec import Spec, parse_spec
from sweeps.trace import Trace
from sweeps.work import work

NONE, EMA, LAWA = (
    {"scheme": "none"},
    {"scheme": "ema", "decay": 0.9, "every": 2},
    {"scheme": "lawa", "k": 4, "every": 2},
)
Usage = namedtuple("Usage", "total used free")


def asked(averaging: Any, workload: str = "tinywork:Tiny", **changes: Any) -> Spec:
    spec = {"study": "rounded", "workloads": workload, "evaluate": {"every": 20}}
    return parse_spec({**spec, "averaging": averaging, **changes})


def test_rounded_weights_give_near_records_that_are_marked(outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(asked([NONE], keep={"every": 2, "dtype": "bf16"}), run)
    later = asked([NONE, EMA, LAWA])
    todo = work([later], run)
    assert [one["rounded"] for one in as_json([later], todo)["trajectories"]] == ["bf16"]
    assert "weights were rounded to bf16, so its records are not a training's bit for bit" in rounded(todo)[0]
    (one,) = done(later, run).trajectories
    done(later, tmp_path / "exact")
    here, exact = load(run), load(tmp_path / "exact")
    assert (here["cell_id"] == exact["cell_id"]).all()
    error = abs(here["loss"] / exact["loss"] - 1)
    assert (error[here["scheme"] == "none"] == 0).all()  # the training's own
    averaged = here["scheme"] != "none"
    assert error[averaged].between(1e-9, 3e-3).all()  # bf16 keeps 8 bits
    np.testing.assert_array_equal(here["train_loss"], exact["train_loss"])
    assert set(load_cells(run).set_index("scheme")["trace_dtype"].dropna()) == {"bf16"}
    assert here.loc[averaged, "trace_dtype"].eq("bf16").all()
    assert here.loc[~averaged, "trace_dtype"].isna().all()
    (entry,) = [entry for entry in json.loads((run / "plan.json").read_text())["trajectories"] if entry["replays"]]
    assert (entry["name"], entry["rounded"]) == (one.name, "bf16")
    notices = list(methods.notices(core(study.read(run))))
    assert sum("2 cells of 3 come from a trace whose weights were rounded to bf16" in line for line in notices) == 1
    with pytest.raises(SpecError, match=r"evaluate\.every: .* weights are rounded to bf16, and the records that these"):
        work([asked([NONE, EMA, LAWA], evaluate={"every": 10})], run)


@pytest.mark.parametrize(
    "changes",
    [{}, {"keep": {"every": 4, "dtype": "bf16"}}, {"optimizer": {"name": "schedule_free_adamw", "lr": 0.01}}],
)
def test_a_trace_weighs_what_the_plan_says(
    outside: Path, tmp_path: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (outside / "widework.py").write_text(
        "from torch import nn\nfrom tinywork import Tiny\n\n\n"
        "class Wide(Tiny):\n    def model(self):\n"
        "        return nn.Sequential(nn.Linear(8, 9000), nn.Linear(9000, 4))\n"
    )
    spec = asked([NONE], "widework:Wide", **{"keep": {"every": 4}, **changes})
    (one,) = done(spec, tmp_path / "run").trajectories
    there = Trace.of(tmp_path / "run" / "traces" / one.name)
    assert room.num_snapshots(one) == len(there.steps) == 15
    assert there.nbytes == pytest.approx(room.trace_bytes(one), rel=0.01)
    told = as_json([spec], work([spec], None))
    assert told["trajectories"][0]["trace_bytes"] == told["workloads"]["widework:Wide"]["trace_bytes"]
    text = "study: s\nworkloads: 'tinywork:Tiny'\naveraging: {scheme: none}\nkeep: {every: 1}\n"
    (outside / "s.yaml").write_text(text)
    cli.main(["plan", "s.yaml"], standalone_mode=False)
    assert "MiB on disk, the largest" in capsys.readouterr().out


def test_a_disk_without_room_is_refused_with_the_arithmetic(
    outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    told = (
        r"keep.every: the traces of 2 trajectories \(up to 60 snapshots × 0\.\d+ MiB each\) need .* GiB free; allowed:"
    )
    for run in (None, tmp_path / "run"):
        with pytest.raises(SpecError, match=told) as caught:
            work([asked([NONE], seeds=[0, 1], keep={"every": 1})], run)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    work([asked([NONE])], None)
