"""targets.yaml beside a workload's file: the value to reach, and how it came about; the rule of `wa calibrate`.

The rule is the median over held-out seeds of the baseline's best metric with a 0.75-length schedule. Source: AlgoPerf
sets targets as the median of the best values over reruns of a tuned baseline whose schedule ends at 75 % of the
maximum runtime (paper, Section 3; AlgoPerf rules).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from sweeps.blocks import SpecError
from sweeps.durable import write_atomic
from sweeps.spec import Spec
from sweeps.yaml_file import BadYaml, dump_yaml, read_yaml
from workloads.algoperf import published_target
from workloads.protocol import UnknownWorkload, source_file

if TYPE_CHECKING:
    import pandas as pd

HEADER = "# Written by `wa calibrate`, never by hand: workload -> preset -> target and its provenance.\n"


class Target(BaseModel):
    """A target metric and its provenance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    metric: str
    higher_is_better: bool
    preset: str
    rule: str
    seeds: list[int]  # held out: no study may use them
    values: list[float]  # the best validation metric of each
    versions: dict[str, str]
    date: str  # empty where it was published


def targets_file(workload: str) -> Path:
    """Where the targets of a workload lie: beside the file that defines it."""
    return source_file(workload).with_name("targets.yaml")


def read_target(workload: str, preset: str) -> Target | None:
    """The target of a workload at a preset: what `wa calibrate` set, else what was published for a full preset.

    None where there is neither. Raises: SpecError for a broken file.
    """
    path = targets_file(workload)
    try:
        entry = (read_yaml(path) or {}).get(workload, {}).get(preset) if path.exists() else None
        if entry is None:
            return _published(workload) if preset == "full" else None
        return Target.model_validate(entry)
    except (BadYaml, ValidationError, AttributeError) as error:
        said = f"broken target ({str(error).splitlines()[0]}); `wa calibrate {workload}` writes it anew"
        raise SpecError(workload, said, str(path)) from None


def _published(workload: str) -> Target | None:
    of = published_target(workload)
    if of is None:
        return None
    said = {"value": of.value, "metric": of.metric, "higher_is_better": of.higher_is_better, "preset": "full"}
    nothing = {"seeds": [], "values": [], "versions": {}, "date": ""}
    return Target.model_validate(said | nothing | {"rule": f"published: {of.source}"})


def write_target(workload: str, target: Target) -> Path:
    """Put one target into its file, the others kept. The file's path."""
    path = targets_file(workload)
    known = (read_yaml(path) or {}) if path.exists() else {}
    known.setdefault(workload, {})[target.preset] = target.model_dump()
    write_atomic(path, (HEADER + dump_yaml(dict(sorted(known.items())))).encode())
    return path


def study_targets(spec: Spec) -> dict[str, Target | None]:
    """The targets of a study's workloads.

    Raises: SpecError when the study uses a seed that a target was set with, or mixes presets with targets.
    """
    found: dict[str, Target | None] = {}
    for workload in spec.workloads:
        try:
            targets = [read_target(workload, preset) for preset in spec.presets]
        except UnknownWorkload as error:
            raise SpecError("workloads", str(error), spec.source) from None
        found[workload] = targets[0] if len(spec.presets) == 1 else None
        for held_out in (target.seeds for target in targets if target is not None):
            if both := sorted(set(spec.seeds) & set(held_out)):
                said = f"seed {both[0]} set {workload}'s target and is held out"
                raise SpecError("seeds", f"{said}; allowed: any but {', '.join(map(str, held_out))}", spec.source)
    return found


LENGTH = 0.75
SEEDS = (1000, 1001, 1002)  # no study may use them
RULE = f"median over the held-out seeds of the baseline's best validation metric, schedule length {LENGTH}"


def calibration_study(workloads: Sequence[str], preset: str) -> dict[str, Any]:
    """The sweep that answers the rule, as a spec: the workload's own optimizer and schedule, no averaging."""
    return {
        "study": "calibrate",
        "question": "Which value must a run reach?",
        "workloads": list(workloads),
        "preset": preset,
        "seeds": list(SEEDS),
        "schedule": {"length": LENGTH},
        "averaging": [{"scheme": "none"}],
        "tracking": {"wandb": "disabled"},
    }


def calibrated(records: pd.DataFrame, preset: str) -> Mapping[str, Target]:
    """Records of that sweep, joined with its cells -> workload -> target.

    Raises: ValueError when a seed has no finite value: a target rests on all of its seeds.
    """
    found = {}
    for workload, rows in records.groupby("workload"):
        higher = bool(rows["higher_is_better"].iloc[0])
        by_seed = rows.groupby("seed")["metric"]
        best = (by_seed.max() if higher else by_seed.min()).reindex(SEEDS)
        if best.isna().any():
            raise ValueError(f"{workload}: no value for seed {best[best.isna()].index[0]}; see its log")
        found[str(workload)] = Target(
            value=statistics.median(best.tolist()),
            metric=str(rows["metric_name"].iloc[0]),
            higher_is_better=higher,
            preset=preset,
            rule=RULE,
            seeds=list(SEEDS),
            values=best.tolist(),
            versions={name: version(name) for name in ("wa-sweeps", "torch")},
            date=datetime.now(UTC).date().isoformat(),
        )
    return found
