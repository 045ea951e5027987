"""The tensors of a batch, however nested: to compare, to copy, to see what shares memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from workloads.protocol import Batch


def tensors(batch: Batch) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = batch.values()
    return [t for part in batch for t in tensors(part)] if _is_nested(batch) else []


def _is_nested(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )


def copied(batch: Batch) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors(batch)]


def addresses(batch: Batch) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors(batch) if tensor.numel()}
