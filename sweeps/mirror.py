"""The run folder's finished files, copied to the storage while a run goes on, so that they are read from anywhere.

Whoever reads them there sees what a reader of the folder may see: a file that tells of others (plan.json, a
trajectory's `done` and its pointers) is read before these and written after them, so what it tells of is at least
as new.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from pydantic import BaseModel, ValidationError
from rich.console import Console

from analysis.run_folder.run_files import load_plan_if_any
from sweeps.blocks import SpecError
from sweeps.storage import Place
from sweeps.wording import counted

EVERY_SECONDS = 10.0
PROBE = "wa-probe"
LIVE_SECONDS = 60.0  # between two copies of what a trajectory that is not done appends to
FINISH_SECONDS = 60.0  # what the end of a run grants it
SAME_CLOCK_SECONDS = 60.0  # what the clocks here and at the storage may differ by
FOLDERS = ("specs", "records", "trajectories", "tables", "figures", "reports", "wandb")
FILES = re.compile(
    r"spec\.yaml|specs/[^/]+\.yaml|study\.yaml|(cells|trials)\.parquet|records/[^/]+\.parquet"
    r"|trajectories/[^/]+/(trajectory\.json|attempt-[0-9]+\.json|log|records\.jsonl)"
    r"|(tables|figures|reports)/.+|report\.html|wandb/(links|workspace)\.json"
)
TELLING = re.compile(r"trajectories/[^/]+/((checkpoint|fork-[0-9]+)\.json|done)|plan\.json")
Stamp = tuple[int, int]  # size in bytes, time of the last change in ns


class _Plan(BaseModel):
    id: str


def is_mirrored(name: str) -> bool:
    """Whether a file of a run folder, named relative to it, is one that others may read."""
    hidden = any(part.startswith(".") or part == ".." for part in name.split("/"))
    return not hidden and (FILES.fullmatch(name) or TELLING.fullmatch(name)) is not None


def files(run: Path) -> dict[str, Stamp]:
    """The files of a run folder that are mirrored; a link is none."""
    found = dict[str, Stamp]()
    for folder, below, names in os.walk(run):
        at = "" if (within := os.path.relpath(folder, run)) == "." else f"{within}/"
        below[:] = [name for name in below if not name.startswith(".") and (at or name in FOLDERS)]
        if at == "wandb/":
            below.clear()  # what W&B itself keeps
        for name in filter(is_mirrored, (at + name for name in names)):
            try:
                told = (run / name).lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(told.st_mode):
                found[name] = told.st_size, told.st_mtime_ns
    return found


def try_out(storage: Place) -> None:
    """Raises: OSError where nothing can be written there, since its name is misspelt, say."""
    (storage / PROBE).write(b"may be removed")
    (storage / PROBE).remove()


def refuse_foreign(run: Path, storage: Place) -> None:
    """Refuse a storage that holds another run than the folder does. Raises: SpecError; OSError: it does not answer."""
    try:
        there = _Plan.model_validate_json((storage / "plan.json").read()).id
    except FileNotFoundError:
        return
    except ValidationError:
        there = "a plan.json that is none of ours"
    if (load_plan_if_any(run) or {}).get("id") != there:
        remedy = f"choose another prefix, or copy that run to --out first, to go on with it ({run} is not it)"
        raise SpecError("--storage", f"{storage} holds another run; {remedy}", "")


@contextmanager
def mirroring(run: Path, storage: Place, console: Console) -> Iterator[None]:
    """Keep the storage up to date with the folder beside a block, and at its end say what it has, or lacks and why."""
    mirror = Mirror(run, storage, console)
    if not storage.is_bucket and Path(storage.path).resolve() == run.resolve():
        yield  # it lies there already
        return
    thread = threading.Thread(target=mirror.work, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        mirror.ending.set()
        thread.join(FINISH_SECONDS)
        console.print(mirror.at_the_end(), markup=False, soft_wrap=True)


class Mirror:
    """Copies what changed, time and again, until `ending` is set, and then once more."""

    def __init__(self, run: Path, storage: Place, console: Console) -> None:
        self.run, self.storage, self.console = run, storage, console
        self.sent: dict[str, Stamp] | None = None  # of the files as they were copied; None before the first look
        self.at = dict[str, float]()  # trajectory's folder -> when it was copied last
        self.ending = threading.Event()
        self.error: OSError | click.ClickException | None = None  # of the last look
        self.told = False

    def work(self) -> None:
        """Look every few seconds. A storage that fails is asked again, and complained of once."""
        last = False
        while not last:
            last = self.ending.is_set()
            try:
                self.look(everything=last)
                self.error = None
            except (OSError, click.ClickException) as error:
                self.error = error
                if not self.told and not last:
                    self.told = True
                    line = f"mirror: {_line(error)}; the run goes on, and it is tried again"
                    self.console.print(line, markup=False, soft_wrap=True)
            if not last:
                self.ending.wait(EVERY_SECONDS)

    def look(self, everything: bool = True) -> None:
        """Copy what changed. everything: also what grows and was copied a moment ago. Raises: OSError, SpecError."""
        if self.sent is None:
            refuse_foreign(self.run, self.storage)
            self.sent = self._as_sent_before()
        now = files(self.run)
        resting = set() if everything else self._resting(now)
        telling = {name: self._read(name) for name in self._changed(now, resting) if TELLING.fullmatch(name)}
        for name, stamp in (data := files(self.run)).items():
            if self.sent.get(name) != stamp and FILES.fullmatch(name) and _folder(name) not in resting:
                self._send(name, stamp, self._read(name))
        for name in sorted(telling, key=lambda one: (one == "plan.json", one.endswith("/done"), one)):
            self._send(name, now[name], telling[name])
        for name in [one for one in self.sent if _folder(one) and one not in data and one not in now]:
            (self.storage / name).remove()  # as live records when they have been compacted
            del self.sent[name]

    def at_the_end(self) -> str:
        """A line: where the files are, or what is missing there."""
        missing = self._changed(files(self.run), set())
        if not missing:
            return f"mirrored: {self.storage.uri} has all that `wa report` and `wa watch` read"
        why = "it is slow" if self.error is None else _line(self.error)
        said = f"{self.storage} lacks {counted(len(missing), 'file')}, such as {missing[0]} ({why})"
        return f"mirror: {said}; the same command sends them"

    def _as_sent_before(self) -> dict[str, Stamp]:
        """What an earlier run has copied: as large there as here, and written there after it was here."""
        there, early = self.storage.all_below(), int(SAME_CLOCK_SECONDS * 1e9)
        here = files(self.run)
        same = {name: here[name] for name in there if name in here and there[name][0] == here[name][0]}
        sent = {name: stamp for name, stamp in same.items() if there[name][1] > stamp[1] + early}
        gone = {name: told for name, told in there.items() if name not in here and is_mirrored(name)}
        return sent | {name: told for name, told in gone.items() if _folder(name)}

    def _resting(self, now: dict[str, Stamp]) -> set[str]:
        """Trajectories that go on and were copied a moment ago."""
        soon = time.monotonic() - LIVE_SECONDS
        return {folder for folder, at in self.at.items() if at > soon and f"{folder}/done" not in now}

    def _changed(self, now: dict[str, Stamp], resting: set[str]) -> list[str]:
        sent = self.sent or {}
        return [name for name, stamp in now.items() if sent.get(name) != stamp and _folder(name) not in resting]

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.run / name).read_bytes()
        except FileNotFoundError:  # compacted meanwhile
            return None

    def _send(self, name: str, stamp: Stamp, data: bytes | None) -> None:
        if data is None:
            return
        assert self.sent is not None
        (self.storage / name).write(data)
        self.sent[name] = stamp
        if name.startswith("trajectories/"):
            self.at[_folder(name)] = time.monotonic()


def _folder(name: str) -> str:
    """``trajectories/<name>``, or ``records``, of the files that go when they are compacted; else nothing."""
    return name.rpartition("/")[0] if name.startswith(("trajectories/", "records/")) else ""


def _line(error: OSError | click.ClickException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.strerror else str(error)
    return error.format_message()
