"""Many live tensors as one flat block, so that averaging costs one operation a scheme, not one a tensor.

A model has dozens of small tensors, and an operation on a small tensor is mostly overhead. A block lays all
tensors of one dtype and device end to end; a piece of it is either one large tensor, read in place, or a run
of small ones, packed into a scratch buffer once and then read by every scheme. How a block is cut depends on
the tensors' sizes alone: never on the schemes, so an average has the same bits in any company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_tensor

# In elements. From OWN_PIECE on a tensor is read in place: a copy would cost more than it saves. Smaller ones
# are packed up to PACKED, 1 MiB of float32: about an L2 cache.
OWN_PIECE = 1 << 16
PACKED = 1 << 18


@dataclass(frozen=True)
class Piece:
    """The tensors `names` of a block, whole, in order, as `numel` flat elements."""

    index: int
    numel: int
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """All averaged tensors of one kind (``"parameters"`` or ``"buffers"``), dtype and device, end to end."""

    kind: str
    dtype: torch.dtype
    device: torch.device
    shapes: dict[str, torch.Size]
    pieces: tuple[Piece, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pieces", tuple(_cut(self.shapes)))

    def describe(self) -> dict[str, Any]:
        """Plain data that two blocks share when a state fits both."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"kind": self.kind, "dtype": str(self.dtype), "shapes": shapes}

    def zeros(self, dtype: torch.dtype, *rows: int) -> list[Tensor]:
        """Storage for this block, a tensor (*rows, piece.numel) a piece: each begins well aligned."""
        return [torch.zeros(*rows, piece.numel, dtype=dtype, device=self.device) for piece in self.pieces]

    def views(self, piece: Piece, flat: Tensor) -> list[Tensor]:
        """A piece's flat elements as views in the shapes of its tensors."""
        shapes = [self.shapes[name] for name in piece.names]
        parts = torch.split(flat, [shape.numel() for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def write(self, piece: Piece, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy a piece's elements, cast to this block's dtype, into the tensors of these names."""
        views = self.views(piece, flat.to(self.dtype))
        torch._foreach_copy_([tensors[name] for name in piece.names], views)

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises: RuntimeError when the model's tensors are not those this block was made for."""
        for name, shape in self.shapes.items():
            tensor = tensors.get(name)
            if tensor is None:
                raise RuntimeError(f"the model no longer has {name!r}, which the bank averages")
            if tensor.shape != shape or tensor.dtype != self.dtype or tensor.device != self.device:
                raise RuntimeError(
                    f"{name!r} is {_looks(tensor.shape, tensor.dtype, tensor.device)} now; the bank was made "
                    f"when it was {_looks(shape, self.dtype, self.device)}"
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
    """Reads the live tensors of one block, piece by piece; owns the scratch for packing small ones."""

    def __init__(self, block: Block) -> None:
        self._block = block
        packed = [piece for piece in block.pieces if len(piece.names) > 1]
        size = max((piece.numel for piece in packed), default=0)
        scratch = torch.empty(size, dtype=block.dtype, device=block.device)
        self._flat = {piece.index: scratch[: piece.numel] for piece in packed}
        self._views = {index: block.views(block.pieces[index], flat) for index, flat in self._flat.items()}

    def read(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Piece, Reading]]:
        """Each piece with its live elements, flat; valid until the next one is asked for."""
        for piece in self._block.pieces:
            start = perf_counter()
            live = [tensors[name].detach() for name in piece.names]
            if len(live) > 1:
                torch._foreach_copy_(self._views[piece.index], live)
                flat = self._flat[piece.index]
            else:
                flat = live[0].reshape(-1)
            yield piece, Reading(flat, perf_counter() - start)


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
        storage = (
            parameter.data_ptr() or id(parameter),
            parameter.device,
            parameter.shape,
            parameter.stride(),
        )
        if storage not in storages:
            storages.add(storage)
            found[name] = parameter
    return found


def make_blocks(kind: str, tensors: Mapping[str, Tensor]) -> list[Block]:
    """Group tensors by dtype and device, in order of first appearance."""
    groups: dict[tuple[torch.dtype, torch.device], dict[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.dtype, tensor.device), {})[name] = tensor.shape
    return [Block(kind, dtype, device, shapes) for (dtype, device), shapes in groups.items()]


def _cut(shapes: Mapping[str, torch.Size]) -> Iterator[Piece]:
    index = numel = 0
    names: tuple[str, ...] = ()
    for name, shape in shapes.items():
        size = shape.numel()
        if names and (size >= OWN_PIECE or numel + size > PACKED):
            yield Piece(index, numel, names)
            index, numel, names = index + 1, 0, ()
        numel, names = numel + size, (*names, name)
        if size >= OWN_PIECE:
            yield Piece(index, numel, names)
            index, numel, names = index + 1, 0, ()
    if names:
        yield Piece(index, numel, names)


def _looks(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
