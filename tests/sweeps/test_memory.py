"""What a trial holds in memory, as planned and as allocated; and what cannot fit is one line before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cluster import place
from sweeps import memory, origins, run_folder
from sweeps.cells import cells
from sweeps.cli import main
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import load_spec, parse_spec
from sweeps.work import work
from wa import Bank
from workloads.protocol import load

STUDY = "study: s\nworkloads: 'tinywork:Tiny'\naveraging: [{scheme: none}, {scheme: lawa, k: 9}]\n"


def one_of(**changes: Any) -> Trajectory:
    averaging = [{"scheme": "none"}, {"scheme": "lawa", "k": [40, 90]}, {"scheme": "ema", "decay": [0.9, 0.99]}]
    spec = {"study": "m", "workloads": "lm", "averaging": averaging, "evaluate": {"every": 0.02}, **changes}
    (one,) = trajectories(cells(parse_spec(spec)), fuse=True)
    return one


def test_weights_optimizer_and_averages_are_what_is_allocated() -> None:
    one = one_of()
    parts = memory.parts(one)
    training = one.cells[0].training
    model = load("lm").model()
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), **dict(training.settings))
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters())]
    moments = [
        value for state in optimizer.state.values() for value in state.values() if torch.as_tensor(value).numel() > 1
    ]
    assert sum(tensor.nbytes for tensor in [*held, *moments]) == parts["training"]
    schemes = [cell.scheme for cell in one.cells if cell.scheme is not None]
    assert Bank(model, schemes, read_at=one.evaluation_steps).nbytes == parts["averages"]
    assert memory.parts(one, processes=2)["averages"] == parts["averages"] // 2


def test_a_full_preset_counts_its_batch() -> None:
    whole = one_of(preset="full", step_budget=100, training={"batch_size": 8, "accumulate": 1})
    half = one_of(preset="full", step_budget=100, training={"batch_size": 8, "accumulate": 2})
    apart = memory.HELD_BYTES // 2 + memory.WORKING_BYTES
    working = [memory.parts(one)["working"] - apart for one in (whole, half)]
    assert working[0] == 2 * working[1] > 0


@pytest.mark.parametrize(
    ("resources", "seen", "told"),
    [
        ("{cpu: 1}", {"total_bytes": lambda: 100 << 20}, "this machine has 0.1 GiB"),
        ("{cpu: 1, gpu: 0.5}", {"gpu_bytes": lambda: [600 << 20]}, "a GPU here has 0.6 GiB, of which it has 0.5"),
    ],
)
def test_a_trial_that_cannot_fit_is_one_line(
    outside: Path, monkeypatch: pytest.MonkeyPatch, resources: str, seen: dict[str, Any], told: str
) -> None:
    (outside / "s.yaml").write_text(STUDY + f"resources: {resources}\n")
    for name, value in seen.items():
        monkeypatch.setattr(place, name, value)
    for command in (["plan", "s.yaml"], ["run", "s.yaml", "--out", "run"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2, done.output
        (line,) = done.output.strip().splitlines()
        assert "resources: a trial of tinywork:Tiny takes 0.5 GiB a process (process 0.4 + training 0.0" in line
        assert told in line
        assert line.endswith("or fewer windows")
    assert not (outside / "run").exists()


def test_what_fits_and_what_is_not_known_is_not_refused(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, resources in (({"total_bytes": lambda: None}, "{cpu: 1}"), ({"gpu_bytes": list}, "{cpu: 1, gpu: 1}")):
        (outside / "s.yaml").write_text(STUDY + f"resources: {resources}\n")
        with monkeypatch.context() as patch:
            for name, value in seen.items():
                patch.setattr(place, name, value)
            assert CliRunner().invoke(main, ["plan", "s.yaml"]).exit_code == 0


def test_the_doctor_looks_at_what_a_folder_has_to_train(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.checks(outside) == []
    (outside / "s.yaml").write_text(STUDY)
    specs = [load_spec(outside / "s.yaml")]
    todo = work(specs, None)
    run_folder.write_plan(outside / "run", todo.studies, todo.trajectories, origins.of_studies(specs))
    (check,) = memory.checks(outside / "run")
    assert check.ok is True
    assert check.detail.endswith("MiB a process at most, planned")
    monkeypatch.setattr(place, "total_bytes", lambda: 1 << 20)
    (check,) = memory.checks(outside / "run")
    assert check.ok is False
    assert "this machine has 0.0 GiB" in check.detail


def test_memory_of_machine_and_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       8388608 kB\nMemAvailable: 100 kB\n")
    assert place.total_bytes(tmp_path / "meminfo", tmp_path) == 8 << 30
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    assert place.total_bytes(tmp_path / "meminfo", tmp_path) == 3 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert place.total_bytes(tmp_path / "meminfo", tmp_path) == 8 << 30
    assert place.total_bytes(tmp_path / "none", tmp_path) is None


@pytest.mark.slow
def test_a_trial_takes_what_is_planned() -> None:
    from benchmarks.memory import main as measure

    assert measure(short=True) == {"lm: peak memory planned / measured": pytest.approx(1, abs=0.2)}
