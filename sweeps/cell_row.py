"""A cell as a row of the run folder's table of cells."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import cache
from typing import Any

from analysis.run_folder.schema import AVERAGING, TRAINING
from sweeps.identity import Cell, scheme_to_dict
from sweeps.schedules import POWER
from wa import Scheme
from wa.schemes import SCHEMES
from workloads.protocol import load

COLUMN = {"decay": "ema_decay"}  # of a scheme's option, where it is not called the same
OF_EVERY_SCHEME = ("scheme", "every", "burn_in", "start", "buffers")  # told by columns of their own


def cell_to_row(
    cell: Cell, study: str, target: float | None, num_devices: float, device: str, processes: int
) -> dict[str, Any]:
    """The cell as a row of `schema.CELLS`."""
    training, schedule = cell.training, cell.training.schedule
    total, length = training.step_budget, schedule.length_steps
    unknown = dict.fromkeys(("warmup_steps", "lr_decay_steps", "lr_decay", "final_lr"))
    untold: dict[str, Any] = {} if training.weights is None else {"schedule": "as trained", **unknown}
    plain = {key: value for key, value in asdict(training).items() if key not in ("settings", "schedule")}
    return {
        "cell_id": cell.cell_id,
        "trajectory_id": cell.trajectory_id,
        "study": study,
        "studies": [study],
        **plain,
        **_columns(dict(training.settings), TRAINING, "optimizer_options"),
        "own_batch_size": _own_batch_size(training.workload, training.preset),
        "schedule": schedule.shape if schedule.power == POWER else f"power {schedule.power:g}",
        "length_steps": length,
        "length_fraction": _significant(length / total),
        "warmup_steps": schedule.warmup_steps,
        "lr_decay_steps": schedule.lr_decay_steps,
        "lr_decay": _significant(schedule.lr_decay_steps / length),
        "final_lr": schedule.final_lr,
        **untold,
        **_averaging(cell.scheme, length, total),
        "evaluate_every_steps": cell.evaluate_every_steps,
        "evaluate_test": cell.evaluate_test,
        "evaluate_averages": cell.averages,
        "metric": cell.metric_name,
        "higher_is_better": cell.higher_is_better,
        "target": target,
        "num_devices": num_devices,
        "device": device,
        "processes": processes,
        "trace_dtype": None,
    }


def _averaging(scheme: Scheme | None, length: int, total: int) -> dict[str, Any]:
    if scheme is None:
        return {"scheme": "none", "buffers": "live"}
    told = scheme_to_dict(scheme)
    # A tail's horizon at its end.
    horizon = _significant(scheme.horizon if math.isfinite(scheme.horizon) else scheme.horizon_at(length))
    own = {COLUMN.get(key, key): value for key, value in told.items() if key not in OF_EVERY_SCHEME}
    return {
        "scheme": told["scheme"],
        "every_steps": scheme.every,
        "horizon_steps": horizon,
        "horizon_fraction": _significant(horizon / total),
        "burn_in_steps": scheme.burn_in,
        "buffers": scheme.buffers,
        # What a user's scheme calls k or init need not be what ours do.
        **_columns(own, AVERAGING if told["scheme"] in SCHEMES else (), "options"),
    }


def _columns(options: dict[str, Any], columns: Any, rest: str) -> dict[str, Any]:
    """Options by column; those that have none as JSON in the column `rest`."""
    others = {key: value for key, value in options.items() if key not in columns}
    held = {key: value for key, value in options.items() if key in columns}
    return held | {rest: json.dumps(others, sort_keys=True) if others else None}


@cache
def _own_batch_size(workload: str, preset: str) -> int:
    return load(workload, preset).batch_size


def _significant(value: float) -> float:
    return float(f"{value:.6g}")  # .0100000001 and .01 are one point of a horizon axis
