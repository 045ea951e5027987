"""Evaluate the live weights and every average that exists, leaving no trace in training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sweeps.cells import Cell
from wa import Bank
from workloads.protocol import Batch, Summary, Workload


def evaluate(workload: Workload, model: nn.Module, batches: Sequence[Batch]) -> Summary:
    """One model on one split: sums over the batches in float64, in their order, then the workload's summary.

    Leaves parameters, buffers, train mode and random state as they were.
    """
    training = model.training
    model.eval()
    sums: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for batch in batches:
                for name, value in workload.eval_step(model, batch).items():
                    sums[name] = sums[name] + value.double() if name in sums else value.double()
        return Summary(*workload.summarize({name: value.item() for name, value in sums.items()}))
    finally:
        model.train(training)


def evaluate_cells(
    workload: Workload,
    model: nn.Module,
    bank: Bank,
    cells: Sequence[Cell],
    batches: Sequence[Batch],
    recompute: Callable[[nn.Module], Iterator[None]],
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[tuple[Cell, Summary, float]]:
    """(cell, summary, seconds) for each cell whose weights exist now; swapping in is part of the seconds.

    `recompute(model)` runs training-mode forward passes for schemes whose buffers are recomputed.
    """
    existing = set(bank)
    for cell in cells:
        if cell.scheme is not None and cell.scheme not in existing:
            continue  # absent, and never the raw weights under its name
        with random_state_kept():
            start = clock()
            if cell.scheme is None:
                summary = evaluate(workload, model, batches)
            else:
                forwards = recompute if cell.scheme.buffers == "recompute" else None
                with bank.swapped(cell.scheme, recompute=forwards):
                    summary = evaluate(workload, model, batches)
            yield cell, summary, clock() - start


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put torch's random state (CPU and GPU) back on the way out."""
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
