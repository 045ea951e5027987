"""A cell as a row of the run folder's table of cells."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from sweeps.blocks import OptimizerBlock
from sweeps.identity import Cell, Scheme, scheme_to_dict
from workloads.protocol import load

SETTINGS = [name for name in OptimizerBlock.model_fields if name not in ("name", "grad_clip")]


def cell_to_row(
    cell: Cell, study: str, target: float | None, num_devices: float, device: str, processes: int
) -> dict[str, Any]:
    """The cell as a row of `analysis.records.CELLS`."""
    training, schedule, scheme = cell.training, cell.training.schedule, cell.scheme
    total = training.step_budget
    horizon = None if scheme is None else _significant(_horizon_steps(scheme, schedule.length_steps))
    options = scheme_to_dict(scheme)
    values = dict(training.settings)
    return {
        "cell_id": cell.cell_id,
        "trajectory_id": cell.trajectory_id,
        "study": study,
        "studies": [study],
        "workload": training.workload,
        "preset": training.preset,
        "seed": training.seed,
        "step_budget": total,
        "optimizer": training.optimizer,
        **{name: values.get(name) for name in SETTINGS},
        "grad_clip": training.grad_clip,
        "precision": training.precision,
        "compile": training.compile,
        "accumulate": training.accumulate,
        "batch_size": training.batch_size,
        "own_batch_size": _own_batch_size(training.workload, training.preset),
        "schedule": schedule.shape,
        "length_steps": schedule.length_steps,
        "length_fraction": _significant(schedule.length_steps / total),
        "warmup_steps": schedule.warmup_steps,
        "lr_decay_steps": schedule.lr_decay_steps,
        "lr_decay": _significant(schedule.lr_decay_steps / schedule.length_steps),
        "final_lr": schedule.final_lr,
        "scheme": options["scheme"],
        "k": options.get("k"),
        "curve": options.get("curve"),
        "every_steps": options.get("every"),
        "ema_decay": options.get("decay"),
        "horizon_steps": horizon,
        "horizon_fraction": None if horizon is None else _significant(horizon / total),
        "burn_in_steps": options.get("burn_in", options.get("start")),
        "init": options.get("init"),
        "until_full": options.get("until_full"),
        "buffers": options.get("buffers", "live"),
        "evaluate_every_steps": cell.evaluate_every_steps,
        "evaluate_test": cell.evaluate_test,
        "metric": cell.metric_name,
        "higher_is_better": cell.higher_is_better,
        "target": target,
        "num_devices": num_devices,
        "device": device,
        "processes": processes,
    }


@cache
def _own_batch_size(workload: str, preset: str) -> int:
    return load(workload, preset).batch_size


def _horizon_steps(scheme: Scheme, length: int) -> float:
    return scheme.horizon if math.isfinite(scheme.horizon) else scheme.horizon_at(length)  # a tail grows to its end


def _significant(value: float, digits: int = 6) -> float:
    # .0100000001 and .01 are one point of a horizon axis.
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
