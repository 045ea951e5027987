"""The order in which a tensor's elements lie in memory: averages keep it, so that reading weights copies nothing.

A convolution in channels_last, or a transposed matrix, is dense in memory with its dimensions in another order.
Flat storage holds such a tensor in that order; states hold it in the logical one, so that they fit a model of
another memory format.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A tensor's shape, its dimensions from the outermost in memory to the innermost, and strides for a copy."""

    shape: torch.Size
    order: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """The layout of `tensor`; of one with gaps in memory, as without them."""
        shape, order = tensor.shape, _order(tensor)
        if tensor.permute(order).is_contiguous():
            return cls(shape, order, tensor.stride())
        stride, step = [0] * len(shape), 1
        for dim in reversed(order):
            stride[dim] = step
            step *= max(1, shape[dim])
        return cls(shape, order, tuple(stride))

    @property
    def is_logical(self) -> bool:
        """Whether elements lie in memory in the order in which an index counts them."""
        long = [dim for dim in self.order if self.shape[dim] > 1]
        return long == sorted(long)

    @property
    def sizes(self) -> torch.Size:
        """The shape with its dimensions in the order of memory."""
        return torch.Size([self.shape[dim] for dim in self.order])

    def in_memory_order(self, tensor: Tensor) -> Tensor:
        """A view of a tensor of this shape with dimensions `sizes`; contiguous when its memory is as here."""
        return tensor if self._is_in_order else tensor.permute(self.order)

    @cached_property
    def _is_in_order(self) -> bool:
        return self.order == tuple(range(len(self.order)))

    def empty(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A new tensor with these strides."""
        return torch.empty_strided(self.shape, self.stride, dtype=dtype, device=device)


def has_overlap(tensor: Tensor) -> bool:
    """Whether two elements may share one place in memory, as after `expand`: such a tensor cannot be written."""
    extent = 1
    for dim in reversed(_order(tensor)):
        if tensor.shape[dim] > 1 and tensor.stride(dim) < extent:
            return tensor.numel() > 0
        extent += max(0, tensor.shape[dim] - 1) * tensor.stride(dim)
    return False


def _order(tensor: Tensor) -> tuple[int, ...]:
    # A dimension of one element has no place of its own: innermost, where a cut into rows does not meet it.
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: (tensor.shape[dim] == 1, -strides[dim])))


def distinct(tensor: Tensor) -> Tensor:
    """A view without the copies that `expand` makes of an element: it can be written."""
    if tensor.layout is not torch.strided or 0 not in tensor.stride():
        return tensor
    sizes = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(sizes, tensor.stride(), tensor.storage_offset())
