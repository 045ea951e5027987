"""Anybody's checkpoints are asked about averages: losses are those of naive means of the files, nothing is trained."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from own_checkpoints import as_safetensors, as_shards, as_torch, train
from safetensors.torch import load_file, save_file
from sweep_processes import UNDRAWN
from torch import Tensor
from trained import Stop, assert_same, run, stop_at

from analysis import report as reports
from analysis.run_folder.records import KEY, load, load_cells
from analysis.run_folder.run_files import BadRun
from analysis.statistics import device_hours
from sweeps.blocks import SpecError
from sweeps.cli import main
from sweeps.importers.checkpoints import fitted, import_checkpoints
from sweeps.plan import Trajectory
from sweeps.studies import load_specs
from sweeps.work import work
from wa.checkpoint_files import Checkpoint
from workloads.protocol import load as load_workload

TINY = "tinywork:Tiny"
STEPS = range(5, 61, 5)


@pytest.fixture
def folder(outside: Path) -> Path:
    """A training's checkpoints each five steps, of every kind in turn, beside what is none."""
    saves = [as_safetensors, as_torch, as_shards]
    train(load_workload(TINY), outside / "mine", lambda model, path: saves[int(path.name[5:]) % 3](model, path), STEPS)
    (outside / "mine" / "step_30.safetensors").rename(outside / "blob")  # as a hub's cache has them
    (outside / "mine" / "step_30.safetensors").symlink_to(outside / "blob")
    torch.save({"state": {}}, outside / "mine" / "optimizer.pt")
    torch.save({"state": {}}, outside / "mine" / "rng_1.pth")
    return outside / "mine"


def planned(run_folder: Path, *sets: str) -> list[Trajectory]:
    return work(load_specs([run_folder / "study.yaml"], sets), run_folder).trajectories


def read(folder: Path, step: int) -> dict[str, Tensor]:
    """A checkpoint, by the libraries that wrote it."""
    if (path := folder / f"step_{step}.pt").exists():
        state = torch.load(path, weights_only=True)["state_dict"]
        return {name.removeprefix("module._orig_mod."): tensor for name, tensor in state.items()}
    if (path := folder / f"step_{step}.safetensors").exists():
        return load_file(path)
    return {k: v for shard in (folder / f"step_{step}").glob("*.safetensors") for k, v in load_file(shard).items()}


def losses_of(weights: dict[int, float], folder: Path, step: int) -> tuple[float, float]:
    """(loss, accuracy) of Σ weight · checkpoint, the buffers those of `step`, evaluated by hand."""
    workload: Any = load_workload(TINY)
    model = workload.model()
    state = read(folder, step)
    for name, _ in model.named_parameters():
        total = sum(share * read(folder, at)[name].double() for at, share in weights.items())
        assert isinstance(total, Tensor)
        state[name] = total.float()
    model.load_state_dict(state)
    model.eval()
    sums: dict[str, float] = {}
    with torch.no_grad():
        for batch in workload.eval_batches("validation"):
            for name, value in workload.eval_step(model, batch).items():
                sums[name] = sums.get(name, 0.0) + value.item()
    loss, accuracy, _ = workload.summarize(sums)
    return loss, accuracy


def test_records_are_those_of_naive_means_of_the_files(folder: Path, tmp_path: Path) -> None:
    done = import_checkpoints([folder], tmp_path / "run", TINY)
    assert done.steps == list(STEPS)
    assert [path.name for path in done.left_out] == ["optimizer.pt", "rng_1.pth"]
    (one,) = planned(tmp_path / "run")
    assert one.replays == done.names[0]
    found = run(one, tmp_path / "run" / "trajectories" / one.name)
    checked = 0
    for cell in one.cells:
        mine = found[found["cell_id"] == cell.cell_id]
        for row in mine.itertuples():
            weights = {row.step: 1.0} if cell.scheme is None else cell.scheme.coefficients(row.step)
            loss, accuracy = losses_of(weights, folder, row.step)
            assert row.loss == pytest.approx(loss, rel=0 if cell.scheme is None else 1e-6)
            assert row.metric == pytest.approx(accuracy, abs=1e-12)
            checked += 1
        first = 5 if cell.scheme is None else min(s for s in STEPS if cell.scheme.exists(s))
        assert mine["step"].tolist() == list(range(first, 61, 5))
    assert checked > 50
    # What only the training could tell is not known, and no number.
    for column in ("train_seconds", "train_loss", "step_lr", "examples_per_second"):
        assert found[column].isna().all()
    assert not found["diverged"].any()


def test_an_import_that_is_killed_and_resumed_has_the_same_records(folder: Path, tmp_path: Path) -> None:
    import_checkpoints([folder], tmp_path / "run", TINY)
    (one,) = planned(tmp_path / "run", "averaging[1].buffers=[live, recompute]")
    whole = run(one, tmp_path / "run" / "trajectories" / one.name)
    for stop in (20, 45):
        with pytest.raises(Stop):
            run(one, tmp_path / "run" / "trajectories" / "again", checkpoint_seconds=0, report=stop_at(stop))
    assert_same(run(one, tmp_path / "run" / "trajectories" / "again"), whole)


def test_a_bracket_on_checkpoints_has_some_of_the_records_of_all(folder: Path, tmp_path: Path) -> None:
    import_checkpoints([folder], tmp_path / "run", TINY, target=0.6)
    (one,) = planned(tmp_path / "run", "evaluate.averages=all")
    (other,) = planned(tmp_path / "run", "evaluate.averages=bracket")
    whole = run(one, tmp_path / "run" / "trajectories" / one.name)
    some = run(other, tmp_path / "run" / "trajectories" / "bracket")
    assert len(some) < len(whole)
    both = whole.merge(some[KEY], on=KEY)
    assert_same(both, some)


ONLY = """
from tinywork import Tiny
from workloads.protocol import EvaluationOnly

class Mine(EvaluationOnly):
    metric, higher_is_better = Tiny.metric, Tiny.higher_is_better
    model, eval_batches, eval_step, summarize = Tiny.model, Tiny.eval_batches, Tiny.eval_step, Tiny.summarize
"""


def test_a_workload_that_only_evaluates_is_enough(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "only.py").write_text(ONLY)
    import_checkpoints([folder], tmp_path / "run", "only:Mine")
    (one,) = planned(tmp_path / "run", "averaging={scheme: lawa, k: 3, every: 20}")
    (other,) = planned(tmp_path / "run", "averaging={scheme: lawa, k: 3, every: 20, buffers: recompute}")
    found = run(one, tmp_path / "run" / "trajectories" / one.name)
    expected = losses_of(dict.fromkeys((20, 40, 60), 1 / 3), folder, 60)[0]
    assert found["loss"].tolist() == pytest.approx([expected], rel=1e-6)
    with pytest.raises(NotImplementedError, match="Mine only evaluates; to train or recompute, give it batches, loss"):
        run(other, tmp_path / "run" / "trajectories" / "recomputed")


def test_a_shorter_training_and_another_grid_are_asked_of_the_same_files(folder: Path, tmp_path: Path) -> None:
    import_checkpoints([folder], tmp_path / "run", TINY)
    sets = ("schedule.length=[30, 60]", "evaluate.every=10", "averaging=[{scheme: lawa, k: 2, every: 10}]")
    todo = planned(tmp_path / "run", *sets)
    assert len({one.replays for one in todo}) == 1
    assert [one.cells[0].training.schedule.length_steps for one in todo] == [60, 30]
    found = run(todo[1], tmp_path / "run" / "trajectories" / todo[1].name)
    assert found["step"].tolist() == [20, 30]
    assert found["loss"].iloc[1] == pytest.approx(losses_of({20: 0.5, 30: 0.5}, folder, 30)[0], rel=1e-6)


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a snapshot between": (
        ("averaging[1].every=7",),
        r"weights: imported-\w+ cannot serve: it has not every step at which LAWA.* takes a snapshot; "
        r"its steps are 5, 10, 15, …, 60; allowed",
    ),
    "an evaluation between": (("evaluate.every=6",), "it has not every step of an evaluation each 6 steps"),
    "beyond": (("step_budget=65",), "its steps are 5, 10, 15, …, 60"),
    "an optimizer": (("optimizer.lr=0.1",), "optimizer.lr: the weights are imported, and how they were trained"),
    "a schedule": (("schedule.lr_decay=0.5",), "schedule.lr_decay: the weights are imported"),
    "a trace of it": (("keep.every=5",), "keep.every: the weights are imported"),
    "a seed more": (("seeds=[0, 1]",), "weights: 1 names for 2 seeds; allowed: one a seed"),
    "another workload": (("workloads=[lm]",), "is of tinywork:Tiny mini, not of lm mini"),
    "two workloads": (("workloads=[lm, ogbg]",), "weights: of several workloads or presets"),
    "no such trace": (("weights=other",), r"has no imported 'other'; allowed: imported-\w+"),
}


def test_what_the_files_cannot_answer_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    import_checkpoints([folder], tmp_path / "run", TINY)
    for sets, said in REFUSED.values():
        with pytest.raises(SpecError, match=said):
            planned(tmp_path / "run", *sets)
    with pytest.raises(SpecError, match="--out: is required"):
        work(load_specs([tmp_path / "run" / "study.yaml"]), None)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_flip, "step_15.safetensors: it is not the file that was imported: its sha256 is another; put it back"),
        (Path.unlink, "step_15.safetensors: no such file or directory; put it back"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it is not the file that was imported"),
    ],
)
def test_a_file_that_has_changed_is_named(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    import_checkpoints([folder], tmp_path / "run", TINY)
    (one,) = planned(tmp_path / "run")
    spoil(folder / "step_15.safetensors")
    with pytest.raises(BadRun, match=said):
        run(one, tmp_path / "run" / "trajectories" / one.name)


def test_what_is_not_of_the_model_is_not_imported(folder: Path, tmp_path: Path) -> None:
    def refused(workload: str = TINY, at: Path = folder, **options: Any) -> str:
        with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
            import_checkpoints([at], tmp_path / "run", workload, **options)
        assert not (tmp_path / "run").exists()
        return str(told.value)

    said = "step_60.safetensors: of another model than ogbg's: without node_embedder.weight, node_embedder.bias, "
    assert f"{said}edge_embedder.weight and with 1.num_batches_tracked, " in refused("ogbg")
    assert "no checkpoints whose names tell a step" in refused(pattern="epoch_([0-9]+)")
    assert "allowed: two or more" in refused(pattern="step_(60)")
    shutil.copytree(folder / "step_5", folder / "step_60")
    assert "is of step 60" in refused()
    shutil.rmtree(folder / "step_60")
    state = read(folder, 60)
    save_file(state | {"0.weight": torch.zeros(16, 9)}, folder / "step_65.safetensors")
    assert "'0.weight' is float32[16, 8], and float32[16, 9]" in refused()
    save_file({name: tensor.double() for name, tensor in state.items()}, folder / "step_65.safetensors")
    assert "in one dtype" in refused()
    with pytest.raises(ValueError, match="the same checkpoints as another folder's"):
        import_checkpoints([folder, folder], tmp_path / "run", TINY, pattern="step_([0-9]0)")


def test_tied_weights_and_narrow_dtypes_fit_a_model(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight
            self.register_buffer("cache", torch.zeros(2), persistent=False)

    save_file({"head.weight": torch.ones(4, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    told = fitted(Tied(), Checkpoint.open(tmp_path / "a.safetensors"), "mine")
    assert told == {"embed.weight": ("head.weight", "float32")}
    save_file({"head.weight": torch.ones(4, 3, dtype=torch.float64)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"'embed.weight' is float64\[4, 3\], and float32\[4, 3\] in mine's model"):
        fitted(Tied(), Checkpoint.open(tmp_path / "a.safetensors"), "mine")


def test_hours_that_nobody_knows_are_none() -> None:
    cells = pd.DataFrame({"cell_id": ["a"], "num_devices": [1.0]})
    seconds = {"train_seconds": math.nan, "average_seconds": 3.6, "eval_seconds": 36.0}
    records = pd.DataFrame([{"cell_id": "a", "trajectory_id": "t", "step": step, **seconds} for step in (5, 10)])
    steps = pd.DataFrame({"cell_id": ["a"], "status": ["reached"], "point": [7.0]})
    assert device_hours.hours_to_target(cells, records, steps)["device_hours"].isna().all()
    trials = pd.DataFrame({"seconds": [72.0], "num_devices": [1.0]})
    found = device_hours.sweep_hours(cells, records, trials).set_index(["way", "part"])["device_hours"]
    assert found["paid", "all"] == 0.02
    assert np.isnan(found["one trial a trajectory", "training"])
    assert found["one trial a cell", "averaging"] == pytest.approx(0.001)


@pytest.mark.slow
def test_a_sweep_over_checkpoints_ends_in_a_report(folder: Path, uncharted: None) -> None:
    arguments = ["import", "checkpoints", "mine", "-o", "RUN", "--workload", TINY, "--target", "0.5"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    other = CliRunner().invoke(main, [*arguments[:4], "OTHER", *arguments[5:-1], "0.6"])
    assert (other.exit_code, Path("OTHER").exists()) == (2, False)
    assert "its target is 0.5 (as given to `wa import checkpoints`)" in " ".join(other.output.split())
    assert "left out, since no step is in their names: optimizer.pt, rng_1.pth" in done.output
    listed = CliRunner().invoke(main, ["traces", "RUN"]).output
    assert "imported-" in listed
    command = [*UNDRAWN, "run", "RUN/study.yaml", "--out", "RUN", "--set", "tracking.wandb=disabled"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 trajectory to replay" in " ".join(ran.stdout.split())
    records = load("RUN")
    (one,) = planned(Path("RUN"), "study=other", "averaging=[{scheme: tail, start: 10, every: 5}]")
    assert one.replays is not None  # and what is asked later is replayed too
    live = records[(records["scheme"] == "none") & (records["step"] == 40)]
    assert live["loss"].item() == losses_of({40: 1.0}, folder, 40)[0]
    reports.write(Path("RUN"))
    steps = pd.read_csv("RUN/tables/steps_to_target.csv")
    assert steps["point"].notna().all()
    report = Path("RUN/report.html").read_text()
    assert "how and how long they were trained is not known" in report
    assert load_cells("RUN")["weights"].str.startswith("imported-").all()
