"""YAML -> Spec: the border. Whatever is wrong with a file is said here, in one line, before anything runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sweeps.axes import Grid, grids, points, validate
from sweeps.blocks import SpecError, TrackingBlock
from sweeps.identity import scheme_name
from sweeps.resources import ResourcesBlock
from sweeps.study_model import KEYS, AveragingBlock, PrimaryBlock, StudyModel
from sweeps.wording import shown
from sweeps.yaml_file import BadYaml, parse_value, read_yaml, refuse_secret


@dataclass(frozen=True)
class Spec:
    """A study, checked."""

    study: str
    question: str | None
    report: str | None  # steps | final_metric | horizon; None: what the trainings vary
    primary: PrimaryBlock  # the pre-specified setting
    workloads: tuple[str, ...]
    presets: tuple[str, ...]
    seeds: tuple[int, ...]
    weights: tuple[str, ...] | None  # imported, one a seed
    grids: Mapping[str, Grid]  # workload -> its axes
    data_dir: str | None  # of full presets; None: what WA_DATA_DIR says
    resources: Mapping[str, ResourcesBlock]  # workload -> of one trial
    tracking: TrackingBlock
    fuse: bool
    branch: bool
    source: str
    raw: Mapping[str, Any]  # as read, with --set applied and defaults filled in: what spec.yaml holds

    def trial(self, workload: str, replays: bool = False) -> ResourcesBlock:
        """What one of its trials holds; of imported weights every trial is a replay."""
        return self.resources[workload].of(replays or self.weights is not None)

    def own_schemes(self, workload: str) -> list[str]:
        """The averaging schemes of a workload's grid that are a user's, as `identity.scheme_name` has them."""
        kinds = [cast(AveragingBlock, one.block).scheme_type for one in self.grids[workload].averaging]
        return sorted({name for kind in kinds if kind is not None and ":" in (name := scheme_name(kind))})


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
    study = validate(StudyModel, raw)
    fields = StudyModel.model_fields
    full = {key: raw.get(key, fields[key].default) for key in KEYS if key in raw or fields[key].default is not None}
    full["primary"] = study.primary.model_dump()
    by_workload = grids(study, full)
    return Spec(
        **{key: getattr(study, key) for key in Spec.__annotations__ if key in fields and key != "resources"},
        presets=study.preset,
        grids=by_workload,
        resources={name: _resources(grid) for name, grid in by_workload.items()},
        source=source,
        raw=full,
    )


def _resources(grid: Grid) -> ResourcesBlock:
    """Of a workload: the study's, changed by its own. Raises: SpecError where the two do not go together."""
    (at,) = points(grid.resources)
    return validate(ResourcesBlock, dict(at.values), at.path)


PATH = r"[^.\[\]]+(\[[0-9]{1,6}\])*(\.[^.\[\]]+(\[[0-9]{1,6}\])*)*"


def set_path(raw: dict[str, Any], assignment: str) -> None:
    """Apply one ``path=value`` (``optimizer.lr=0.1``, ``averaging[1].k=[5, 20]``) to a raw spec, in place.

    The value is YAML. Missing mappings on the way are made. Raises: SpecError.
    """
    try:
        refuse_secret(assignment)
    except BadYaml as error:
        raise SpecError("--set", str(error)) from None
    path, equals, text = assignment.partition("=")
    steps = re.findall(r"[^.\[\]]+|\[[0-9]+\]", path)
    if not equals or re.fullmatch(PATH, path) is None or len(path) > 200:
        raise SpecError("--set", f"got {shown(assignment)}; allowed: path=value, as in optimizer.lr=0.1")
    try:
        value = parse_value(text)
    except BadYaml as error:
        raise SpecError(f"--set {path}", str(error)) from None
    here: Any = raw
    for step, following in itertools.pairwise([*steps, None]):
        key: Any = int(step[1:-1]) if step is not None and step.startswith("[") else step
        if isinstance(key, int) and (not isinstance(here, list) or key >= len(here)):
            raise SpecError(f"--set {path}", f"there is no {step} to set")
        if isinstance(key, str) and isinstance(here, list):
            raise SpecError(f"--set {path}", f"this is a list of {len(here)}: say which, as in [0].{key}")
        if not isinstance(here, (dict, list)):
            raise SpecError(f"--set {path}", f"{key!r} lies inside {shown(here)}, which is no mapping")
        if following is None:
            here[key] = value
        elif isinstance(here, dict):
            here = here.setdefault(key, {})
            if here is None:
                raise SpecError(f"--set {path}", f"{key!r} is empty")
        else:
            here = here[key]
