"""A trial that gets SIGTERM loses no step: it writes a checkpoint first, and then the signal takes its course."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_processes import wait
from trained import assert_same, run, tiny

from sweeps import checkpoint
from sweeps.attempts import attempts_of
from sweeps.plan import Trajectory, to_dict, trajectories

WORK = """
import time
from pathlib import Path
from tinywork import Parted

class Counted(Parted):
    def loss(self, model, batch):
        if model.training and PAUSE:
            time.sleep(PAUSE)
        value = super().loss(model, batch)
        if WHERE:
            with open(WHERE, "a") as stream:
                stream.write("step\\n")
        return value

PAUSE, WHERE = 0.0, ""
"""
TRIAL = """
import sys, threading
from pathlib import Path
import countedwork
from sweeps import trajectory
from sweeps.plan import from_dict
import json

folder, threaded, processes = Path(sys.argv[1]), sys.argv[2] == "thread", int(sys.argv[3])
countedwork.PAUSE, countedwork.WHERE = 0.03, str(folder.parent / "steps")
one = from_dict(json.loads((folder.parent / "trajectory.json").read_text()))

def train():
    trajectory.run(one, folder, checkpoint_seconds=0, processes=processes, num_devices=processes)

if threaded:  # as in a Ray worker, whose main thread waits for results
    thread = threading.Thread(target=train)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
else:
    train()
"""


def planned(outside: Path) -> Trajectory:
    (outside / "countedwork.py").write_text(WORK)
    averaging = [{"scheme": "none"}, {"scheme": "lawa", "k": 3, "every": 2}]
    (one,) = trajectories(tiny(averaging, workload="countedwork:Counted", evaluate={"every": 30}), fuse=True)
    return one


@pytest.mark.slow
@pytest.mark.parametrize(("where", "processes"), [("main", 1), ("thread", 1), ("main", 2)])
def test_sigterm_ends_a_trial_after_its_step(outside: Path, tmp_path: Path, where: str, processes: int) -> None:
    one = planned(outside)
    (tmp_path / "trajectory.json").write_text(json.dumps(to_dict(one)))
    folder, steps = tmp_path / one.name, tmp_path / "steps"
    command = [sys.executable, "-c", TRIAL, str(folder), where, str(processes)]
    process = subprocess.Popen(command, cwd=outside, stderr=subprocess.DEVNULL)
    wait(lambda: (steps.exists() and steps.read_bytes().count(b"\n") >= 8) or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM  # which then does what it does
    (attempt,) = attempts_of(folder)
    assert attempt["status"] == "interrupted"
    assert "asked to end by SIGTERM" in str(attempt["error"])
    done = steps.read_bytes().count(b"\n")
    (found,) = folder.glob("checkpoint-*")
    saved = checkpoint.load(found)
    assert saved is not None
    assert saved["step"] == done < 30
    if processes == 1:
        again = run(one, folder)
        assert f"on from step {done}" in (folder / "log").read_text()
        assert_same(again, run(one, tmp_path / "undisturbed"))
