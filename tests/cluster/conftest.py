"""A real Ray head of our own: free ports, a token, a short temporary folder; ended by its process group."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Head:
    gcs: str
    dashboard: str
    client: str
    env: dict[str, str]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below Ray's own worker range."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def ray_env() -> dict[str, str]:
    unset = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "WANDB_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process started in its own session, and every child it left in it."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _answers(url: str) -> bool:
    request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture(name="ray_env")
def _ray_env() -> dict[str, str]:
    return ray_env()


@pytest.fixture(name="free_ports")
def _free_ports() -> Callable[[int], list[int]]:
    return free_ports


@pytest.fixture(name="end_group")
def _end_group() -> Callable[["subprocess.Popen[bytes]"], None]:
    return end_group


@pytest.fixture(scope="module")  # one Ray at a time
def head() -> Iterator[Head]:
    gcs, dashboard, client, agent = free_ports(4)
    url = f"http://127.0.0.1:{dashboard}"
    with tempfile.TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:
        log = Path(folder, "head.log")
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
        command += [f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        command += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
        command += ["--min-worker-port=22000", "--max-worker-port=22500", "--num-cpus=2"]
        command += ["--object-store-memory=100000000", f"--temp-dir={folder}"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=ray_env(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 60
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"no Ray head:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield Head(f"127.0.0.1:{gcs}", url, f"ray://127.0.0.1:{client}", ray_env())
        finally:
            end_group(process)
