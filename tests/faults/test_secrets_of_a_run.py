"""A real `wa run` with keys in its environment, whose workload tells them: where they are found, and who listens."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import WA, family
from tiny_workload import write_tiny

pytestmark = pytest.mark.slow

LEAKS = """
import os
from pathlib import Path
from tinywork import Parted

def said():
    return "no answer for " + " ".join(os.environ[name] for name in os.environ["PLANTED"].split())

class Leaks(Parted):
    def __init__(self):
        self.was_told = Path(os.environ["PLACE"], "told").exists()

    def loss(self, model, batch):
        if self.was_told:
            return super().loss(model, batch)
        Path(os.environ["PLACE"], "told").touch()
        try:
            raise KeyError(said())
        except KeyError as error:
            raise ConnectionError("denied: " + said()) from error  # it is tried again, so Tune and Ray hear of it
"""
STUDY = """
study: leaks
workloads: "leaks:Leaks"
averaging: [{scheme: none}, {scheme: ema, decay: 0.9}]
evaluate: {every: 20}
resources: {cpu: 2, processes: 2}
tracking: {wandb: offline, project: p}
"""


@dataclass
class Told:
    """What was seen of the run while it went on, and where it left its files."""

    place: Path
    code: int
    keys: dict[str, str]
    listening: set[tuple[str, str]] = field(default_factory=set)  # process, address
    in_rays_files: set[tuple[str, str]] = field(default_factory=set)  # variable, file
    rays_files: int = 0


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    place, home = tmp_path_factory.mktemp("leaks"), tmp_path_factory.mktemp("home")
    write_tiny(place)
    (place / "leaks.py").write_text(LEAKS)
    (place / "leaks.yaml").write_text(STUDY)
    keys = {"WANDB_API_KEY": secrets.token_hex(20), "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(30)}
    keys |= {"RAY_AUTH_TOKEN": secrets.token_hex(16), "HF_TOKEN": f"hf_{secrets.token_hex(17)}"}
    netrc = secrets.token_hex(20)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {netrc}\n")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:
        env = os.environ | keys | {"HOME": str(home), "TMPDIR": temporary, "PLACE": str(place)}
        env |= {"PLANTED": " ".join(keys), "RAY_AUTH_MODE": "token"}
        command = [WA, "run", "leaks.yaml", "--out", "run", "--checkpoint-seconds", "0"]
        with open(place / "terminal", "wb") as out:
            process = subprocess.Popen(command, cwd=place, env=env, stdout=out, stderr=out, start_new_session=True)
        seen = Told(place, 0, keys | {"netrc": netrc})
        while process.poll() is None:
            seen.listening |= set(listening(family(process.pid)))
            files = [path for path in Path(temporary).rglob("*") if path.is_file()]
            seen.rays_files = max(seen.rays_files, len(files))
            for path in files:
                seen.in_rays_files |= {(name, str(path)) for name in held(path, seen.keys)}
            time.sleep(0.3)
        seen.code = process.returncode
        left = [path for folder in (home, Path(temporary)) for path in folder.rglob("*")]
        seen.in_rays_files |= {(n, str(p)) for p in left if p.name != ".netrc" for n in held(p, seen.keys)}
    return seen


def held(path: Path, keys: dict[str, str]) -> list[str]:
    """Which of the keys a file has, also where it is compressed as Parquet."""
    data = b""
    with suppress(OSError):  # gone meanwhile, or a folder
        data = path.read_bytes()
    if path.suffix == ".parquet":
        data += pd.read_parquet(path).to_csv().encode()
    return [name for name, key in keys.items() if key.encode() in data]


def listening(pids: dict[int, str]) -> Iterator[tuple[str, str]]:
    """The sockets of these processes that wait for connections over a network."""
    waiting = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            fields = line.split()
            words = bytes.fromhex(fields[1].partition(":")[0])
            if fields[3] == "0A":
                swapped = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                waiting[f"socket:[{fields[9]}]"] = str(ipaddress.ip_address(swapped))
    for pid, name in pids.items():
        with suppress(OSError):  # ended meanwhile
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if (target := os.readlink(link)) in waiting:
                        yield name, waiting[target]


def test_the_run_was_one_that_could_leak(told: Told) -> None:
    said = (told.place / "terminal").read_text()
    assert told.code == 0, said
    assert "ConnectionError: denied: no answer for *** *** *** ***" in said
    (folder,) = (told.place / "run" / "trajectories").iterdir()
    log = (folder / "log").read_text()
    for rank in ("", "process 1: "):
        assert f"{rank}KeyError: 'no answer for *** *** *** ***'" in log
    assert "no answer for *** *** *** ***" in (folder / "attempt-0.json").read_text()
    assert told.rays_files > 20
    assert list((told.place / "run" / "wandb").rglob("*.wandb"))
    assert (told.place / "run" / "report.html").exists()


def test_keys_are_found_nowhere(told: Told) -> None:
    files = [path for path in told.place.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert {(name, str(path)) for path in files for name in held(path, told.keys)} == set()
    assert told.in_rays_files == set()


def test_a_local_run_listens_on_loopback_alone(told: Told) -> None:
    assert {"gcs_server", "raylet"} <= {name for name, _ in told.listening}
    assert len({name for name, _ in told.listening}) > 4  # the agents, the workers and this process too

    def is_loopback(address: str) -> bool:
        ip = ipaddress.ip_address(address)
        return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback

    assert {(name, address) for name, address in told.listening if not is_loopback(address)} == set()


def test_a_listener_on_all_addresses_is_seen() -> None:
    with socket.create_server(("", 0)), socket.create_server(("::1", 0), family=socket.AF_INET6):
        found = {address for _, address in listening({os.getpid(): "self"})}
    assert {"0.0.0.0", "::1"} <= found
