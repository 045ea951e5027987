"""What a trial died of, from Ray's words as it says them and logs as they are written."""

from __future__ import annotations

import faulthandler
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import crash_dumps
from sweeps import failures

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ImplicitFunc
\tpid: 15648
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed due to SIGSEGV.
"""
LOST = DIED.replace("its worker process has died", "its node has died")
CUT_OFF = "The actor 172c13e5438ac670 is unavailable: The actor is temporarily unavailable: RpcError: Socket closed"
MEMORY = "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2) was"
RAISED = """ray::ImplicitFunc.train() (pid=1, ip=192.0.2.2)
  File "a.py", line 3, in train
    raise error
  File "mine.py", line 9, in loss
    raise ValueError("no")
    ^^^^^^^^^^
ValueError: no
such luck
"""
STEP = "2026-01-01 00:00:00,000 INFO step 20 training loss 1\n"


@pytest.mark.parametrize(
    ("said", "log", "short", "expected"),
    [
        (DIED, STEP, False, "its process vanished (SIGKILL, or os._exit)"),
        (DIED, STEP, True, "out of memory: the kernel killed its process"),
        (LOST, STEP, False, "its node was lost"),
        (CUT_OFF, STEP, False, "its node was lost"),
        (MEMORY, STEP, False, "out of memory: Ray ended its process"),
        (RAISED, STEP, False, "ValueError: no such luck"),
        ("RuntimeError: the workload's code raised SystemExit(0)", STEP, False, "SystemExit(0)"),
        ("", "", False, "it ended and did not say why"),
    ],
)
def test_reason(tmp_path: Path, said: str, log: str, short: bool, expected: str) -> None:
    (tmp_path / "log").write_text(log)
    reason = failures.reason(said, tmp_path / "log", short)
    assert reason.startswith(expected) or reason.endswith(expected)
    assert "\n" not in reason


CRASH = """
import ctypes, sys
from pathlib import Path
from cluster.crash_dumps import dumping
def loss():
    ctypes.string_at(0)
with dumping(Path(sys.argv[1])):
    loss()
"""


def test_a_real_crash_is_in_the_log_until_the_next_attempt_speaks(tmp_path: Path) -> None:
    log, script, dump = tmp_path / "log", tmp_path / "mine.py", tmp_path / "dump"
    script.write_text(CRASH)
    assert subprocess.run([sys.executable, script, dump], capture_output=True).returncode == -11
    log.write_text(STEP + dump.read_text())
    assert failures.reason(DIED, log) == ("crashed: segmentation fault in mine.py, line 6; the log has its stack")
    with log.open("a") as stream:
        stream.write(STEP)
    assert "vanished" in failures.reason(DIED, log)  # that was an earlier attempt's end


def test_without_a_crash_nothing_is_left(tmp_path: Path) -> None:
    was = faulthandler.is_enabled()
    with crash_dumps.dumping(tmp_path / "dump"):
        assert faulthandler.is_enabled()
    assert not (tmp_path / "dump").exists()
    if was:  # pytest's own
        faulthandler.enable()


HANGS = """
import sys, time
from pathlib import Path
from cluster.crash_dumps import dumping
def waits_for_ever():
    print(flush=True)
    time.sleep(1000)
with dumping(Path(sys.argv[1])):
    waits_for_ever()
"""


def test_where_a_trial_hangs_is_told_and_it_is_ended(tmp_path: Path) -> None:
    script, dump = tmp_path / "mine.py", tmp_path / "dump"
    script.write_text(HANGS)
    with subprocess.Popen([sys.executable, script, dump], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = crash_dumps._dump_and_kill(process.pid, str(dump))
        assert process.wait(20) == -9
    assert "in waits_for_ever" in said
    log = tmp_path / "log"
    log.write_text(f"{STEP}where it stood:\n{said}{failures.SILENT} for 2 h, so it was ended\n")
    assert failures.reason(DIED, log).startswith("it said nothing for 2 h, so it was ended; the log says where")
