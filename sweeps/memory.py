"""How much memory a process of a trial takes at most, by what it is for, and whether the machine has as much."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from cluster import place
from sweeps.blocks import SpecError
from sweeps.plan import Trajectory, model_size
from sweeps.resources import ResourcesBlock, of_trajectory
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


@dataclass(frozen=True)
class Trials:
    """The trials of a workload that hold the same: what the largest takes a process; how many there are of all."""

    workload: str
    held: ResourcesBlock
    parts: Mapping[str, int]  # bytes of a process, by what they are for
    number: int

    def too_large(self, cpus: float, machine: str) -> str | None:
        """In one line with the arithmetic, why this machine, of so many CPUs, cannot hold them; what is unknown can.

        machine: how it is called.
        """
        if self.held.gpu:
            gpus = place.gpu_bytes()
            share = min(1.0, self.held.gpu)
            room = min(gpus) * share if gpus else math.inf
            whose = f"a GPU here has {min(gpus, default=0) / GIB:.1f} GiB{f', of which it has {share:g}' * (share < 1)}"
        else:
            at_once = max(1, min(self.number, int(cpus / self.held.cpu)))
            processes = at_once * self.held.num_processes
            total = place.total_bytes()
            room = math.inf if total is None else total / processes
            shared = f" for {processes} at once" if processes > 1 else ""
            whose = f"{machine} has {(total or 0) / GIB:.1f} GiB{shared}"
        needed = sum(self.parts.values())
        if needed <= room:
            return None
        told = " + ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items())
        return f"a trial of {self.workload} takes {needed / GIB:.1f} GiB a process ({told}), {whose}"


LESS = "a larger cpu, more processes, a smaller batch_size, bf16 or fewer windows"


def of_trials(specs: Sequence[Spec], trajectories: Sequence[Trajectory]) -> list[Trials]:
    """The trials by workload and what they hold."""
    largest: dict[tuple[str, ResourcesBlock], dict[str, int]] = {}
    for one in trajectories:
        held = of_trajectory(one, specs)
        needed, kind = parts(one, held.num_processes), (one.cells[0].training.workload, held)
        largest[kind] = max(needed, largest.get(kind, needed), key=lambda sizes: sum(sizes.values()))
    return [Trials(*kind, needed, len(trajectories)) for kind, needed in largest.items()]


def refuse(specs: Sequence[Spec], trajectories: Sequence[Trajectory], address: str | None = None) -> None:
    """Raises: SpecError where a trial cannot fit this machine; what is at an address is looked at there."""
    for trials in of_trials(specs, trajectories) if address is None else ():
        if (said := trials.too_large(os.cpu_count() or 1, "this machine")) is not None:
            raise SpecError("resources", f"{said}; allowed: {LESS}", specs[0].source)


def checks(run: Path | None) -> list[place.Check]:
    """For `wa doctor`: whether the trials that a run folder still has to train fit this machine."""
    from sweeps.spec import load_spec
    from sweeps.work import work

    if run is None or not (run / "spec.yaml").is_file():
        return []
    name = "trial's memory"
    try:
        specs = [load_spec(path) for path in sorted((run / "specs").glob("*.yaml")) or [run / "spec.yaml"]]
        trials = work(specs, run).trajectories
    except click.ClickException as error:
        return [place.Check(name, False, error.format_message(), "as said")]
    sizes = [sum(one.parts.values()) for one in of_trials(specs, trials)]
    return [place.Check(name, True, f"{max(sizes) / MIB:,.0f} MiB a process at most, planned")] if sizes else []
