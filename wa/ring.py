"""The latest snapshots, kept once for all windows on one grid, with block sums that serve the mean of every k.

Beside the snapshots, in the weights' own dtype, the ring keeps in float64 the sums of aligned blocks of 8, 64,
512, … snapshots: block b of level j holds the snapshots 8ʲ (b − 1) + 1 … 8ʲ b. The block that is being filled
holds the sum so far. A push is one addition, and one more every 8, 64, … pushes, whatever the number of horizons
and their k. A window is single snapshots up to the first block that lies within it, blocks of growing size,
and the blocks being filled: at most 8 + 8⌊log₈ k⌋ terms.

No sum is ever taken off another, so what has left a window has no influence on it, to the bit: one snapshot that
is not finite, or huge, is gone when it leaves. The bits of a mean are a function of its snapshots, their number
and n alone, whatever other k share the ring. With u = 2⁻⁵³ and max|θ| over the window,

    |mean − exact mean| ≤ (9 + 15⌊log₈ k⌋) u max|θ|        (6e−15 max|θ| for k < 4,096)

since a snapshot goes through at most 7 additions in each level of its block, one for each term and a division.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .flat import Block, Piece, Reading

SUM = torch.float64
FAN = 8  # blocks of one level in a block of the next


def ring_bytes(capacity: int, itemsize: int) -> int:
    """Bytes for each element of a ring of `capacity` snapshots of `itemsize` bytes: snapshots and block sums."""
    return capacity * itemsize + sum(_blocks(capacity)) * SUM.itemsize


def num_levels(size: int) -> int:
    """Of how many levels the mean of `size` snapshots adds up blocks: ⌊log₈ size⌋."""
    return len(_blocks(size))


def pushed_dtype(capacity: int, dtype: torch.dtype) -> torch.dtype:
    """The widest dtype in which a ring of `capacity` snapshots of `dtype` takes one in."""
    return SUM if _blocks(capacity) else dtype


class Ring:
    """The latest `capacity` snapshots of one block of tensors and the sums of theirs."""

    def __init__(self, block: Block, capacity: int) -> None:
        self.capacity = capacity
        self.pushed = pushed_dtype(capacity, block.dtype)
        self._block = block
        # By piece: snapshot n = 1, 2, … in row n mod capacity. By level and piece: a sum a row, in turns.
        self._slots = block.zeros(block.dtype, capacity)
        self._levels = [block.zeros(SUM, rows) for rows in _blocks(capacity)]

    def push(self, piece: Piece, reading: Reading, n: int) -> None:
        """Take in a piece of the n-th snapshot, n = 1, 2, …"""
        self._slots[piece.index][n % self.capacity].copy_(reading.live)
        if self._levels:
            self._add(piece, reading.to(self.pushed), n)

    def _add(self, piece: Piece, snapshot: Tensor, n: int) -> None:
        term = snapshot
        for level in range(1, len(self._levels) + 1):
            total = self._sum(level, piece, n)
            part, whole = FAN ** (level - 1), FAN**level
            if n % whole == part:  # the first of its block
                total.copy_(term)
            else:
                total.add_(term)
            if n % whole:
                return
            term = total

    def _sum(self, level: int, piece: Piece, n: int) -> Tensor:
        """The sum of the level's block that holds snapshot n; the snapshot itself on level 0."""
        if level == 0:
            return self._slots[piece.index][n % self.capacity]
        rows = self._levels[level - 1][piece.index]
        return rows[(n - 1) // FAN**level % len(rows)]

    def snapshot(self, piece: Piece, n: int) -> Tensor:
        """A piece of the n-th snapshot, one of the latest `capacity`."""
        return self._sum(0, piece, n)

    def mean(self, k: int, piece: Piece, n: int) -> Tensor:
        """A piece of the mean of the latest min(n, k) snapshots after n pushes, float64, a new tensor."""
        size = min(n, k)
        first, *others = [self._sum(level, piece, at) for level, at in terms(size, n)]
        total = first.to(SUM, copy=True)
        for term in others:
            total.add_(term)
        return total.div_(size)

    def weighted(self, weights: Sequence[float], piece: Piece, n: int) -> Tensor:
        """A piece of Σ weight · snapshot over the latest len(weights), oldest first; float64, a new tensor.

        One addition a snapshot: for weights that differ, sums are of no use.
        """
        slots = self._slots[piece.index]
        total = torch.zeros_like(slots[0], dtype=SUM)
        for i, weight in enumerate(weights, start=n - len(weights) + 1):
            total.add_(slots[i % self.capacity], alpha=weight)
        return total

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensors in (self._slots, *self._levels) for tensor in tensors)

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """The snapshots; their sums follow from them."""
        return {"slots": self._block.exported(self._slots, copy)}

    def load_state_dict(self, state: Mapping[str, Any], n: int) -> None:
        """The inverse of `state_dict`, after n pushes: adds up what is summed in the order of the pushes."""
        self._block.import_(self._slots, state["slots"])
        if self._levels:
            for i in range(max(1, n - self.capacity + 1), n + 1):
                for piece in self._block.mine:
                    self._add(piece, self.snapshot(piece, i), i)


def terms(size: int, n: int) -> Iterator[tuple[int, int]]:
    """What adds up to the sum over the latest `size` snapshots after n, oldest first: (level, last snapshot in it)."""
    done = n - size  # snapshots before the window, and those in the terms so far
    top = num_levels(size)
    level = 0
    while True:
        block = FAN**level
        while done + block <= n and (level == top or done % (FAN * block)):
            done += block
            yield level, done
        if level == top or done + block > n:
            break
        level += 1
    # Less than a block of this level is left, and `done` is where it begins: the blocks being filled.
    for filling in range(level, 0, -1):
        filled = n // FAN ** (filling - 1) * FAN ** (filling - 1)
        if filled > done:
            done = filled
            yield filling, n


def _blocks(size: int) -> list[int]:
    """By level, how many sums lie in any window of `size` snapshots, the one that is being filled among them."""
    blocks, span = [], FAN
    while span <= size:
        blocks.append(-(-size // span))
        span *= FAN
    return blocks
