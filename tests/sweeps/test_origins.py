"""A study records what its workloads are made of; with other code it is not continued unasked."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps import attempts, origins, plan, trajectory
from sweeps import run as flow
from sweeps.cli import main
from workloads.data import VARIABLE
from workloads.protocol import families
from workloads.sources import data_folders, source_files

STUDY = """
study: s
workloads: ["mywork:Mine"]
averaging: [{scheme: none}]
evaluate: {every: 30}
tracking: {wandb: disabled}
"""
WORK = """
import numpy, pathlib, torch
from mypackage import losses as mine
from mypackage.deep.er import thing
from tinywork import Tiny

class Mine(Tiny):
    def loss(self, model, batch):
        import late
        return super().loss(model, batch)
"""
MODULES = ("mywork", "late", "later", "mypackage", "mypackage.losses", "mypackage.deep", "mypackage.deep.er")


def forget() -> None:
    """As a new process: nothing of the user's is imported."""
    for name in (*MODULES, "tinywork"):
        sys.modules.pop(name, None)
    plan.model_size.cache_clear()


@pytest.fixture
def mine(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(VARIABLE, raising=False)
    (outside / "study.yaml").write_text(STUDY)
    (outside / "mywork.py").write_text(WORK)
    (outside / "late.py").write_text("import later, json")
    (outside / "later.py").write_text("")
    (outside / "unrelated.py").write_text("1 / 0")
    deep = outside / "mypackage" / "deep"
    deep.mkdir(parents=True)
    (outside / "mypackage" / "__init__.py").write_text("")
    (outside / "mypackage" / "losses.py").write_text("from . import more\nfrom .deep import er")
    (outside / "mypackage" / "more.py").write_text("")
    (deep / "er.py").write_text("from .. import __name__\nfrom ..losses import more\nthing = 1")
    forget()
    return outside


USED = [
    *("late.py", "later.py", "mypackage/__init__.py", "mypackage/deep/er.py", "mypackage/losses.py"),
    *("mypackage/more.py", "mywork.py", "tinywork.py"),
]


def test_a_workload_is_its_file_and_what_that_imports_beside_it(mine: Path) -> None:
    assert list(source_files("mywork:Mine")) == USED


def test_a_shipped_one_is_its_files_without_the_frame() -> None:
    for family in families():
        found = source_files(family)
        assert f"workloads/{family}.py" in found
        assert not {"workloads/protocol.py", "workloads/__init__.py"} & set(found)


def begun(mine: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """`wa run` up to the launch, in which each trajectory is said to have begun."""

    def launch(engine: Any, todo: Any, run: Path, *_: Any) -> bool:
        for one in todo.trajectories:
            (run / "trajectories" / one.name / "attempt-0.json").write_text(
                json.dumps({"status": "interrupted", "trajectory_id": one.trajectory_id})
            )
        return True

    monkeypatch.setattr(flow, "_engine", lambda *_: nullcontext(object()))
    monkeypatch.setattr(flow, "_launch", launch)
    monkeypatch.setattr("sweeps.cli._conclude", lambda *_: None)
    monkeypatch.setattr("sweeps.run_folder.write_trials", lambda run: None)
    forget()
    return CliRunner().invoke(main, ["run", "study.yaml", "--out", "run", *options])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("mywork.py", WORK + "# a comment\n", "mywork.py has changed"),
        ("later.py", "x = 2", "later.py has changed"),
        ("late.py", "", "later.py is no longer used"),
        ("later.py", "import unrelated", "unrelated.py is new"),
    ],
)
def test_with_other_code_it_is_not_continued_unasked(
    mine: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str, told: str
) -> None:
    assert begun(mine, monkeypatch).exit_code == 0
    recorded = json.loads((mine / "run" / "plan.json").read_text())["sources"]["mywork:Mine"]["files"]
    assert list(recorded) == USED
    assert begun(mine, monkeypatch).exit_code == 0, "the same code goes on"
    before, old = contents(mine / "run"), (mine / file).read_text()
    (mine / file).write_text(text)
    refused = begun(mine, monkeypatch)
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    for word in ("workloads[0]", "mywork:Mine", told, "--out", "--accept-changed-code"):
        assert word in refused.output
    assert contents(mine / "run") == before
    (mine / file).write_text(old)
    assert begun(mine, monkeypatch).exit_code == 0, "put back as it was"
    (mine / file).write_text(text)
    assert begun(mine, monkeypatch, "--accept-changed-code").exit_code == 0
    assert begun(mine, monkeypatch).exit_code == 0, "accepted once, it is what the folder is of"
    (accepted,) = json.loads((mine / "run" / "plan.json").read_text())["accepted_changes"]
    assert told in accepted["changes"]
    assert accepted["workload"] == "mywork:Mine"


def test_what_is_only_planned_goes_on(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun(mine, monkeypatch).exit_code == 0
    (attempt,) = (mine / "run" / "trajectories").glob("*/attempt-0.json")
    attempt.unlink()
    (mine / "mywork.py").write_text(WORK + "# changed before anything began\n")
    assert begun(mine, monkeypatch).exit_code == 0


def test_a_trial_with_other_code_than_planned_says_so(mine: Path, tmp_path: Path) -> None:
    from sweeps.cells import cells
    from sweeps.spec import load_spec

    (one,) = plan.trajectories(cells(load_spec(Path("study.yaml"))), fuse=True)
    planned = origins.digest(one)
    (mine / "later.py").write_text("x = 3")
    assert origins.digest(one) == planned, "what this process imported is what it trains"
    forget()
    with pytest.raises(origins.ChangedCode, match="not what the study was planned with"):
        trajectory.run(one, tmp_path / "a", planned_code=planned)
    assert "mywork:Mine" in str(attempts.lasting_error(tmp_path / "a"))


def test_a_data_folder_is_its_names_and_sizes(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mine / "data"
    (data / "shards").mkdir(parents=True)
    (data / "shards" / "0.bin").write_bytes(b"1234")
    monkeypatch.setenv(VARIABLE, str(data))
    assert begun(mine, monkeypatch).exit_code == 0
    first = data_folders("mywork:Mine", "mini")
    (data / "shards" / "0.bin").write_bytes(b"5678")
    assert data_folders("mywork:Mine", "mini") == first, "contents are not read"
    (data / "shards" / "1.bin").write_bytes(b"")
    assert data_folders("mywork:Mine", "mini") != first
    refused = begun(mine, monkeypatch)
    assert refused.exit_code == 2
    assert "data folder data has changed" in refused.output
