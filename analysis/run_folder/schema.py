"""THE schema of a run folder: columns, dtypes, units. Its writer and its reader import it."""

from __future__ import annotations

import pyarrow as pa

FORMAT = 1  # of the folder, in plan.json: a reader refuses another

# One row: the evaluation of one cell after `step` optimizer steps.
RECORDS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("step", pa.int64()),  # optimizer steps completed
        ("split", pa.string()),  # "validation" | "test", at the end of training
        ("loss", pa.float64()),
        ("metric", pa.float64()),
        ("examples", pa.int64()),  # examples evaluated
        ("standard_error", pa.float64()),  # of the metric, where it rests on a part of the examples; NaN: on all
        # Clocks are of the trial that wrote the row; `load_records` makes one series of a cell's that several wrote.
        ("train_seconds", pa.float64()),  # cumulative wall seconds of training (a replay's: of its trace), with data
        ("average_seconds", pa.float64()),  # cumulative wall seconds of this cell's averaging
        # Cumulative wall seconds of this cell's evaluations on this split, in the order in which they were made: a
        # bracket's rounds come after its last step.
        ("eval_seconds", pa.float64()),
        # Mean over the steps since the evaluation before, on the grid that the trial had; NaN: unknown.
        ("train_loss", pa.float64()),
        ("step_lr", pa.float64()),  # learning rate of step `step`; the cell's `lr` is the peak
        ("examples_per_second", pa.float64()),  # of training, data included, since the last evaluation
        ("diverged", pa.bool_()),  # training has left the finite numbers; the trajectory ends here
        ("metrics", pa.map_(pa.string(), pa.float64())),  # what stands beside the target metric, by name
    ]
)
BESIDE = "metric_"  # before the name of a metric that stands beside, as a column: metric_accuracy
KEY = ["cell_id", "step", "split"]  # what makes a record one of a kind
NAMES = ["cell_id", "trajectory_id", "split"]  # its columns of strings
# Its columns that a clock says; all others are a function of (spec, seed).
MEASURED = ["train_seconds", "average_seconds", "eval_seconds", "examples_per_second"]

# One row a cell. A column that does not apply (k of an EMA, …) is null. `_steps` are steps, `_fraction` shares
# of the step budget; `final_lr` is a share of the peak `lr`.
CELLS = pa.schema(
    [
        ("cell_id", pa.string()),
        ("trajectory_id", pa.string()),
        ("study", pa.string()),  # that asked for it first
        ("studies", pa.list_(pa.string())),  # every study of the folder that has it
        ("workload", pa.string()),
        ("preset", pa.string()),
        ("seed", pa.int64()),
        ("step_budget", pa.int64()),  # T
        ("optimizer", pa.string()),
        ("lr", pa.float64()),
        ("beta1", pa.float64()),
        ("beta2", pa.float64()),
        ("eps", pa.float64()),
        ("weight_decay", pa.float64()),
        ("momentum", pa.float64()),
        ("nesterov", pa.float64()),  # 1 or 0
        ("grad_clip", pa.float64()),
        ("precondition_every", pa.float64()),  # steps
        ("precondition_start", pa.float64()),  # steps
        ("block_size", pa.float64()),
        ("matrix_eps", pa.float64()),
        ("optimizer_options", pa.string()),  # JSON: those that have no column
        ("precision", pa.string()),  # fp32 | tf32: of all products | bf16: of the forward pass, by autocast
        ("compile", pa.string()),  # torch.compile's backend
        ("accumulate", pa.int64()),  # micro-batches a step
        ("deterministic", pa.bool_()),  # the same bits each time
        ("batch_size", pa.int64()),  # examples a step; null: the workload's own
        ("own_batch_size", pa.int64()),  # of the workload
        ("schedule", pa.string()),  # shape: cosine | linear | 1-sqrt | power (power 3) | inverse_sqrt | constant
        ("length_steps", pa.int64()),  # training ends there
        ("length_fraction", pa.float64()),
        ("warmup_steps", pa.int64()),
        ("lr_decay_steps", pa.int64()),
        ("lr_decay", pa.float64()),  # share of the schedule's length spent decaying
        ("final_lr", pa.float64()),
        ("scheme", pa.string()),  # none | lawa | ema | tail | wsm, or a user's as pkg.mod:Name
        ("k", pa.int64()),
        ("curve", pa.string()),  # wsm: linear | cosine | sqrt
        ("every_steps", pa.int64()),
        ("ema_decay", pa.float64()),
        ("horizon_steps", pa.float64()),  # averaging horizon: 2 × centre-of-mass lag + every
        ("horizon_fraction", pa.float64()),
        ("burn_in_steps", pa.int64()),
        ("init", pa.string()),  # ema: first | zero
        ("until_full", pa.string()),  # lawa: absent | partial
        ("buffers", pa.string()),  # live | average | recompute
        ("options", pa.string()),  # JSON: the scheme's that have no column
        ("evaluate_every_steps", pa.int64()),
        ("evaluate_test", pa.bool_()),  # on the test split too, at the end of training
        ("evaluate_averages", pa.string()),  # all | paired | bracket: see docs/statistics.md
        ("metric", pa.string()),  # the target metric's name; `load_cells` calls it metric_name
        ("higher_is_better", pa.bool_()),
        ("target", pa.float64()),  # null until `wa calibrate`
        ("num_devices", pa.float64()),  # devices one trial holds: GPUs when it has any, else CPUs
        ("device", pa.string()),  # "gpu" | "cpu": device-hours are GPU-hours only on "gpu"
        ("processes", pa.int64()),  # data-parallel processes of one trial
        ("trace_dtype", pa.string()),  # bf16: replayed from weights that were rounded to it; null: exact
        ("weights", pa.string()),  # the imported checkpoints that they are; null: trained here
    ]
)

# Columns that folders of earlier versions do not have.
ADDED = ["deterministic", "evaluate_averages", "trace_dtype", "weights", "standard_error"]

_PLACE = CELLS.get_field_index
# What tells trainings apart but the seed, and averages.
TRAINING = [
    name for name in CELLS.names[_PLACE("workload") : _PLACE("scheme")] if name not in ("seed", "own_batch_size")
]
TRAINING += ["evaluate_every_steps"]
AVERAGING = CELLS.names[_PLACE("scheme") : _PLACE("evaluate_every_steps")]

# One row an attempt at a trajectory.
TRIALS = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("attempt", pa.int64()),
        ("host", pa.string()),
        ("device_name", pa.string()),
        ("num_devices", pa.float64()),
        ("versions", pa.string()),  # JSON: package -> version
        ("started", pa.string()),  # ISO 8601, UTC
        ("ended", pa.string()),
        ("seconds", pa.float64()),  # wall seconds of the attempt, all included
        ("status", pa.string()),  # done | failed | interrupted
        ("name", pa.string()),  # the trajectory's folder: its id, with a suffix where one training runs twice
    ]
)
