"""The keys of a study as tables: what each means and what it is when left out, as the models themselves say it.

`wa optimizers`, `wa schedules`, `wa schemes` and docs/keys.md show these rows; `wa workloads` those at the end.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from sweeps.blocks import Block, EvaluateBlock, KeepBlock, ScheduleBlock, TrackingBlock, TrainingBlock
from sweeps.optimizers import OPTIMIZERS, parameters
from sweeps.resources import ReplayBlock, ResourcesBlock
from sweeps.study_model import BLOCKS, GRAD_CLIP, KEYS, GridBlock, PrimaryBlock, StudyModel
from sweeps.targets import read_target
from sweeps.terminal import Row, fitting
from workloads.protocol import families, presets


@dataclass(frozen=True)
class Table:
    """Headers, rows of as many texts, and what to know beside them."""

    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str


def study() -> Table:
    """The keys of a study, and those of its blocks that have no table of their own."""
    blocks: dict[str, type[Block]] = {
        "training": TrainingBlock,
        "evaluate": EvaluateBlock,
        "keep": KeepBlock,
        "primary": PrimaryBlock,
        "resources": ResourcesBlock,
        "tracking": TrackingBlock,
    }
    inside = {key: dict(block.model_fields) for key, block in blocks.items()}
    inside["resources"] |= {f"replay.{key}": one for key, one in ReplayBlock.model_fields.items()}
    rows = []
    for key in KEYS:
        field = StudyModel.model_fields[key]
        overridable = "yes" if key in GridBlock.model_fields else ""
        rows.append((key, _default(field), overridable, field.description or ""))
        inner = inside.get(key, {}).items()
        rows += [(f"{key}.{name}", _default(one), overridable, one.description or "") for name, one in inner]
    note = "A list is an axis of the grid, where `overrides:` may set the key; there it is one workload's own."
    return Table(("key", "default", "in overrides", "what it is"), rows, note)


def optimizers() -> Table:
    """Every optimizer's keys."""
    rows = []
    for name in OPTIMIZERS:
        for key, one in parameters(name).items():
            default = "required" if one.default is None else _text(one.default, "g")
            rows.append((name, key, default, one.about))
        rows.append((name, "grad_clip", "—", GRAD_CLIP))
    note = "Left out, a key is the workload's own value where its optimizer takes the same keys, else this default."
    return Table(("optimizer", "key", "default", "what it is"), rows, note)


def schedules() -> Table:
    """The schedule's keys."""
    rows = [(key, _default(field), field.description or "") for key, field in ScheduleBlock.model_fields.items()]
    note = "Left out, a key is the workload's own value, else this default."
    return Table(("key", "default", "what it is"), rows, note)


def schemes() -> Table:
    """Every averaging scheme's keys."""
    rows: list[tuple[str, ...]] = []
    for name, block in BLOCKS.items():
        rows.append((name, "", "", (inspect.getdoc(block) or "").splitlines()[0]))
        fields = [(key, field) for key, field in block.model_fields.items() if key != "scheme"]
        rows += [("", key, _default(field), field.description or "") for key, field in fields]
    note = "An int is steps, a float a share of the step budget; a list is an axis of the grid."
    return Table(("scheme", "key", "default", "what it is"), rows, note)


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else "—" if field.default in (None, {}) else _text(field.default)


def _text(value: Any, style: str = "") -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:{style}}" if style else str(value)


def markdown(table: Table) -> str:
    """The table for a page."""
    lines = [table.headers, tuple("---" for _ in table.headers), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


WORKLOADS = ("workload", "preset", "step budget", "batch", "metric", "target", "where the target comes from", "target")
CHOICES = ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 5), (0, 1, 2, 4, 5), (0, 1, 7))  # widest first


def workloads(width: int) -> tuple[Row, list[Row]]:
    """(headers, rows) of the shipped workloads in at most `width` characters, from 60 on."""
    rows: list[Row] = []
    for name in families():
        for preset, made in presets(name).items():
            target = read_target(name, preset)
            metric = f"{made.metric} {'↑' if made.higher_is_better else '↓'}"
            value, budget = "—" if target is None else f"{target.value:.6g}", f"{made.step_budget:,}"
            where = "— (`wa calibrate` sets one)" if target is None else target.rule
            if target is not None and target.seeds:
                where = f"calibrated: seeds {', '.join(map(str, target.seeds))}; {target.date}"
            said = f"{metric} {value} in {budget}"
            rows.append((name, preset, budget, f"{made.batch_size:,}", metric, value, where, said))
    return fitting(WORKLOADS, rows, width, CHOICES)


def workloads_json() -> list[dict[str, object]]:
    """What `wa workloads --json` prints: one entry a workload and preset."""
    return [
        {
            "workload": name,
            "preset": preset,
            **{key: getattr(made, key) for key in ("step_budget", "batch_size", "metric", "higher_is_better")},
            "target": None if (target := read_target(name, preset)) is None else target.model_dump(),
        }
        for name in families()
        for preset, made in presets(name).items()
    ]
