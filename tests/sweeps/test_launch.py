"""Slots of a cluster, the order of the plan, and what abandoned drivers leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray.tune.search import Searcher
from sweep_processes import WA

from analysis import load
from sweeps import launch


@pytest.mark.parametrize(
    ("resources", "cpu", "gpu", "slots"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 2.0}, 0.5, 0, 4),
        ({"CPU": 2.0}, 4, 0, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # 2 on each: a fraction never spans two GPUs
        ({"CPU": 3.0, "GPU": 2.0}, 1, 0.25, 3),  # the CPUs run out first
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 96.0, "GPU": 8.0}, 8, 4, 2),  # several GPUs a trial
        ({"CPU": 96.0, "GPU": 7.0}, 8, 4, 1),
    ],
)
def test_slots_of_a_node(resources: dict[str, float], cpu: float, gpu: float, slots: int) -> None:
    assert launch._slots(resources, cpu, gpu) == slots


def test_the_searcher_is_the_plan_in_its_order_then_finished() -> None:
    searcher = launch.PlanSearcher([{"name": name} for name in "abc"])
    assert [searcher.suggest(str(i)) for i in range(4)] == [{"name": n} for n in "abc"] + [Searcher.FINISHED]


def test_folders_of_dead_drivers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f"{launch.PREFIX}{dead.pid}-x": False,
        f"{launch.PREFIX}{os.getpid()}-x": True,
        "wa-ray-else": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    launch._remove_abandoned()
    assert {name: (tmp_path / name).exists() for name in names} == names


FOLDER_WORK = """
import torch
from workloads import data
from tinywork import Tiny

class FromFolder(Tiny):
    def batches(self, seed, first_step, part=None):
        scale = float((data.dataset("mine", "scale.txt") / "scale.txt").read_text())
        for x, y in super().batches(seed, first_step):
            chosen = slice(None) if part is None else slice(part.index, None, part.count)
            yield scale * x[chosen], y[chosen]

    def eval_batches(self, split, part=None):
        batches = super().eval_batches(split)
        return batches if part is None else batches[part.index :: part.count]

    def check_data(self):
        if not (data.dataset("mine", "scale.txt") / "scale.txt").is_file():
            raise data.BadData("mine/scale.txt: no such file")
"""
FOLDER_STUDY = """
study: folder
workloads: "folderwork:FromFolder"
averaging: [{scheme: none}, {scheme: ema, decay: 0.9}]
evaluate: {every: 20}
tracking: {wandb: disabled}
"""


@pytest.mark.slow
def test_data_folder_and_processes_reach_the_trial(outside: Path) -> None:
    """Two data-parallel processes in a Ray trial, on data that the spec says where to find.

    All that in a folder with modules of the names of ours and of Python's, which no process may import.
    """
    for taken in ("analysis.py", "random.py", "queue.py", "sweeps/__init__.py", "workloads/__init__.py"):
        (outside / taken).parent.mkdir(exist_ok=True)
        (outside / taken).write_text("raise RuntimeError('the user file ran')")
    (outside / "folderwork.py").write_text(FOLDER_WORK)
    (outside / "study.yaml").write_text(FOLDER_STUDY)
    losses = {}
    for name, scale in (("whole", "1.0"), ("half", "0.5")):
        (outside / name / "mine").mkdir(parents=True)
        (outside / name / "mine" / "scale.txt").write_text(scale)
        sets = ["--set", f"data_dir={name}", "resources={cpu: 2, processes: 2}"]
        done = subprocess.run(
            [WA, "run", "study.yaml", "--out", f"run-{name}", *sets],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "WA_DATA_DIR"},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        frame = load(f"run-{name}")
        assert frame["step"].tolist() == [20, 40, 60] * 2
        assert (frame["processes"] == 2).all()
        losses[name] = frame["loss"].tolist()
        logs = list(outside.glob(f"run-{name}/trajectories/*/log-rank1"))
        assert len(logs) == 1, "a second process trained"
    assert losses["whole"] != losses["half"]


def test_missing_data_is_one_line_before_anything_starts(outside: Path) -> None:
    (outside / "folderwork.py").write_text(FOLDER_WORK)
    (outside / "study.yaml").write_text(FOLDER_STUDY)
    (outside / "empty" / "mine").mkdir(parents=True)
    clean = {name: value for name, value in os.environ.items() if name != "WA_DATA_DIR"}
    for sets, told in (
        ([], "set WA_DATA_DIR or"),
        (["data_dir=nowhere"], "no such folder"),
        (["data_dir=empty"], "mine/scale.txt"),
    ):
        more = ["--set", *sets] if sets else []
        done = subprocess.run(
            [WA, "run", "study.yaml", "--out", "run", *more], capture_output=True, text=True, env=clean
        )
        assert done.returncode == 2
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (outside / "run").exists()
