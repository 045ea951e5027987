"""A ring for averages that are read at steps known beforehand: it keeps what a later reading will add up, no more.

The sums, their order and so the bits are those of `ring.Ring`. Of the snapshots and of the sums of 8, 64, 512, …
snapshots only those stay that some window read later has as a term; the blocks being filled are always at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .flat import Block, Piece, Reading
from .ring import FAN, SUM, _blocks, pushed_dtype, terms

Key = tuple[int, int]  # level, number of the block from 0: snapshot n is (0, n − 1)


class ReadRing:
    """What windows of these lengths will be made of, each time one is read. reads: numbers of snapshots, ascending."""

    def __init__(self, block: Block, windows: Sequence[int], whole: Sequence[int], reads: Sequence[int]) -> None:
        """windows: lengths k whose mean is read. whole: lengths of which every snapshot is wanted, for `weighted`."""
        longest = max([*windows, *whole])
        self._block = block
        self._num_levels = len(_blocks(max(windows, default=0)))
        self.pushed = pushed_dtype(longest, block.dtype) if windows else block.dtype
        self._last_use = _last_uses(windows, whole, reads)
        self._filling = [block.zeros(SUM) for _ in range(self._num_levels)]
        self._kept: dict[Key, list[Tensor]] = {}  # by piece

    def push(self, piece: Piece, reading: Reading, n: int) -> None:
        """Take in a piece of the n-th snapshot, n = 1, 2, …"""
        if piece.index == 0:
            self._kept = {key: parts for key, parts in self._kept.items() if self._last_use[key] >= n}
        if (0, n - 1) in self._last_use:
            self._part((0, n - 1), piece).copy_(reading.live)
        if not self._num_levels:
            return
        term = reading.to(SUM)
        for level in range(1, self._num_levels + 1):
            total = self._filling[level - 1][piece.index]
            part, whole = FAN ** (level - 1), FAN**level
            if n % whole == part:  # the first of its block
                total.copy_(term)
            else:
                total.add_(term)
            if n % whole:
                return
            if (level, n // whole - 1) in self._last_use:
                self._part((level, n // whole - 1), piece).copy_(total)
            term = total

    def _part(self, key: Key, piece: Piece) -> Tensor:
        if key not in self._kept:
            self._kept[key] = self._storage(key)
        return self._kept[key][piece.index]

    def _storage(self, key: Key) -> list[Tensor]:
        return self._block.zeros(SUM if key[0] else self._block.dtype)

    def mean(self, k: int, piece: Piece, n: int) -> Tensor:
        """A piece of the mean of the latest min(n, k) snapshots after n pushes, float64, a new tensor.

        Raises: KeyError where n is none of the readings told beforehand.
        """
        size = min(n, k)
        first, *others = [self._term(level, at, piece, n) for level, at in terms(size, n)]
        total = first.to(SUM, copy=True)
        for term in others:
            total.add_(term)
        return total.div_(size)

    def _term(self, level: int, at: int, piece: Piece, n: int) -> Tensor:
        if at % FAN**level:
            return self._filling[level - 1][piece.index]
        return self._kept[level, at // FAN**level - 1][piece.index]

    def weighted(self, weights: Sequence[float], piece: Piece, n: int) -> Tensor:
        """A piece of Σ weight · snapshot over the latest len(weights), oldest first; float64, a new tensor."""
        total: Tensor = self._block.zeros(SUM)[piece.index]
        for i, weight in enumerate(weights, start=n - len(weights) + 1):
            total.add_(self._kept[0, i - 1][piece.index], alpha=weight)
        return total

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for parts in (*self._filling, *self._kept.values()) for part in parts)

    def peak_bytes(self) -> int:
        """The most that `nbytes` becomes."""
        whole = sum(piece.numel for piece in self._block.pieces)
        change: dict[int, int] = {}
        for (level, number), last in self._last_use.items():
            size = whole * (SUM if level else self._block.dtype).itemsize
            for at, by in (((number + 1) * FAN**level, size), (last + 1, -size)):
                change[at] = change.get(at, 0) + by
        now = most = 0
        for at in sorted(change):
            now += change[at]
            most = max(most, now)
        return most + self._num_levels * whole * SUM.itemsize

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """What is kept, and the blocks being filled."""
        filling = [self._block.exported(parts, copy) for parts in self._filling]
        return {"filling": filling, "kept": [[*key, self._block.exported(p, copy)] for key, p in self._kept.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for parts, saved in zip(self._filling, state["filling"], strict=True):
            self._block.import_(parts, saved)
        self._kept = {}
        for level, number, saved in state["kept"]:
            self._kept[level, number] = self._storage((level, number))
            self._block.import_(self._kept[level, number], saved)


def _last_uses(windows: Sequence[int], whole: Sequence[int], reads: Sequence[int]) -> dict[Key, int]:
    """Each complete block that some reading adds up, with the last reading that does."""
    found: dict[Key, int] = {}
    for n in sorted(reads):
        for k in windows:
            found |= dict.fromkeys(_complete(terms(min(n, k), n)), n)
        for k in whole:
            found |= {(0, i - 1): n for i in range(max(1, n - k + 1), n + 1)}
    return found


def _complete(found: Iterator[Key]) -> Iterator[Key]:
    for level, at in found:
        if at % FAN**level == 0:
            yield level, at // FAN**level - 1
