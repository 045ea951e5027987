"""Batches on their way to the device: from pinned memory, a step's copied while the one before it is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from workloads.protocol import Batch

Parts = tuple[Batch, ...]  # the micro-batches of a step


def fed(device: str, steps: Iterator[Parts]) -> Iterator[tuple[Parts, Parts]]:
    """Each step's micro-batches, on the host and on the device; there they are one step ahead, copied beside it."""
    if device == "cpu":
        yield from ((parts, parts) for parts in steps)
        return
    beside = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]

    def begun() -> tuple[Parts, Parts] | None:
        if (parts := next(steps, None)) is None:
            return None
        with torch.cuda.stream(beside):
            return parts, tuple(to_device(device, part) for part in parts)

    coming = begun()
    while (now := coming) is not None:
        if beside is not None:
            computing = torch.cuda.current_stream()
            computing.wait_stream(beside)
            for tensor in tensors(now[1]):
                tensor.record_stream(computing)  # its memory is not another copy's before the step is done
        coming = begun()
        yield now


def to_device(device: str, batch: Batch) -> Batch:
    """The batch there; the copy has begun, and whatever the device is asked next comes after it."""
    if device == "cpu":
        return batch
    if isinstance(batch, Tensor):
        if device.startswith("cuda") and not batch.is_cuda and not batch.is_pinned():
            batch = batch.pin_memory()  # from other memory it would wait for the device
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: to_device(device, part) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [to_device(device, part) for part in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def tensors(batches: Batch) -> list[Tensor]:
    """All tensors of any nesting of batches."""
    return [leaf for leaf in tree_leaves(batches) if isinstance(leaf, Tensor)]
