"""What the build scripts share: packages of public registries, their sha256 checked; orders by hash; written files."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OUT = Path(__file__).resolve().parent.parent
PICTURES = OUT.parent.parent / "docs" / "img"


def checked(folder: Path, pattern: str, sha256: str) -> Path:
    """The one file of that name in the folder. Raises: ValueError where it is not the one a script was written for."""
    (archive,) = folder.glob(pattern)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise ValueError(f"{archive.name}: sha256 is {found}, expected {sha256}")
    return archive


def pip_download(folder: Path, package: str, version: str, pattern: str, sha256: str, *options: str) -> Path:
    """The sdist or wheel of a package, as `pattern` ends, without its dependencies."""
    kind = "--no-binary" if pattern.endswith(".tar.gz") else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, ":all:", *options, "--dest", str(folder)]
    subprocess.run([*command, f"{package}=={version}"], check=True)
    return checked(folder, pattern, sha256)


def npm_download(folder: Path, package: str, version: str, pattern: str, sha256: str) -> Path:
    """The tarball of an npm package."""
    subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=folder, check=True)
    return checked(folder, pattern, sha256)


def debian(folder: Path, package: str, version: str, sha256: str) -> Path:
    """The root of an unpacked Debian package; several share it."""
    subprocess.run(["apt-get", "download", f"{package}={version}"], cwd=folder, check=True)
    archive = checked(folder, f"{package}_*.deb", sha256)
    subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "unpacked")], check=True)
    return folder / "unpacked"


def shuffled(names: Sequence[str], salt: str) -> list[str]:
    """An order that depends on the names alone: by hash."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{salt}:{name}".encode()).digest())


def mosaic(tiles: NDArray[np.uint8], columns: int, background: int) -> Image.Image:
    """Square tiles (n, side, side, …) row by row, `columns` a row, the rest background."""
    side, rows = tiles.shape[1], -(-len(tiles) // columns)
    sheet = np.full((rows * columns, *tiles.shape[1:]), background, np.uint8)
    sheet[: len(tiles)] = tiles
    grid = sheet.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return Image.fromarray(grid.reshape(rows * side, columns * side, *tiles.shape[3:]))


def save_mosaic(name: str, tiles: NDArray[np.uint8], columns: int, background: int, about: dict[str, Any]) -> None:
    """`<name>.webp`, lossless, and `<name>.json`."""
    path = OUT / f"{name}.webp"
    mosaic(tiles, columns, background).save(path, lossless=True, quality=100, method=6)
    told(path)
    write_json(f"{name}.json", {"side": tiles.shape[1], "columns": columns, **about})


def write(name: str, content: bytes) -> None:
    """One data file."""
    (OUT / name).write_bytes(content)
    told(OUT / name)


def write_json(name: str, value: Any) -> None:
    write(name, (json.dumps(value, separators=(",", ":")) + "\n").encode("ascii"))


def xz(content: bytes, preset: int = 9) -> bytes:
    return lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=preset)


def told(path: Path) -> None:
    """Print size and sha256, for LICENSES.md."""
    content = path.read_bytes()
    print(f"{path.name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
