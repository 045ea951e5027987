"""`training: {precision, deterministic}`: what torch is told inside a trial, put back after it, and what ids say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps import trajectory
from sweeps.cells import cells
from sweeps.identity import Training, cell_from_dict, cell_to_dict
from sweeps.plan import trajectories
from sweeps.spec import parse_spec
from workloads.lm import LanguageModel
from workloads.protocol import FAMILIES, load

EXACT = {"products": "highest", "convolutions": False, "benchmark": False, "deterministic": True}


def switches() -> dict[str, Any]:
    return {
        "products": torch.get_float32_matmul_precision(),
        "convolutions": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def training(workload: str = "lm", preset: str = "mini", gpu: int = 0, **block: Any) -> Training:
    raw = {"study": "s", "workloads": workload, "preset": preset, "averaging": {"scheme": "none"}, "training": block}
    (cell,) = cells(parse_spec(raw | {"resources": {"gpu": gpu} if gpu else {}}))
    assert cell_from_dict(json.loads(json.dumps(cell_to_dict(cell)))) == cell
    return cell.training


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, EXACT),
        ({"precision": "bf16"}, EXACT),
        ({"precision": "tf32"}, EXACT | {"products": "high", "convolutions": True}),
        ({"deterministic": False}, EXACT | {"benchmark": True, "deterministic": False}),
    ],
)
def test_a_trial_has_its_switches_and_leaves_none_behind(
    block: dict[str, Any], expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, loss, before = [], LanguageModel.loss, switches()

    def spied(workload: LanguageModel, *asked: Any) -> torch.Tensor:
        seen.append(switches())
        return loss(workload, *asked)

    monkeypatch.setattr(LanguageModel, "loss", spied)
    raw = {"study": "s", "workloads": "lm", "step_budget": 1, "averaging": {"scheme": "none"}, "training": block}
    (one,) = trajectories(cells(parse_spec(raw)), fuse=True)
    trajectory.run(one, tmp_path / "trajectories" / "one")
    assert seen == [expected]
    assert switches() == before


def test_what_there_was_keeps_its_id() -> None:
    same = {training().trajectory_id, training(precision="fp32", deterministic=True).trajectory_id}
    assert same == {"2b2bf6f42309"}  # as before there was another precision
    others = [{"precision": "tf32"}, {"precision": "bf16"}, {"deterministic": False}]
    assert len({training(**block).trajectory_id for block in others} - same) == 3


def test_a_full_preset_on_a_gpu_has_tf32_unless_it_or_the_study_says_otherwise() -> None:
    own = {family: dict(getattr(load(family, "full"), "training", {})).get("precision") for family in FAMILIES}
    assert own["lm"] == "bf16"
    for family in FAMILIES:
        assert training(family, "full", gpu=1).precision == (own[family] or "tf32")
        assert training(family, "full", gpu=1, precision="fp32").precision == "fp32"
    assert training("criteo1tb", "full").precision == "fp32"
    assert training("criteo1tb", "mini", gpu=1).precision == "fp32"
