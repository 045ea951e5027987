"""Seconds of a training step and of an evaluation: read from a run folder's records, or measured here and now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pandas as pd
import torch

from sweeps import random_streams
from sweeps.evaluate import evaluate
from sweeps.optimizers import OPTIMIZERS, settings
from sweeps.plan import OWN_EVAL_SECONDS, OWN_STEP_SECONDS, Pace, Paces
from workloads.protocol import Batch, load

MOST_SECONDS = 10.0  # of a measurement, of steps and of an evaluation each
WARM_UP, STEPS = 3, 30


def measured(run: Path, devices: Mapping[str, str]) -> Paces:
    """(workload, preset) -> device-seconds on one device, from what was trained in `run` on devices of its kind.

    devices: workload -> their kind.

    Medians over trajectories, a step brought to the workload's own batch size. Raises: BadRun for damaged records.
    """
    from analysis.run_folder.records import load as load_run

    if not (run / "cells.parquet").exists():
        return {}
    rows = load_run(run)
    of_kind = rows["device"] == rows["workload"].astype(str).map(devices)
    rows = rows[(rows["split"] == "validation") & of_kind & (rows["step"] > 0)]
    by_cell = rows.groupby(["workload", "preset", "cell_id"], observed=True)
    last = by_cell[["step", "train_seconds", "eval_seconds", "batch_size", "own_batch_size", "processes"]].max()
    batches = (last["batch_size"] / last["own_batch_size"]).astype(float).fillna(1.0)
    found = pd.DataFrame(
        {
            "step": last["train_seconds"] * last["processes"] / last["step"] / batches,
            "evaluation": last["eval_seconds"] * last["processes"] / by_cell.size(),
        }
    )
    medians = found.groupby(level=["workload", "preset"], observed=True).median().dropna()
    return {
        (str(workload), str(preset)): Pace(float(step), float(evaluation), f"measured in {run}")
        for (workload, preset), (step, evaluation) in zip(medians.index, medians.to_numpy(), strict=True)
    }


def measure(name: str, preset: str) -> tuple[Pace, bool]:
    """Seconds on one CPU core of this machine, and whether the evaluation came to its end in MOST_SECONDS.

    The median of up to STEPS steps of the workload's own optimizer, and one evaluation. Raises: UnknownWorkload.
    """
    workload = load(name, preset)
    threads = torch.get_num_threads()
    with random_streams.kept():
        try:
            torch.set_num_threads(1)
            model = workload.model()
            model.train()
            own = workload.optimizer
            values = {key: own[key] for key in settings(own["name"]) if key in own}
            optimizer = OPTIMIZERS[own["name"]](model.parameters(), **values)
            taken: list[float] = []
            first = time.perf_counter()
            for batch in islice(workload.batches(0, 1), WARM_UP + STEPS):
                optimizer.zero_grad(set_to_none=True)
                workload.loss(model, batch).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                taken.append(time.perf_counter() - first - sum(taken))
                if sum(taken) > MOST_SECONDS:
                    break
            began, stopped = time.perf_counter(), False

            def in_time() -> Iterator[Batch]:
                nonlocal stopped
                for i, batch in enumerate(workload.eval_batches("validation")):
                    if i > 0 and time.perf_counter() - began > MOST_SECONDS:
                        stopped = True
                        return
                    yield batch

            evaluate(workload, model, in_time())
        finally:
            torch.set_num_threads(threads)
    step = statistics.median(taken[WARM_UP:] or taken[-1:])
    return Pace(step, time.perf_counter() - began, "measured"), not stopped


def said(name: str, preset: str) -> str:
    """What `wa check-workload` says of a workload's pace: measured, beside what it states."""
    pace, whole = measure(name, preset)
    workload = load(name, preset)
    told = {key: getattr(workload, key, None) for key in ("step_seconds", "eval_seconds")}
    now = f"a step {pace.step_seconds:.2g} s, an evaluation {'' if whole else 'more than '}{pace.eval_seconds:.2g} s"
    if None in told.values():
        assumed = f"{OWN_STEP_SECONDS:g} and {OWN_EVAL_SECONDS:g}"
        put = f"step_seconds = {pace.step_seconds:.2g} and eval_seconds = {pace.eval_seconds:.2g}"
        return f"{now} on one core here; `wa plan` assumes {assumed} until the workload says {put}"
    return f"{now} on one core here; it says {told['step_seconds']:.2g} and {told['eval_seconds']:.2g}"
