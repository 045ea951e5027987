"""Several studies for one run folder: each resolved to its cells, and what must agree between them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sweeps.blocks import Block, SpecError, fullest
from sweeps.cells import cells
from sweeps.identity import Cell
from sweeps.spec import Spec, load_spec
from sweeps.targets import Target, study_targets
from sweeps.wording import counted

ALLOWED = "allowed: the same in every study that is run together"


@dataclass(frozen=True)
class Resolved:
    """A study with its cells and its workloads' targets."""

    spec: Spec
    cells: list[Cell]
    targets: Mapping[str, Target | None]


def load_specs(files: Iterable[Path], overrides: Sequence[str] = ()) -> list[Spec]:
    """Read studies that are to run together, the overrides applied to each.

    Raises: SpecError, also where two of them cannot share a run folder.
    """
    specs = [load_spec(file, overrides) for file in files]
    for one, other in itertools.combinations(specs, 2):
        if one.study == other.study:
            message = f"{other.study!r} is {one.source}'s name too; allowed: a name of its own for each study"
            raise SpecError("study", message, other.source)
        _same_block("tracking", one.tracking, other.tracking, one.source, other.source)
        for workload in one.resources.keys() & other.resources.keys():
            blocks = one.resources[workload], other.resources[workload]
            _same_block("resources", *blocks, one.source, other.source)
        for key in ("data_dir", "fuse", "branch"):
            _same(key, getattr(one, key), getattr(other, key), one.source, other.source)
    return specs


def resolve(specs: Sequence[Spec], calibrating: bool = False) -> list[Resolved]:
    """Every study's cells and targets. Raises: SpecError, also where a shared cell has two evaluation grids.

    calibrating: the studies set targets, so they have none and may use the held-out seeds.
    """
    targets = (lambda spec: dict.fromkeys(spec.workloads)) if calibrating else study_targets
    found = [Resolved(spec, cells(spec), targets(spec)) for spec in specs]
    first: dict[str, tuple[Cell, str]] = {}
    for one in found:
        for cell in one.cells:
            known, source = first.setdefault(cell.cell_id, (cell, one.spec.source))
            if known is cell:
                continue
            held, asked = (counted(each.evaluate_every_steps, "step") for each in (known, cell))
            _same("evaluate.every", held, asked, source, one.spec.source)
            kept, keep = (
                None if (n := each.keep_every_steps) is None else counted(n, "step") for each in (known, cell)
            )
            _same("keep.every", kept, keep, source, one.spec.source)
            _same("keep.dtype", known.keep_dtype, cell.keep_dtype, source, one.spec.source)
            _same("evaluate.test", known.evaluate_test, cell.evaluate_test, source, one.spec.source)
    return found


def union(studies: Iterable[Resolved]) -> list[Cell]:
    """The cells of all studies, each once, and as full of evaluations as one of them asks."""
    found: dict[str, Cell] = {}
    for cell in (cell for one in studies for cell in one.cells):
        known = found.setdefault(cell.cell_id, cell)
        if (averages := fullest(known.averages, cell.averages)) != known.averages:
            found[cell.cell_id] = replace(known, averages=averages)
    return list(found.values())


def _same_block(key: str, block: Block, other: Block, source: str, other_source: str) -> None:
    for (name, here), (_, there) in zip(block, other, strict=True):
        _same(f"{key}.{name}", here, there, source, other_source)


def _same(key: str, value: object, other: object, source: str, other_source: str) -> None:
    if value != other:
        raise SpecError(key, f"{_said(other)} here, {_said(value)} in {source}; {ALLOWED}", other_source)


def _said(value: object) -> str:
    if isinstance(value, Block):
        return ", ".join(f"{key}: {held}" for key, held in value.model_dump(exclude_none=True).items())
    return "left out" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
