"""What a trial died of, from Ray's words as it says them and logs as they are written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
from types import SimpleNamespace
import ray
from cluster import crash_dumps
ray._private.worker._global_node = SimpleNamespace(get_logs_dir_path=lambda: sys.argv[1])
ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "here")
def loss():
    if sys.argv[2:]:
        ctypes.string_at(0)
with crash_dumps.kept():
    loss()
"""


def test_a_real_crash_leaves_its_stack_and_an_orderly_end_nothing(tmp_path: Path) -> None:
    log, script, dumps = tmp_path / "log", tmp_path / "mine.py", tmp_path / "dumps"
    log.write_text(STEP)
    script.write_text(CRASH)
    dumps.mkdir()
    assert subprocess.run([sys.executable, script, dumps]).returncode == 0
    assert not list(dumps.iterdir())
    assert subprocess.run([sys.executable, script, dumps, "crash"], capture_output=True).returncode == -11
    (dump,) = dumps.iterdir()
    with log.open("a") as stream:
        stream.write(dump.read_text())  # as the driver does
    assert failures.reason(DIED, log) == "crashed: segmentation fault in mine.py, line 10; the log has its stack"
    with log.open("a") as stream:
        stream.write(STEP)
    assert "vanished" in failures.reason(DIED, log)  # that was an earlier attempt's end
