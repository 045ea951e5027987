"""What a doctor looks at: the machine (versions, cores, memory, disk, GPUs; imports none of them), and a run folder.

Can a run folder live there: write access, locks, atomic renames, and a clock that agrees.
"""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.ray_folder import MAX_BASE_BYTES, NoFolder, base

PACKAGES = ("wa-sweeps", "torch", "ray", "wandb", "numpy", "pandas", "pyarrow", "pydantic", "altair")
MIN_MEMORY = 2 << 30  # Ray itself about 1 GiB, a trial's process about 0.5 GiB before its model
MIN_DISK = 2 << 30
MIN_SHM = 100 << 20  # the object store that `wa run` asks Ray for
MAX_SKEW_S = 2.0
# One place for all nodes. Anything else is one machine's own disk.
SHARED = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "fuse.glusterfs"})


@dataclass(frozen=True)
class Check:
    """One finding: `ok` True good, False to be mended by `remedy`, None a fact that is neither."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


def place() -> list[Check]:
    """Every check of the machine itself."""
    return [python(), packages(), cores(), memory(), disk(), shared_memory(), temp_path(), gpus()]


def python() -> Check:
    machine = f"{platform.system()} {platform.machine()}"
    return Check("python", True, f"{platform.python_version()} at {sys.executable}, {machine}")


def packages(names: tuple[str, ...] = PACKAGES) -> Check:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(found + [f"{name} missing" for name in missing])
    return Check("packages", not missing, detail, f"pip install {' '.join(missing)}" if missing else "")


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(cgroup / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max" and int(quota[0]) / int(quota[1]) < seen:
        detail = f"{seen} seen, {int(quota[0]) / int(quota[1]):g} allowed by the container"
        return Check("cores", None, detail, "start Ray with that many CPUs")
    return Check("cores", None, f"{seen}")


def memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Bytes a new process may have: what the machine has available, or what the container's limit leaves."""
    lines = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return Check("memory", None, "unknown on this system")
    free = int(lines["MemAvailable"].split()[0]) << 10
    limit, used = _read(cgroup / "memory.max").strip(), _read(cgroup / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return _enough("memory", free, MIN_MEMORY, "available", "free some; Ray and one trial need that much")


def total_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that this machine, or the container's limit, has in all; None where nobody says."""
    lines = dict(line.split(":", 1) for line in _read(meminfo).splitlines() if ":" in line)
    if "MemTotal" not in lines:
        return None
    total, limit = int(lines["MemTotal"].split()[0]) << 10, _read(cgroup / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def gpu_bytes() -> list[int]:
    """Bytes of memory of each GPU that nvidia-smi sees."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [int(line) << 20 for line in done.stdout.split() if line.isdigit()] if done.returncode == 0 else []


def disk() -> Check:
    try:
        folder = base()
    except NoFolder:
        folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    return _enough("disk", free, MIN_DISK, f"free in {folder}", "free some, or point TMPDIR elsewhere")


def shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    if not folder.is_dir():
        return Check("shared memory", None, f"no {folder}; Ray's object store uses the disk")
    remedy = "start the container with --shm-size=1g (Kubernetes: an emptyDir with medium Memory)"
    return _enough("shared memory", shutil.disk_usage(folder).free, MIN_SHM, f"free in {folder}", remedy)


def temp_path() -> Check:
    """Where `wa run` lets Ray keep its sockets, whose paths the kernel bounds."""
    asked = tempfile.gettempdir()
    length = f"{asked}, {len(os.fsencode(asked))} bytes long"
    try:
        chosen = base()
    except NoFolder as error:
        return Check("temp path", False, length, str(error))
    moved = "" if str(chosen) == asked else f": more than the {MAX_BASE_BYTES} of Ray's sockets, so {chosen}"
    return Check("temp path", True, length + moved)


def gpus() -> Check:
    """As the driver sees them, without torch: nvidia-smi's names, memory and driver version."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpus", None, "none seen (no nvidia-smi)")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    remedy = "run nvidia-smi by hand; the driver does not answer"
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gpus", False, f"nvidia-smi: {type(error).__name__}", remedy)
    if done.returncode:
        return Check("gpus", False, " ".join((done.stdout + done.stderr).split())[:200], remedy)
    rows = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    masked = os.environ.get("CUDA_VISIBLE_DEVICES")
    suffix = "" if masked is None else f" (CUDA_VISIBLE_DEVICES={masked!r})"
    return Check("gpus", None, f"{len(rows)}: {'; '.join(rows)}{suffix}")


def _enough(name: str, have: int, need: int, where: str, remedy: str) -> Check:
    ok = have >= need
    detail = f"{have / 2**30:.1f} GiB {where}"
    return Check(name, ok, detail, "" if ok else f"{remedy} ({need / 2**30:.1f} GiB)")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def folder_checks(run: Path) -> list[Check]:
    """Try, in a folder of its own that is removed afterwards, what `wa run` will do in `run`."""
    parent = run.absolute()
    while not parent.exists():
        parent = parent.parent
    kind = file_system(parent)
    seen = "a network file system" if kind in SHARED else "this machine's own, as far as the type tells"
    where = f"{parent} ({kind}: {seen})"
    try:
        probe = Path(tempfile.mkdtemp(prefix=".wa-doctor-", dir=parent))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return [Check("run folder", False, f"{where}: {reason}", "choose a folder this user may write")]
    try:
        free = shutil.disk_usage(probe).free / 2**30
        return [
            Check("run folder", True, f"writable, {free:.1f} GiB free: {where}"),
            _try("locks", _locks, probe),
            _try("rename", _rename, probe),
            _try("clock", _clock, probe),
        ]
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Type of the file system that holds `folder`, as the kernel names it; `unknown` elsewhere."""
    best, kind = -1, "unknown"
    for line in _read(mounts).splitlines():
        _, point, this = line.split()[:3]
        point = point.replace("\\040", " ")
        if folder.resolve().is_relative_to(point) and len(point) >= best:  # a later mount covers an earlier
            best, kind = len(point), this
    return kind


def _try(name: str, check: Callable[[Path], Check], probe: Path) -> Check:
    try:
        return check(probe)
    except OSError as error:
        reason = f"{error.strerror or type(error).__name__} (errno {error.errno})"
        return Check(name, False, reason, "use a file system with POSIX locks and renames")


def _locks(probe: Path) -> Check:
    """Two open files, one lock: the second must be refused, or two drivers could write one folder."""
    path = probe / "lock"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Check("locks", True, "flock holds a second writer off")
    remedy = "mount with locks (Lustre: -o flock; NFS: version 4), or use another file system"
    return Check("locks", False, "flock lets a second writer in", remedy)


def _rename(probe: Path) -> Check:
    """A reader that holds the old file goes on reading it; a new reader sees the new one whole."""
    old, new = probe / "state", probe / "state.new"
    old.write_bytes(b"old" * 1000)
    with old.open("rb") as reader:
        with new.open("wb") as file:
            file.write(b"new" * 1000)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, old)
        held = reader.read()
    ok = held == b"old" * 1000 and old.read_bytes() == b"new" * 1000 and not new.exists()
    detail = "replaces a file at once, also under a reader" if ok else "does not replace a file whole"
    return Check("rename", ok, detail, "" if ok else "use a POSIX file system, not a bucket mounted as one")


def _clock(probe: Path) -> Check:
    """Seconds between this machine's clock and the file system's own stamp."""
    before = time.time()
    path = probe / "clock"
    path.write_bytes(b"x")
    stamp = path.stat().st_mtime
    skew = max(0.0, before - stamp, stamp - time.time())
    ok = skew <= MAX_SKEW_S
    detail = f"{skew:.1f} s from the file system's; {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(before))}"
    return Check("clock", ok, detail, "" if ok else "run NTP on this machine: records carry its times")
