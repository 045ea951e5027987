"""Files and locks that survive a kill and a power cut: whole, on disk when a call returns, one writer at a time.

Each step is a system call of its own, in the order that durability asks for: a file's content before its name, a
name before what it replaces elsewhere is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.run_folder.output import check_replaceable, named, temporary
from analysis.run_folder.run_files import digest, seal
from sweeps.blocks import SpecError

Buffer = bytes | memoryview
Write = Callable[[Buffer], None]
LOCK = ".lock"  # of a run folder, for who runs it
AT_ONCE = fcntl.LOCK_EX | fcntl.LOCK_NB
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_TEMPORARY = re.compile(r"\..+\.([0-9]+)\.new")


class NoLocks(OSError):
    """The file system has no locks, without which two writers could write one file."""


def write_atomic(path: Path, data: bytes | Callable[[Write], None]) -> None:
    """Put `data` at `path` so that a kill or a power cut leaves the old file or the new one, whole.

    data: bytes, or a function that writes them one after another. Raises: OSError, also where something other than a
    plain file is there.
    """
    check_replaceable(path)
    new = temporary(path)
    with named(path):
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        try:
            _claim(descriptor)
            if isinstance(data, bytes):
                _write_all(descriptor, data)
            else:
                data(partial(_write_all, descriptor))
            os.fsync(descriptor)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        _sync_folder(path.parent)


def write_table(path: Path, table: pa.Table, compression: str = "snappy") -> str:
    """Put a table at `path` as Parquet with checksums; returns the file's own. Raises: OSError."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression=compression, write_page_checksum=True)
    data = seal(buffer.getvalue().to_pybytes())
    write_atomic(path, data)
    return digest(data)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, on disk."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not path.is_dir():  # else another process made it meanwhile
            raise
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file that something on disk has taken the place of."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def open_log(path: Path) -> int:
    """Open a file for reading and appending; its name is on disk."""
    with named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        _sync_folder(path.parent)
    return descriptor


def append(descriptor: int, data: bytes, path: Path) -> None:
    """Append all of `data`, on disk when this returns, or nothing of it. Raises: OSError."""
    before = os.fstat(descriptor).st_size
    with named(path):
        try:
            _write_all(descriptor, data)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):  # half a line would stand before what is written next
                os.ftruncate(descriptor, before)
            raise


def cut(descriptor: int, size: int) -> None:
    """Cut what a kill tore off an open file's end."""
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)


def try_lock(descriptor: int, path: Path) -> bool:
    """Whether the lock of an open file is ours now. Raises: NoLocks."""
    try:
        fcntl.flock(descriptor, AT_ONCE)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise NoLocks(error.errno, "its file system has no locks", str(path)) from None
        raise
    return True


def wait_for_lock(path: Path) -> int:
    """Open a file and wait for its lock, which the process holds until it closes the descriptor or ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder; a second driver on it is bad input. Raises: SpecError, OSError.

    Temporary files below it whose writers have died are removed; those of living ones, here or elsewhere, stay.
    """
    make_folder(run)
    descriptor = open_log(run / LOCK)
    try:
        if not try_lock(descriptor, run):
            raise SpecError("--out", "another `wa run` is at work in this folder; wait for it or end it", str(run))
        for path in run.rglob(".*.new"):
            if path.is_file():
                _remove_if_abandoned(path)
        yield
    except NoLocks as error:
        remedy = "mount it with locks (Lustre: -o flock; NFS: version 4), or choose an --out elsewhere"
        raise SpecError("--out", f"{error.strerror}: two runs could write it; {remedy}", str(run)) from None
    finally:
        os.close(descriptor)


@contextmanager
def folder_for(goal: Path, kind: str) -> Iterator[Path]:
    """An empty folder beside `goal` that takes its place at the end, or is removed; those of dead writers go first.

    kind: of the writer, in the temporary name: what another of its kind left beside `goal` is its own to remove.
    Raises: OSError, also where a file or a folder with anything in it is at `goal`.
    """
    make_folder(goal.parent)
    for path in goal.parent.glob(f".{kind}.*.new"):
        if path.is_dir():
            _remove_if_abandoned(path)
    new = temporary(goal.with_name(kind))
    os.mkdir(new)
    descriptor = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _claim(descriptor)
        yield new
        with named(goal):
            os.replace(new, goal)
        _sync_folder(goal.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    """Remove a temporary file or folder of a process that is not here, where none elsewhere holds its lock."""
    told = _TEMPORARY.fullmatch(path.name)
    if told is None or path.is_symlink() or _is_alive(int(told[1])):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, AT_ONCE)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                os.unlink(path)
        finally:
            os.close(descriptor)


def _claim(descriptor: int) -> None:
    """Lock a temporary file or folder, which tells other hosts that its writer lives."""
    with suppress(OSError):
        fcntl.flock(descriptor, AT_ONCE)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _write_all(descriptor: int, data: Buffer) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that syncs names by itself
            raise
    finally:
        os.close(descriptor)
