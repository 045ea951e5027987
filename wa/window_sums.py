"""Windows that are read at known steps: each is summed up as its snapshots come, and no snapshot is kept.

A window is the terms of `ring.terms`, oldest first: single snapshots, blocks of 8, 64, … of them, and at last the
blocks being filled. All but the last are known and complete before it is read, so one float64 sum takes them in, in
that order, from the window's first snapshot to its reading: bits, bound and forgetting are those of `ring.Ring`. What
is kept is a sum for each window that has begun and will still be read, some k/r of them for a mean of k snapshots
read every r, in place of k snapshots. Means that begin after the same snapshot share one while they add up alike.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from torch import Tensor

from .flat import Block, Piece, Reading
from .ring import FAN, SUM, Ring, num_levels, pushed_dtype, terms
from .schemes import LAWA, Windowed

Reads = Mapping[Windowed, Sequence[int]]  # scheme -> numbers of snapshots after which it is read, ascending


class Window(NamedTuple):
    """The snapshots after `start`. A mean adds up blocks of up to 8**top; weights are a scheme's, for one reading."""

    start: int
    top: int
    scheme: Windowed | None = None
    read: int = 0

    @classmethod
    def of(cls, scheme: Windowed, n: int) -> "Window":
        """What a scheme reads after n snapshots."""
        if isinstance(scheme, LAWA):
            size = min(n, scheme.k)
            return cls(n - size, num_levels(size))
        return cls(n - len(scheme.weights(n)), 0, scheme, n)


@dataclass(frozen=True)
class _Open:
    """A window that has begun: its sum by piece, and for each snapshot that ends a term the term's level.

    weights: of the snapshots after `start`, where they differ.
    """

    sums: list[Tensor]
    levels: Mapping[int, int]
    weights: Sequence[float] = ()


class WindowSums:
    """The sums of the windows of one block of tensors that are read at known numbers of snapshots."""

    def __init__(self, block: Block, reads: Reads) -> None:
        self._block = block
        self._last_reads = last_reads(reads)
        top = max((window.top for window in self._last_reads), default=0)
        self.pushed = pushed_dtype(max(scheme.k for scheme in reads), block.dtype)
        self._filling = [block.zeros(SUM) for _ in range(top)]
        self._free = [block.zeros(SUM) for _ in range(_most_open(self._last_reads))]
        self._beginning: dict[int, list[Window]] = {}
        for window in self._last_reads:
            self._beginning.setdefault(window.start, []).append(window)
        self._open: dict[Window, _Open] = {}

    def push(self, piece: Piece, reading: Reading, n: int) -> None:
        """Take in a piece of the n-th snapshot, for which `advance` was called."""
        if not self._open:  # blocks that begin now are in no window
            return
        complete = [reading.live, *self._fill(piece, reading, n)]
        for window, open_ in self._open.items():
            if (level := open_.levels.get(n)) is None:
                continue
            total, is_first = open_.sums[piece.index], n - FAN**level == window.start
            if open_.weights:
                total = total.zero_() if is_first else total
                total.add_(complete[0], alpha=open_.weights[n - window.start - 1])
            elif is_first:
                total.copy_(complete[level])
            else:
                total.add_(complete[level])

    def _fill(self, piece: Piece, reading: Reading, n: int) -> Iterator[Tensor]:
        """Add to the blocks being filled; yields the sums of those that the n-th snapshot completes."""
        term = reading.to(self.pushed)
        for level, blocks in enumerate(self._filling, start=1):
            total = blocks[piece.index]
            if n % FAN**level == FAN ** (level - 1):  # the first of its block
                total.copy_(term)
            else:
                total.add_(term)
            if n % FAN**level:
                return
            yield total
            term = total

    def advance(self, n: int) -> None:
        """Give up the windows that were read for the last time, and begin those whose first snapshot is the n-th."""
        for window in [window for window in self._open if self._last_reads[window] < n]:
            self._free.append(self._open.pop(window).sums)
        for window in self._beginning.get(n - 1, ()):
            self._begin(window)

    def _begin(self, window: Window) -> None:
        last = self._last_reads[window]
        if window.scheme is None:
            found = terms(last - window.start, last)
            self._open[window] = _Open(self._free.pop(), {at: level for level, at in found if at % FAN**level == 0})
        else:
            levels = dict.fromkeys(range(window.start + 1, last + 1), 0)
            self._open[window] = _Open(self._free.pop(), levels, window.scheme.weights(last))

    def mean(self, scheme: Windowed, piece: Piece, n: int) -> Tensor:
        """A piece of a scheme's average after n pushes, float64; only to copy from."""
        total = self._open[Window.of(scheme, n)].sums[piece.index]
        if not isinstance(scheme, LAWA):
            return total
        total, size = total.clone(), min(n, scheme.k)
        for level, at in terms(size, n):
            if at % FAN**level:
                total.add_(self._filling[level - 1][piece.index])
        return total.div_(size)

    @property
    def nbytes(self) -> int:
        held = (*self._filling, *self._free, *(window.sums for window in self._open.values()))
        return sum(part.nbytes for parts in held for part in parts)

    def state_dict(self, keys: Mapping[Any, str], copy: bool = True) -> dict[str, Any]:
        """The sums of windows that have begun, and the blocks being filled that these will read."""
        top = max((window.top for window in self._open), default=0)
        filling = enumerate(self._filling[:top], start=1)
        return {
            "windows": {
                _name(window, keys): self._block.exported(open_.sums, copy) for window, open_ in self._open.items()
            },
            "filling": {str(FAN**level): self._block.exported(parts, copy) for level, parts in filling},
        }

    def begin_at(self, n: int) -> None:
        """Be where a state after n pushes is: the windows that have begun and will be read are there, in no state."""
        self._free += [found.sums for found in self._open.values()]
        self._open = {}
        for window, last in self._last_reads.items():
            if window.start < n <= last:
                self._begin(window)

    def check(self, state: Mapping[str, Any], keys: Mapping[Any, str], n: int) -> None:
        """Raises: ValueError when a state after n pushes lacks a window that has begun and will be read here."""
        self.begin_at(n)
        missing = [name for window in self._open if (name := _name(window, keys)) not in state["windows"]]
        if missing:
            raise ValueError(
                f"the state was written with other steps in read_at: it has no window of the snapshots {missing[0]}; "
                "give those steps, or begin anew with Bank(model, schemes, read_at=…, start=steps so far)"
            )

    def load_state_dict(self, state: Mapping[str, Any], keys: Mapping[Any, str], n: int) -> None:
        """The inverse of `state_dict`, after n pushes; windows that nothing here reads are left out."""
        self.begin_at(n)
        for level, parts in enumerate(self._filling, start=1):
            if (saved := state["filling"].get(str(FAN**level))) is not None:
                self._block.import_(parts, saved)
        for window, found in self._open.items():
            self._block.import_(found.sums, state["windows"][_name(window, keys)])

    def take_over(self, ring: Ring, n: int) -> None:
        """Go on from a ring after n pushes, which has every snapshot of the windows that are open then."""
        self.begin_at(0)
        for i in range(max(1, n - ring.capacity + 1), n + 1):
            self.advance(i)
            for piece in self._block.mine:
                self.push(piece, Reading(ring.snapshot(piece, i), 0.0), i)


def sums_bytes(reads: Reads) -> int:
    """Bytes for each element: the windows that are open at once, and the blocks being filled."""
    found = last_reads(reads)
    return SUM.itemsize * (_most_open(found) + max((window.top for window in found), default=0))


def last_reads(reads: Reads) -> dict[Window, int]:
    """Each window with the last number of snapshots at which it is read."""
    pairs = [(Window.of(scheme, n), n) for scheme, at in reads.items() for n in at]
    return dict(sorted(pairs, key=lambda pair: pair[1]))


def _most_open(windows: Mapping[Window, int]) -> int:
    """How many windows are open at once, at most: each from its first snapshot to its last reading."""
    changes: Iterable[tuple[int, int]] = sorted(
        change for window, last in windows.items() for change in ((window.start + 1, 1), (last + 1, -1))
    )
    return max(accumulate(by for _, by in changes), default=0)


def _name(window: Window, keys: Mapping[Any, str]) -> str:
    """A window's name in a state."""
    if window.scheme is None:
        return f"after {window.start}, blocks of {FAN**window.top}"
    return f"after {window.start}, read at {window.read}, {keys[window.scheme]}"
