"""records.jsonl: a trajectory's rows while it trains, a JSON object a line, each with a checksum.

The last field of a line, ``crc32``, is that of the line's text before it and of all such text above, so a line that
is changed, lost, repeated or moved is found. Beside it the done marker, written when the last row is on disk: what the
rows must amount to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from zlib import crc32

import numpy as np
import pyarrow as pa

from analysis.run_folder.run_files import broken, read_bytes, read_json
from analysis.run_folder.schema import ADDED, RECORDS

Row = dict[str, Any]
_MOST = 1 << 53  # of an integer that a float64 holds too
_LINE = re.compile(rb'(.*?),"crc32":"([0-9a-f]{8})"\}')
_TYPES: dict[pa.DataType, tuple[type, ...]] = {
    pa.string(): (str,),
    pa.int64(): (int,),
    pa.float64(): (float, int, type(None)),  # null stands for NaN, which JSON does not have
    pa.bool_(): (bool,),
}


@dataclass
class LiveRows:
    """What has been read so far of a growing file; `read` it again for what came since."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    offset: int = 0  # the end of the last whole line
    crc: int = 0
    lines: int = 0

    def feed(self, data: bytes, growing: bool = False) -> list[Row]:
        """Takes in what follows `offset`, and returns its rows. Raises: BadRun.

        A last line that a kill or a power cut tore is left out; where the file is `growing`, one without its newline.
        """
        whole, newline, tail = data.rpartition(b"\n")
        new = [self._row(line) for line in whole.split(b"\n")] if newline else []
        self.offset += len(whole) + len(newline)
        last = None if growing else _LINE.match(tail)
        if last and self._has(last):  # whole but for its newline
            new.append(self._row(last[0]))
            self.offset += last.end()
            if tail[last.end() :].strip(b"\0"):
                self._refuse("damage follows the last one")
        self.rows += new
        return new

    def _has(self, line: re.Match[bytes]) -> bool:
        return crc32(line[1], self.crc) == int(line[2], 16)

    def _row(self, line: bytes) -> Row:
        checked = _LINE.fullmatch(line)
        if checked is None:
            self._refuse("it has no checksum")
        if not self._has(checked):
            self._refuse("its checksum does not match")
        self.crc = int(checked[2], 16)
        try:
            row = json.loads(checked[1] + b"}", parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self._refuse(str(error).splitlines()[0])
        if (wrong := _wrong(row)) is not None:
            self._refuse(wrong)
        self.lines += 1
        return dict(row)

    def _refuse(self, why: str) -> NoReturn:
        place = f"{self.path}:{self.lines + 1}"
        raise broken(Path(place), f"broken record ({why})", again(self.path.parent)) from None


def again(folder: Path) -> str:
    """How to go on where the records of the trajectory in `folder` are lost."""
    return f"restore it from a copy, or remove {folder} and `wa run` trains it again, to the same records"


def as_line(row: Mapping[str, Any], crc: int) -> tuple[bytes, int]:
    """A row, null for what is not finite, as a line after lines of this checksum; and the checksum with it."""
    text = json.dumps(row, allow_nan=False, separators=(",", ":")).encode()[:-1]
    crc = crc32(text, crc)
    return b'%b,"crc32":"%08x"}\n' % (text, crc), crc


def read_live(path: Path) -> Iterator[Row]:
    """The rows of a live record file; a torn last line is left out. Raises: BadRun for a broken line before it."""
    try:
        data = read_bytes(path, again(path.parent))
    except FileNotFoundError:  # compacted between listing and reading: its rows are in records/
        return
    yield from LiveRows(path).feed(data)


def _wrong(row: Any) -> str | None:
    """What of a line breaks the schema."""
    if not isinstance(row, dict):
        return "not a JSON object"
    if missing := [name for name in RECORDS.names if name not in row and name not in ADDED]:
        return f"no {missing[0]!r}"
    if more := [name for name in row if name not in RECORDS.names]:
        return f"{more[0]!r} is no column of a record"
    beside = row["metrics"]
    if not isinstance(beside, dict) or not all(_fits(value, pa.float64()) for value in beside.values()):
        return "'metrics' is not a number by name"
    for one in RECORDS:
        if one.name != "metrics" and not _fits(row.get(one.name), one.type):
            return f"{one.name!r} is {row.get(one.name)!r}, not {one.type}"
    return "'step' is negative" if row["step"] < 0 else None


def _fits(value: Any, kind: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(kind == pa.bool_())
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, int) and abs(value) >= _MOST)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


DONE = "done"


@dataclass(frozen=True)
class Finished:
    """What a trajectory, or a file of imported logs, holds; None: not said of it."""

    rows: int
    last_step: int | None = None
    crc32: int | None = None  # of the last line of records.jsonl, and so of all of them
    sha256: str | None = None  # of the Parquet file, once there is one

    def as_bytes(self) -> bytes:
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}).encode()

    def check(self, table: pa.Table, path: Path, remedy: str, checksum: str | int | None) -> None:
        """Hold the rows of one file, and its checksum, against what was promised. Raises: BadRun."""
        if len(table) != self.rows:
            raise broken(path, f"{len(table):,} records where {self.rows:,} were written", remedy)
        last = int(np.max(table["step"].to_numpy())) if len(table) else 0
        if self.last_step is not None and last != self.last_step:
            raise broken(path, f"ends at step {last:,}, not at {self.last_step:,}", remedy)
        told = self.sha256 if path.suffix == ".parquet" else self.crc32
        if told is not None and checksum != told:
            raise broken(path, "is not the file that was written: its checksum is another", remedy)


def finished(folder: Path) -> Finished | None:
    """The done marker in a trajectory's folder; None while it is not done. Raises: BadRun."""
    path = folder / DONE
    try:
        told = read_json(path, again(folder))
    except FileNotFoundError:
        return None
    known: dict[str, Any] = {name: told.get(name) for name in ("rows", "last_step", "crc32", "sha256")}
    *numbers, sha256 = known.values()
    if not all(isinstance(one, int) for one in numbers) or not isinstance(sha256, str | None):
        raise broken(path, "does not say how many records there are", again(folder))
    return Finished(**known)
