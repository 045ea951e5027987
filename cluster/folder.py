"""Can a run folder live there: write access, locks, atomic renames, and a clock that agrees."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cluster.place import Check

MAX_SKEW_S = 2.0
# One place for all nodes. Anything else is one machine's own disk.
SHARED = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "fuse.glusterfs"})


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
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "unknown"
    best, kind = -1, "unknown"
    for line in lines:
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
    import fcntl

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
