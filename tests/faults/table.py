"""The fault table: each fault strikes a sweep on nodes that share nothing but Ray, and one line says what came of it.

    PYTHONPATH=tests/support python tests/faults/table.py [FAULT...]

By `make faults`; exit code 1 where a row was lost, doubled or another, or anything was left lying. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from isolated_nodes import IsolatedNodes, Node, isolated_nodes, wait_for, why_not
from isolated_sweep import S3, ObjectStore, Sweep, judged
from s3_server import moto_server
from sweep_processes import STUDY
from tiny_workload import write_tiny
from undisturbed_run import undisturbed_records

FIRST_ROWS = 12  # before a fault strikes
STOPPED_SECONDS = 30
HEALING_SECONDS = 6  # within Ray's patience (isolated_nodes.RAY_PATIENCE)
JUMP = """
import os, time
real = time.time
time.time = lambda: real() + 86400 * os.path.exists("/tmp/jump") - 7200 * os.path.exists("/tmp/back")
"""


@dataclass
class Case:
    """A fault's own sweep on the cluster that all faults share."""

    cluster: IsolatedNodes
    store: ObjectStore
    sweep: Sweep

    @property
    def nodes(self) -> list[Node]:
        return [node for name, node in self.cluster.nodes.items() if name != "head"]

    def begin(self) -> dict[str, int]:
        """Start it, and wait until every node trains."""
        self.sweep.start()
        self.sweep.wait_rows(1)
        held = self.sweep.wait_workers(*(node.name for node in self.nodes))
        self.sweep.wait_rows(FIRST_ROWS)
        return held

    def replace(self, name: str) -> None:
        """Another machine, with a disk of its own, in place of one that is no more."""
        if name in self.cluster.nodes:
            self.cluster.lose(name)
        shutil.rmtree(self.cluster.base / name)
        self.cluster.join(name)

    def restart(self) -> None:
        """All of Ray anew, on nodes that are new but for the head's disk."""
        for name in list(self.cluster.nodes):
            self.cluster.lose(name)
        self.cluster.start(a=1, b=1)
        self.sweep.head = self.cluster.nodes["head"]

    def told(self) -> str:
        """What the terminal says of failures, without where."""
        lines = [line for line in self.sweep.log.splitlines() if "tried again" in line]
        reasons = [line.partition("tried again: ")[2].partition(" (/")[0] for line in lines]
        return f"{len(reasons)} tried again" + (f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else "")

    def end(self, seconds: float = 300) -> int:
        return int(self.sweep.driver.wait(seconds))

    def last_line(self) -> str:
        return next(line for line in reversed(self.sweep.log.splitlines()) if line.strip())


def nothing(case: Case) -> str:
    case.sweep.start()
    case.sweep.finish()
    return case.told()


def driver_killed_twice(case: Case) -> str:
    for rows in (FIRST_ROWS, FIRST_ROWS + 8):
        case.sweep.start()
        case.sweep.wait_rows(rows)
        os.kill(case.sweep.pid, signal.SIGKILL)
        assert case.end() == -signal.SIGKILL
    case.sweep.start()
    case.sweep.finish()
    return "the same command went on, twice"


def worker_killed(case: Case) -> str:
    os.kill(case.begin()["a"], signal.SIGKILL)
    case.sweep.finish()
    return case.told()


def worker_stopped(case: Case) -> str:
    pid = case.begin()["a"]
    os.kill(pid, signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    case.sweep.finish()
    return f"{STOPPED_SECONDS} s; {case.told()}"


def raylet_killed(case: Case) -> str:
    case.begin()
    for pid in case.cluster.nodes["a"].find("raylet/raylet"):
        os.kill(pid, signal.SIGKILL)
    case.sweep.finish()
    said = case.told()
    case.replace("a")
    return said


def node_lost(case: Case) -> str:
    case.begin()
    case.cluster.lose("a")
    case.replace("a")
    case.sweep.finish()
    return f"another joined; {case.told()}"


def cable_pulled_and_plugged(case: Case) -> str:
    case.begin()
    case.cluster.nodes["a"].pull()
    time.sleep(HEALING_SECONDS)
    case.cluster.nodes["a"].plug()
    case.sweep.finish()
    return f"{HEALING_SECONDS} s; {case.told()}"


def cable_pulled_for_good(case: Case) -> str:
    case.begin()
    case.cluster.nodes["a"].pull()
    case.sweep.finish()
    said = case.told()
    case.replace("a")
    return said


def store_killed(case: Case) -> str:
    case.begin()
    case.store.kill()
    time.sleep(HEALING_SECONDS)
    case.store.start()
    os.kill(case.sweep.workers()["a"], signal.SIGKILL)  # whose checkpoint is gone with the store's memory
    case.sweep.finish()
    gone = sum("training from the start" in path.read_text() for path in case.sweep.run.glob("trajectories/*/log"))
    return f"it came back empty; {case.told()}; {gone} from the start"


def drivers_disk_full(case: Case) -> str:
    head = case.cluster.nodes["head"]
    (head.folder / case.sweep.out).mkdir()
    mount = head.within("mount", "-t", "tmpfs", "-o", "size=20m", "none", f"/tmp/{case.sweep.out}", only=["--mount"])
    assert os.spawnvp(os.P_WAIT, mount[0], mount) == 0
    case.sweep.run = head.inside(f"/tmp/{case.sweep.out}")
    case.begin()
    fill(case.sweep.run / ".filler")
    code, said = case.end(), case.last_line()
    assert code == 1, case.sweep.log
    assert "no space left" in said, case.sweep.log
    assert "Traceback" not in case.sweep.log, case.sweep.log
    (case.sweep.run / ".filler").unlink()
    case.sweep.start()
    case.sweep.finish()
    return f"exit code 1: {said[said.find('no space') :]}; it did"


def nodes_disk_full(case: Case) -> str:
    case.cluster.lose("a")
    small = case.cluster.join("a", disk="2400m")  # with less a run leaves it out
    pid = case.begin()["a"]
    fill(small.folder / "filler")
    os.kill(pid, signal.SIGKILL)
    case.sweep.finish()
    said = case.told()
    case.replace("a")
    return f"and the worker there killed; {said}"


def two_drivers(case: Case) -> str:
    """Each beside a node of its own, in a folder that both see; then the first one's machine goes."""
    case.sweep.run = case.cluster.base / case.sweep.out
    first = case.cluster.nodes["a"]
    (first.folder / "kills.yaml").write_text(STUDY)
    beside = case.sweep.start(node=first)
    wait_for("rows", lambda: list(case.sweep.run.glob("trajectories/*/records.jsonl")) or beside.poll() is not None)
    case.sweep.start()
    code, said = case.end(), case.last_line()
    assert code == 2, case.sweep.log
    case.cluster.lose("a")
    case.sweep.start()
    case.sweep.finish()
    case.replace("a")
    return f"exit code 2: {said.partition(': ')[2].partition(';')[0]}; the first one's node lost, the second goes on"


def clocks_jump(case: Case) -> str:
    """A day on under the driver and a node, then two hours back."""
    case.cluster.lose("a")
    node, head = case.cluster.add("a"), case.cluster.nodes["head"]
    for one in (node, head):
        (one.folder / "clock").mkdir(exist_ok=True)
        (one.folder / "clock/sitecustomize.py").write_text(JUMP)
    node.environment["PYTHONPATH"] = "/tmp/clock:/tmp/code"
    node.start_ray()
    wait_for("Ray", node.has_ray)
    case.sweep.start(PYTHONPATH="/tmp/clock:/tmp/code")
    case.sweep.wait_rows(FIRST_ROWS)
    for one in (node, head):
        (one.folder / "jump").touch()
    case.sweep.wait_rows(FIRST_ROWS + 8)
    for one in (node, head):
        (one.folder / "jump").unlink()
        (one.folder / "back").touch()
    case.sweep.finish()
    for one in (node, head):
        (one.folder / "back").unlink()
    case.replace("a")
    return f"a day on, then two hours back; {case.told()}"


def gcs_killed(case: Case) -> str:
    case.begin()
    for pid in case.cluster.nodes["head"].find("gcs_server"):
        os.kill(pid, signal.SIGKILL)
    code = case.end()
    said = next(line for line in case.sweep.log.splitlines() if "records up to here are kept" in line)
    case.restart()
    case.sweep.start()
    case.sweep.finish()
    return f"exit code {code}: {said}; a new Ray and the same command went on"


def head_lost(case: Case) -> str:
    case.begin()
    case.cluster.lose("head")
    case.end()
    case.restart()
    case.sweep.start()
    case.sweep.finish()
    return "with the driver; a new head with the same disk and the same command went on"


FAULTS: tuple[Callable[[Case], str], ...] = (
    *(nothing, driver_killed_twice, worker_killed, worker_stopped, raylet_killed, node_lost),
    *(cable_pulled_and_plugged, cable_pulled_for_good, store_killed, drivers_disk_full, nodes_disk_full),
    *(two_drivers, clocks_jump, gcs_killed, head_lost),
)


def fill(path: Path) -> None:
    """All that is free on its disk."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):  # to the last page
            pass


def struck(fault: Callable[[Case], str], case: Case, undisturbed: pd.DataFrame) -> tuple[str, bool, float]:
    """A line of the table, whether all is well, and the seconds it took."""
    began = time.monotonic()
    try:
        happened = fault(case)
    except (AssertionError, TimeoutError, OSError, KeyError, StopIteration) as error:
        return f"FAILED: {type(error).__name__}: {error}", False, time.monotonic() - began
    seconds = time.monotonic() - began
    prefix = case.sweep.storage.removeprefix("s3://bucket/") + "/"
    verdict = judged(case.sweep, undisturbed, [key for key in case.store.states() if key.startswith(prefix)])
    counts = f"{verdict.lost} | {verdict.double} | {verdict.other}"
    left = f"{len(verdict.processes)} | {len(verdict.files)}"
    more = "" if verdict.is_good else f" {verdict.processes} {verdict.files}"
    return f"{happened} | {counts} | {{lost}} | {left}{more}", verdict.is_good, seconds


def main(names: list[str]) -> int:
    why, program = why_not(), moto_server()
    if why is not None or program is None:
        print(f"cannot run here: {why or 'no moto_server'}")
        return 1
    well, usual = True, float("nan")
    chosen = [fault for fault in FAULTS if not names or fault.__name__ in names]
    with tempfile.TemporaryDirectory(prefix="wa-faults-") as folder:
        base = Path(folder)
        write_tiny(base)
        undisturbed = undisturbed_records(base)
        print("fault | what happened | rows lost | double | other bits | seconds lost | processes | files left")
        with isolated_nodes(base, S3, ["both"]) as cluster:
            store = ObjectStore(cluster, program)
            cluster.start(a=1, b=1)
            for fault in chosen:
                name = fault.__name__
                out = f"both/{name}" if fault is two_drivers else name
                sweep = Sweep(cluster, f"s3://bucket/{name}", out=out)
                case = Case(cluster, store, sweep)
                line, is_good, seconds = struck(fault, case, undisturbed)
                usual = seconds if fault is nothing else usual
                print(f"{name.replace('_', ' ')} | {line.format(lost=f'{seconds - usual:.0f}')}", flush=True)
                well &= is_good
                if not is_good:
                    print(sweep.log if sweep.has_begun else "", file=sys.stderr)
                    case.restart()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
