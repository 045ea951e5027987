"""Slots of a cluster, the order of the plan, and what abandoned drivers leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ray.tune.search import Searcher

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
