"""Whose module a name means: ours before a user's, and a user's folder last.

A user's folder may hold an analysis.py or a queue.py of its own. Python, Ray and `python -m` all put that folder
before everything else; then every `import analysis` of ours, in every process, would run the user's file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parent.parent  # site-packages, or a checkout
PACKAGES = ("wa", "workloads", "sweeps", "analysis", "cluster")


class _OurPackages:
    """Finds our top-level packages in HOME, asked before sys.path is."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(HOME)], target) if name in PACKAGES else None


def product_first() -> None:
    """From here on `import analysis` means ours. Raises: ImportError where a user's is imported already."""
    for name in PACKAGES:
        file = getattr(sys.modules.get(name), "__file__", None)
        # wa is a distribution of its own, too, and may lie elsewhere.
        if file is not None and name != "wa" and HOME not in Path(file).resolve().parents:
            raise ImportError(f"{file} has the name of a package of wa-sweeps, {name!r}: rename it")
    if _OurPackages not in sys.meta_path:
        sys.meta_path.insert(0, _OurPackages)
    if sys.argv[:1] == ["-m"]:  # `python -m sweeps.…` is on its way, and has put the current folder first
        users_folder_last()


def users_folder_last() -> None:
    """The current folder to the end of sys.path, where it is on it."""
    here = {"", os.getcwd()}
    sys.path[:] = [path for path in sys.path if path not in here] + [path for path in sys.path if path in here]


def users_paths() -> list[str]:
    """What this process searches beside its installation, and the current folder: for processes that it starts."""
    installed = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    own = [os.path.abspath(path) for path in sys.path if not {Path(path), *Path(path).parents} & installed]
    return list(dict.fromkeys([*own, os.getcwd()]))


def search_too(paths: Iterable[str]) -> None:
    """Add folders of the user's to the end of sys.path, where they are not on it."""
    sys.path += [path for path in paths if path not in sys.path]
