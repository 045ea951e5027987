"""Ray's temporary folder: private, short enough, and removed only where its maker is proved dead."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import ray_folder as folders
from cluster.ray_folder import MAX_BASE_BYTES, NoFolder, base, ray_folder, remove_abandoned

HOLDS = """
import sys, time
from cluster.ray_folder import ray_folder
with ray_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def short() -> Path:
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as folder:
        yield Path(folder)


def test_others_may_not_enter_whatever_ray_opens(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short))
    before = os.umask(0)
    try:
        with ray_folder() as folder:
            folder.chmod(0o777)  # as Ray does with the one it is given
            assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert list(short.iterdir()) == []


def test_sockets_fit_at_the_longest_base_and_not_beyond(short: Path) -> None:
    longest = short / ("x" * (MAX_BASE_BYTES - len(str(short)) - 1))
    path = str(longest) + folders.LONGEST
    Path(path).parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    assert folders.fits(longest)
    with socket.socket(socket.AF_UNIX) as server, pytest.raises(OSError, match="too long"):
        server.bind(path + "x")
    assert not folders.fits(Path(f"{longest}x"))


def test_where_the_folder_lies(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(short))
    assert base() == short
    monkeypatch.setattr("tempfile.tempdir", str(short / ("x" * 40)))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    assert base() == short
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "absent"))
    assert base() == Path("/tmp")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NoFolder, match=f"at most {MAX_BASE_BYTES} bytes") as caught:
        base()
    assert "\n" not in str(caught.value)


def test_a_killed_makers_folder_goes_and_nobody_elses(short: Path) -> None:
    command = [sys.executable, "-c", HOLDS]
    environment = os.environ | {"TMPDIR": str(short)}
    makers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, living = (Path(str(maker.stdout and maker.stdout.readline()).strip()).parent for maker in makers)
    makers[0].send_signal(signal.SIGKILL)
    makers[0].wait()
    elsewhere, silent, old = (short / f"{folders.PREFIX}{name}" for name in ("host", "silent", "123456-old"))
    for folder in (elsewhere, silent, old):
        folder.mkdir()
    (elsewhere / folders.OWNER).write_text("00000000-0000-0000-0000-000000000000")  # another machine's boot
    (silent / folders.OWNER).touch()  # made this moment, or where the kernel does not tell its boot
    remove_abandoned(short)
    assert {path.name for path in short.iterdir()} == {each.name for each in (living, elsewhere, silent, old)}
    makers[1].terminate()
    for maker in makers:
        maker.communicate()
    assert not killed.exists()
