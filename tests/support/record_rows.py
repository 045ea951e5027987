"""A row of records, with the columns of the schema in their order."""

from typing import Any


def record(step: int, cell_id: str = "c", **changes: Any) -> dict[str, Any]:
    values = {"cell_id": cell_id, "trajectory_id": "t", "step": step, "split": "validation"}
    values |= {"loss": 0.1 + step, "metric": 1 / step if step else 0.0, "examples": 10, "standard_error": None}
    values |= {"train_seconds": 1.0, "average_seconds": 0.0, "eval_seconds": 0.5}
    values |= {"train_loss": 0.2 + step, "step_lr": 0.01, "examples_per_second": 80.0}
    return {**values, "diverged": False, "metrics": {}, **changes}
