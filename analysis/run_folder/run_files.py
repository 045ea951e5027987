"""One file of a run folder, read: what is wrong with it is one line with its path and what to do.

A Parquet file that we write carries the sha256 of its own bytes before its footer, where other readers look past it;
a file that another program wrote again carries none. plan.json's names become paths, so they are checked first.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.run_folder.schema import FORMAT

RESTORE = "restore it from a copy of the folder"
IMPORT = f"{RESTORE}, or import the logs again into a new one"
WANDB_LINKS = Path("wandb") / "links.json"
MARK = b"\nwa sha256 "
_SEAL_BYTES = len(MARK) + 64 + 1


class BadRun(click.ClickException, ValueError):
    """Not a run folder, or one whose files are damaged or break the schema; the message says where."""

    exit_code = 2


def broken(path: Path | str, what: str, remedy: str = RESTORE) -> BadRun:
    """The error of one file: what is wrong with it, and how to go on."""
    return BadRun(f"{path}: {what}; {remedy}")


def read_bytes(path: Path, remedy: str = RESTORE) -> bytes:
    """A plain file's bytes. Raises: FileNotFoundError where there is none; BadRun."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise broken(path, "not a plain file", remedy)
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise broken(path, error.strerror or type(error).__name__, remedy) from None


def read_json(path: Path, remedy: str = RESTORE) -> dict[str, Any]:
    """A JSON object. Raises: FileNotFoundError, BadRun."""
    data = read_bytes(path, remedy)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        said = "it is empty" if not data.strip() else str(error).splitlines()[0]
        raise broken(path, f"not whole JSON ({said})", remedy) from None
    if not isinstance(value, dict):
        raise broken(path, "not a JSON object", remedy)
    return value


def wandb_links(run: Path) -> dict[str, str]:
    """study -> the page of its runs on W&B, where they were published there."""
    try:
        links = read_json(run / WANDB_LINKS)
    except (FileNotFoundError, BadRun):
        return {}
    return {study: link for study, link in links.items() if re.match(r"https?://\S+$", str(link))}


def read_parquet(path: Path, dictionaries: Sequence[str] = (), remedy: str = RESTORE) -> tuple[pa.Table, str | None]:
    """A whole Parquet file, its checksums verified, and the digest it carries; None: another program wrote it.

    dictionaries: string columns to read as numbers of a dictionary. Raises: FileNotFoundError, BadRun.
    """
    data = read_bytes(path, remedy)
    try:
        told = digest(data)
    except ValueError as error:
        # One damaged place cannot hide both the mark and the match of what it stands before.
        if MARK in data:
            raise broken(path, f"damaged: {error}", remedy) from None
        told = None
    try:
        source = pa.BufferReader(data)
        with pq.ParquetFile(source, read_dictionary=list(dictionaries), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        if told is None:
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise broken(path, f"not a whole Parquet file ({said})", remedy) from None
    return table, told


def seal(data: bytes) -> bytes:
    """A Parquet file's bytes with their own sha256 between the last page and the footer."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return data[:footer] + MARK + hashlib.sha256(data).hexdigest().encode() + b"\n" + data[footer:]


def digest(data: bytes) -> str:
    """The sha256 that `seal` put into `data`. Raises: ValueError where it is not that of the rest."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    at = max(0, footer - _SEAL_BYTES)
    told = data[at + len(MARK) : at + len(MARK) + 64]
    found = hashlib.sha256(memoryview(data)[:at])
    found.update(memoryview(data)[at + _SEAL_BYTES :])
    if found.hexdigest().encode() != told:
        raise ValueError("its sha256 does not match")
    return found.hexdigest()


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")  # of a trajectory, a cell or a study: never a path
_Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class _Block(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Study(_Block):
    study: _Name
    question: str | None
    fuse: bool
    seeds: list[int]
    targets: dict[str, dict[str, Any] | None]


class _Trajectory(_Block):
    trajectory_id: _Name
    name: _Name
    cells: list[str]
    expected_seconds: float | None  # of imported logs: unknown
    branch_of: _Name | None = None  # the trajectory that trained its first steps


class _Records(_Block):
    rows: int
    last_step: int | None = None
    crc32: int | None = None
    sha256: str | None = None


class _Plan(_Study):
    id: _Name | None = None  # of imported logs: none
    baseline: str | None = None  # of imported logs: a submission
    studies: list[_Study]
    trajectories: list[_Trajectory]
    versions: dict[str, str]
    records: dict[_Name, _Records] = {}  # of imported logs
    sources: dict[str, Any] = {}  # of what was trained here


def load_plan(run: str | Path) -> dict[str, Any]:
    """plan.json: study, question, cells, trajectories, targets with their provenance, versions. Raises: BadRun.

    ``studies`` has study, question, report, primary, fuse, seeds, cells and targets of each study, in the order they
    came; at the head stand those of the first, but every cell and every workload's target.
    """
    path = Path(run) / "plan.json"
    try:
        plan = read_json(path)
    except FileNotFoundError:
        raise BadRun(f"{run}: no plan.json; {RESTORE}") from None
    if (version := plan.get("format")) != FORMAT:
        remedy = "use the wa-sweeps that wrote it, or another folder"
        raise broken(path, f"the folder has format {shorten(repr(version), 40)}; this reads {FORMAT}", remedy)
    try:
        _Plan.model_validate(plan)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"]
        if first["type"] == "string_pattern_mismatch":
            said = f"{first['input'][:80]!r} cannot name a folder"
        raise broken(path, f"{where}: {said}") from None
    return plan


def load_plan_if_any(run: Path) -> dict[str, Any] | None:
    """plan.json; None of a folder without one. Raises: BadRun."""
    there = (run / "plan.json").exists() or (run / "plan.json").is_symlink()
    return load_plan(run) if there else None
