"""Ray nodes on one machine that share nothing but a network, as those of a cluster do.

Each has mount, network, process, IPC and UTS namespaces of its own: its /tmp is a folder of its own, processes of
others are not there, and its only way to the others is a cable to a bridge, which can be pulled. One more process
namespace is around them all; its init reads a pipe of this process, so that the kernel ends everything in it when this
process ends, however it ends.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tiny_workload import write_tiny

REPO = Path(__file__).resolve().parent.parent.parent
NETWORK = "10.77.0"
SERVER = f"{NETWORK}.254"  # on the bridge: of what is no node
PORT = 6379
STARTED = "Ray runtime started"  # as `ray start` says it
OWN = ("--mount", "--net", "--pid", "--ipc", "--uts")
UNSHARE = ("unshare", *OWN, "--fork", "--mount-proc", "--kill-child")
# How long Ray waits for a node that does not answer: 4 questions, 1 s apart, 5 s each; its own are 5, 3 and 10.
RAY_PATIENCE = {"period_ms": "1000", "timeout_ms": "5000", "failure_threshold": "4", "initial_delay_ms": "5000"}
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", ""),
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": "/tmp/code",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "100",  # as often a node asks for a head that is on its way
    "AWS_EC2_METADATA_DISABLED": "true",
    **{f"RAY_health_check_{name}": value for name, value in RAY_PATIENCE.items()},
}


def why_not() -> str | None:
    """Why this machine cannot have such nodes; None where it can."""
    if missing := [name for name in ("ip", "unshare", "nsenter", "bash") if shutil.which(name) is None]:
        return f"no {', '.join(missing)} on the path"
    tried = subprocess.run([*UNSHARE, "ip", "link", "add", "br0", "type", "bridge"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces here ({tried.stderr.strip()[:100]})"


def wait_for(what: str, condition: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.05)


def processes(namespace: str) -> dict[int, str]:
    """Those in a process namespace and not ended: process id, as it is here -> command line."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(entry / "ns/pid") == namespace and (line := (entry / "cmdline").read_bytes()):
                found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def inner(pid: int) -> int:
    """A process's id in its own namespace."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


class _Namespaces:
    """What runs in some namespaces, from a first process on that lives as long as its pipe does."""

    def __init__(self, command: Sequence[str], setup: str) -> None:
        script = f"{setup}\nreadlink /proc/self/ns/pid\nread -r _"  # bash takes in the dead, as an init has to
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._held = subprocess.Popen([*command, "bash", "-ec", script], text=True, **pipes)  # type: ignore[call-overload]
        self.namespace = str(self._held.stdout.readline().strip())
        if not self.namespace:
            raise OSError(f"no namespaces: {' '.join(command)}")
        self.init = next(pid for pid in processes(self.namespace) if inner(pid) == 1)

    @property
    def processes(self) -> dict[int, str]:
        return processes(self.namespace)

    def within(self, *command: str, only: Sequence[str] = OWN) -> list[str]:
        """The command, as one that runs inside."""
        return ["nsenter", "--target", str(self.init), *only, "--", *command]

    def listens(self, port: int) -> bool:
        """Whether a process inside takes connections there."""
        tables = [Path(f"/proc/{self.init}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        return any(f":{port:04X} " in line and " 0A " in line for table in tables for line in table.splitlines())

    def ip(self, arguments: str) -> None:
        subprocess.run(self.within("ip", *arguments.split(), only=["--net"]), check=True, timeout=20)

    def end(self) -> None:
        """The end of every process inside, at once."""
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._held.communicate(timeout=30)


class Node(_Namespaces):
    """A machine of the cluster. folder: its /tmp, as it is here; all that it writes lies there."""

    def __init__(self, cluster: IsolatedNodes, name: str, cpus: int, disk: str | None = None) -> None:
        """disk: its size, where it is not as large as this machine's; then it is gone with the node."""
        self.cluster, self.name, self.cpus, number = cluster, name, cpus, next(cluster.numbers)
        self.address, self.cable = f"{NETWORK}.{1 if name == 'head' else 1 + number}", f"cable{number}"
        self.environment: dict[str, str] = {}
        self.folder = cluster.base / name
        self.folder.mkdir(exist_ok=True)
        installed = map(Path, (REPO, sys.prefix, sys.base_prefix))
        seen = {f"/mnt/{one}": cluster.base / one for one in cluster.shared}
        seen |= {f"/mnt/{one.relative_to('/tmp')}": one for one in installed if one.is_relative_to("/tmp")}
        own = f"mount --bind '{self.folder}' /mnt" if disk is None else f"mount -t tmpfs -o size={disk} none /mnt"
        mounts = ["mount --make-rprivate /", own]
        for there, here in seen.items():
            mounts += [f"mkdir -p '{there}'", f"mount --bind '{here}' '{there}'"]
        mounts += ["mount --rbind /mnt /tmp", "mount -t tmpfs none /mnt", "mount -t tmpfs none /dev/shm"]
        mounts += [f"echo {name} > /proc/sys/kernel/hostname", "ip link set lo up"]
        super().__init__(cluster.around.within(*UNSHARE), "\n".join(mounts))
        if disk is not None:
            self.folder = self.inside("/tmp")
        (self.folder / "code").mkdir(exist_ok=True)
        write_tiny(self.folder / "code")  # every node has its own copy of the user's code
        cluster.around.ip(f"link add {self.cable} type veth peer name eth0 netns {self.init}")
        cluster.around.ip(f"link set {self.cable} master br0 up")
        self.ip(f"addr add {self.address}/24 dev eth0")
        self.ip("link set eth0 up")

    def inside(self, path: str) -> Path:
        """What the node has there, as it is here for as long as the node is."""
        return Path(f"/proc/{self.init}/root{path}")

    def popen(self, *command: str, log: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command on the node. log: a file in the node's folder, which takes what it prints."""
        told = [f"{k}={v}" for k, v in {**ENVIRONMENT, **self.cluster.environment, **environment}.items()]
        return self.cluster.popen(self.within("env", "-i", "-C", "/tmp", *told, *command), self.folder / log)

    def start_ray(self) -> None:
        (self.folder / "ray.log").unlink(missing_ok=True)
        where = ["--head", f"--port={PORT}"] if self.name == "head" else [f"--address={NETWORK}.1:{PORT}"]
        options = ["--include-dashboard=false"] if self.name == "head" else []
        options += [f"--node-ip-address={self.address}", f"--num-cpus={self.cpus}", "--object-store-memory=100000000"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *where, *options, "--disable-usage-stats"]
        # Ray gives a start 30 s, which a busy machine may not keep.
        again = f"until grep -q '{STARTED}' ray.log; do {shlex.join([*command, '--block'])}; done"
        self.popen("bash", "-c", again, log="ray.log", **self.environment)

    def has_ray(self) -> bool:
        log = self.folder / "ray.log"
        return log.exists() and STARTED in log.read_text()

    def find(self, *words: str) -> list[int]:
        """Its processes whose command line has all of the words."""
        return [pid for pid, line in self.processes.items() if all(word in line for word in words)]

    def pull(self) -> None:
        """Its cable out of the bridge."""
        self.cluster.around.ip(f"link set {self.cable} down")

    def plug(self) -> None:
        self.cluster.around.ip(f"link set {self.cable} up")


class IsolatedNodes:
    """A head, which no trial runs on, and nodes that join it. shared: folders of `base` that all have in /tmp."""

    def __init__(self, base: Path, environment: Mapping[str, str] = {}, shared: Sequence[str] = ()) -> None:
        self.base, self.environment, self.shared = base, dict(environment), shared
        for one in shared:
            (base / one).mkdir(parents=True, exist_ok=True)
        # An address of its own: else that of a cable's end, and another one when that goes.
        made = "ip link add br0 address 02:00:00:00:00:fe type bridge"
        bridge = f"ip link set lo up; {made}; ip addr add {SERVER}/24 dev br0; ip link set br0 up"
        self.around = _Namespaces(UNSHARE, bridge)
        self.nodes: dict[str, Node] = {}
        self.numbers, self._started = itertools.count(1), list[subprocess.Popen[bytes]]()

    def popen(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with open(log, "ab") as file:
            self._started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file))
        return self._started[-1]

    def add(self, name: str, cpus: int = 1, disk: str | None = None) -> Node:
        """A node more."""
        self.nodes[name] = Node(self, name, cpus, disk)
        return self.nodes[name]

    def join(self, name: str, disk: str | None = None) -> Node:
        """A node more, with Ray."""
        node = self.add(name, disk=disk)
        node.start_ray()
        wait_for(f"Ray on {name}", node.has_ray)
        return node

    def start(self, **cpus: int) -> Self:
        """A head and such nodes, with Ray; returns when all have it."""
        self.add("head", 0).start_ray()
        for name, count in cpus.items():
            self.add(name, count)
        wait_for("the head's Ray", lambda: self.nodes["head"].listens(PORT))
        for name in cpus:
            self.nodes[name].start_ray()
        for node in self.nodes.values():
            wait_for(f"Ray on {node.name}", node.has_ray)
        return self

    def lose(self, name: str) -> None:
        """A node and all of its processes at once, and its network with them."""
        self.nodes.pop(name).end()

    def close(self) -> None:
        self.around.end()
        for process in self._started:
            process.wait(30)
        for node in list(self.nodes.values()):
            node.end()


@contextmanager
def isolated_nodes(
    base: Path, environment: Mapping[str, str] = {}, shared: Sequence[str] = ()
) -> Iterator[IsolatedNodes]:
    cluster = IsolatedNodes(base, environment, shared)
    try:
        yield cluster
    finally:
        cluster.close()
