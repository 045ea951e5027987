"""The latest snapshots, kept once for all windows on one grid, with prefix sums that serve the mean of every k.

With P(n) = Σ_{i ≤ n} θᵢ over the snapshots so far, the sum over the latest k is P(n) − P(n − k). The ring
keeps P(n) and, at every MARK-th snapshot, a copy of it, all in float64, beside the snapshots in the weights'
own dtype. A push is one addition, whatever the number of horizons and their k; the sum of a window is

    P(n) − P(j) + Σ_{m < i ≤ j} θᵢ,   m = n − k,   j the first marked snapshot ≥ m,

at most MARK − 1 more additions: O(1) in k. Every REBASE snapshots P(n) is taken off all marks and restarts
at 0, so that rounding depends on the window and not on the length of the run. With u = 2⁻⁵³ and max|θ| over
the window and the REBASE snapshots before it,

    |mean − exact mean| ≤ 4 (REBASE + k) u max|θ|        (1e−12 max|θ| for k ≤ 1,000)

since each of the k additions in P rounds a sum of at most (REBASE + k) max|θ|, and is divided by k. What is
added when depends on n alone, so the mean for one k has the same bits whatever other k share the ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .flat import Block, Piece, Reading

SUM = torch.float64
MARK = 8
REBASE = 1024  # a multiple of MARK


def ring_bytes(capacity: int, itemsize: int) -> int:
    """Bytes for each element of a ring of `capacity` snapshots of `itemsize` bytes: snapshots, marks, P."""
    return capacity * itemsize + (_marks(capacity) + 1) * SUM.itemsize


class Ring:
    """The latest `capacity` snapshots of one block and their prefix sums."""

    def __init__(self, block: Block, capacity: int) -> None:
        self.capacity = capacity
        # By piece: snapshot n = 1, 2, … in row n mod capacity, P(MARK · i) in row i mod _marks(capacity).
        self._slots = block.zeros(block.dtype, capacity)
        self._marks = block.zeros(SUM, _marks(capacity))
        self._prefix = block.zeros(SUM)

    def push(self, piece: Piece, reading: Reading, n: int) -> None:
        """Take in a piece of the n-th snapshot, n = 1, 2, …"""
        prefix, marks = self._prefix[piece.index], self._marks[piece.index]
        self._slots[piece.index][n % self.capacity].copy_(reading.live)
        prefix.add_(reading.live)
        if n % MARK == 0:
            marks[n // MARK % len(marks)].copy_(prefix)
        if n % REBASE == 0:
            marks.sub_(prefix)
            prefix.zero_()

    def mean(self, k: int, piece: Piece, n: int) -> Tensor:
        """A piece of the mean of the latest min(n, k) snapshots after n pushes, float64, a new tensor."""
        slots, marks = self._slots[piece.index], self._marks[piece.index]
        size = min(n, k)
        first = n - size + 1
        marked = -(-(first - 1) // MARK) * MARK
        if marked > n:  # a short window between two marks
            total = slots[first % self.capacity].to(SUM, copy=True)
            first, marked = first + 1, n
        else:
            total = self._prefix[piece.index] - marks[marked // MARK % len(marks)]
        for i in range(first, marked + 1):
            total.add_(slots[i % self.capacity])
        return total.div_(size)

    def weighted(self, weights: Sequence[float], piece: Piece, n: int) -> Tensor:
        """A piece of Σ weight · snapshot over the latest len(weights), oldest first; float64, a new tensor.

        One addition a snapshot: for weights that differ, prefix sums are of no use.
        """
        slots = self._slots[piece.index]
        total = torch.zeros_like(slots[0], dtype=SUM)
        for i, weight in enumerate(weights, start=n - len(weights) + 1):
            total.add_(slots[i % self.capacity], alpha=weight)
        return total

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._slots, *self._marks, *self._prefix))

    def state_dict(self) -> dict[str, Any]:
        """The snapshots and sums, as copies."""
        return {
            "slots": [tensor.clone() for tensor in self._slots],
            "marks": [tensor.clone() for tensor in self._marks],
            "prefix": [tensor.clone() for tensor in self._prefix],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, mine in (("slots", self._slots), ("marks", self._marks), ("prefix", self._prefix)):
            for tensor, saved in zip(mine, state[name], strict=True):
                tensor.copy_(saved)


def _marks(capacity: int) -> int:
    """How many marks lie in n − capacity … n, at most."""
    return capacity // MARK + 1
