"""What a workload's numbers rest on beside the spec: the source files it is made of, and the data folder it reads."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

from workloads import data
from workloads.dotted import import_dotted
from workloads.protocol import load, module_name
from workloads.user_errors import OUR_PACKAGES

Files = dict[str, str]  # path relative to where the import begins -> sha256 of its bytes, or a listing's

MOST_ENTRIES = 20_000  # of a data folder; what comes behind these, in the order of their names, is not looked at
_FRAME = ("protocol", "dotted", "sources", "user_errors", "data")  # ours, but not what is trained


def source_files(name: str) -> Files:
    """The file of workload or scheme `name` and those it imports from the folder or package it lies in, theirs too.

    Imports are read from the source, wherever in a file they stand; a module imported by a computed name is missed.
    Of an installed package only its own modules count: versions are recorded apart. Raises: UnknownWorkload.
    """
    if ":" in name:
        import_dotted(name)
    module = module_name(name)
    importlib.import_module(module)
    known = _read.get(module)
    if known is None or known[0] is not sys.modules[module]:
        _read[module] = sys.modules[module], _source_files(name, module)
    return _read[module][1]


_read: dict[str, tuple[ModuleType, Files]] = {}  # what a module was made of when this process imported it


def _source_files(name: str, module: str) -> Files:
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:  # made without a file, as in a notebook
        return {}
    parts = module.split(".")
    path = Path(file).resolve()
    home = path.parents[len(parts) - (path.name != "__init__.py")]
    is_installed = home.name in ("site-packages", "dist-packages")
    within = parts[0] if ":" not in name or is_installed else None
    found: Files = {}
    waiting = [(path, module)]
    while waiting:
        path, module = waiting.pop()
        key = path.relative_to(home).as_posix()
        if key in found:
            continue
        text = path.read_bytes()
        found[key] = hashlib.sha256(text).hexdigest()
        for imported in _imported(text, module, path.name == "__init__.py"):
            waiting += [one for one in _files_of(home, imported, within) if not _is_frame(name, one[1])]
    return dict(sorted(found.items()))


def _is_frame(name: str, module: str) -> bool:
    parts = module.split(".")
    if ":" in name:
        return parts[0] in OUR_PACKAGES
    return ".".join(parts[1:]) in ("", *_FRAME)


def _imported(text: bytes, module: str, is_package: bool) -> Iterator[str]:
    """The dotted names that a file may import, `from a import b` as a and a.b."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" if start else alias.name for alias in node.names)


def _files_of(home: Path, dotted: str, within: str | None) -> Iterator[tuple[Path, str]]:
    """The files below `home` that importing a.b.c runs: a, then a.b, then a.b.c where that is a module."""
    parts = dotted.split(".")
    if within is not None and parts[0] != within:
        return
    for i in range(1, len(parts) + 1):
        folder = home.joinpath(*parts[:i])
        for path in (folder / "__init__.py", folder.with_name(f"{folder.name}.py")):
            if path.is_file():
                yield path.resolve() if home in path.resolve().parents else path, ".".join(parts[:i])
                break


def data_folders(name: str, preset: str) -> Files:
    """By data set that workload `name` asks for in its check_data: a hash of its listing (names and sizes).

    Of a user's that asks for none there: of the whole data folder, where one is given.
    """
    workload = load(name, preset)
    with data.asked_for() as folders:
        getattr(workload, "check_data", lambda: None)()
    root = os.environ.get(data.VARIABLE)
    if ":" in name and not folders and root and Path(root).is_dir():
        folders.add(Path(root))  # a user's that does not say which
    return {folder.name: _listing(folder) for folder in sorted(folders)}


def _listing(folder: Path) -> str:
    digest = hashlib.sha256()
    for path, size in islice(_entries(folder, ""), MOST_ENTRIES):
        digest.update(f"{path}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _entries(folder: Path, below: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        there = sorted(entries, key=lambda entry: entry.name)
    for entry in there:
        path = f"{below}{entry.name}"
        if entry.is_dir():
            yield from _entries(folder / entry.name, f"{path}/")
        elif entry.is_file():
            yield path, entry.stat().st_size
