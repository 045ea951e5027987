"""One file of a run folder, read: what is wrong with it is one line with its path and what to do.

A Parquet file that we write carries the sha256 of its own bytes before its footer, where other readers look past it;
a file that another program wrote again carries none.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import pyarrow as pa
import pyarrow.parquet as pq

RESTORE = "restore it from a copy of the folder"
IMPORT = f"{RESTORE}, or import the logs again into a new one"
WANDB_LINKS = Path("wandb") / "links.json"
MARK = b"\nwa sha256 "
_SEAL_BYTES = len(MARK) + 64 + 1


class BadRun(click.ClickException, ValueError):
    """Not a run folder, or one whose files are damaged or break the schema; the message says where."""

    exit_code = 2


def broken(path: Path, what: str, remedy: str = RESTORE) -> BadRun:
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


class Parquet(NamedTuple):
    """A table, and the digest that its file carries; None of a file that another program wrote."""

    table: pa.Table
    digest: str | None


def read_parquet(path: Path, dictionaries: Sequence[str] = (), remedy: str = RESTORE) -> Parquet:
    """A whole Parquet file, its checksums verified. Raises: FileNotFoundError, BadRun.

    dictionaries: string columns to read as numbers of a dictionary.
    """
    data = read_bytes(path, remedy)
    digest = _digest(data, path, remedy)
    try:
        source = pa.BufferReader(data)
        with pq.ParquetFile(source, read_dictionary=list(dictionaries), page_checksum_verification=True) as file:
            table = file.read(use_threads=False)
        if digest is None:
            table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise broken(path, f"not a whole Parquet file ({said})", remedy) from None
    return Parquet(table, digest)


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


def _digest(data: bytes, path: Path, remedy: str) -> str | None:
    try:
        return digest(data)
    except ValueError as error:
        # One damaged place cannot hide both the mark and the match of what it stands before.
        if MARK in data:
            raise broken(path, f"damaged: {error}", remedy) from None
        return None
