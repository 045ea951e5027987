"""What a job carries to the cluster: the studies, and the user's own code when asked for; no secret."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import click

from cluster import secrets

STUDY_FOLDER = "wa_study"
OURS = frozenset({"wa", "workloads", "sweeps", "analysis", "cluster"})
CODE_LIMIT_MB = 100
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
SHOWN_FILES = 20


class SubmitError(click.ClickException, ValueError):
    """A submission that cannot go ahead; the message is one line: what is wrong, and what to do."""

    exit_code = 2


def stage(
    studies: Sequence[Path], staging: Path, working_dir: Path | None = None, send: Sequence[Path] = ()
) -> list[str]:
    """Fill the empty folder `staging` with what the job needs; the studies' paths relative to it.

    The studies lie in `wa_study/`, the user's code at the top, where Ray puts the job's imports. Hidden
    names (`.env`, `.git`, `.netrc`), `__pycache__` and virtual environments stay behind. send: files that go though
    they look like a secret.

    Raises SubmitError: no such study or folder, a name that clashes, a module by the name of one that the job needs
    (Ray puts this folder before all else that Python searches), a link that leads out of the folder, a file
    that is named like a key or holds a secret, more than 100 MB of code.
    """
    asked = {path.resolve() for path in send}
    for path in send:
        if not path.is_file():
            raise SubmitError(f"--send {path}: no such file")
    names = [study.name for study in studies]
    for study in studies:
        if not study.is_file():
            raise SubmitError(f"{study}: no such study file")
        if names.count(study.name) > 1:
            raise SubmitError(f"{study}: two studies have this file name; each needs one of its own")
    if working_dir is not None:
        _copy_code(working_dir, staging, asked)
        _refuse_namesakes(working_dir, staging)
        if (working_dir / STUDY_FOLDER).exists():
            raise SubmitError(f"{working_dir}: holds a {STUDY_FOLDER!r} of its own; the job needs that name")
    folder = staging / STUDY_FOLDER
    folder.mkdir()
    for study in studies:
        _copy(study, folder / study.name, asked)
    return [f"{STUDY_FOLDER}/{name}" for name in names]


def staged(staging: Path) -> dict[str, int]:
    """What lies in `staging`: path relative to it -> bytes."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    return {str(path.relative_to(staging)): path.stat().st_size for path in files}


def listing(files: Mapping[str, int], whole: bool = False) -> str:
    """The files with their sizes, one a line, the sum above them; of many the first, unless the whole is asked for."""
    shown = list(files)[: None if whole else SHOWN_FILES]
    sizes = [_size(files[name]) for name in shown]
    width = max(map(len, sizes), default=0)
    counted = f"{len(files):,} file{'s' if len(files) != 1 else ''}"
    lines = [f"{counted}, {_size(sum(files.values()))}, to send:"]
    lines += [f"  {size:>{width}}  {name}" for name, size in zip(shown, sizes, strict=True)]
    if left := len(files) - len(shown):
        lines.append(f"  … and {left:,} more (--list shows all, and sends nothing)")
    return "\n".join(lines)


def _size(count: int) -> str:
    for unit, size in (("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"


def _copy_code(source: Path, target: Path, asked: Set[Path]) -> None:
    if not source.is_dir():
        raise SubmitError(f"{source}: no such folder of code (--working-dir)")
    left = CODE_LIMIT_MB * 10**6
    for path in _code(source):
        size = path.stat().st_size
        left -= size
        if left < 0:
            raise SubmitError(
                f"{source}: more than {CODE_LIMIT_MB} MB of code; name the package's own folder, "
                "and let data lie where every node sees it"
            )
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(path, copy, asked)


def _copy(path: Path, copy: Path, asked: Set[Path]) -> None:
    """Copy a file that holds no secret; what is looked at is the copy, which is what is sent."""
    try:
        shutil.copyfile(path, copy)
        data = copy.read_bytes()
    except OSError as error:
        raise SubmitError(f"{path}: {error.strerror or error}; it cannot be sent") from None
    if path.resolve() in asked:
        return
    named = any(map(secrets.is_key_file, (path.name, path.resolve().name)))  # of a link, both
    held = secrets.found(data.replace(b"\0", b"").decode("utf-8", "replace"))  # of UTF-16, the letters
    if named or held:
        place, what = (f"{path}, line {held[1]}", f"holds {held[0]}") if held else (str(path), "is named like a key")
        raise SubmitError(
            f"{place}: {what}, which every user of the cluster could read; move it out of the folder or give "
            f"the file a leading dot, and it stays here (--send {path} sends it all the same)"
        )


def _refuse_namesakes(source: Path, staging: Path) -> None:
    for entry in sorted(staging.iterdir()):
        is_module = entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
        if is_module and entry.stem in _needed():
            raise SubmitError(
                f"{source / entry.name}: on the cluster it would stand in for the module {entry.stem!r} that the job "
                "needs; rename it, or send the folder above (its workloads are then folder.module:Name)"
            )


@cache
def _needed() -> frozenset[str]:
    """Python's own modules, ours, and those of the packages that we require."""
    required = {_normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in requires("wa-sweeps") or []}
    packages = packages_distributions().items()
    theirs = {name for name, of in packages if required & {_normal(one) for one in of}}
    return OURS | sys.stdlib_module_names | theirs


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _code(source: Path) -> Iterator[Path]:
    """The files that travel. Raises: SubmitError at a link that leads out of `source`."""
    top = source.resolve()
    for folder, names, files in os.walk(source):
        here = Path(folder)
        names[:] = sorted(name for name in names if _travels(here / name))
        for name in sorted([*files, *(name for name in names if (here / name).is_symlink())]):
            path = here / name
            if name.startswith(".") or not path.exists():  # a dangling link has nothing to send
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(top):
                raise SubmitError(
                    f"{path}: a link to {path.resolve()}, outside the folder that is sent; "
                    "put a copy there if it may travel, or take the link away"
                )
            if path.is_symlink() and path.is_dir():
                raise SubmitError(f"{path}: a link to a folder; put the folder itself there, or take the link away")
            if any(part.startswith(".") for part in path.resolve().relative_to(top).parts):
                raise SubmitError(f"{path}: a link to {path.resolve()}, which is hidden and stays here")
            if path.is_file():  # neither a socket nor a device
                yield path


def _travels(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in SKIPPED_FOLDERS
    return not hidden and not (folder / "pyvenv.cfg").exists()
