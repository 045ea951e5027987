"""What a job carries to the cluster: the studies, and the user's own code when asked for. Nothing else."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

STUDY_FOLDER = "wa_study"
CODE_LIMIT_MB = 100
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})


class SubmitError(ValueError):
    """A submission that cannot go ahead; the message is one line: what is wrong, and what to do."""


def stage(studies: Sequence[Path], staging: Path, working_dir: Path | None = None) -> list[str]:
    """Fill the empty folder `staging` with what the job needs; the studies' paths relative to it.

    The studies lie in `wa_study/`, the user's code at the top, where Ray puts the job's imports. Hidden
    names (`.env`, `.git`, `.netrc`), `__pycache__` and virtual environments stay behind.

    Raises SubmitError: no such study or folder, a name that clashes, more than 100 MB of code.
    """
    names = [study.name for study in studies]
    for study in studies:
        if not study.is_file():
            raise SubmitError(f"{study}: no such study file")
        if names.count(study.name) > 1:
            raise SubmitError(f"{study}: two studies have this file name; each needs one of its own")
    if working_dir is not None:
        _copy_code(working_dir, staging)
    folder = staging / STUDY_FOLDER
    if folder.exists():
        raise SubmitError(f"{working_dir}: holds a {STUDY_FOLDER!r} of its own; the job needs that name")
    folder.mkdir()
    for study in studies:
        shutil.copyfile(study, folder / study.name)
    return [f"{STUDY_FOLDER}/{name}" for name in names]


def _copy_code(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise SubmitError(f"{source}: no such folder of code (--working-dir)")
    left = CODE_LIMIT_MB * 10**6
    for folder, names, files in os.walk(source):
        here = Path(folder)
        names[:] = sorted(name for name in names if _travels(here / name))
        destination = target / here.relative_to(source)
        destination.mkdir(exist_ok=True)
        for name in files:
            path = here / name
            if name.startswith(".") or not path.is_file():  # not a file: a dangling link, a socket
                continue
            left -= path.stat().st_size
            if left < 0:
                raise SubmitError(
                    f"{source}: more than {CODE_LIMIT_MB} MB of code; name the package's own folder, "
                    "and let data lie where every node sees it"
                )
            shutil.copyfile(path, destination / name)


def _travels(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in SKIPPED_FOLDERS
    return not hidden and not (folder / "pyvenv.cfg").exists()
