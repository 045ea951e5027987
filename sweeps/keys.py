"""The keys of `optimizer:`, `schedule:` and `averaging:` as tables: what each means and what it is when left out.

The keys are those of the blocks; `wa optimizers`, `wa schedules`, `wa schemes` and docs/keys.md show these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.blocks import AVERAGING, Block, ScheduleBlock
from sweeps.optimizers import MEANING, OPTIMIZERS, settings


@dataclass(frozen=True)
class Table:
    """Headers, rows of as many texts, and what to know beside them."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str


SCHEDULE = {
    "shape": ("cosine", "cosine, linear (warm up, hold, decay) or constant"),
    "length": ("1.0", "where training ends: steps (an int) or a share of the step budget (a float)"),
    "warmup": ("0.0", "linear from zero: steps or a share of the length"),
    "lr_decay": ("all after warm-up", "decay at the end: steps or a share of the length; 0.0 never decays"),
    "final_lr": ("0.0", "learning rate at the end, a share of its peak"),
}
SCHEMES = {
    "none": "the live weights, not averaged",
    "lawa": "mean of the latest k snapshots",
    "ema": "exponential moving average of snapshots",
    "tail": "mean of every snapshot since a step",
    "wsm": "merge of the latest k snapshots, weighted as if the LR had decayed over them",
}
SCHEME_KEYS = {
    "k": "snapshots averaged; or give the horizon",
    "decay": "γ of m ← γm + (1 − γ)θ at each snapshot; or give the horizon",
    "horizon": "how far back the average reaches: steps or a share of the step budget",
    "start": "the step it begins at: steps or a share of the step budget",
    "lr_decay": "length of the emulated decay, instead of k: steps or a share of the step budget",
    "curve": "of the emulated decay: linear, cosine or sqrt",
    "every": "steps between snapshots, or a share of the step budget",
    "burn_in": "steps (or a share) before the first interval",
    "init": "how it begins: first (at the first snapshot) or zero (debiased)",
    "until_full": "before k snapshots: absent (no record) or partial (their mean)",
    "buffers": "batch-norm statistics: live, average or recompute",
}


def optimizers() -> Table:
    """Every optimizer's keys."""
    rows = []
    for name in OPTIMIZERS:
        for key, default in settings(name).items():
            rows.append((name, key, "required" if default is None else _default(default), MEANING[key]))
        rows.append((name, "grad_clip", "—", MEANING["grad_clip"]))
    return Table(
        ("optimizer", "key", "default", "what it is"),
        rows,
        "Left out, a key is the workload's own value where its optimizer takes the same keys, else this default.",
    )


def schedules() -> Table:
    """The schedule's keys."""
    rows = [(key, *SCHEDULE[key]) for key in ScheduleBlock.model_fields]
    return Table(
        ("key", "default", "what it is"),
        rows,
        "Left out, a key is the workload's own value, else this default.",
    )


def schemes() -> Table:
    """Every averaging scheme's keys."""
    rows: list[tuple[str, ...]] = []
    for name, block in AVERAGING.items():
        rows.append((name, "", "", SCHEMES[name]))
        keys = [key for key in block.model_fields if key != "scheme"]
        rows += [("", key, _scheme_default(block, key), SCHEME_KEYS[key]) for key in keys]
    return Table(
        ("scheme", "key", "default", "what it is"),
        rows,
        "An int is steps, a float a share of the step budget; a list is an axis of the grid.",
    )


def _scheme_default(block: type[Block], key: str) -> str:
    field = block.model_fields[key]
    return "required" if field.is_required() else "—" if field.default is None else _default(field.default)


def _default(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if value != str(value) else value


def markdown(table: Table) -> str:
    """The table for a page."""
    lines = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
