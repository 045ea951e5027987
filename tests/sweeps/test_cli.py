"""The commands teach, plan launches nothing, and help needs neither torch nor ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps.cli import main
from workloads.protocol import families

COMMANDS = [
    *("plan", "run", "report", "workloads", "optimizers", "schedules", "schemes", "check-workload", "calibrate"),
    *("average", "import", "recommend", "compare", "watch", "dashboard", "submit", "doctor"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = CliRunner().invoke(main, [command, "--help"])
    assert done.exit_code == 0
    assert len(done.output.splitlines()) >= 6


def test_help_shows_a_first_study_and_the_exit_codes() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert all(command in output for command in COMMANDS)
    assert "wa run sweeps/quickstart.yaml" in output
    assert "Exit codes" in output


def test_help_is_immediate() -> None:
    heavy = {"torch", "ray", "wandb", "pandas", "altair"}
    code = f"import sys, sweeps.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plan_of_a_shipped_study_launches_nothing(outside: Path) -> None:
    before = sorted(outside.iterdir())
    for name in ("quickstart", "sweeps/quickstart.yaml"):
        done = CliRunner().invoke(main, ["plan", name])
        assert done.exit_code == 0, done.output
        for word in ("60 cells", "12 trajectories", "device-hours", "MiB", "target"):
            assert word in done.output
    assert [p for p in sorted(outside.iterdir()) if p.name != "__pycache__"] == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "seeds=[0]", "step_budget=100", "--out", "x"],
        ["--set", "seeds=[0]", "--set", "step_budget=100"],
        ["--set", "step_budget=100", "--out", "x", "--set", "seeds=[0]"],
    ],
)
def test_set_takes_one_value_or_several(outside: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["plan", "quickstart", *arguments])
    assert done.exit_code == 0, done.output
    assert "20 cells" in done.output
    assert "150" in done.output  # 50 and 100 steps


def test_a_file_here_comes_before_a_shipped_name(outside: Path) -> None:
    (outside / "sweeps").mkdir()
    (outside / "sweeps" / "quickstart.yaml").write_text("study: mine\nworkloads: lm\naveraging: {scheme: none}\n")
    assert "mine: 1 cell, 1 trajectory to train" in CliRunner().invoke(main, ["plan", "sweeps/quickstart.yaml"]).output


def test_workloads_lists_budgets_and_provenance() -> None:
    output = CliRunner().invoke(main, ["workloads"]).output
    rows = {tuple(line.split()[:2]): line for line in output.splitlines()}
    assert {(name, preset) for name in families() for preset in ("mini", "full")} <= set(rows)
    assert "calibrated: seeds 1000, 1001, 1002" in rows["lm", "mini"]
    assert "published: AlgoPerf v0.5" in rows["wmt", "full"]
    assert "30.8491" in rows["wmt", "full"]
    assert "pkg.mod:Name" in output


def test_report_of_no_run_folder_is_bad_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert done.exit_code == 2
    assert "not a run folder" in done.output


def test_more_than_the_machine_has_is_bad_input(outside: Path) -> None:
    text = "study: s\nworkloads: 'tinywork:Tiny'\naveraging: {scheme: none}\nresources: {cpu: 4096}\n"
    (outside / "s.yaml").write_text(text)
    done = CliRunner().invoke(main, ["run", "s.yaml", "--out", "run"])
    assert done.exit_code == 2
    assert "4096 CPU" in done.output


@pytest.mark.slow
def test_doctor_reports_and_exits_by_what_it_finds(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "python" in done.output


def told(*arguments: str) -> Any:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_plan_as_json_adds_up(outside: Path) -> None:
    plan = told("plan", "quickstart")
    trials, workloads = plan["trajectories"], plan["workloads"]
    assert (plan["studies"], plan["trajectories_done"], plan["left_out"]) == (["quickstart"], 0, [])
    assert sum(row["trajectories"] for row in workloads.values()) == len(trials)
    assert sum(row["steps"] for row in workloads.values()) == sum(one["steps"] for one in trials)
    assert plan["cells"] == len({cell for one in trials for cell in one["cells"]})
    hours = sum(row["device_hours"] for row in workloads.values())
    assert hours == pytest.approx(sum(one["expected_seconds"] for one in trials) / 3600)
    assert plan["targets"].keys() == workloads.keys()


def test_the_workloads_as_json_are_every_family_in_every_preset(outside: Path) -> None:
    listed = told("workloads")
    assert {one["workload"] for one in listed} == set(families())
    assert {one["preset"] for one in listed} == {"mini", "full"}
    assert all(one["step_budget"] >= 1 and one["target"]["metric"] for one in listed if one["target"])
