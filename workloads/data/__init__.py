"""Derived data files of the minis, and where the full presets find theirs.

LICENSES.md says where each derived file comes from, build/ how it was made.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import click

VARIABLE = "WA_DATA_DIR"


class BadData(click.ClickException, ValueError):
    """Data that is missing or malformed; the message says what belongs where."""

    exit_code = 2


def path(name: str) -> Path:
    """Where the derived file called `name` lies. Raises: FileNotFoundError, naming what there is."""
    folder = Path(__file__).parent
    if not (folder / name).is_file():
        there = sorted(file.name for file in folder.iterdir() if file.suffix not in {".py", ".md", ""})
        raise FileNotFoundError(f"no data file {name!r} in {folder}; there are {', '.join(there)}")
    return folder / name


def dataset(name: str, holds: str) -> Path:
    """The folder of a full preset's data: ``$WA_DATA_DIR/<name>``.

    holds: what belongs there, in one line, for the error. Raises: BadData.
    """
    root = os.environ.get(VARIABLE)
    if not root:
        raise BadData(
            f"{name}: no data folder given; set {VARIABLE} or the spec's data_dir to the folder "
            f"that has {name}/ with {holds}"
        )
    folder = Path(root) / name
    if not folder.is_dir():
        raise BadData(f"{folder}: no such folder; it should hold {holds}")
    if (noted := _asked.get()) is not None:
        noted.add(folder)
    return folder


_asked: ContextVar[set[Path] | None] = ContextVar("asked", default=None)


@contextmanager
def asked_for() -> Iterator[set[Path]]:
    """Inside, the folders that `dataset` gives are noted in the set."""
    noted: set[Path] = set()
    token = _asked.set(noted)
    try:
        yield noted
    finally:
        _asked.reset(token)
