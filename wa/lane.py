"""What one snapshot grid keeps of one block, a ring or sums for its windows, accumulators for the rest; its bytes."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from time import perf_counter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .flat import Block, Piece, Reading
from .ring import Ring, pushed_dtype, ring_bytes
from .schemes import LAWA, Recursive, Scheme, Windowed
from .window_sums import Reads, WindowSums, sums_bytes

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

    def reads(self, schemes: Iterable[Scheme], read_at: Collection[int] | None) -> Reads | None:
        """Of each window the numbers of snapshots at which it is read; None where every one may be."""
        if read_at is None:
            return None
        unseen = self.unseen_steps()
        return {
            scheme: sorted(
                {self.taken(step) for step in read_at if step > self.joined and scheme.exists(step - unseen)}
            )
            for scheme in schemes
            if isinstance(scheme, Windowed)
        }


class Lane:
    """One (track, block): takes snapshots, gives averages, and says which scheme caused what cost."""

    def __init__(
        self,
        block: Block,
        schemes: Iterable[Scheme],
        reads: Reads | None = None,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """reads: of the windows, None where any step may be. saved: a state to go on from, which says what it keeps."""
        self.schemes = list(schemes)
        self._block = block
        self._windows = self._window_store(reads, saved or {"capacity": 0, "ring": {}})
        # What each would have to take a snapshot in, alone.
        self._pushed = [
            (scheme, pushed_dtype(scheme.k, block.dtype)) for scheme in self.schemes if isinstance(scheme, Windowed)
        ]
        self._accumulators = {  # by piece, each the running average m ← m + gain(n) (θ − m)
            scheme: block.zeros(scheme.accumulator_dtype(block.dtype))
            for scheme in self.schemes
            if isinstance(scheme, Recursive)
        }

    def _window_store(self, reads: Reads | None, saved: Mapping[str, Any]) -> Ring | WindowSums | None:
        """A ring, or sums for the readings where that is less, or was in the state."""
        longest = max((scheme.k for scheme in self.schemes if isinstance(scheme, Windowed)), default=0)
        if not longest:
            return None
        are_summed = "windows" in saved["ring"]
        if are_summed and reads is None:
            raise ValueError(
                "the state is of a bank with read_at, which kept no snapshots: load it into "
                "Bank(model, schemes, read_at=…) with the same steps"
            )
        if reads is not None and (are_summed or sums_bytes(reads) < ring_bytes(longest, self._block.dtype.itemsize)):
            return WindowSums(self._block, reads)
        return Ring(self._block, max(longest, saved["capacity"]))

    def advance(self, n: int) -> None:
        """Be ready for the n-th snapshot, n = 1, 2, …; on each process that shares the block, whatever it keeps."""
        self._gains = [(parts, scheme.gain(n)) for scheme, parts in self._accumulators.items()]
        self._spent = [0.0] * len(self._gains)
        self._pushing: dict[torch.dtype, float] = dict.fromkeys((dtype for _, dtype in self._pushed), 0.0)
        if isinstance(self._windows, WindowSums):
            self._windows.advance(n)

    def push(self, piece: Piece, reading: Reading, n: int) -> None:
        """Take in a piece of the n-th snapshot."""
        for i, (parts, gain) in enumerate(self._gains):
            mean = parts[piece.index]
            live = reading.to(mean.dtype)
            start = perf_counter()
            if n == 1:
                mean.copy_(live)
            else:
                mean.lerp_(live, gain)
            self._spent[i] += perf_counter() - start + reading.seconds[mean.dtype]
        if self._windows is not None:
            reading.to(self._windows.pushed)
            start = perf_counter()
            self._windows.push(piece, reading, n)
            seconds = perf_counter() - start
            for dtype in self._pushing:
                self._pushing[dtype] += seconds + reading.seconds[dtype]

    def spent(self) -> Iterator[tuple[Scheme, float]]:
        """(scheme, seconds that the latest snapshot would have cost it alone)."""
        yield from zip(self._accumulators, self._spent, strict=True)
        for scheme, dtype in self._pushed:
            yield scheme, self._pushing[dtype]

    def mean(self, scheme: Scheme, piece: Piece, n: int) -> Tensor:
        """A piece of the average after n snapshots, in the accumulator's dtype; only to copy from."""
        if not isinstance(scheme, Windowed):
            return self._accumulators[cast(Recursive, scheme)][piece.index]
        if isinstance(self._windows, WindowSums):
            return self._windows.mean(scheme, piece, n)
        ring = cast(Ring, self._windows)
        return ring.mean(scheme.k, piece, n) if isinstance(scheme, LAWA) else ring.weighted(scheme.weights(n), piece, n)

    @property
    def nbytes(self) -> int:
        parts = [part for accumulator in self._accumulators.values() for part in accumulator]
        return sum(part.nbytes for part in parts) + (self._windows.nbytes if self._windows is not None else 0)

    @property
    def capacity(self) -> int:
        """How many snapshots the ring keeps; 0 without one."""
        return self._windows.capacity if isinstance(self._windows, Ring) else 0

    def state_dict(self, keys: Mapping[Scheme, str], copy: bool = True) -> dict[str, Any]:
        """Plain dicts of tensors; keys: the schemes' names in it."""
        accumulators = {keys[scheme]: self._block.exported(parts, copy) for scheme, parts in self._accumulators.items()}
        ring: dict[str, Any] = {}
        if isinstance(self._windows, WindowSums):
            ring = self._windows.state_dict(keys, copy)
        elif self._windows is not None:
            ring = self._windows.state_dict(copy)
        return {"accumulators": accumulators, "ring": ring}

    def suits(self, other: "Lane") -> bool:
        """Whether it can take what a state has for the other."""
        mine, theirs = self._windows, other._windows
        return self.schemes == other.schemes and type(mine) is type(theirs) and self.capacity == other.capacity

    def expected(self, state: Mapping[str, Any], keys: Mapping[Scheme, str], n: int) -> dict[str, Any]:
        """A state after n snapshots, to compare a state's shapes with. Raises: ValueError where it lacks a window."""
        if isinstance(self._windows, WindowSums):
            self._windows.check(state["ring"], keys, n)
        return self.state_dict(keys)

    def load_state_dict(self, state: Mapping[str, Any], keys: Mapping[Scheme, str], n: int) -> None:
        """The inverse of `state_dict`, after n snapshots."""
        for scheme, parts in self._accumulators.items():
            self._block.import_(parts, state["accumulators"][keys[scheme]])
        if isinstance(self._windows, Ring):
            self._windows.load_state_dict(state["ring"], n)
        elif self._windows is not None and "windows" in state["ring"]:
            self._windows.load_state_dict(state["ring"], keys, n)
        elif self._windows is not None:
            ring = Ring(self._block, state["capacity"])
            ring.load_state_dict(state["ring"], n)
            self._windows.take_over(ring, n)


def memory_bytes(
    schemes: Iterable[Scheme],
    num_parameters: int,
    itemsize: int = 4,
    num_buffers: int = 0,
    read_at: Collection[int] | None = None,
) -> int:
    """Bytes of the rings, their sums and the accumulators of `Bank(model, schemes, read_at=read_at)`: its `nbytes`.

    num_parameters: elements, tied ones once. itemsize: bytes of an element (2, 4 or 8). num_buffers: elements
    of floating-point buffers, kept only for schemes with ``buffers="average"``. Each snapshot grid costs one
    ring for its largest k (k · itemsize and, from k = 8 on, about 1.15 k bytes an element), or with `read_at`, where
    that is less, 8 bytes for each window that is open at once and each of its ⌊log₈ k⌋ levels; each EMA and Tail one
    accumulator (4 bytes or 8: see `EMA`).
    Not counted: the scratch that small tensors are packed in, and the live copy during `swapped`.

    Raises: ValueError when itemsize is not 2, 4 or 8.
    """
    if itemsize not in FLOATS:
        raise ValueError(f"itemsize must be 2, 4 or 8, not {itemsize!r}")
    distinct = list(dict.fromkeys(schemes))
    averaging = [scheme for scheme in distinct if scheme.buffers == "average"]
    of_parameters, of_buffers = (_element_bytes(some, FLOATS[itemsize], read_at) for some in (distinct, averaging))
    return num_parameters * of_parameters + num_buffers * of_buffers


def _element_bytes(schemes: list[Scheme], dtype: torch.dtype, read_at: Collection[int] | None) -> int:
    tracks: dict[Track, list[Windowed]] = {}
    for scheme in schemes:
        if isinstance(scheme, Windowed):
            tracks.setdefault(Track(*scheme.grid, joined=0), []).append(scheme)
    found = sum(scheme.accumulator_dtype(dtype).itemsize for scheme in schemes if isinstance(scheme, Recursive))
    for track, windowed in tracks.items():
        ring, reads = ring_bytes(max(scheme.k for scheme in windowed), dtype.itemsize), track.reads(windowed, read_at)
        found += ring if reads is None else min(ring, sums_bytes(reads))
    return found
