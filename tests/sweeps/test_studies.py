"""Several studies in one run folder: what they share is trained once, and each has the records it has alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.run_folder import study as reading
from analysis.run_folder.records import BadRun, load, load_cells, load_plan, load_records, load_trials
from analysis.run_folder.schema import MEASURED
from sweeps import run_folder, trajectory
from sweeps.cli import main
from sweeps.plan import Trajectory
from sweeps.spec import Spec, parse_spec
from sweeps.targets import Target, write_target
from sweeps.work import work
from sweeps.yaml_file import read_yaml

BOTH = {"workloads": "tinywork:Tiny", "seeds": [0, 1], "step_budget": 40, "evaluate": {"every": 10}}
NONE, EMA, LAWA = {"scheme": "none"}, {"scheme": "ema", "decay": 0.9}, {"scheme": "lawa", "k": 3, "every": 2}


def speedup(**changes: Any) -> Spec:
    raw = {"study": "speedup", "question": "Faster?", "averaging": [NONE, EMA]}
    return parse_spec({**BOTH, **raw, **changes}, "speedup.yaml")


def decay(**changes: Any) -> Spec:
    raw = {"study": "decay", "averaging": [NONE, LAWA], "schedule": {"length": [0.5, 1.0]}}
    return parse_spec({**BOTH, **raw, **changes}, "decay.yaml")


def train(run: Path, *specs: Spec, only: int | None = None) -> list[Trajectory]:
    todo = work(specs, run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    for one in todo.trajectories[:only]:
        trajectory.run(one, run_folder.trajectory_folder(run, one.name))
        run_folder.compact(run, one.name)
    run_folder.write_trials(run)
    return todo.trajectories


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Iterator[dict[str, pd.DataFrame]]:
    """The records of each study in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tiny_folder))
        found = {}
        for spec in (speedup(), decay()):
            run = tmp_path_factory.mktemp(spec.study) / "run"
            train(run, spec)
            found[spec.study] = load(run)
        yield found


def assert_as_alone(run: Path, alone: dict[str, pd.DataFrame], *names: str) -> None:
    for name in names or alone:
        apart = [*MEASURED, "study", "studies"]
        mine, own = load(run, study=name).drop(columns=apart), alone[name].drop(columns=apart)
        pd.testing.assert_frame_equal(mine, own, check_exact=True)


def test_what_two_studies_share_is_trained_once(outside: Path, alone: dict[str, pd.DataFrame]) -> None:
    run = outside / "run"
    trained = [cell.cell_id for one in train(run, speedup(), decay()) for cell in one.cells]
    assert len(trained) == len(set(trained)) == 2 * 3 + 2 * 2  # none is asked for twice on the full schedule
    asked = {(seed, 40) for seed in (0, 1)} | {(seed, length) for seed in (0, 1) for length in (20, 40)}
    trials = load_trials(run)
    assert len(trials) == trials["trajectory_id"].nunique() == len(asked) == 4
    assert_as_alone(run, alone)
    cells = load_cells(run)
    assert sorted(cells["cell_id"]) == sorted(trained)
    names = {
        ("none", 40): ("speedup", "decay"),
        ("ema", 40): ("speedup",),
        ("lawa", 40): ("decay",),
        ("none", 20): ("decay",),
        ("lawa", 20): ("decay",),
    }
    for row in cells.to_dict("records"):
        assert row["studies"] == names[row["scheme"], row["length_steps"]]
        assert row["study"] == row["studies"][0]
    assert len(load(run)) == len(load_records(run))


def test_the_folder_tells_of_each_study(outside: Path) -> None:
    run = outside / "run"
    train(run, speedup())
    assert read_yaml(run / "spec.yaml")["study"] == "speedup"
    assert not (run / "specs").exists()
    before = (run / "spec.yaml").read_bytes()
    train(run, decay(seeds=[1, 2]), only=0)
    assert (run / "spec.yaml").read_bytes() == before == (run / "specs" / "speedup.yaml").read_bytes()
    assert parse_spec(read_yaml(run / "specs" / "decay.yaml")).study == "decay"
    plan = load_plan(run)
    assert [one["study"] for one in plan["studies"]] == ["speedup", "decay"]
    assert [one["seeds"] for one in plan["studies"]] == [[0, 1], [1, 2]]
    assert [one["primary"] for one in plan["studies"]] == [{"scheme": "ema", "horizon": 0.01}] * 2
    assert [len(one["cells"]) for one in plan["studies"]] == [4, 8]
    assert (plan["study"], plan["question"], plan["seeds"]) == ("speedup", "Faster?", [0, 1])
    assert len(plan["cells"]) == len(set(plan["cells"])) == 11
    train(run, speedup(question="Much faster?"))
    plan = load_plan(run)
    assert plan["question"] == plan["studies"][0]["question"] == "Much faster?"
    assert [len(one["cells"]) for one in plan["studies"]] == [4, 8]
    assert read_yaml(run / "specs" / "speedup.yaml")["question"] == "Much faster?"


def test_a_report_knows_what_its_study_asks(outside: Path) -> None:
    run = outside / "run"
    train(run, speedup(report="final_metric"), only=0)
    assert reading.read(run).plan["report"] == reading.read(run, "speedup").plan["report"] == "final_metric"
    train(run, decay(), only=0)
    assert [one.plan["report"] for one in reading.read_each(run)] == ["final_metric", None]


def test_a_study_added_later_trains_what_is_new(outside: Path, alone: dict[str, pd.DataFrame]) -> None:
    run = outside / "run"
    train(run, speedup())
    before = {path.name: path.read_bytes() for path in (run / "records").iterdir()}
    added = work([decay()], run).trajectories
    assert sorted((one.length_steps, len(one.cells)) for one in added) == [(20, 2)] * 2 + [(40, 1)] * 2
    # Its cells are unfinished though their training has been done for the other study.
    todo = work([decay()], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    cells = reading.read(run, "decay").cells
    done = cells[cells["state"] == "finished"]
    assert set(done["scheme"]) == {"none"}
    assert set(done["length_steps"]) == {40}
    train(run, decay())
    assert_as_alone(run, alone)
    assert {path.name: path.read_bytes() for path in (run / "records").iterdir()}.items() >= before.items()
    assert (reading.read(run).cells["state"] == "finished").all()
    assert work([speedup(), decay()], run).trajectories == []


def test_what_was_interrupted_goes_on(outside: Path, alone: dict[str, pd.DataFrame]) -> None:
    run = outside / "run"
    train(run, speedup(), decay(), only=1)
    began = work([speedup(), decay()], run).trajectories[0]

    def stop(step: int) -> None:
        if step >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trajectory.run(began, run_folder.trajectory_folder(run, began.name), checkpoint_seconds=0, report=stop)
    assert len(train(run, speedup(), decay())) == 3
    assert load_trials(run)["status"].tolist().count("interrupted") == 1
    assert load_trials(run)["trajectory_id"].nunique() == 4
    assert_as_alone(run, alone)


def test_another_studys_unfinished_cells_stay(outside: Path, alone: dict[str, pd.DataFrame]) -> None:
    run = outside / "run"
    train(run, speedup(), only=1)
    train(run, decay())
    cells = load_cells(run)
    assert sorted(cells.loc[cells["scheme"] == "ema", "seed"]) == [0, 1]
    assert_as_alone(run, alone, "decay")
    # A study that asks for less gives up what is not done, and the other one keeps it.
    train(run, decay(averaging=LAWA, seeds=[0, 1, 2]), only=0)
    train(run, decay(averaging=LAWA, seeds=[0, 1]), only=0)
    now = load_cells(run)
    assert set(now["cell_id"]) == set(cells["cell_id"])
    train(run, speedup())
    assert_as_alone(run, alone)


def test_other_evaluation_steps_are_another_trajectory(outside: Path) -> None:
    run = outside / "run"
    found = train(run, speedup(averaging=EMA), decay(averaging=LAWA, evaluate={"every": 20}))
    assert len(found) == 2 + 4
    steps = {study: sorted(set(load(run, study=study)["step"])) for study in ("speedup", "decay")}
    assert steps == {"speedup": [10, 20, 30, 40], "decay": [20, 40]}


def test_a_target_is_the_same_for_every_study(outside: Path) -> None:
    run = outside / "run"
    values = {"metric": "accuracy", "higher_is_better": True, "preset": "mini", "rule": "r"}
    more = {"seeds": [1000, 1001, 1002], "values": [0.4, 0.5, 0.6], "versions": {}, "date": "2026-01-01"}
    for target, asked in ((0.5, speedup()), (0.6, decay())):
        write_target("tinywork:Tiny", Target.model_validate({**values, **more, "value": target}))
        train(run, asked, only=0)
        assert set(load_cells(run)["target"]) == {target}
    plan = load_plan(run)
    told = [one["targets"]["tinywork:Tiny"]["value"] for one in (plan, *plan["studies"])]
    assert told == [0.6] * 3


def test_no_such_study(outside: Path) -> None:
    run = outside / "run"
    train(run, speedup(), only=0)
    with pytest.raises(BadRun, match="'fastness'; it holds 'speedup'"):
        load(run, study="fastness")
    with pytest.raises(BadRun, match="it holds 'speedup'"):
        reading.read(run, "fastness")


A = "study: a\nworkloads: 'tinywork:Tiny'\naveraging: [{scheme: none}, {scheme: ema, decay: 0.9}]\n"
B = "study: b\nworkloads: 'tinywork:Tiny'\naveraging: [{scheme: none}, {scheme: lawa, k: 3}]\n"


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*arguments])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("resources: {cpu: 2}\n", "resources.cpu"),
        ("resources: {replay: {gpu: 1}}\n", "resources.replay"),
        ("overrides: {'tinywork:Tiny': {resources: {cpu: 2}}}\n", "resources.cpu"),
        ("tracking: {project: other}\n", "tracking.project"),
        ("data_dir: /data\n", "data_dir"),
        ("fuse: false\n", "fuse"),
        ("evaluate: {every: 0.5}\n", "evaluate.every"),
    ],
)
def test_studies_that_do_not_agree_are_one_line(outside: Path, change: str, key: str) -> None:
    (outside / "a.yaml").write_text(A)
    (outside / "b.yaml").write_text(B + change)
    for verb in ("run", "plan"):
        code, output = command(verb, "a.yaml", "b.yaml", "--out", "run")
        assert code == 2
        assert output.startswith(f"wa: b.yaml: {key}: ")
        assert "in a.yaml; allowed: " in output
        assert output.count("\n") == 1
        assert not (outside / "run").exists()


def test_two_studies_of_one_name_and_no_folder(outside: Path) -> None:
    (outside / "a.yaml").write_text(A)
    (outside / "b.yaml").write_text(B.replace("study: b", "study: a"))
    code, output = command("run", "a.yaml", "b.yaml", "--out", "run")
    assert (code, output.count("\n")) == (2, 1)
    assert output.startswith("wa: b.yaml: study: 'a' is a.yaml's name too")
    (outside / "b.yaml").write_text(B)
    code, output = command("run", "a.yaml", "b.yaml")
    assert (code, output.count("\n")) == (2, 1)
    assert "--out: is required" in output
    assert sorted(path.name for path in outside.glob("*.yaml")) == ["a.yaml", "b.yaml"]
    assert not (outside / "runs").exists()


def test_a_shared_cell_of_other_steps_conflicts_with_the_folder(outside: Path) -> None:
    train(outside / "run", speedup())
    (outside / "b.yaml").write_text(B + "step_budget: 40\nevaluate: {every: 0.5}\n")
    code, output = command("run", "b.yaml", "--out", "run")
    assert (code, output.count("\n")) == (2, 1)
    assert "b.yaml: evaluate.every: " in output


def test_plan_shows_each_study_and_all_of_them(outside: Path) -> None:
    (outside / "a.yaml").write_text(A)
    (outside / "b.yaml").write_text(B + "schedule: {length: [0.5, 1.0]}\n")
    code, output = command("plan", "a.yaml", "b.yaml", "--set", "seeds=[0,1]")
    assert code == 0, output
    rows = {line.split()[0]: line.split()[-3:-1] for line in output.splitlines() if line.strip()}
    assert rows["a"] == ["4", "2"]
    assert rows["b"] == ["8", "4"]
    assert rows["all,"] == ["10", "4"]
    assert "together: 10 cells, 4 trajectories to train" in output
