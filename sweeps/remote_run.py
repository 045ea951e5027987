"""A run folder that is mirrored in a bucket, for commands that take RUN: a copy of it here, for as long as they run."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from analysis.run_folder.output import write
from analysis.run_folder.run_files import BadRun
from sweeps.mirror import TELLING, Stamp, files, is_mirrored
from sweeps.storage import Place

AT_ONCE = 16  # requests
LOOKS = 5  # at a folder that changes while it is copied
GRAIN_NS = 1_000_000_000  # of a bucket's times
MADE = re.compile(r"(tables|figures|reports)/.+|report\.html|wandb/workspace\.json")  # of the other files, by commands
_copies: dict[Path, Copy] = {}  # of this process, by where they are


@dataclass
class Copy:
    """What a bucket holds of a run, in `folder`, but for what is made of it. seen: name -> what it was, as copied."""

    place: Place
    folder: Path
    seen: dict[str, Stamp] = field(default_factory=dict)

    def refresh(self) -> None:
        """Copy what is new, until a look at the bucket finds what the last one did. Raises: OSError."""
        for _ in range(LOOKS):
            there = {name: at for name, at in self.place.all_below().items() if is_mirrored(name)}
            there = {name: at for name, at in there.items() if not MADE.fullmatch(name)}
            if there == self.seen:
                break
            # What tells of other files comes before these, which are then at least as new.
            changed = sorted(name for name, at in there.items() if self.seen.get(name) != at)
            telling = [name for name in changed if TELLING.fullmatch(name)]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                for part in (telling, [name for name in changed if name not in telling]):
                    list(pool.map(self._fetch, part, map(there.get, part)))
            for name in files(self.folder).keys() - there.keys():
                if not MADE.fullmatch(name):
                    (self.folder / name).unlink()
            self.seen = there
        newest = max((at for _, at in self.seen.values()), default=0)
        # Of the last second there may be more than one state: it is copied again the next time.
        self.seen = {name: at for name, at in self.seen.items() if at[1] <= newest - GRAIN_NS}

    def _fetch(self, name: str, at: Stamp) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # gone since the look; the next one tells
            write(path, (self.place / name).read())
            os.utime(path, ns=(at[1], at[1]))

    def put_back(self) -> None:
        """Write what a command has made of it into the bucket, report.html last. Raises: OSError."""
        for name in sorted(filter(MADE.fullmatch, files(self.folder)), key=lambda name: name == "report.html"):
            (self.place / name).write((self.folder / name).read_bytes())


@contextmanager
def copied(uri: str, may_be_new: bool = False) -> Iterator[Path]:
    """A copy of the run at a URI, removed at the end. Raises: SpecError; OSError; BadRun where no run is."""
    place = Place.of(uri)
    with tempfile.TemporaryDirectory(prefix="wa-") as folder:
        copy = Copy(place, Path(folder) / place.path)
        copy.folder.mkdir(parents=True)
        copy.refresh()
        if not may_be_new and not (copy.folder / "plan.json").exists():
            raise BadRun(f"{place}: no plan.json there; allowed: what a `wa run --storage` has mirrored")
        _copies[copy.folder] = copy
        try:
            yield copy.folder
        except BadRun as error:
            raise BadRun(error.message.replace(str(copy.folder), str(place))) from None
        finally:
            del _copies[copy.folder]


def refresh(run: Path) -> None:
    """Bring a copy up to date; any other folder is. A bucket that does not answer leaves it as it is."""
    if run in _copies:
        with suppress(OSError):
            _copies[run].refresh()


def put_back(run: Path, made: Path) -> str:
    """Where others find a file that was made in a run folder; what was made in a copy goes into its bucket."""
    if run not in _copies or not made.is_relative_to(run):
        return str(made)
    _copies[run].put_back()
    return str(_copies[run].place / made.relative_to(run).as_posix())


def named(run: Path) -> str:
    """A run as it was asked for."""
    return _copies[run].place.uri if run in _copies else str(run)
