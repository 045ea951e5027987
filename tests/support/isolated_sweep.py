"""A sweep on nodes that share nothing: `wa run` beside the head, its storage, and what is to be true at the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from isolated_nodes import PORT, SERVER, IsolatedNodes, Node, inner, wait_for
from s3_server import CREDENTIALS
from sweep_processes import STUDY, UNDRAWN, num_records

from analysis.run_folder.records import KEY, load_records
from analysis.run_folder.schema import MEASURED

S3_PORT = 5000
S3 = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{SERVER}:{S3_PORT}"}
_ASK = f"""
import http.client, sys
connection = http.client.HTTPConnection("{SERVER}", {S3_PORT}, timeout=30)
credential = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3"
connection.request(sys.argv[1], "/bucket", headers={{"Authorization": credential}})
print(connection.getresponse().read().decode())
"""


class ObjectStore:
    """A server that speaks S3, moto's, beside the nodes; when it is killed all is gone that it held."""

    def __init__(self, cluster: IsolatedNodes, program: str) -> None:
        self.cluster, self.program = cluster, program
        self.start()

    def start(self) -> None:
        command = self.cluster.around.within(self.program, "-H", SERVER, "-p", str(S3_PORT))
        self.server = self.cluster.popen(command, self.cluster.base / "s3.log")
        wait_for("the object store", lambda: self.cluster.around.listens(S3_PORT))
        self._ask("PUT")

    def states(self) -> list[str]:
        """The keys of checkpoints and forks."""
        return re.findall("<Key>([^<]*/(?:checkpoint|fork)[^<]*)</Key>", self._ask("GET"))

    def _ask(self, method: str) -> str:
        command = self.cluster.around.within(sys.executable, "-c", _ASK, method)
        return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout

    def kill(self) -> None:
        for pid in (pid for pid, line in self.cluster.around.processes.items() if self.program in line):
            os.kill(pid, 9)
        self.server.wait(20)


class Sweep:
    """`wa run` on the head. run: its folder, as it is here; no other node has it."""

    def __init__(self, cluster: IsolatedNodes, storage: str, study: str = STUDY, out: str = "run") -> None:
        self.cluster, self.storage, self.out = cluster, storage, out
        self.head = cluster.nodes["head"]
        (self.head.folder / "kills.yaml").write_text(study)
        self.run = self.head.folder / out

    def start(self, node: Node | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """Start it, or go on with it."""
        where = ["--address", f"{self.head.address}:{PORT}", "--storage", self.storage, "--out", self.out]
        command = [*UNDRAWN, "run", "kills.yaml", *where, "--checkpoint-seconds", "0"]
        self.driver = (node or self.head).popen(*command, log=f"{self.out}.log", **environment)
        return self.driver

    @property
    def log(self) -> str:
        return (self.head.folder / f"{self.out}.log").read_text()

    @property
    def has_begun(self) -> bool:
        return (self.head.folder / f"{self.out}.log").exists()

    @property
    def pid(self) -> int:
        """Of the driver itself."""
        told = Path(f"/proc/{self.driver.pid}/task/{self.driver.pid}/children").read_text().split()
        return int(told[0])

    def finish(self, seconds: float = 240) -> None:
        assert self.driver.wait(seconds) == 0, self.log

    def wait_rows(self, count: int) -> None:
        """Until so many are on record."""
        wait_for(f"{count} rows", lambda: num_records(self.run) >= count or self.driver.poll() is not None)
        assert self.driver.poll() is None, self.log

    def workers(self, *names: str) -> dict[str, int]:
        """Of trials on their way on these nodes, or on all: node -> process id, as it is here."""
        found = {}
        for path in (self.run / "trajectories").glob("*/attempt-*.json"):
            with suppress(FileNotFoundError):  # just replaced
                told = json.loads(path.read_text())
                node = self.cluster.nodes.get(told["host"])
                if told["status"] == "running" and node is not None:
                    found.update((node.name, pid) for pid in node.processes if inner(pid) == told["pid"])
        return {name: pid for name, pid in found.items() if not names or name in names}

    def wait_workers(self, *names: str) -> dict[str, int]:
        """Until each of these nodes trains."""
        wait_for(
            f"trials on {names}", lambda: len(self.workers(*names)) == len(names) or self.driver.poll() is not None
        )
        assert self.driver.poll() is None, self.log
        return self.workers(*names)


@dataclass(frozen=True)
class Verdict:
    """What a sweep has of the records of the one that nothing disturbed, and what it left lying."""

    lost: int
    double: int
    other: int  # rows that differ in a bit
    processes: tuple[str, ...]
    files: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.double or self.other or self.processes or self.files)


def judged(sweep: Sweep, undisturbed: pd.DataFrame, stored: Sequence[str] = ()) -> Verdict:
    """To be asked at the end. stored: names of what the storage holds."""
    rows = pd.concat([pd.read_parquet(path) for path in (sweep.run / "records").glob("*.parquet")])
    keys, wanted = set(map(tuple, rows[KEY].to_numpy())), set(map(tuple, undisturbed[KEY].to_numpy()))
    mine, theirs = (frame.drop(columns=MEASURED).set_index(KEY) for frame in (load_records(sweep.run), undisturbed))
    both = mine.index.intersection(theirs.index)
    same = mine.loc[both].compare(theirs.loc[both])
    with suppress(TimeoutError):
        wait_for("the end of trials", lambda: not _trials(sweep), 30)
    left = [path for path in sweep.run.rglob("*") if path.name.endswith(".new") or path.name.startswith("checkpoint")]
    left += list((sweep.run / "trajectories").glob("*/records.jsonl"))
    for node in sweep.cluster.nodes.values():
        left += [path for path in node.folder.glob("*") if path.name.startswith(("wa-", "tmp"))]
        left += list(node.folder.glob("ray/session_*/logs/*.dump"))
    return Verdict(
        lost=len(wanted - keys),
        double=len(rows) - len(keys) + len(keys - wanted),
        other=len(same),
        processes=tuple(_trials(sweep)),
        files=(*map(str, left), *stored),
    )


def _trials(sweep: Sweep) -> list[str]:
    """What of the driver and its trials still runs."""
    return [
        f"{node.name}: {line[:80]}"
        for node in sweep.cluster.nodes.values()
        for line in node.processes.values()
        if "undrawn_wa" in line or "sweeps." in line or "_train" in line or "ImplicitFunc" in line
    ]
