"""What traces take on disk: before anything is written, and refused where there is not that much room."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from sweeps import random_streams
from sweeps.blocks import SpecError
from sweeps.memory import GIB
from sweeps.optimizers import EVALUATES_OTHERS
from sweeps.plan import Trajectory, model_size
from sweeps.resources import of_trajectory
from sweeps.spec import Spec
from sweeps.trace import PARTS, ROUNDED, TRACES, storage_of
from sweeps.wording import counted


def trace_bytes(one: Trajectory, processes: int = 1) -> int:
    """Bytes of the trace that a trajectory keeps, or has until it is done; 0 without one.

    Snapshots × bytes of each; at most, since buffers that do not change are not stored.
    """
    return num_snapshots(one) * snapshot_bytes(one, processes)


def num_snapshots(one: Trajectory) -> int:
    """One at each step of the trace; a branch has those before it from its trunk."""
    return sum(step > one.first_step for step in one.trace_steps)


def snapshot_bytes(one: Trajectory, processes: int) -> int:
    """Weights (Schedule-Free's twice), buffers, random streams of each process."""
    training = one.cells[0].training
    size = model_size(training.workload, training.preset)
    each = size.itemsize if one.keep_dtype is None else ROUNDED[one.keep_dtype].itemsize
    copies = 2 if training.optimizer in EVALUATES_OTHERS else 1
    return size.num_parameters * each * copies + size.num_buffer_bytes + _stream_bytes() * processes


@cache
def _stream_bytes() -> int:
    return sum(tensor.nbytes for tensor in random_streams.read(cuda=False).values())


def check(run: Path, trajectories: Sequence[Trajectory], specs: Sequence[Spec]) -> None:
    """Raises: SpecError where the traces that are to be written do not fit the disk of the run folder."""
    processes = {one.name: of_trajectory(one, specs).num_processes for one in trajectories}
    kept = [one for one in trajectories if one.keep_every_steps is not None]
    brackets = [one for one in trajectories if one.keep_every_steps is None and num_snapshots(one)]
    # A bracket's goes once its trial is done: of those at least the largest has to fit.
    kept += sorted(brackets, key=lambda one: trace_bytes(one, processes[one.name]))[-1:]
    if not kept:
        return
    storage = storage_of(run)
    if storage.is_bucket:  # whose room is not known
        return
    there = [part for one in kept for part in (storage / TRACES / one.name).files(PARTS)]
    needed = sum(trace_bytes(one, processes[one.name]) for one in kept) - sum(part.size() or 0 for part in there)
    home = next(path for path in [Path(storage.path), *Path(storage.path).parents] if path.exists())
    if needed > (free := shutil.disk_usage(home).free):
        most = max(kept, key=lambda one: trace_bytes(one, processes[one.name]))
        each = f"{num_snapshots(most):,} snapshots × {snapshot_bytes(most, processes[most.name]) / 2**20:,.4g} MiB"
        said = f"the traces of {counted(len(kept), 'trajectory')} (up to {each} each) need {needed / GIB:,.4g} GiB"
        key = "evaluate.averages" if most in brackets else "keep.every"
        remedy = (
            "all"
            if most in brackets
            else "a larger interval, dtype: bf16, another --out, or `wa traces RUN --drop` on what is no longer asked"
        )
        raise SpecError(key, f"{said}, {home} has {free / GIB:,.4g} GiB free; allowed: {remedy}", specs[0].source)
