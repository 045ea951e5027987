"""How much memory a process of a trial takes at most, by what it is for, and whether the machine has as much."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from cluster import place
from sweeps.blocks import SpecError
from sweeps.plan import Trajectory, model_size
from sweeps.spec import Spec
from wa import memory_bytes

MIB, GIB = 1 << 20, 1 << 30
PROCESS_BYTES = 440 * MIB  # a worker with torch and Ray loaded, measured on a CPU
HELD_BYTES = 256 * MIB  # of an evaluation's batches, while the cells take turns: a mini's split is one such share
WORKING_BYTES = 100 * MIB  # what libraries take for a model's first steps, and a mini's activations and data
# Of minis that take more, as `benchmarks/memory.py` measures it beyond process, weights and averages.
MINIS: Mapping[str, int] = {"criteo1tb": 250 * MIB, "wmt": 130 * MIB}
# Bytes that autograd keeps of one example of a full preset in float32, counted on the meta device.
EXAMPLES: Mapping[str, int] = {"imagenet_resnet": 82 * MIB, "lm": 1526 * MIB}


def bank_bytes(trajectory: Trajectory) -> int:
    """Bytes of all averages of a trial."""
    training = trajectory.cells[0].training
    size = model_size(training.workload, training.preset)
    return memory_bytes(trajectory.schemes, size.num_parameters, size.itemsize, read_at=trajectory.read_at)


def parts(trajectory: Trajectory, processes: int = 1) -> dict[str, int]:
    """Bytes of one process of a trial: its own, training, the weights put aside in an evaluation, averages, working.

    training: weights, gradients and two moments of the optimizer; a replay has the weights alone. working: of a mini
    as measured, else half of what may be held of an evaluation's batches, and activations where they are known.
    """
    training = trajectory.cells[0].training
    size = model_size(training.workload, training.preset)
    weights = size.num_parameters * size.itemsize
    working = WORKING_BYTES
    if training.preset == "mini":
        working = MINIS.get(training.workload, working)
    else:
        micro_batch = math.ceil((training.batch_size or size.batch_size) / (training.accumulate * processes))
        kept = EXAMPLES.get(training.workload, 0) * micro_batch
        working += HELD_BYTES // 2 + (kept if training.precision != "bf16" else kept // 2)
    return {
        "process": PROCESS_BYTES,
        "training": weights * (1 if trajectory.replays else 4) + size.num_buffer_bytes,
        "swap": weights + size.num_buffer_bytes,
        "averages": bank_bytes(trajectory) // processes,
        "working": working,
    }


def refuse(spec: Spec, trajectories: Sequence[Trajectory], address: str | None = None) -> None:
    """Raises: SpecError, in one line with the arithmetic, where a trial cannot fit this machine.

    What a machine elsewhere has (`address`, or GPUs that none are seen of here) is not known.
    """
    found = _room(spec, len(trajectories)) if address is None else None
    if found is None:
        return
    room, whose = found
    for one in trajectories:
        needed = parts(one, spec.resources.num_processes)
        if sum(needed.values()) > room:
            told = " + ".join(f"{name} {size / GIB:.1f}" for name, size in needed.items())
            raise SpecError(
                "resources",
                f"a trial of {one.cells[0].training.workload} takes {sum(needed.values()) / GIB:.1f} GiB a process "
                f"({told}), "
                f"{whose}; allowed: a larger cpu, more processes, a smaller batch_size, bf16 or fewer windows",
                spec.source,
            )


def _room(spec: Spec, num_trials: int) -> tuple[float, str] | None:
    """Bytes that one process may take on this machine, and whose they are; None where that is not known."""
    if spec.resources.gpu:
        gpus = place.gpu_bytes()
        if not gpus:
            return None
        share = min(1.0, spec.resources.gpu)
        return min(
            gpus
        ) * share, f"a GPU here has {min(gpus) / GIB:.1f} GiB{f', of which it has {share:g}' * (share < 1)}"
    total = place.total_bytes()
    if total is None:
        return None
    at_once = max(1, min(num_trials, int((os.cpu_count() or 1) / spec.resources.cpu)))
    processes = at_once * spec.resources.num_processes
    shared = f" for {processes} at once" if processes > 1 else ""
    return total / processes, f"this machine has {total / GIB:.1f} GiB{shared}"


def checks(run: Path | None) -> list[place.Check]:
    """For `wa doctor`: whether the trials that a run folder still has to train fit this machine."""
    from sweeps.run import work
    from sweeps.spec import load_spec

    if run is None or not (run / "spec.yaml").is_file():
        return []
    name = "trial's memory"
    try:
        specs = [load_spec(path) for path in sorted((run / "specs").glob("*.yaml")) or [run / "spec.yaml"]]
        trials = work(specs, run).trajectories
    except click.ClickException as error:
        return [place.Check(name, False, error.format_message(), "as said")]
    processes = specs[0].resources.num_processes
    sizes = [sum(parts(one, processes).values()) for one in trials]
    return [place.Check(name, True, f"{max(sizes) / MIB:,.0f} MiB a process at most, planned")] if sizes else []
