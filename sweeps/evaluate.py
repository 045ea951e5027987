"""Evaluate the live weights and every average that exists, leaving no trace in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sweeps import random_streams
from sweeps.data_parallel import Team
from sweeps.identity import Cell
from wa import Bank
from wa.swap import modes_kept
from workloads.protocol import Batch, Summary, Workload

ALONE = Team()


def evaluate(
    workload: Workload,
    model: nn.Module,
    batches: Iterable[Batch],
    team: Team = ALONE,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Summary:
    """One model on one split: sums over the batches in float64, in their order, then the workload's summary.

    batches: this rank's, which are batches rank, rank + size, … of the split. precision: the context of a forward
    pass. Leaves parameters, buffers, every module's mode and random state as they were.
    """
    sums: dict[str, Tensor] = {}
    pieces: dict[str, list[Tensor]] = {}
    with modes_kept(model):
        model.eval()
        with torch.no_grad():
            for batch in batches:
                with precision():
                    step = workload.eval_step(model, batch)
                for name, value in step.items():
                    if value.ndim:
                        pieces.setdefault(name, []).append(value.cpu())
                    else:
                        sums[name] = sums[name] + value.double() if name in sums else value.double()
        if not sums and team.size > 1:
            raise RuntimeError(f"fewer validation batches than processes ({team.size}): use fewer processes")
        totals: dict[str, Any] = {name: team.sum(value).item() for name, value in sums.items()}
        totals |= {name: team.join(parts) for name, parts in pieces.items()}
        return Summary(*workload.summarize(totals))


def evaluate_cells(
    workload: Workload,
    model: nn.Module,
    bank: Bank,
    cells: Sequence[Cell],
    batches: Callable[[], Iterable[Batch]],
    recompute: Callable[[nn.Module], Iterator[None]],
    own_weights: Callable[[], AbstractContextManager[Any]] = nullcontext,
    clock: Callable[[], float] = time.perf_counter,
    team: Team = ALONE,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[tuple[Cell, Summary, float]]:
    """(cell, summary, seconds) for each cell whose weights exist now; swapping in is part of the seconds.

    batches: those of the split, from the start at each call. `recompute(model)` runs training-mode forward passes
    for schemes whose buffers are recomputed. own_weights: inside, the model has the weights its optimizer wants
    evaluated.
    """
    existing = set(bank)
    for cell in cells:
        if cell.scheme is not None and cell.scheme not in existing:
            continue  # absent, and never the raw weights under its name
        with random_streams.kept():
            start = clock()
            if cell.scheme is None:
                with own_weights():
                    summary = evaluate(workload, model, batches(), team, precision)
            else:
                forwards = recompute if cell.scheme.buffers == "recompute" else None
                with bank.swapped(cell.scheme, recompute=forwards):
                    if forwards is not None:
                        team.average_statistics(model)
                    summary = evaluate(workload, model, batches(), team, precision)
            seconds = clock() - start
        yield cell, summary, seconds
