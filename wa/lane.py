"""What one snapshot grid keeps of one block, a ring for its windows and accumulators for the rest; what all weigh."""

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .flat import Block, Piece, Reading
from .ring import Ring, pushed_dtype, ring_bytes
from .schemes import LAWA, Recursive, Scheme, Windowed

FLOATS = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


class Track(NamedTuple):
    """Snapshots at burn_in + every, burn_in + 2·every, …, of those the ones after `joined`; all in steps."""

    every: int
    burn_in: int
    joined: int

    def _all(self, step: int) -> int:
        return max(0, step - self.burn_in) // self.every

    def taken(self, step: int) -> int:
        """How many snapshots have been taken once `step` steps are completed."""
        return self._all(step) - self._all(self.joined)

    def unseen_steps(self) -> int:
        """How much later everything happens than to a scheme which missed nothing: whole intervals."""
        return self._all(self.joined) * self.every

    def next_after(self, step: int) -> int:
        """The first snapshot step after `step` ≥ joined."""
        return self.burn_in + (self._all(step) + 1) * self.every


class Lane:
    """One (track, block): takes snapshots, gives averages, and says which scheme caused what cost."""

    def __init__(self, block: Block, schemes: Iterable[Scheme], capacity: int = 0) -> None:
        """capacity: of the ring, when a state has a longer one than the schemes need."""
        self.schemes = list(schemes)
        self._block = block
        windowed = [scheme for scheme in self.schemes if isinstance(scheme, Windowed)]
        longest = max((scheme.k for scheme in windowed), default=0)
        self._ring = Ring(block, max(longest, capacity)) if windowed else None
        self._pushed = [(scheme, pushed_dtype(scheme.k, block.dtype)) for scheme in windowed]
        self._accumulators = {  # by piece, each the running average m ← m + gain(n) (θ − m)
            scheme: block.zeros(scheme.accumulator_dtype(block.dtype))
            for scheme in self.schemes
            if isinstance(scheme, Recursive)
        }

    def push(self, piece: Piece, reading: Reading, n: int) -> Iterator[tuple[Scheme, float]]:
        """Take in a piece of the n-th snapshot, n = 1, 2, …; yields (scheme, seconds it would have cost it alone)."""
        for recursive, parts in self._accumulators.items():
            mean = parts[piece.index]
            live = reading.to(mean.dtype)
            start = perf_counter()
            if n == 1:
                mean.copy_(live)
            else:
                mean.lerp_(live, recursive.gain(n))
            yield recursive, perf_counter() - start + reading.seconds[mean.dtype]
        if self._ring is not None:
            reading.to(self._ring.pushed)
            start = perf_counter()
            self._ring.push(piece, reading, n)
            seconds = perf_counter() - start
            for scheme, dtype in self._pushed:
                yield scheme, seconds + reading.seconds[dtype]

    def mean(self, scheme: Scheme, piece: Piece, n: int) -> Tensor:
        """A piece of the average after n snapshots, in the accumulator's dtype; only to copy from."""
        if not isinstance(scheme, Windowed):
            return self._accumulators[cast(Recursive, scheme)][piece.index]
        ring = cast(Ring, self._ring)
        return ring.mean(scheme.k, piece, n) if isinstance(scheme, LAWA) else ring.weighted(scheme.weights(n), piece, n)

    @property
    def nbytes(self) -> int:
        parts = [part for accumulator in self._accumulators.values() for part in accumulator]
        return sum(part.nbytes for part in parts) + (self._ring.nbytes if self._ring is not None else 0)

    @property
    def capacity(self) -> int:
        """How many snapshots the ring keeps; 0 without one."""
        return self._ring.capacity if self._ring is not None else 0

    def state_dict(self, keys: Mapping[Scheme, str], copy: bool = True) -> dict[str, Any]:
        """Plain dicts of tensors; keys: the schemes' names in it."""
        accumulators = {keys[scheme]: self._block.exported(parts, copy) for scheme, parts in self._accumulators.items()}
        return {"accumulators": accumulators, "ring": self._ring.state_dict(copy) if self._ring else {}}

    def load_state_dict(self, state: Mapping[str, Any], keys: Mapping[Scheme, str], n: int) -> None:
        """The inverse of `state_dict`, after n snapshots."""
        for scheme, parts in self._accumulators.items():
            self._block.import_(parts, state["accumulators"][keys[scheme]])
        if self._ring is not None:
            self._ring.load_state_dict(state["ring"], n)


def memory_bytes(schemes: Iterable[Scheme], num_parameters: int, itemsize: int = 4, num_buffers: int = 0) -> int:
    """Bytes of the rings, their sums and the accumulators of `Bank(model, schemes)`: its `nbytes`.

    num_parameters: elements, tied ones once. itemsize: bytes of an element (2, 4 or 8). num_buffers: elements
    of floating-point buffers, kept only for schemes with ``buffers="average"``. Each snapshot grid costs one
    ring for its largest k (k · itemsize and, from k = 8 on, about 1.15 k bytes an element), each EMA and Tail one
    accumulator (4 bytes or 8: see `EMA`).
    Not counted: the scratch that small tensors are packed in, and the live copy during `swapped`.

    Raises: ValueError when itemsize is not 2, 4 or 8.
    """
    if itemsize not in FLOATS:
        raise ValueError(f"itemsize must be 2, 4 or 8, not {itemsize!r}")
    distinct = list(dict.fromkeys(schemes))
    averaging = [scheme for scheme in distinct if scheme.buffers == "average"]
    dtype = FLOATS[itemsize]
    return num_parameters * _element_bytes(distinct, dtype) + num_buffers * _element_bytes(averaging, dtype)


def _element_bytes(schemes: list[Scheme], dtype: torch.dtype) -> int:
    capacity: dict[tuple[int, int], int] = {}
    for scheme in schemes:
        if isinstance(scheme, Windowed):
            capacity[scheme.grid] = max(capacity.get(scheme.grid, 0), scheme.k)
    rings = sum(ring_bytes(k, dtype.itemsize) for k in capacity.values())
    return rings + sum(scheme.accumulator_dtype(dtype).itemsize for scheme in schemes if isinstance(scheme, Recursive))
