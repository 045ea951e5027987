"""What analysis writes: whole files in place of older ones, never in place of something that is no file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\n")  # a spreadsheet takes a cell that begins so for a formula


def temporary(path: Path) -> Path:
    """Where this process writes what then takes the place of `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.new")


def check_replaceable(path: Path) -> None:
    """Raises: OSError where something other than a plain file is at `path`: a folder, a device, a link."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        raise OSError(errno.EEXIST, "there is something that is not a plain file", str(path))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError inside says of which file it is, also where the system's own does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None or str(error.filename).endswith(".new"):
            error.filename = str(path)
        raise


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path`, whole or not at all. Raises: OSError with the path."""
    check_replaceable(path)
    new = temporary(path)
    data = content.encode() if isinstance(content, str) else content
    with named(path):
        try:
            new.write_bytes(data)
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)
            raise


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, floats to 10 significant digits; text that a spreadsheet would compute gets a ' before it."""
    made = table.rename(columns=as_text)
    for place, kind in enumerate(made.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            made.isetitem(place, [as_text(value) for value in made.iloc[:, place].astype(object)])
    write(path, made.to_csv(index=False, float_format="%.10g", lineterminator="\n"))


def as_text(value: Any) -> Any:
    """A string that stays one cell and text in a spreadsheet; numbers, also written out, as they are."""
    if not isinstance(value, str):
        return value
    value = value.replace("\r\n", "\n").replace("\r", "\n")  # a bare \r ends a line, and is not quoted
    if not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
