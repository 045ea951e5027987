"""The done marker of a trajectory: what its records must amount to, written when the last of them is on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.run_files import broken, read_json

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

    def check(
        self, table: pa.Table, path: Path, remedy: str, *, sha256: str | None = None, crc32: int | None = None
    ) -> None:
        """Hold the rows of one file, and its checksum, against what was promised. Raises: BadRun."""
        if len(table) != self.rows:
            raise broken(path, f"{len(table):,} records where {self.rows:,} were written", remedy)
        last = int(np.max(table["step"].to_numpy())) if len(table) else 0
        if self.last_step is not None and last != self.last_step:
            raise broken(path, f"ends at step {last:,}, not at {self.last_step:,}", remedy)
        is_parquet = path.suffix == ".parquet"
        told, found = (self.sha256, sha256) if is_parquet else (self.crc32, crc32)
        if told is not None and found != told:
            raise broken(path, "is not the file that was written: its checksum is another", remedy)


def finished(folder: Path) -> Finished | None:
    """The done marker in a trajectory's folder; None while it is not done. Raises: BadRun."""
    path = folder / DONE
    remedy = f"remove {folder} and `wa run` trains it again, to the same records"
    try:
        told = read_json(path, remedy)
    except FileNotFoundError:
        return None
    known: dict[str, Any] = {name: told.get(name) for name in ("rows", "last_step", "crc32", "sha256")}
    if not all(isinstance(known[name], int) for name in ("rows", "last_step", "crc32")) or not isinstance(
        known["sha256"], str | None
    ):
        raise broken(path, "does not say how many records there are", remedy)
    return Finished(**known)
