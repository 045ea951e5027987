"""What a job carries to the cluster: the studies, and the user's own code when asked for. Nothing else."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import click

STUDY_FOLDER = "wa_study"
OURS = frozenset({"wa", "workloads", "sweeps", "analysis", "cluster"})
CODE_LIMIT_MB = 100
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
# Names that keys go by; hidden files stay behind whatever they are called.
KEYS = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.ovpn", "*.env", "*.token"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "netrc", "_netrc", "htpasswd", "kubeconfig*"),
    *("credentials", "credentials.*", "*credentials*.json", "*service*account*.json", "client_secret*"),
    *("secret", "secret.*", "secrets", "secrets.*", "*_secrets.*", "token", "token.*", "*api_key*", "*apikey*"),
)
PUBLIC = ("*.pub", "*.py", "*.pyi")  # a public key is none, and code about keys is code
# How a private key begins, in whatever file.
BEGINS = re.compile(rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY", re.MULTILINE)
HEAD_BYTES = 4096


class SubmitError(click.ClickException, ValueError):
    """A submission that cannot go ahead; the message is one line: what is wrong, and what to do."""

    exit_code = 2


def stage(studies: Sequence[Path], staging: Path, working_dir: Path | None = None) -> list[str]:
    """Fill the empty folder `staging` with what the job needs; the studies' paths relative to it.

    The studies lie in `wa_study/`, the user's code at the top, where Ray puts the job's imports. Hidden
    names (`.env`, `.git`, `.netrc`), `__pycache__` and virtual environments stay behind.

    Raises SubmitError: no such study or folder, a name that clashes, a module by the name of one that the job needs
    (Ray puts this folder before all else that Python searches), a link that leads out of the folder, a file
    that looks like a key, more than 100 MB of code.
    """
    names = [study.name for study in studies]
    for study in studies:
        if not study.is_file():
            raise SubmitError(f"{study}: no such study file")
        if names.count(study.name) > 1:
            raise SubmitError(f"{study}: two studies have this file name; each needs one of its own")
    if working_dir is not None:
        _copy_code(working_dir, staging)
        _refuse_namesakes(working_dir, staging)
        if (working_dir / STUDY_FOLDER).exists():
            raise SubmitError(f"{working_dir}: holds a {STUDY_FOLDER!r} of its own; the job needs that name")
    folder = staging / STUDY_FOLDER
    folder.mkdir()
    for study in studies:
        shutil.copyfile(study, folder / study.name)
    return [f"{STUDY_FOLDER}/{name}" for name in names]


def staged(staging: Path) -> tuple[list[str], int]:
    """What lies in `staging`, as paths relative to it, and its bytes."""
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    return [str(path.relative_to(staging)) for path in files], sum(path.stat().st_size for path in files)


def _copy_code(source: Path, target: Path) -> None:
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
        try:
            _refuse_key(path)
            shutil.copyfile(path, copy)
        except OSError as error:
            raise SubmitError(f"{path}: {error.strerror or error}; it cannot be sent") from None


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


def _refuse_key(path: Path) -> None:
    names = (path.name.lower(), path.resolve().name.lower())  # of a link, both
    named = any(_matches(name, KEYS) and not _matches(name, PUBLIC) for name in names)
    with open(path, "rb") as stream:
        holds = BEGINS.search(stream.read(HEAD_BYTES)) is not None
    if named or holds:
        raise SubmitError(
            f"{path}: looks like a key, which every user of the cluster could read; move it out of the folder, or "
            "give its name a leading dot, and it stays here"
        )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _travels(folder: Path) -> bool:
    hidden = folder.name.startswith(".") or folder.name in SKIPPED_FOLDERS
    return not hidden and not (folder / "pyvenv.cfg").exists()
