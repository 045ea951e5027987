"""A local Ray's temporary folder: private, short enough for its sockets, and removed also after a kill.

Ray logs what its processes print below its temporary folder and makes that folder writable for everyone;
so it lies inside one that only this user may enter. Ray never cleans up; who made a folder holds a lock on a file in
it for as long as it lives, and the next run removes what nobody holds.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

PREFIX = "wa-ray-"
OWNER = "owner"  # the locked file; it holds the boot of the machine that made the folder
SOCKET_BYTES = 107  # Linux's bound on the path of a Unix socket, its closing zero apart
# What Ray and this module put below the base: 8 random characters, and a process id of up to 7 digits.
LONGEST = f"/{PREFIX}abcdefgh/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
MAX_BASE_BYTES = SOCKET_BYTES - len(LONGEST)


class NoFolder(click.ClickException):
    """No place for Ray's temporary folder; the message is one line with the remedy."""

    exit_code = 2


def base() -> Path:
    """Where the folder is made: TMPDIR or what stands in for it; where that is too long, a short place.

    Raises: NoFolder.
    """
    asked = Path(tempfile.gettempdir())
    places = [asked, *map(Path, filter(None, [os.environ.get("XDG_RUNTIME_DIR")])), Path("/tmp"), Path("/dev/shm")]
    for place in places:
        if fits(place) and place.is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    raise NoFolder(
        f"Ray's sockets need a temporary folder whose path has at most {MAX_BASE_BYTES} bytes; {asked} has "
        f"{len(os.fsencode(asked))}, and neither /tmp nor /dev/shm can be written: set TMPDIR to a short folder"
    )


def fits(place: Path) -> bool:
    """Whether the sockets of a Ray below `place` have paths that the kernel takes."""
    return len(os.fsencode(place)) <= MAX_BASE_BYTES


@contextmanager
def ray_folder() -> Iterator[Path]:
    """A new folder for ``ray.init(_temp_dir=…)``, removed at the end; those of dead runs are removed first.

    Raises: NoFolder.
    """
    place = base()
    remove_abandoned(place)
    private = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
    with open(private / OWNER, "w", encoding="ascii") as owner:
        if _lock(owner.fileno()):
            owner.write(_boot())
            owner.flush()
        try:
            inner = private / "r"  # Ray opens this one to everybody
            inner.mkdir()
            yield inner
        finally:
            shutil.rmtree(private, ignore_errors=True)


def remove_abandoned(place: Path) -> None:
    """Remove the folders in `place` whose makers have died, as far as that can be proved.

    A process id proves nothing where hosts or containers share the place. A lock does, among all who share a kernel;
    what another kernel made, or what says nothing of its maker, stays.
    """
    for owner in place.glob(f"{PREFIX}*/{OWNER}"):
        try:
            with open(owner, "r+", encoding="ascii") as stream:
                if stream.read() == _boot() != "" and _lock(stream.fileno()):
                    shutil.rmtree(owner.parent, ignore_errors=True)
        except (OSError, UnicodeDecodeError):  # another user's, or gone meanwhile
            continue


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks: then nobody claims anything
        return False
    return True


def _boot() -> str:
    """This machine since it started; empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
