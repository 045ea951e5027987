"""Many live tensors as one flat block, so that averaging costs one operation a scheme, not one a tensor.

A model has dozens of small tensors, and an operation on a small tensor is mostly overhead; an operation on a large one
fetches it from memory once for every scheme. A block lays all tensors of one dtype and device end to end and is worked
through piece by piece. A piece is a run of small tensors, packed into a scratch buffer, or some rows of a large one,
read in place; either fits a cache and is read by every scheme while it is there. How a block is cut depends on the
tensors and their device alone: never on the schemes, so an average has the same bits in any company.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from time import perf_counter

import torch
from torch import Tensor, nn

from .checks import check_tensor
from .layout import Layout, has_overlap
from .share import ALONE, Share

# Elements of a piece. On a CPU, 256 KiB of float32 and 512 KiB of float64: they fit a core's cache together. An
# accelerator wants few and large operations.
PIECE_ON_CPU = 1 << 16
PIECE_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Piece:
    """The tensors `names` of a block in order, or the rows start … stop − 1 of one, as `numel` flat elements.

    Rows are counted along the dimension that is outermost in memory.
    """

    index: int
    numel: int
    names: tuple[str, ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Block:
    """All averaged tensors of one kind (``"parameters"`` or ``"buffers"``), dtype and device, end to end.

    Each tensor's elements are in the order they have in its memory.

    Attributes: pieces: all of them. owners: the rank that keeps each, by index. mine: those that this process keeps.
    """

    kind: str
    dtype: torch.dtype
    device: torch.device
    layouts: dict[str, Layout]
    share: Share = ALONE
    pieces: tuple[Piece, ...] = field(init=False)
    owners: tuple[int, ...] = field(init=False)
    mine: tuple[Piece, ...] = field(init=False)

    def __post_init__(self) -> None:
        total = sum(layout.shape.numel() for layout in self.layouts.values())
        size = PIECE_ON_CPU if self.device.type == "cpu" else min(PIECE_ELSEWHERE, -(-total // self.share.size))
        pieces = tuple(_cut(self.layouts, size))
        ends = accumulate(piece.numel for piece in pieces)
        owners = tuple(self.share.owner(end - p.numel, p.numel, total) for p, end in zip(pieces, ends, strict=True))
        object.__setattr__(self, "pieces", pieces)
        object.__setattr__(self, "owners", owners)
        object.__setattr__(self, "mine", tuple(p for p in pieces if owners[p.index] == self.share.rank))

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """name -> shape."""
        return {name: layout.shape for name, layout in self.layouts.items()}

    def zeros(self, dtype: torch.dtype, *rows: int) -> list[Tensor]:
        """Storage for this block, a well aligned tensor (*rows, piece.numel) a piece; other ranks' are empty."""
        sizes = [0] * len(self.pieces)
        for piece in self.mine:
            sizes[piece.index] = piece.numel
        return [torch.zeros(*rows, size, dtype=dtype, device=self.device) for size in sizes]

    def parts(self, piece: Piece, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """What a piece covers of the tensors of these names: views, dimensions in the order of memory."""
        parts = [self.layouts[name].in_memory_order(tensors[name]) for name in piece.names]
        return parts if piece.rows is None else [parts[0][slice(*piece.rows)]]

    def views(self, piece: Piece, flat: Tensor) -> list[Tensor]:
        """A piece's flat elements as views in the shapes of its `parts`."""
        sizes = [self.layouts[name].sizes for name in piece.names]
        if piece.rows is not None:
            sizes = [torch.Size([piece.rows[1] - piece.rows[0], *sizes[0][1:]])]
        split = torch.split(flat, [size.numel() for size in sizes])
        return [part.view(size) for part, size in zip(split, sizes, strict=True)]

    def write(self, piece: Piece, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy a piece's elements, cast to this block's dtype, into the tensors of these names."""
        torch._foreach_copy_(self.parts(piece, tensors), self.views(piece, flat.to(self.dtype)))

    def exported(self, stored: Sequence[Tensor], copy: bool = True) -> list[Tensor]:
        """Storage as `zeros` makes it, (*rows, all elements), each tensor in its logical order, cut anyhow.

        copy: False gives the storage itself where it has that order. Shared out, it is all on rank 0, the pieces of
        others on the CPU, and [] elsewhere; all ranks call this.
        """
        if self.share.size > 1:
            stored = self._gathered(stored)
            if self.share.rank:
                return []
        if not copy and all(layout.is_logical for layout in self.layouts.values()):
            return list(stored)
        whole = stored[0].new_empty(*stored[0].shape[:-1], sum(piece.numel for piece in self.pieces))
        for row, *mine in _rows(whole, *stored):
            self._copy(row, mine, out_of_storage=True)
        return [whole]

    def _gathered(self, stored: Sequence[Tensor]) -> list[Tensor]:
        """On rank 0 the storage of all, on the CPU."""
        found = []
        for piece, owner, part in zip(self.pieces, self.owners, stored, strict=True):
            mine = owner == self.share.rank
            whole = self.share.fill(part if mine else part.new_empty(*part.shape[:-1], piece.numel), owner)
            found.append(whole.cpu() if self.share.rank == 0 else part)
        return found

    def import_(self, stored: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
        """The inverse of `exported`, into storage; elements may come in several tensors, end to end."""
        alike = [part.shape[-1] for part in saved] == [piece.numel for piece in self.pieces]
        if alike and all(layout.is_logical for layout in self.layouts.values()):
            for piece in self.mine:
                stored[piece.index].copy_(saved[piece.index])
            return
        whole = saved[0] if len(saved) == 1 else torch.cat(list(saved), dim=-1)
        for row, *mine in _rows(whole, *stored):
            self._copy(row, mine, out_of_storage=False)

    def _copy(self, logical: Tensor, stored: Sequence[Tensor], *, out_of_storage: bool) -> None:
        shapes = self.shapes
        split = torch.split(logical, [shape.numel() for shape in shapes.values()])
        named = {name: part.view(shapes[name]) for name, part in zip(shapes, split, strict=True)}
        for piece in self.pieces if out_of_storage else self.mine:
            outside, inside = self.parts(piece, named), self.views(piece, stored[piece.index])
            for one, other in zip(outside, inside, strict=True):
                one.copy_(other) if out_of_storage else other.copy_(one)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises: RuntimeError when the model's tensors are not those this block was made for."""
        for name, layout in self.layouts.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise RuntimeError(f"the model no longer has {name!r}, which the bank averages")
            if tensor.shape != layout.shape or tensor.dtype != self.dtype or tensor.device != self.device:
                raise RuntimeError(
                    f"{name!r} is {_looks(tensor.shape, tensor.dtype, tensor.device)} now; the bank was made "
                    f"when it was {_looks(layout.shape, self.dtype, self.device)}"
                )


class FiniteWatch:
    """Warns, once, when a snapshot held NaN or infinity: what an average makes of it differs between schemes.

    Looks at every snapshot until the first that is not finite. On a CPU a sum says at once that all is well. An
    accelerator is not waited for: it notes the step beside the tensors' names, and the note is read when somebody
    asks for an average or a state anyway.
    """

    def __init__(self) -> None:
        self._first: tuple[int, str] | None = None
        self._told = False
        self._notes: dict[tuple[str, ...], Tensor] = {}  # the first bad step of each tensor, 0 = none so far

    def look(self, flat: Tensor, names: Sequence[str], parts: Sequence[Tensor], step: int) -> None:
        """Look at the tensors `parts`, called `names`, whose elements are `flat`."""
        if self._first is not None or flat.numel() == 0:
            return
        if flat.device.type != "cpu":
            self._note(names, parts, step)
        elif not math.isfinite(flat.sum().item()):  # or finite numbers with too large a sum
            for name, part in zip(names, parts, strict=True):
                if not torch.isfinite(part).all():
                    self._first = step, name
                    return

    def _note(self, names: Sequence[str], parts: Sequence[Tensor], step: int) -> None:
        filled = {name: part for name, part in zip(names, parts, strict=True) if part.numel()}
        largest = torch.stack(torch._foreach_norm(list(filled.values()), math.inf))
        key = tuple(filled)
        if key not in self._notes:
            self._notes[key] = torch.zeros(len(key), dtype=torch.int64, device=largest.device)
        is_first = ~torch.isfinite(largest) & (self._notes[key] == 0)
        self._notes[key].masked_fill_(is_first, step)

    def tell(self, *, wait: bool) -> None:
        """Warn if a snapshot was not finite, once. wait: for an accelerator too."""
        if wait and self._first is None:
            steps = [
                (step, name)
                for names, note in self._notes.items()
                for name, step in zip(names, note.tolist(), strict=True)
                if step
            ]
            self._first = min(steps, key=lambda found: found[0], default=None)
        if self._first is None or self._told:
            return
        self._told = True
        step, name = self._first
        warnings.warn(
            f"a snapshot was not finite: {name!r} at step {step}. LAWA and WSM are right again once it has left "
            "their window; EMA and Tail stay NaN or infinite, by their definition. Said once a bank",
            RuntimeWarning,
            stacklevel=3,
        )


class Reading:
    """One piece of the live weights, cast at most once to each dtype its schemes need.

    `seconds[dtype]` is what it takes one scheme to get it in `dtype`: reading the weights, and the cast.
    """

    def __init__(self, live: Tensor, seconds: float) -> None:
        self.live = live
        self._cast = {live.dtype: live}
        self.seconds = {live.dtype: seconds}

    def to(self, dtype: torch.dtype) -> Tensor:
        """The piece in `dtype`, for reading only."""
        if dtype not in self._cast:
            start = perf_counter()
            self._cast[dtype] = self.live.to(dtype)
            self.seconds[dtype] = self.seconds[self.live.dtype] + perf_counter() - start
        return self._cast[dtype]


class Reader:
    """Reads the live tensors of one block, piece by piece; owns the scratch for packing small ones.

    Attributes: looking: seconds in which the latest snapshot was looked at for what is not finite.
    """

    looking = 0.0

    def __init__(self, block: Block, watch: FiniteWatch) -> None:
        self._block = block
        self._watch = watch
        packed = [piece for piece in block.mine if len(piece.names) > 1]
        size = max((piece.numel for piece in packed), default=0)
        scratch = torch.empty(size, dtype=block.dtype, device=block.device)
        self._flat = {piece.index: scratch[: piece.numel] for piece in packed}
        self._views = {index: block.views(block.pieces[index], flat) for index, flat in self._flat.items()}

    def read(self, tensors: Mapping[str, Tensor], step: int) -> Iterator[tuple[Piece, Reading]]:
        """Each piece of this process with its live elements at `step`, flat; valid until the next one is asked for."""
        self.looking = 0.0
        for piece in self._block.mine:
            start = perf_counter()
            if (packed := self._flat.get(piece.index)) is not None:
                live = self._block.parts(piece, tensors)
                torch._foreach_copy_(self._views[piece.index], live)
                flat = packed
            else:
                (name,) = piece.names
                tensor = self._block.layouts[name].in_memory_order(tensors[name])
                if piece.rows is not None:
                    tensor = tensor.narrow(0, piece.rows[0], piece.rows[1] - piece.rows[0])
                flat = tensor.reshape(-1)
                live = [tensor]
            yield piece, Reading(flat, perf_counter() - start)
            start = perf_counter()
            self._watch.look(flat, piece.names, live, step)  # now that it is in the cache
            self.looking += perf_counter() - start


def live_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The model's floating-point parameters by first name, each storage once, frozen ones too.

    Raises: ValueError on parameters that cannot be averaged, see `wa.checks`.
    """
    found: dict[str, Tensor] = {}
    storages = set()
    for name, parameter in model.named_parameters():
        check_tensor("parameter", name, parameter)
        if not parameter.is_floating_point():
            continue
        # Two Parameter objects on one storage (`nn.Parameter(other.data)`) are tied as well.
        storage = (parameter.data_ptr() or id(parameter), parameter.device, parameter.shape, parameter.stride())
        if storage not in storages:
            storages.add(storage)
            found[name] = parameter
    return found


def make_blocks(kind: str, tensors: Mapping[str, Tensor], share: Share = ALONE) -> list[Block]:
    """Group tensors by dtype and device, in order of first appearance.

    Raises: ValueError when elements of a tensor share memory: an average could not be written into it.
    """
    groups: dict[tuple[torch.dtype, torch.device], dict[str, Layout]] = {}
    for name, tensor in tensors.items():
        if has_overlap(tensor):
            raise ValueError(
                f"cannot average {name!r} ({kind}): its elements share memory, as after expand(); "
                "give the model a clone() of it"
            )
        groups.setdefault((tensor.dtype, tensor.device), {})[name] = Layout.of(tensor)
    return [Block(kind, dtype, device, layouts, share) for (dtype, device), layouts in groups.items()]


def _cut(layouts: Mapping[str, Layout], most: int) -> Iterator[Piece]:
    """Pieces of up to `most` elements each; more where a single row has more."""
    index = numel = 0
    names: tuple[str, ...] = ()
    for name, layout in layouts.items():
        size = layout.shape.numel()
        if names and numel + size > most:
            yield Piece(index, numel, names)
            index, numel, names = index + 1, 0, ()
        if size <= most:
            numel, names = numel + size, (*names, name)
            continue
        rows = layout.sizes[0]
        each = math.ceil(rows / math.ceil(size / most))
        for start in range(0, rows, each):
            stop = min(start + each, rows)
            yield Piece(index, (stop - start) * (size // rows), (name,), (start, stop))
            index += 1
    if names:
        yield Piece(index, numel, names)


def _rows(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors' rows side by side; tensors of one dimension are one row."""
    return zip(*tensors, strict=True) if tensors[0].dim() > 1 else [tensors]


def _looks(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
