"""A file system that forgets: what a power cut may leave of the system calls that were made.

`Calls` stands in for a module's `os` and notes what it does; `Disk` replays that and says what survives: a file's
content as of its last fsync, a folder's entries as of its own, and whatever else the system happened to write back.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Tree = dict[str, bytes | None]  # path -> content; None: a folder


class Calls:
    """`os`, with its writing calls noted in `log`: (call, what, …), files by number, paths below `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, []
        self._open: dict[int, int | str] = {}  # descriptor -> file number, or a folder's path
        self._files: dict[str, int] = {}
        self._count = itertools.count()

    log: list[tuple[Any, ...]]

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _relative(self, path: Any) -> str:
        return os.path.relpath(path, self.root)

    def open(self, path: Any, flags: int, *more: Any) -> int:
        made = not os.path.exists(path)
        descriptor = os.open(path, flags, *more)
        at = self._relative(path)
        if flags & os.O_DIRECTORY:
            self._open[descriptor] = at
            return descriptor
        if made:
            self._files[at] = next(self._count)
            self.log.append(("create", at, self._files[at]))
        self._open[descriptor] = self._files[at]
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        half = bytes(data)[: max(1, len(data) // 2)]  # a kill may come between the halves
        os.write(descriptor, half)
        self.log.append(("write", self._open[descriptor], half))
        return len(half)

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self.log.append(("cut", self._open[descriptor], size))

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self.log.append(("fsync", self._open[descriptor]))

    def replace(self, source: Any, goal: Any) -> None:
        os.replace(source, goal)
        here, there = self._relative(source), self._relative(goal)
        self._files[there] = self._files.pop(here)
        self.log.append(("replace", here, there))

    def unlink(self, path: Any) -> None:
        os.unlink(path)
        self._files.pop(self._relative(path))
        self.log.append(("unlink", self._relative(path)))

    def mkdir(self, path: Any) -> None:
        os.mkdir(path)
        self.log.append(("mkdir", self._relative(path)))


@dataclass
class Disk:
    """The calls so far, as they are in memory and as they are certain to be on disk."""

    content: dict[int, bytes] = field(default_factory=dict)
    kept_content: dict[int, bytes] = field(default_factory=dict)
    entries: dict[str, dict[str, int | None]] = field(default_factory=lambda: {".": {}})
    kept_entries: dict[str, dict[str, int | None]] = field(default_factory=lambda: {".": {}})

    def do(self, call: tuple[Any, ...]) -> None:
        match call:
            case ("create", at, number):
                self.content[number] = self.kept_content[number] = b""
                self._folder(at)[os.path.basename(at)] = number
            case ("write", number, data):
                self.content[number] += data
            case ("cut", number, size):
                self.content[number] = self.content[number][:size]
            case ("fsync", int(number)):
                self.kept_content[number] = self.content[number]
            case ("fsync", folder):
                self.kept_entries[folder] = dict(self.entries[folder])
            case ("replace", here, there):
                self._folder(there)[os.path.basename(there)] = self._folder(here).pop(os.path.basename(here))
            case ("unlink", at):
                del self._folder(at)[os.path.basename(at)]
            case ("mkdir", at):
                self._folder(at)[os.path.basename(at)] = None
                self.entries[at], self.kept_entries[at] = {}, {}

    def _folder(self, at: str) -> dict[str, int | None]:
        return self.entries[os.path.dirname(at) or "."]

    def survivors(self) -> Iterator[Tree]:
        """Every tree that a power cut may leave now: each folder, and file contents, written back or not."""
        folders = list(self.entries)
        for choice in itertools.product((True, False), repeat=len(folders) + 1):
            back = dict(zip(folders, choice[1:], strict=True))
            yield self._tree(".", back, self.content if choice[0] else self.kept_content)

    def _tree(self, folder: str, back: dict[str, bool], content: dict[int, bytes]) -> Tree:
        found: Tree = {}
        entries = self.entries[folder] if back[folder] else self.kept_entries[folder]
        for name, number in entries.items():
            at = name if folder == "." else f"{folder}/{name}"
            if number is None:
                found |= {at: None, **self._tree(at, back, content)}
            else:
                found[at] = content[number]
        return found


def write_tree(tree: Tree, folder: Path) -> None:
    for at, content in sorted(tree.items()):
        if content is None:
            (folder / at).mkdir(parents=True)
        else:
            (folder / at).write_bytes(content)
