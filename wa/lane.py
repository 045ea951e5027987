"""Everything that one snapshot grid keeps of one block: a ring for its windows, accumulators for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any

from torch import Tensor

from .flat import Block, Piece, Reading
from .ring import Ring, pushed_dtype
from .schemes import LAWA, Recursive, Scheme, Windowed


class Accumulator:
    """The running average of one recursive scheme: m ← m + gain(n) (θ − m)."""

    def __init__(self, scheme: Recursive, block: Block) -> None:
        self._scheme = scheme
        self.block = block
        self.dtype = scheme.accumulator_dtype(block.dtype)
        self.parts = block.zeros(self.dtype)

    def push(self, piece: Piece, live: Tensor, n: int) -> None:
        """Take in a piece of the n-th snapshot, n = 1, 2, …"""
        if n == 1:
            self.parts[piece.index].copy_(live)
        else:
            self.parts[piece.index].lerp_(live, self._scheme.gain(n))


class Lane:
    """One (grid, block): takes snapshots, gives averages, and says which scheme caused what cost."""

    def __init__(self, block: Block, schemes: Iterable[Scheme], capacity: int = 0) -> None:
        """capacity: of the ring, when a state has a longer one than the schemes need."""
        self.schemes = list(schemes)
        self._windowed = [scheme for scheme in self.schemes if isinstance(scheme, Windowed)]
        longest = max((scheme.k for scheme in self._windowed), default=0)
        self._ring = Ring(block, max(longest, capacity)) if self._windowed else None
        self._pushed = [(scheme, pushed_dtype(scheme.k, block.dtype)) for scheme in self._windowed]
        self._accumulators = {
            scheme: Accumulator(scheme, block) for scheme in self.schemes if isinstance(scheme, Recursive)
        }

    def push(self, piece: Piece, reading: Reading, n: int) -> Iterator[tuple[Scheme, float]]:
        """Take in a piece of the n-th snapshot; yields (scheme, seconds this would have cost it alone)."""
        for recursive, accumulator in self._accumulators.items():
            live = reading.to(accumulator.dtype)
            start = perf_counter()
            accumulator.push(piece, live, n)
            yield recursive, perf_counter() - start + reading.seconds[accumulator.dtype]
        if self._ring is not None:
            reading.to(self._ring.pushed)
            start = perf_counter()
            self._ring.push(piece, reading, n)
            seconds = perf_counter() - start
            for scheme, dtype in self._pushed:
                yield scheme, seconds + reading.seconds[dtype]

    def mean(self, scheme: Scheme, piece: Piece, n: int) -> Tensor:
        """A piece of the average after n snapshots, in the accumulator's dtype; only to copy from."""
        if isinstance(scheme, Windowed):
            assert self._ring is not None
            if isinstance(scheme, LAWA):
                return self._ring.mean(scheme.k, piece, n)
            return self._ring.weighted(scheme.weights(n), piece, n)
        assert isinstance(scheme, Recursive)
        return self._accumulators[scheme].parts[piece.index]

    @property
    def nbytes(self) -> int:
        parts = [part for accumulator in self._accumulators.values() for part in accumulator.parts]
        return sum(part.nbytes for part in parts) + (self._ring.nbytes if self._ring is not None else 0)

    @property
    def capacity(self) -> int:
        """How many snapshots the ring keeps; 0 without one."""
        return self._ring.capacity if self._ring is not None else 0

    def state_dict(self, keys: Mapping[Scheme, str], copy: bool = True) -> dict[str, Any]:
        """Plain dicts of tensors; keys: the schemes' names in it."""
        accumulators = {
            keys[scheme]: accumulator.block.exported(accumulator.parts, copy)
            for scheme, accumulator in self._accumulators.items()
        }
        return {"accumulators": accumulators, "ring": self._ring.state_dict(copy) if self._ring else {}}

    def load_state_dict(self, state: Mapping[str, Any], keys: Mapping[Scheme, str], n: int) -> None:
        """The inverse of `state_dict`, after n snapshots."""
        for scheme, accumulator in self._accumulators.items():
            accumulator.block.import_(accumulator.parts, state["accumulators"][keys[scheme]])
        if self._ring is not None:
            self._ring.load_state_dict(state["ring"], n)
