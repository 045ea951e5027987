"""Slots of a cluster, what a dead Ray looks like, and what an end must find and kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_processes import wait

from cluster import nodes
from sweeps import engine as engines
from sweeps.engine import Engine, NoRoom, Pulse


@pytest.mark.parametrize(
    ("resources", "cpu", "gpu", "slots"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 2.0}, 0.5, 0, 4),
        ({"CPU": 2.0}, 4, 0, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 1, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.4, 4),  # 2 on each: a fraction never spans two GPUs
        ({"CPU": 3.0, "GPU": 2.0}, 1, 0.25, 3),  # the CPUs run out first
        ({"CPU": 8.0}, 1, 1, 0),
        ({"CPU": 96.0, "GPU": 8.0}, 8, 4, 2),  # several GPUs a trial
        ({"CPU": 96.0, "GPU": 7.0}, 8, 4, 1),
    ],
)
def test_slots_of_a_node(resources: dict[str, float], cpu: float, gpu: float, slots: int) -> None:
    assert nodes.slots(resources, cpu, gpu) == slots


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("sweeps.engine.time.monotonic", lambda: now[0])
    return now


def looks(engine: Engine, clock: list[float], seconds: float, answering: bool = False) -> str | None:
    """Look each half second; what is said at the end."""
    said = None
    for _ in range(int(2 * seconds)):
        clock[0] += 0.5
        assert engine.pulse is not None
        engine.pulse.answers += answering
        said = said or engine.died()
    return said


def test_a_ray_that_stops_answering_is_gone_and_one_that_answers_late_is_not(clock: list[float]) -> None:
    engine = Engine(where="head:6379", pulse=Pulse(lambda: True))
    assert looks(engine, clock, 3600, answering=True) is None
    assert looks(engine, clock, engines.SILENT_SECONDS - 1) is None
    assert looks(engine, clock, 1, answering=True) is None
    clock[0] += 7200.0  # this process was stopped for so long, and Ray with it
    assert looks(engine, clock, engines.SILENT_SECONDS - 2) is None
    assert "Ray on head:6379 has not answered" in str(looks(engine, clock, 10))


def test_a_cluster_without_room_is_waited_for_and_not_for_ever(clock: list[float]) -> None:
    engine = Engine(pulse=Pulse(lambda: True))
    assert engine.pulse is not None
    engine.pulse.room = False
    assert looks(engine, clock, engines.WAIT_SECONDS - 1, answering=True) is None
    assert "no node" in str(looks(engine, clock, 5, answering=True))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", "raylet killed by SIGSEGV"),
        ("raise SystemExit(3)", "raylet ended with exit code 3"),
    ],
)
def test_a_dead_process_of_ray_is_told_with_its_end(script: str, said: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", script])
    engine = Engine(pulse=Pulse(lambda: True, {"raylet": process}))
    wait(lambda: process.poll() is not None)
    assert said in str(engine.died())


def test_the_pulse_goes_on_asking_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PULSE_SECONDS", 0.001)
    answers: Iterator[bool | Exception] = iter([True, ConnectionError(), OSError()])

    def ask() -> bool:
        answer = next(answers, False)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pulse = Pulse(ask)
    pulse.start()
    wait(lambda: pulse.answers >= 3, seconds=5)
    pulse.stop()
    assert not pulse.room


def test_what_was_told_of_the_folder_or_holds_a_file_in_it_is_killed(tmp_path: Path) -> None:
    folder, beside = tmp_path / "r", tmp_path / "r2"
    for each in (folder, beside):
        each.mkdir()
        (each / "log").touch()
    sleep = "import sys, time; f = len(sys.argv) > 1 and open(sys.argv[1]); print(1, flush=True); time.sleep(60)"

    def start(where: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", sleep, *([where] if where else [])]
        process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    told = start("", **{engines.MARK: str(folder)})
    holds = start(str(folder / "log"))
    other = start(str(beside / "log"), **{engines.MARK: str(beside)})
    engines.end_leftovers(folder)
    assert told.wait(10) == holds.wait(10) == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    for process in (told, holds, other):
        process.communicate()


def test_ray_is_started_once_more_and_then_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def init(**options: object) -> None:
        asked.append(os.environ[engines.MARK])
        raise RuntimeError("The current node timed out during startup.\nmore")

    monkeypatch.setattr(engines.ray, "init", init)
    monkeypatch.setattr(engines.time, "sleep", lambda _: None)
    with pytest.raises(NoRoom, match="timed out during startup") as caught:
        engines._start(tmp_path)
    assert asked == [str(tmp_path)] * engines.STARTS
    assert "wa doctor --start-ray" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert engines.MARK not in os.environ


def test_a_port_that_never_says_it_is_ray_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def init(**options: object) -> None:
        os.write(2, b"C++ speaks\n")
        while True:
            try:
                threading.Event().wait(10)
            except Exception:  # as Ray's own retries do
                continue

    monkeypatch.setattr(engines.ray, "init", init)
    monkeypatch.setattr(engines, "JOIN_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(NoRoom, match="no Ray answers at") as caught, engines.joined(address):
            pass
    assert address in str(caught.value)
    assert "within" in str(caught.value)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert capfd.readouterr().err == ""
