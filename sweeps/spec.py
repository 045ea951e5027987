"""YAML -> Spec: the border. Whatever is wrong with a file is said here, in one line, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.axes import Grid, axis, expand, grids, known, names, scalar
from sweeps.blocks import Asks, Block, Flag, Name, ResourcesBlock, Seed, SpecError, Text, TrackingBlock
from sweeps.overrides import set_path
from sweeps.wording import shown
from sweeps.yaml_file import BadYaml, read_yaml


@dataclass(frozen=True)
class Spec:
    """A study, checked."""

    study: str
    question: str | None
    asks: str | None  # steps | final_metric | horizon; None: what the trainings vary
    workloads: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    grids: Mapping[str, Grid]  # workload -> its axes
    data_dir: str | None  # of full presets; None: what WA_DATA_DIR says
    resources: ResourcesBlock
    tracking: TrackingBlock
    fuse: bool
    source: str
    raw: Mapping[str, Any]  # as read, with --set applied and defaults filled in: what spec.yaml holds


KEYS = (
    *("study", "question", "asks", "workloads", "preset", "seeds", "step_budget", "optimizer", "schedule"),
    *("training", "averaging", "evaluate", "overrides", "data_dir", "resources", "tracking", "fuse"),
)
REQUIRED = ("study", "workloads", "averaging")
DEFAULTS: Mapping[str, Any] = {
    "preset": "mini",
    "seeds": [0],
    "step_budget": 1.0,
    "optimizer": {},
    "schedule": {},
    "training": {},
    "evaluate": {},
    "overrides": {},
    "resources": {},
    "tracking": {},
    "fuse": True,
}


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read, override (``path=value``) and check a study.

    Raises: SpecError, one line with file, key path and what is allowed.
    """
    source = str(path)
    try:
        raw = read_yaml(Path(path))
    except BadYaml as error:
        raise SpecError("", str(error), source) from None
    try:
        if not isinstance(raw, dict):
            raise SpecError("", f"got {shown(raw)}; allowed: a mapping of {', '.join(KEYS)}")
        for assignment in overrides:
            set_path(raw, assignment)
        return parse_spec(raw, source)
    except SpecError as error:
        raise error.at(source) from None


def parse_spec(raw: Mapping[str, Any], source: str = "spec") -> Spec:
    """Check a study given as a mapping. Raises: SpecError."""
    known(raw, KEYS, "")
    for key in REQUIRED:
        if key not in raw:
            raise SpecError(key, "is required")
    full = {key: raw.get(key, DEFAULTS.get(key)) for key in KEYS if key in raw or key in DEFAULTS}
    workloads = names(full["workloads"], "workloads")
    seeds = [scalar(_Seeds, "seeds", seed, path) for path, seed in axis(full["seeds"], "seeds")]
    presets = names(full["preset"], "preset")
    return Spec(
        study=scalar(_Study, "study", full["study"]),
        question=None if full.get("question") is None else scalar(_Question, "question", full["question"]),
        asks=None if full.get("asks") is None else scalar(_Asks, "asks", full["asks"]),
        workloads=workloads,
        presets=presets,
        seeds=tuple(seeds),
        grids=grids(full, workloads, len(seeds) * len(presets)),
        data_dir=None if full.get("data_dir") is None else scalar(_DataDir, "data_dir", full["data_dir"]),
        resources=expand(ResourcesBlock, full["resources"], "resources", axes=False)[0].block,
        tracking=expand(TrackingBlock, full["tracking"], "tracking", axes=False)[0].block,
        fuse=scalar(_Fuse, "fuse", full["fuse"]),
        source=source,
        raw=full,
    )


# --- keys of one value --------------------------------------------------------------------------------------------


class _Study(Block):
    study: Name


class _Question(Block):
    question: Text


class _Asks(Block):
    asks: Asks


class _DataDir(Block):
    data_dir: Text


class _Seeds(Block):
    seeds: Seed


class _Fuse(Block):
    fuse: Flag
