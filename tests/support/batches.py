"""Batches compared, and a workload evaluated on some of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from workloads.protocol import Summary, Workload


def tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, whatever its nesting."""
    if isinstance(batch, Tensor):
        return [batch]
    return [tensor for part in batch for tensor in tensors(part)]


def equal(left: Any, right: Any) -> bool:
    pairs = zip(tensors(left), tensors(right), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def added_up(workload: Workload, model: nn.Module, batches: Iterable[Any]) -> dict[str, Any]:
    """The sums over batches, tensors with axes joined."""
    totals: dict[str, Any] = {}
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            for key, value in workload.eval_step(model, batch).items():
                if value.dim():
                    totals[key] = torch.cat([totals[key], value]) if key in totals else value
                else:
                    totals[key] = totals.get(key, 0.0) + float(value)
    return totals


def evaluated(workload: Workload, model: nn.Module, batches: Iterable[Any] | None = None) -> Summary:
    """On the given batches, or on the validation split."""
    return workload.summarize(
        added_up(workload, model, workload.eval_batches("validation") if batches is None else batches)
    )
