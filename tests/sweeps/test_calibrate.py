"""Targets by rule, on seeds no study may use, with their provenance in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sweeps.axes import points
from sweeps.blocks import SpecError
from sweeps.cli import main
from sweeps.spec import parse_spec
from sweeps.targets import (
    RULE,
    Target,
    calibrated,
    calibration_study,
    read_target,
    study_targets,
    targets_file,
    write_target,
)
from workloads.protocol import families


def records(higher: bool) -> pd.DataFrame:
    rows = [
        {"workload": "w", "seed": seed, "step": step, "metric": value}
        for seed, curve in {1000: [3.0, 1.0, 2.0], 1001: [9.0, 4.0, 5.0], 1002: [7.0, 2.0, 8.0]}.items()
        for step, value in enumerate(curve, start=1)
    ]
    return pd.DataFrame(rows).assign(higher_is_better=higher, metric_name="m")


@pytest.mark.parametrize(("higher", "values", "median"), [(False, [1, 4, 2], 2.0), (True, [3, 9, 8], 8.0)])
def test_the_rule_by_hand(higher: bool, values: list[float], median: float) -> None:
    target = calibrated(records(higher), "mini")["w"]
    assert target.values == values
    assert target.value == median
    assert target.seeds == [1000, 1001, 1002]
    assert "0.75" in target.rule
    assert target.versions["torch"]


def test_a_target_rests_on_all_of_its_seeds() -> None:
    frame = records(False)
    frame.loc[frame["seed"] == 1001, "metric"] = float("nan")
    with pytest.raises(ValueError, match="seed 1001"):
        calibrated(frame, "mini")


def test_the_calibration_study_is_the_baseline_at_length_075() -> None:
    spec = parse_spec(calibration_study(["lm"], "mini"))
    (schedule,) = points(spec.grids["lm"].schedule)
    assert schedule.values == {"length": 0.75}
    assert spec.seeds == (1000, 1001, 1002)
    assert [one.values for one in points(spec.grids["lm"].averaging)] == [{"scheme": "none"}]


def target(**changes: Any) -> Target:
    values = {"value": 0.5, "metric": "accuracy", "higher_is_better": True, "preset": "mini", "rule": "r"}
    more = {"seeds": [1000, 1001, 1002], "values": [0.4, 0.5, 0.6], "versions": {}, "date": "2026-01-01"}
    return Target.model_validate({**values, **more, **changes})


def test_a_users_targets_lie_beside_their_file(outside: Path) -> None:
    assert read_target("tinywork:Tiny", "mini") is None
    assert write_target("tinywork:Tiny", target()) == outside / "targets.yaml"
    write_target("tinywork:Slow", target(value=0.7))
    assert read_target("tinywork:Tiny", "mini") == target()
    assert read_target("tinywork:Slow", "mini") == target(value=0.7)
    assert read_target("tinywork:Tiny", "full") is None
    assert "never by hand" in targets_file("tinywork:Tiny").read_text()


def test_a_broken_targets_file_is_one_line(outside: Path) -> None:
    (outside / "targets.yaml").write_text("tinywork:Tiny: {mini: {value: high}}\n")
    with pytest.raises(SpecError, match="wa calibrate") as caught:
        read_target("tinywork:Tiny", "mini")
    assert "\n" not in str(caught.value)


def test_a_study_may_not_use_the_held_out_seeds(outside: Path) -> None:
    write_target("tinywork:Tiny", target())
    raw = {"study": "s", "workloads": "tinywork:Tiny", "averaging": {"scheme": "none"}}
    assert study_targets(parse_spec({**raw, "seeds": [0, 1]})) == {"tinywork:Tiny": target()}
    with pytest.raises(SpecError, match="held out"):
        study_targets(parse_spec({**raw, "seeds": [0, 1001]}))


def test_shipped_targets_are_written_by_the_rule() -> None:
    import statistics

    for family in families():
        found = read_target(family, "mini")
        assert found is not None, f"wa calibrate {family}"
        assert found.value == statistics.median(found.values)
        assert len(found.values) == len(found.seeds) >= 3
        assert found.rule == RULE


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_calibrating_then_running_uses_the_target(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["calibrate", "tinywork:Tiny", "--out", "calibration"], standalone_mode=False)
    found = read_target("tinywork:Tiny", "mini")
    assert found is not None
    assert found.metric == "accuracy"
    (outside / "s.yaml").write_text(
        "study: s\nworkloads: 'tinywork:Tiny'\nseeds: [0, 1, 2]\n"
        "averaging: [{scheme: none}, {scheme: ema, horizon: 0.2}]\nevaluate: {every: 3}\n"
        "tracking: {wandb: disabled}\n"
    )
    monkeypatch.setattr("sweeps.plan.trajectories", lambda *_: [])  # nothing to train, so no Ray
    main(["run", "s.yaml", "--out", "run"], standalone_mode=False)
    plan = json.loads((outside / "run" / "plan.json").read_text())
    assert plan["targets"]["tinywork:Tiny"] == found.model_dump()
    cells = pd.read_parquet(outside / "run" / "cells.parquet")
    assert (cells["target"] == found.value).all()
