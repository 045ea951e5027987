"""A real `wa run` in processes that tests may kill, and what to watch them by."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

WA = str(Path(sys.executable).with_name("wa"))
UNDRAWN = [sys.executable, "-P", str(Path(__file__).with_name("undrawn_wa.py"))]  # `wa` without its reports
STUDY = """
study: kills
workloads: "tinywork:Slow"
seeds: [0, 1, 2]
step_budget: 150
averaging:
  - {scheme: none}
  - {scheme: lawa, k: [2, 5], every: 3}
  - {scheme: ema, decay: 0.9}
evaluate: {every: 10}
tracking: {wandb: offline, project: p}
"""


def wait(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def num_records(run: Path) -> int:
    lines = [path.read_bytes().count(b"\n") for path in (run / "trajectories").glob("*/records.jsonl")]
    return sum(lines)


def workers(run: Path) -> list[int]:
    """The processes of the trials that are on their way in a run folder, or in one trajectory's."""
    found = []
    for path in run.rglob("attempt-*.json"):
        try:
            told = json.loads(path.read_text())
        except FileNotFoundError:  # just replaced
            continue
        if told["status"] == "running" and Path(f"/proc/{told['pid']}").exists():
            found.append(int(told["pid"]))
    return found


def family(pid: int) -> dict[int, str]:
    """The processes of the run's session, which is its own: name by id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            name, rest = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == pid and state != "Z":
            found[int(entry.name)] = name
    return found
