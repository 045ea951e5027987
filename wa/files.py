"""Averages of checkpoint files, streamed: of every tensor a piece of each file at a time, into a safetensors file.

The arithmetic is the bank's: an average of files has the bits that a `Bank` gives to the same snapshots.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .averages import Averages
from .checkpoint_files import DTYPES, BadFile, Checkpoint, Stored, looks, matched
from .checks import FLOATS
from .flat import make_blocks
from .options import Buffers
from .schemes import EMA, LAWA, Scheme, Windowed

PIECE = 1 << 20  # elements in memory, of all files together
NO_SUM = "0" * 64
WORDS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Weighted(Windowed):
    """Σ wᵢ θᵢ / Σ wᵢ over the snapshots, oldest first. Raises: ValueError where the weights cannot be shares."""

    shares: tuple[float, ...]
    every: int = 1
    buffers: Buffers = "live"

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.shares)) or not math.fsum(self.shares):
            raise ValueError(f"weights {list(self.shares)}; allowed: finite numbers whose sum is not 0")

    @property
    def k(self) -> int:  # type: ignore[override]
        return len(self.shares)

    @property
    def burn_in(self) -> int:
        return 0

    @property
    def horizon(self) -> float:
        return 2 * self.lag(self.k) + 1

    def weights(self, snapshots: int) -> list[float]:
        total = math.fsum(self.shares)
        return [share / total for share in self.shares]

    def lag(self, snapshots: int) -> float:
        return math.fsum(age * share for age, share in enumerate(reversed(self.weights(snapshots))))


def scheme_of(number: int, ema: float | None = None, weights: Sequence[float] | None = None) -> Scheme:
    """The average of so many snapshots: an EMA of this decay, weighted, else their mean. Raises: ValueError."""
    if ema is not None and weights is not None:
        raise ValueError("an EMA has weights of its own; allowed: ema or weights")
    if weights is not None and len(weights) != number:
        raise ValueError(f"{len(weights)} weights for {number} checkpoints; allowed: one each")
    if weights is not None:
        return Weighted(tuple(weights))
    return LAWA(number) if ema is None else EMA(ema)


def average(
    paths: Sequence[str | Path], out: str | Path, *, ema: float | None = None, weights: Sequence[float] | None = None
) -> None:
    """Write the average of checkpoints, oldest first, as the safetensors file `out`, which must be new.

    ema: the decay of an EMA over them; weights: one a checkpoint, divided by their sum; neither: their mean.
    Dtypes stay, tensors that are not floating-point come from the newest, tied ones are averaged and written once
    (metadata: other name -> name, as `safetensors.torch.save_model`). The metadata has the sha256 of the file as it is
    with zeros in its place. In memory are about a million elements at a time, of all files together; of a torch
    file's tensor that is not contiguous, twice that tensor.

    Raises: ValueError (BadFile names file and tensor) where names, shapes or dtypes differ, a tensor holds NaN, or
    infinity that is not the same everywhere, or `out` is there; OSError. Then there is no file.
    """
    out = Path(out)
    if len(paths) < 2:
        raise ValueError(f"got {len(paths)} checkpoints; allowed: two or more, oldest first")
    scheme = scheme_of(len(paths), ema, weights)
    if out.suffix != ".safetensors":
        raise BadFile(out, "allowed: the name of a new .safetensors file")
    _refuse_place(out)
    checkpoints = [Checkpoint.open(Path(path)) for path in paths]
    # Wide elements first: so every tensor of the file is aligned to its elements.
    tensors = sorted(matched(checkpoints), key=lambda item: -item[1][-1].dtype.itemsize)
    ties = {name: first for one in checkpoints for name, first in one.ties.items() if name not in dict(tensors)}
    told = {**ties, "format": "pt", "average": repr(scheme), "of": json.dumps([Path(path).name for path in paths])}
    with _new(out) as file:
        digest, at = hashlib.sha256(), _write_header(file, {name: places[-1] for name, places in tensors}, told)
        file.seek(0)
        digest.update(file.read())
        for name, places in tensors:
            for piece in _averaged(name, places, scheme):
                data = bytearray(piece.nbytes)  # without numpy, which torch may lack
                torch.frombuffer(data, dtype=piece.dtype).copy_(piece)
                digest.update(data)
                file.write(data)
        file.seek(at)
        file.write(digest.hexdigest().encode())


def _averaged(name: str, places: Sequence[Stored], scheme: Scheme) -> Iterator[Tensor]:
    """The average of one tensor, flat, piece by piece."""
    newest = places[-1]
    if newest.dtype.is_floating_point and newest.dtype not in FLOATS:
        raise BadFile(newest.path, f"cannot average {name!r}, {looks(newest)}; average the weights it was made from")
    size = max(1 << 12, PIECE // len(places))
    if any(one.stride is not None for one in places):
        size = max(size, newest.numel // 8)  # each piece reads all of it
    for start in range(0, newest.numel, size):
        stop = min(start + size, newest.numel)
        if not newest.dtype.is_floating_point:
            yield newest.read(start, stop)
            continue
        parts = [one.read(start, stop) for one in places]
        odd = [i for i, part in enumerate(parts) if not _is_finite(part)]
        if not odd:
            yield _mean(parts, scheme)
        elif all(torch.equal(part, parts[0]) for part in parts):  # a mask of −inf
            yield parts[0]
        else:
            what = "NaN" if parts[odd[0]].isnan().any() else "infinity"
            raise BadFile(places[odd[0]].path, f"{name!r} holds {what}; leave this checkpoint out")


def _is_finite(part: Tensor) -> bool:
    # Mostly the sum says so, at a fifth of the time; it may also be too large for numbers that are finite.
    return math.isfinite(part.sum().item()) or bool(torch.isfinite(part).all())


def _mean(parts: Sequence[Tensor], scheme: Scheme) -> Tensor:
    averages = Averages([scheme], make_blocks("parameters", {"": parts[0]}), {"": ""}, 0)
    for n, part in enumerate(parts, start=1):
        averages.take(n, {"": part}, 0.0)
    return averages.new(scheme)[""]


# --- the output -----------------------------------------------------------------------------------------------------


def _refuse_place(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise BadFile(out, "it exists; choose another path, or move it away")
    if not out.parent.is_dir():
        raise BadFile(out, "its folder does not exist; make it, or choose another path")


def _write_header(file: BinaryIO, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> int:
    """The header of a safetensors file with such tensors, in this order; where its sha256 belongs."""
    header: dict[str, object] = {"__metadata__": {**metadata, "sha256": NO_SUM}}
    end = 0
    for name, one in tensors.items():
        begin, end = end, end + one.numel * one.dtype.itemsize
        header[name] = {"dtype": WORDS[one.dtype], "shape": one.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + text.index(f'"sha256":"{NO_SUM}'.encode()) + len('"sha256":"')


@contextmanager
def _new(out: Path) -> Iterator[BinaryIO]:
    """A file that appears at `out`, whole and on disk, at the end; or never."""
    new = out.with_name(f".{out.name}.{os.getpid()}.new")
    file = open(new, "w+b")  # noqa: SIM115  (closed below, before its name is given)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_place(out)
        os.replace(new, out)
    finally:
        new.unlink(missing_ok=True)
    folder = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
