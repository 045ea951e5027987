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

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig

from cluster.errors import first_line
from cluster.nodes import alive
from cluster.ray_folder import ray_folder
from sweeps.ray_log import hushed
from sweeps.resources import ResourcesBlock
from sweeps.roll import Look, NoRoom, Roll, at_once, nodes_with_room, too_small, usable
from sweeps.where import HERE, WAIT_SECONDS, Cluster

KNOCK_SECONDS = 10.0
JOIN_SECONDS = 60.0  # for a port that is open to say that it is Ray's
PULSE_SECONDS = 2.0
PENDING = 64
SILENT_SECONDS = 45.0  # without an answer, Ray is gone; a busy machine answers within a few
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


@dataclass
class Engine:
    """A Ray to run on, what each trial holds of it, and how many fit at once.

    avoid: ids of nodes that no trial is to be placed on; it grows while the run goes on.
    """

    needs: Mapping[str, ResourcesBlock] = field(default_factory=dict)  # trajectory -> what its trial holds
    slots: int = 1
    where: str = "this machine"
    pulse: Pulse | None = None
    avoid: list[str] = field(default_factory=list)
    abandoned: bool = False  # Ray has died, or was left at once: no orderly end is waited for

    @property
    def pending(self) -> int:
        """How many trials may wait for their place: an autoscaler sees these, and trials of one kind hold up none of
        another; more than there is room for costs Tune time.
        """
        return min(len(self.needs), max(self.slots, PENDING))

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
    wait_seconds: float = WAIT_SECONDS  # without room for a trial; a lost node may be replaced
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
        if self.full_seconds > self.wait_seconds:
            return f"no node of Ray on {where} has had room for a trial for {self.wait_seconds / 60:g} min (--wait)"
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
def engine(
    needs: Mapping[str, ResourcesBlock],
    cluster: Cluster = HERE,
    look: Look = lambda nodes: {},
    say: Callable[[str], None] = print,
) -> Iterator[Engine]:
    """Start a local Ray, or join the one at the cluster's address; end what was started, whatever happens.

    needs: trajectory -> what its trial holds. look: asks nodes of a cluster what they lack, before the start and when
    they join. say: tells what is waited for, and which node is left out.
    Raises: NoRoom when a trial fits no node, Ray does not start, nothing answers at the address, or a node lacks
    something and none is to be left out.
    """
    with _local() if cluster.address is None else joined(cluster.address) as started:
        made, kinds = Engine(needs, where=cluster.address or "this machine"), set(needs.values())
        pulse = made.pulse = Pulse(lambda: False, started, wait_seconds=cluster.wait_seconds)
        try:
            nodes = nodes_with_room(kinds, cluster, say)
            roll = Roll(look, made.avoid, say)
            if cluster.address is not None:
                roll.call(usable(nodes, kinds), refuse=cluster.bad_nodes == "refuse")
                nodes = [node for node in alive() if node.id not in made.avoid]
            if lacking := [kind for kind in kinds if not at_once(nodes, kind)]:
                raise NoRoom(too_small(nodes, lacking[0]))
            made.slots = sum(at_once(nodes, kind) for kind in kinds)

            def room() -> bool:
                there = alive()
                if cluster.address is not None:
                    roll.call_beside(usable(there, kinds))
                good = [node for node in there if node.id not in made.avoid]
                return all(at_once(good, kind) for kind in kinds)

            pulse.ask = room
            pulse.start()
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
    clusters = ray_constants.ENABLE_RAY_CLUSTER
    for attempt in range(1, STARTS + 1):
        os.environ[MARK] = str(folder)
        # Where Ray holds that no clusters are to be had, it listens on 127.0.0.1 alone; `_node_ip_address` does not.
        ray_constants.ENABLE_RAY_CLUSTER = False
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
            ray_constants.ENABLE_RAY_CLUSTER = clusters
    node = ray._private.worker._global_node
    return {name: node.all_processes[name][0].process for name in ("gcs_server", "raylet")}


@contextmanager
def joined(address: str) -> Iterator[Mapping[str, Any]]:
    try:
        _knock(address)
        with _alarm(JOIN_SECONDS), hushed():
            ray.init(address=address, job_config=_OwnSearchPath(), **QUIET)
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
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_SECONDS).close()


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
