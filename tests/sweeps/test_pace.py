"""Seconds that a plan counts with: stated, measured, or assumed and called so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from record_rows import record

from sweeps import pace, run_folder
from sweeps.cells import cells
from sweeps.cli import main
from sweeps.expected import expected
from sweeps.plan import Pace, cost, trajectories
from sweeps.recorder import Recorder
from sweeps.spec import load_spec, parse_spec
from sweeps.wording import duration
from sweeps.work import work

UNSTATED = """
from dataclasses import dataclass
from tinywork import Tiny

@dataclass(frozen=True)
class Silent(Tiny):
    batch_size: int = 8

del Tiny.step_seconds, Tiny.eval_seconds
"""
STUDY = "study: s\nworkloads: '{name}'\naveraging: [{{scheme: none}}, {{scheme: ema, decay: 0.9}}]\n"


@pytest.fixture
def silent(outside: Path) -> Path:
    """A study of a workload that does not say how long it takes."""
    (outside / "silentwork.py").write_text(UNSTATED)
    path = outside / "s.yaml"
    path.write_text(STUDY.format(name="silentwork:Silent"))
    return path


def test_assumed_seconds_are_called_assumed(silent: Path) -> None:
    done = CliRunner().invoke(main, ["plan", str(silent)])
    assert done.exit_code == 0, done.output
    assert "silentwork:Silent: 0.01 s a step and 0.1 s an evaluation are assumed" in done.output
    assert "`wa check-workload silentwork:Silent` measures them" in done.output
    silent.write_text(STUDY.format(name="lm"))
    assert "assumed" not in CliRunner().invoke(main, ["plan", str(silent)]).output


def test_a_plan_counts_with_what_its_folder_measured(silent: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    specs = [load_spec(silent, ["seeds=[0, 1, 2]", "training.batch_size=16"])]
    todo = work(specs, None)
    run.mkdir()
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    for one, seconds in zip(todo.trajectories, (3.0, 4.0, 9.0), strict=True):  # a second an evaluation, cumulative
        with Recorder(run_folder.trajectory_folder(run, one.name) / "records.jsonl") as recorder:
            for i, step in enumerate((10, 20), start=1):
                clocks = {"train_seconds": seconds * step, "eval_seconds": 1.0 * i}
                rows = [record(step, c.cell_id, trajectory_id=c.trajectory_id, **clocks) for c in one.cells]
                recorder.append(rows)
    measured = pace.measured(run, {"silentwork:Silent": "cpu"})
    assert measured == {("silentwork:Silent", "mini"): Pace(2.0, 1.0, f"measured in {run}")}  # 4 s at twice the batch
    assert pace.measured(run, {"silentwork:Silent": "gpu"}) == {}
    assert cost(todo.trajectories[0], measured).train_seconds == 60 * 2.0 * 2
    again = CliRunner().invoke(main, ["plan", str(silent), "--set", "seeds=7", "--out", str(run)])
    assert f"2 s a step and 1 s an evaluation, measured in {run}" in again.output, again.output
    assert "assumed" not in again.output


def test_no_folder_no_measurement(tmp_path: Path) -> None:
    assert pace.measured(tmp_path / "none", {}) == {}


def test_measuring_takes_steps_and_leaves_nothing_behind(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    monkeypatch.setattr(pace, "STEPS", 5)
    found, whole = pace.measure("silentwork:Silent", "mini")
    assert 0 < found.step_seconds < 1
    assert 0 < found.eval_seconds < 1
    assert whole
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert "assumes 0.01 and 0.1 until the workload says step_seconds = " in pace.said("silentwork:Silent", "mini")
    monkeypatch.setattr(pace, "MOST_SECONDS", -1.0)
    assert pace.measure("silentwork:Silent", "mini")[1] is False


# Maximum runtimes on 8 V100s, in seconds, of AlgoPerf's external tuning (Dahl et al. 2023, arXiv 2306.07179, Table 1).
PUBLISHED_RUNTIMES = {
    "criteo1tb": 7703,
    "fastmri": 8859,
    "imagenet_resnet": 63008,
    "imagenet_vit": 77520,
    "librispeech_conformer": 61068,
    "librispeech_deepspeech": 55506,
    "ogbg": 18477,
    "wmt": 48151,
}


@pytest.mark.parametrize("workload", PUBLISHED_RUNTIMES)
def test_a_full_training_is_planned_to_take_the_published_runtime_on_8_gpus(workload: str) -> None:
    spec = parse_spec(
        {
            "study": "s",
            "workloads": workload,
            "preset": "full",
            "averaging": {"scheme": "none"},
            "resources": {"cpu": 8, "gpu": 8},
        }
    )
    (one,) = trajectories(cells(spec), fuse=True)
    on_8_gpus = cost(one).train_seconds / spec.trial(workload).num_processes
    assert on_8_gpus == pytest.approx(PUBLISHED_RUNTIMES[workload], rel=1e-3)
    hours = expected(work([spec], None))[workload]["device_hours"]
    assert hours == pytest.approx((cost(one).seconds) / 3600)
    assert spec.trial(workload).devices == (8, "gpu")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
