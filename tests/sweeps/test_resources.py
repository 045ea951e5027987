"""What a trial holds: by workload, and less of it for a replay; as the plan, Tune and the folder are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps import launch, memory, plan
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.cli import main
from sweeps.plan import makespan_seconds
from sweeps.resources import of_trajectory
from sweeps.spec import parse_spec

STUDY: dict[str, Any] = {"study": "s", "workloads": ["lm", "ogbg"], "averaging": {"scheme": "none"}}
STAGES = {"cpu": 4, "gpu": 2, "replay": {"cpu": 1, "gpu": 0}}


def test_a_workload_changes_what_it_says_and_keeps_the_rest() -> None:
    spec = parse_spec({**STUDY, "resources": {"cpu": 4}, "overrides": {"lm": {"resources": {"gpu": 2}}}})
    assert {name: (one.cpu, one.gpu, one.num_processes) for name, one in spec.resources.items()} == {
        "lm": (4, 2, 2),
        "ogbg": (4, 0, 1),
    }


def test_a_replay_holds_what_it_says_and_else_a_trainings() -> None:
    spec = parse_spec({**STUDY, "resources": STAGES})
    one = plan.trajectories(cells(spec), fuse=True)[0]
    replay = replace(one, replays="another")
    assert of_trajectory(one, [spec]).devices == (2, "gpu")
    assert of_trajectory(replay, [spec]).devices == (1, "cpu")
    assert of_trajectory(replay, [spec]).num_processes == 1
    half = parse_spec({**STUDY, "resources": {**STAGES, "replay": {"gpu": 0.5}}})
    assert of_trajectory(replay, [half]).words == "4 CPU and 0.5 GPU"
    assert of_trajectory(replay, [parse_spec({**STUDY, "resources": {"cpu": 4, "gpu": 2}})]).devices == (2, "gpu")
    kinds = memory.of_trials([spec], [one, replay])
    assert {(trials.held.gpu, trials.number) for trials in kinds} == {(2, 2), (0, 2)}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"resources": {"replay": {"processes": 2}}}, "resources.replay"),
        ({"resources": {"replay": {"gpu": 1.5}}}, "resources.replay.gpu"),
        ({"resources": {"cpu": 2}, "overrides": {"lm": {"resources": {"processes": 4}}}}, "overrides.lm.resources"),
        ({"resources": {"cpu": 4, "processes": 4}, "overrides": {"lm": {"resources": {"cpu": 1}}}}, "resources"),
    ],
)
def test_what_does_not_go_together_is_one_line(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({**STUDY, **changes})
    assert caught.value.path == key
    assert "allowed:" in caught.value.said


def test_the_plan_tells_of_each(outside: Path) -> None:
    (outside / "s.yaml").write_text(
        "study: s\nworkloads: ['tinywork:Tiny', lm]\naveraging: {scheme: none}\nresources: {cpu: 1}\n"
        "overrides: {lm: {resources: {cpu: 2}}}\n"
    )
    told = " ".join(CliRunner().invoke(main, ["plan", "s.yaml"]).output.split())
    assert "lm: a training holds 2 CPU and 0 GPU" in told
    assert "tinywork:Tiny: a training holds 1 CPU and 0 GPU" in told
    listed = json.loads(CliRunner().invoke(main, ["plan", "s.yaml", "--json"]).output)["trajectories"]
    assert {one["workload"]: one["resources"] for one in listed} == {
        "lm": {"cpu": 2, "gpu": 0, "processes": 1},
        "tinywork:Tiny": {"cpu": 1, "gpu": 0, "processes": 1},
    }


def test_a_wide_trial_takes_several_slots() -> None:
    assert makespan_seconds([4, 3, 1], 2, [2, 1, 1]) == 4 + 3
    assert makespan_seconds([4, 3, 1], 4, [2, 1, 1]) == 4


def test_tune_is_asked_for_it() -> None:
    spec = parse_spec({**STUDY, "resources": STAGES})
    trial = launch._held(spec.trial("lm"))
    assert (trial["device"], trial["num_devices"], trial["processes"]) == ("cuda", 2, 2)
    assert launch._held(spec.trial("lm", replays=True))["device"] == "cpu"
    asked = launch._placement({"holds": {"CPU": 4, "GPU": 2}})
    assert asked.required_resources == {"CPU": 4, "GPU": 2}
