"""A Ray to run on: started on this machine or joined, asked whether it still lives, and ended with all it started."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

# Read when ray is imported: our own progress and records stand in for what these switch off.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ["TUNE_RESULT_BUFFER_LENGTH"] = "1"  # a trial goes on when what it told is on disk, and not before
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # of all trials, for a restore, which is never asked for
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a question to a Ray that has ended starts no other
# Ray ends a driver without a word once its GCS has been away so long; we say a word, and sooner.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")

import click
import ray
from ray.job_config import JobConfig

from cluster.errors import first_line
from cluster.ray_folder import ray_folder
from sweeps.ray_log import hushed

KNOCK_SECONDS = 10.0
JOIN_SECONDS = 60.0  # for a port that is open to say that it is Ray's
PULSE_SECONDS = 2.0
SILENT_SECONDS = 45.0  # without an answer, Ray is gone; a busy machine answers within a few
NO_ROOM_SECONDS = 300.0  # without a node that could hold a trial; a lost one may be replaced
CLOSE_SECONDS = 30.0
STARTS = 2  # of a local Ray: on a busy machine the first may run out of its time
OBJECT_STORE_BYTES = 100 << 20  # records go through the file system; Ray's store stays small
MARK = "WA_RAY_FOLDER"  # in the environment of all that a local Ray starts
QUIET = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}


class _OwnSearchPath(JobConfig):  # type: ignore[misc]
    """Workers search what an installation of theirs searches.

    Ray would put the driver's current folder and its script's before everything else there, Python's own modules
    and Ray's included. The trainable appends the user's folders instead.
    """

    def _serialize(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._serialize()


class NoRoom(click.ClickException, ValueError):
    """The machine or cluster cannot hold a single trial, does not start, or does not answer."""

    exit_code = 2


@dataclass
class Engine:
    """A Ray to run on and how many trials fit at once."""

    slots: int
    cpu: float
    gpu: float
    processes: int = 1
    where: str = "this machine"
    pulse: Pulse | None = None
    abandoned: bool = False  # Ray has died, or was left at once: no orderly end is waited for

    def died(self) -> str | None:
        """What has become of Ray, in words; None while it is well. To be asked a few times a second."""
        return None if self.pulse is None else self.pulse.verdict(self.where)

    def answers(self) -> bool:
        """Whether Ray answers a question in time."""
        answered = threading.Event()

        def ask() -> None:
            with suppress(Exception):
                ray.nodes()
                answered.set()

        return _within(KNOCK_SECONDS, ask) and answered.is_set()


@dataclass
class Pulse:
    """Asks Ray for its nodes again and again, in a thread of its own: a question to a dead Ray may hang for ever."""

    ask: Callable[[], bool]  # whether a node could hold a trial; raises or hangs where Ray does not answer
    processes: Mapping[str, Any] = field(default_factory=dict)  # name -> Popen: without these, Ray is dead
    answers: int = 0
    room: bool = True
    silent_seconds: float = 0.0
    full_seconds: float = 0.0
    _seen: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._looked = time.monotonic()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="ray-pulse").start()

    def stop(self) -> None:
        self._stop.set()

    def verdict(self, where: str) -> str | None:
        for name, process in self.processes.items():
            if (code := process.poll()) is not None:
                return f"Ray on {where} died ({name} {_ended(code)})"
        # Long gaps between looks are this process's own: it was stopped, or the machine slept.
        now = time.monotonic()
        passed, self._looked = min(1.0, now - self._looked), now
        self.silent_seconds = 0.0 if self.answers != self._seen else self.silent_seconds + passed
        self.full_seconds = 0.0 if self.room else self.full_seconds + passed
        self._seen = self.answers
        if self.silent_seconds > SILENT_SECONDS:
            return f"Ray on {where} has not answered for {SILENT_SECONDS:.0f} s; its head or this node is gone"
        if self.full_seconds > NO_ROOM_SECONDS:
            return f"no node of Ray on {where} has had room for a trial for {NO_ROOM_SECONDS:.0f} s"
        return None

    def _run(self) -> None:
        while not self._stop.wait(PULSE_SECONDS):
            with suppress(Exception):  # whatever Ray raises, it is no answer
                self.room = self.ask()
                self.answers += 1


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextmanager
def engine(cpu: float, gpu: float, processes: int = 1, address: str | None = None) -> Iterator[Engine]:
    """Start a local Ray, or join the one at `address`; end what was started, whatever happens.

    Raises: NoRoom when not even one trial fits, Ray does not start, or nothing answers at `address`.
    """
    with _local() if address is None else _joined(address) as started:
        nodes = ray.nodes()
        slots = _total_slots(nodes, cpu, gpu)
        if slots == 0:
            raise NoRoom(_too_small(nodes, cpu, gpu))
        pulse = Pulse(lambda: _total_slots(ray.nodes(), cpu, gpu) > 0, started)
        made = Engine(slots, cpu, gpu, processes, address or "this machine", pulse)
        pulse.start()
        try:
            yield made
        finally:
            pulse.stop()
            if made.abandoned:
                for process in started.values():  # without them Ray's own end is quick
                    process.kill()
            if not _within(CLOSE_SECONDS, ray.shutdown):
                atexit.register(_leave, int(made.abandoned))


@contextmanager
def _local() -> Iterator[Mapping[str, Any]]:
    """A Ray on this machine; the processes without which it is dead."""
    with ray_folder() as folder:
        try:
            yield _start(folder)
        finally:
            end_leftovers(folder)


def _start(folder: Path) -> Mapping[str, Any]:
    for attempt in range(1, STARTS + 1):
        os.environ[MARK] = str(folder)
        try:
            ray.init(
                address="local",  # whatever RAY_ADDRESS says: without --address it is this machine
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
                job_config=_OwnSearchPath(),
                **QUIET,
            )
            break
        except SystemExit:  # Ray's own answer to SIGTERM while it starts
            raise KeyboardInterrupt from None
        except Exception as error:  # Ray's own, gRPC's and the system's, by where it was when time ran out
            _within(CLOSE_SECONDS, ray.shutdown)
            end_leftovers(folder)
            if attempt == STARTS:
                raise NoRoom(
                    f"Ray does not start on this machine ({first_line(error)}); `wa doctor --start-ray` tries it alone"
                ) from None
            time.sleep(1.0)
        finally:
            os.environ.pop(MARK, None)
    node = ray._private.worker._global_node
    return {name: node.all_processes[name][0].process for name in ("gcs_server", "raylet")}


@contextmanager
def _joined(address: str) -> Iterator[Mapping[str, Any]]:
    try:
        _knock(address)
        # A client's folder does not travel.
        own = None if address.startswith("ray://") else _OwnSearchPath()
        with _alarm(JOIN_SECONDS), hushed():
            ray.init(address=address, job_config=own, **QUIET)
    except (OSError, RuntimeError, ValueError, _Late) as error:
        said = f"within {JOIN_SECONDS:.0f} s" if isinstance(error, _Late) else first_line(error)
        hint = "is it up, and do RAY_AUTH_MODE and the token match its own?"
        raise NoRoom(f"--address: no Ray answers at {address} ({said}); {hint} (docs/cluster.md)") from None
    except SystemExit:
        raise KeyboardInterrupt from None
    yield {}


class _Late(BaseException):
    """Nothing that Ray's own retries would take for a failed try."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End a block that takes longer, by _Late; in the main thread, which alone hears signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _knock(address: str) -> None:
    """Fail within seconds where no one listens; ray.init would try for minutes. Raises: OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


def _total_slots(nodes: list[dict[str, Any]], cpu: float, gpu: float) -> int:
    return sum(_slots(node["Resources"], cpu, gpu) for node in nodes if node["Alive"])


def _slots(resources: Mapping[str, float], cpu: float, gpu: float) -> int:
    by_cpu = int(resources.get("CPU", 0) / cpu + 1e-9)
    if not gpu:
        return by_cpu
    gpus = int(resources.get("GPU", 0))
    # a fraction spans no two GPUs
    return min(by_cpu, gpus // int(gpu) if gpu >= 1 else gpus * int(1 / gpu + 1e-9))


def _too_small(nodes: list[dict[str, Any]], cpu: float, gpu: float) -> str:
    have = [node["Resources"] for node in nodes if node["Alive"]]
    each = sorted({(one.get("GPU", 0), one.get("CPU", 0)) for one in have}, reverse=True)
    shown = " or ".join(f"{cpus:g} CPU and {gpus:g} GPU" for gpus, cpus in each[:3]) or "none"
    return (
        f"a trial needs {cpu:g} CPU and {gpu:g} GPU; a node here has {shown}: ask for less, "
        f"as in --set resources='{{cpu: 1, gpu: 0}}'"
    )


def end_leftovers(folder: Path) -> None:
    """Kill what a local Ray and its trials started and left: all that was told of `folder`, or holds a file in it."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while (left := processes_of(folder)) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """Process ids, this one apart, that carry `folder` in their environment or have a file open below it."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            is_left = mark in (entry / "environ").read_bytes().split(b"\0") or _holds(entry / "fd", folder)
            if is_left and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def _holds(descriptors: Path, folder: Path) -> bool:
    for link in descriptors.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(link).startswith(f"{folder}/"):
                return True
    return False


def _within(seconds: float, work: Callable[[], object]) -> bool:
    """Do `work` in a thread; whether it ended in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _leave(code: int) -> None:
    """End this process where Ray's own exit would wait for what has died."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
