"""The doctor's findings against places that are really sound, and really not."""

import os
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster import doctor, place
from cluster.doctor import examine, render
from cluster.place import Check


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_this_place_is_examined_and_left_as_it_was(tmp_path: Path) -> None:
    checks = by_name(examine(tmp_path / "runs" / "new"))
    for name in ("python", "packages", "run folder", "locks", "rename", "clock"):
        assert checks[name].ok is True, checks[name]
    assert "cluster" not in checks
    assert "ray starts" not in checks
    assert list(tmp_path.iterdir()) == []


def test_every_bad_check_has_a_remedy_below_it() -> None:
    text = render([Check("a", True, "fine"), Check("longer", False, "broken", "mend it"), Check("c", None, "so")])
    assert text.splitlines() == ["ok  a       fine", "BAD longer  broken", "            → mend it", "-   c       so"]


def test_packages_names_the_missing() -> None:
    check = place.packages(("ray", "no-such-package-at-all"))
    assert check.ok is False
    assert "no-such-package-at-all missing" in check.detail
    assert check.remedy == "pip install no-such-package-at-all"


def test_memory_is_the_lesser_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {8 << 20} kB\n")
    assert place.memory(tmp_path / "meminfo", tmp_path).ok is True
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{2 << 30}\n")
    check = place.memory(tmp_path / "meminfo", tmp_path)
    assert check.ok is False
    assert check.detail.startswith("1.0 GiB")
    (tmp_path / "memory.max").write_text("max\n")
    assert place.memory(tmp_path / "meminfo", tmp_path).detail.startswith("8.0 GiB")


def test_cores_tells_a_container_quota(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert "0.5 allowed" in place.cores(tmp_path).detail
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert "allowed" not in place.cores(tmp_path).detail


def test_a_long_temporary_path_has_a_short_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert place.temp_path().ok is True
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 60)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    check = place.temp_path()
    assert check.ok is True
    assert check.detail.endswith("so /tmp")
    monkeypatch.setattr("os.access", lambda *_: False)  # nowhere else may be written
    check = place.temp_path()
    assert check.ok is False
    assert "set TMPDIR" in check.remedy


@pytest.mark.parametrize(
    ("there", "ok"), [("2.7.0", True), ("2.7.9", True), ("2.8.1", None), ("3.7.1", None), ("2.70.1", None)]
)
def test_releases_of_one_minor_version_of_ray_go_together(
    monkeypatch: pytest.MonkeyPatch, there: str, ok: bool | None
) -> None:
    monkeypatch.setattr("cluster.submit.connect", lambda _: SimpleNamespace(_server_ray_version=there))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "2.7.1")
    check = doctor.reachable("http://head:8265")
    assert check.ok is ok
    assert there in check.detail
    assert (check.remedy == "use one version everywhere") == (ok is None)


@pytest.mark.parametrize(
    ("script", "ok", "expected"),
    [
        ("echo 'NVIDIA A, 81559 MiB, 560.1'; echo 'NVIDIA B, 1 MiB, 560.1'", None, "2: NVIDIA A, 81559 MiB, 560.1; "),
        ("echo cannot talk to the driver; exit 9", False, "cannot talk"),
    ],
)
def test_gpus_as_nvidia_smi_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, ok: bool | None, expected: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    check = place.gpus()
    assert check.ok is ok
    assert expected in check.detail


def test_wandb_tells_that_there_is_a_key_and_never_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    assert doctor.wandb().ok is None
    assert doctor.wandb().detail.endswith("key: no")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert doctor.wandb().ok is False
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password topsecret\n")
    check = doctor.wandb()
    assert check.ok is None
    assert check.detail.endswith("key: yes")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert doctor.wandb().detail.endswith("key: no")
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    assert doctor.wandb().detail.endswith("key: yes")
    assert "topsecret" not in render([check, doctor.wandb()])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checks = place.folder_checks(Path("/proc/wa-doctor"))  # also root cannot write there
    assert [check.ok for check in checks] == [False]
    assert place.folder_checks(tmp_path / "file" / "run")[0].ok is False


def test_locks_that_do_not_hold_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)  # a mount whose flock does nothing cannot be made here
    assert by_name(place.folder_checks(tmp_path))["locks"].ok is False

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    check = by_name(place.folder_checks(tmp_path))["locks"]
    assert check.ok is False
    assert "errno 38" in check.detail


def test_a_clock_ahead_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 60)
    assert by_name(place.folder_checks(tmp_path))["clock"].ok is False


def test_file_system_is_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} nfs4 rw 0 0\nc {tmp_path}x tmpfs rw 0 0\n")
    assert place.file_system(tmp_path / "runs", mounts) == "nfs4"
    assert place.file_system(Path("/usr"), mounts) == "ext4"
    assert place.file_system(Path("/usr"), tmp_path / "absent") == "unknown"


def test_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert doctor.reachable(f"127.0.0.1:{port}").ok is True
        assert doctor.reachable(f"ray://127.0.0.1:{port}").ok is True
    assert doctor.reachable(f"127.0.0.1:{port}").ok is False
    assert doctor.reachable(f"http://127.0.0.1:{port}").ok is False
    assert doctor.reachable("nonsense").ok is False
    assert doctor.reachable("auto").ok is None


@pytest.mark.slow
def test_ray_starts_here_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # what Ray's sockets fit into, and nobody else's runs
        monkeypatch.setattr(tempfile, "tempdir", short)
        check = doctor.ray_starts()
        assert check.ok is True, check
        assert doctor.ray_starts(timeout_s=0.5).ok is False
        assert os.listdir(short) == []
