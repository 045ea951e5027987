"""Build imagenet.webp and imagenet.json from the Debian package openclipart-png 1:0.18+dfsg-19.

Run by hand from the repository root, on a Debian or Ubuntu that offers the package (apt-get, dpkg-deb):
    python workloads/data/build/imagenet.py
Clip art on white, padded to a square, 32×32; its top folders are the classes. Same source, same bytes again.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from workloads.data.build.sources import debian, save_mosaic, shuffled

PACKAGE, VERSION = "openclipart-png", "1:0.18+dfsg-19"
SOURCE_SHA256 = "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"
FOLDER = "usr/share/openclipart/png/"
SIDE = 32
LEVELS = 32  # a channel: lossless WebP of 256 levels is 2.5 MB, of 32 1.5 MB; lossy WebP blurs colours more
COLUMNS = 64  # images a row of the mosaic
NEAR_EQUAL = 8  # RMS difference of two 16×16 thumbnails, in 255ths: closer ones are one image
CAPS = {"computer/icons": 1000, "signs_and_symbols/flags": 400}  # so that no single series rules its class
NOT_A_CLASS = {"unsorted"}
SMALLEST_CLASS = 65
VALIDATION_FRACTION = 0.3

Pixels = NDArray[np.uint8]


def small(file: bytes) -> Pixels | None:
    """One picture as (32, 32, 3); None where Pillow cannot read it, takes it for a bomb, or all is one colour."""
    try:
        picture = Image.open(io.BytesIO(file)).convert("RGBA")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        return None
    flat = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    flat.alpha_composite(picture)
    side = max(flat.size)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(flat.convert("RGB"), ((side - flat.width) // 2, (side - flat.height) // 2))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.int64)
    levels = (pixels * (LEVELS - 1) + 127) // 255
    if (levels == levels[0, 0]).all():
        return None
    return ((levels * 255 + (LEVELS - 1) // 2) // (LEVELS - 1)).astype(np.uint8)


def distinct(pictures: dict[str, Pixels]) -> list[str]:
    """The names without those nearly equal to an earlier one, in the given order.

    Distances come from whole numbers below 2**53, so they are exact whatever the BLAS.
    """
    stack = np.stack(list(pictures.values())).astype(np.int64)
    thumbs = stack.reshape(len(stack), 16, 2, 16, 2, 3).sum((2, 4)).reshape(len(stack), -1) // 4
    points = thumbs.astype(np.float64)
    squares = (points**2).sum(1)
    limit = NEAR_EQUAL**2 * points.shape[1]
    kept: list[int] = []
    seen, seen_squares = np.empty_like(points), np.empty_like(squares)
    for i in range(len(points)):
        n = len(kept)
        if n and (seen_squares[:n] - 2 * (seen[:n] @ points[i])).min() + squares[i] <= limit:
            continue
        seen[n], seen_squares[n] = points[i], squares[i]
        kept.append(i)
    names = list(pictures)
    return [names[i] for i in kept]


def classes(names: Sequence[str]) -> dict[str, list[str]]:
    """Class -> names, capped in shuffled order; small classes are left out."""
    taken: dict[str, int] = defaultdict(int)
    found: dict[str, list[str]] = defaultdict(list)
    for name in shuffled(names, "cap"):
        top, _, rest = name.partition("/")
        series = f"{top}/{rest.partition('/')[0]}"
        taken[series] += 1
        if top not in NOT_A_CLASS and taken[series] <= CAPS.get(series, len(names)):
            found[top].append(name)
    return {top: found[top] for top in sorted(found) if len(found[top]) >= SMALLEST_CLASS}


def split(groups: dict[str, list[str]]) -> dict[str, list[tuple[str, int]]]:
    """Split -> (name, label), stratified, shuffled anew after capping."""
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "validation": []}
    for label, group in enumerate(groups.values()):
        num_validation = round(len(group) * VALIDATION_FRACTION)
        for i, name in enumerate(shuffled(group, "split")):
            parts["validation" if i < num_validation else "train"].append((name, label))
    for part, pairs in parts.items():
        rank = {name: i for i, name in enumerate(shuffled([name for name, _ in pairs], "order"))}
        parts[part] = sorted(pairs, key=lambda pair: rank[pair[0]])
    return parts


def main() -> None:
    files = debian(PACKAGE, VERSION, SOURCE_SHA256)
    names = [name for name in sorted(files, key=PurePosixPath) if name.startswith(FOLDER) and name.endswith(".png")]
    read = {name.removeprefix(FOLDER): small(files[name]) for name in names}
    pictures = {name: pixels for name, pixels in read.items() if pixels is not None}
    groups = classes(distinct(pictures))
    parts = split(groups)
    labels = {part: [label for _, label in pairs] for part, pairs in parts.items()}
    order = [name for part in ("train", "validation") for name, _ in parts[part]]
    tiles = np.stack([pictures[name] for name in order])
    save_mosaic("imagenet", tiles, COLUMNS, 255, {"classes": list(groups), **labels})
    print({top: len(group) for top, group in groups.items()}, {part: len(x) for part, x in labels.items()})


if __name__ == "__main__":
    main()
