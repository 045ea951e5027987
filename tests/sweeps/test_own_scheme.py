"""One class of a user's is one more scheme, and one entry one more optimizer: from YAML to records and labels."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pytest
import torch

from analysis import report
from analysis.run_folder import study
from sweeps import keys, origins, run_folder, trajectory
from sweeps.blocks import SpecError, UnitOpen
from sweeps.cells import cells
from sweeps.identity import cell_from_dict, cell_to_dict
from sweeps.optimizers import LR, OPTIMIZERS
from sweeps.plan import from_dict, to_dict, trajectories
from sweeps.spec import load_spec
from sweeps.studies import Resolved
from sweeps.targets import Target

# Polynomial-decay averaging (Shamir & Zhang 2013), m ← m + (1 + η)/(n + η) (θ − m); η = 0 is the mean of all.
SCHEME = textwrap.dedent('''
    from dataclasses import dataclass
    from math import inf
    from typing import Annotated
    from wa import Recursive
    from wa.options import Every, Option

    @dataclass(frozen=True)
    class Polynomial(Recursive):
        """Mean that later snapshots count more in."""
        eta: Annotated[float, Option("how much more", low=0)]
        every: Every = 1
        burn_in: int = 0
        loud: bool = False
        buffers: str = "live"

        def __post_init__(self):
            if self.loud:
                raise ValueError("no such noise")

        @property
        def horizon(self):
            return inf

        def gain(self, n):
            return (1 + self.eta) / (n + self.eta)

        def weights(self, snapshots):
            found = []
            for n in range(1, snapshots + 1):
                found = [weight * (1 - self.gain(n)) for weight in found] + [self.gain(n)]
            return found

        def lag(self, snapshots):
            return sum(i * weight for i, weight in enumerate(reversed(self.weights(snapshots))))

    class Plain(Recursive):
        every = 1

    @dataclass(frozen=True)
    class Odd(Polynomial):
        what: "NoSuchType" = None
''')
STUDY = """
study: own
workloads: tinywork:Tiny
primary: {scheme: tail, horizon: 0.5}
averaging:
  - {scheme: none}
  - {scheme: tail, start: 0, every: 2}
  - {scheme: "averages:Polynomial", eta: [0.0, 3.0], every: 2, burn_in: [0, 0.5]}
evaluate: {every: 20}
tracking: {wandb: disabled}
"""
MEASURED = ["cell_id", "train_seconds", "average_seconds", "eval_seconds"]


@pytest.fixture
def own(outside: Path) -> Iterator[Path]:
    (outside / "averages.py").write_text(SCHEME)
    (outside / "own.yaml").write_text(STUDY)
    yield outside / "own.yaml"
    sys.modules.pop("averages", None)


def trained(file: Path, run: Path, overrides: Iterable[str] = ()) -> pd.DataFrame:
    """Plan and train a study in this process; its records, joined with what tells settings apart."""
    spec = load_spec(file, list(overrides))
    told = {"value": 0.5, "metric": "accuracy", "higher_is_better": True, "preset": "mini", "rule": "by hand"}
    target = Target.model_validate(told | {"seeds": [9], "values": [0.5], "versions": {}, "date": "2026-01-01"})
    resolved = Resolved(spec, cells(spec), {"tinywork:Tiny": target})
    planned = trajectories(resolved.cells, fuse=True)
    run_folder.write_plan(run, [resolved], planned, origins.of_studies([spec]))
    for one in planned:
        told = json.loads((run / "trajectories" / one.name / "trajectory.json").read_text())
        trajectory.run(from_dict(told), run / "trajectories" / one.name, planned_code=told["code"])
        run_folder.compact(run, one.name)
    read = study.read(run)
    return read.records.merge(read.cells.drop(columns=["trajectory_id", "metric_name"]), on="cell_id")


@pytest.mark.usefixtures("undrawn")
def test_a_users_scheme_goes_from_yaml_to_records_and_labels(own: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    records = trained(own, run)
    mine = records[records["scheme"] == "averages:Polynomial"]
    assert sorted(set(mine["options"])) == [json.dumps({"eta": e, "loud": False}) for e in (0.0, 3.0)]
    assert set(mine["every_steps"]) == {2}
    assert set(mine["burn_in_steps"]) == {0, 30}
    # η = 0 is the tail, by another class: the same numbers, bit for bit; η = 3 is not.
    whole = mine[mine["burn_in_steps"] == 0]
    same, other = ([*whole.loc[whole["options"].str.contains(eta), "loss"]] for eta in ('"eta": 0.0', '"eta": 3.0'))
    assert same == [*records.loc[records["scheme"] == "tail", "loss"]]
    assert len(same) == 3
    assert all(a != b for a, b in zip(same, other, strict=True))
    # After 30 snapshots in 60 steps the centre of mass is (n − 1)/(η + 2) snapshots back: 14.5, 5.8.
    horizons = dict(zip(whole["options"].str.contains("3.0"), whole["horizon_steps"], strict=True))
    assert horizons == {False: 60, True: pytest.approx(2 * (2 * 5.8 + 1))}
    labels = set(mine["scheme_label"])
    assert len(labels) == 4
    assert all(label.startswith("Polynomial ") for label in labels)
    run_folder.write_trials(run)
    assert "Polynomial 100 %" in report.write(run).read_text()
    plan = json.loads((run / "plan.json").read_text())
    assert plan["studies"][0]["primary"] == {"scheme": "tail", "horizon": 0.5}
    assert list(plan["sources"]["averages:Polynomial"]["files"]) == ["averages.py"]


def test_its_cells_are_themselves_again_and_its_code_is_compared(own: Path, tmp_path: Path) -> None:
    spec = load_spec(own)
    found = cells(spec)
    assert len({cell.cell_id for cell in found}) == 6
    assert [cell_from_dict(json.loads(json.dumps(cell_to_dict(cell)))) for cell in found] == found
    (one,) = trajectories(found, fuse=True)
    before, planned = origins.of_studies([spec]), origins.digest(one)
    own.with_name("averages.py").write_text(SCHEME + "\nX = 1\n")
    sys.modules.pop("averages")
    again = from_dict(json.loads(json.dumps(to_dict(one))))
    with pytest.raises(origins.ChangedCode, match="averages:Polynomial: its source here is not"):
        trajectory.run(again, tmp_path / "t", planned_code=planned)
    changed = origins.of_studies([load_spec(own)])
    assert origins.changes(before["averages:Polynomial"], changed["averages:Polynomial"]) == ["averages.py has changed"]


@pytest.mark.parametrize(
    ("block", "path", "said"),
    [
        ("{scheme: 'averages:Polynomal', eta: 1}", "averaging.scheme", "cannot import scheme 'averages:Polynomal'"),
        ("{scheme: 'nosuch:Polynomial', eta: 1}", "averaging.scheme", "cannot import scheme 'nosuch:Polynomial'"),
        ("{scheme: 'averages:Plain'}", "averaging.scheme", "allowed: a dataclass that is a wa.Recursive or"),
        ("{scheme: 'averages:Odd'}", "averaging.scheme", "its fields are no keys of a study: name 'NoSuchType'"),
        ("{scheme: 'averages:Polynomial'}", "averaging.eta", "is required"),
        ("{scheme: 'averages:Polynomial', eta: -1}", "averaging.eta", "got -1; allowed: a number ≥ 0"),
        ("{scheme: 'averages:Polynomial', eta: 1, evry: 2}", "averaging.evry", "did you mean 'every'"),
        ("{scheme: 'averages:Polynomial', eta: 1, every: 8.0}", "averaging.every", "write 8 for 8 steps"),
        ("{scheme: 'averages:Polynomial', eta: 1, burn_in: 60}", "averaging.burn_in", "less than the step budget"),
        ("{scheme: 'averages:Polynomial', eta: 1, loud: true}", "averaging.scheme", "no such noise"),
        ("{scheme: 'averages:Polynomial', eta: 1, loud: 1}", "averaging.loud", "true or false"),
    ],
)
def test_a_wrong_scheme_of_a_users_is_one_line(own: Path, block: str, path: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        cells(load_spec(own, [f"averaging={block}"]))
    assert caught.value.path == path
    assert said in str(caught.value)
    assert len(str(caught.value)) <= 300


class Signum(torch.optim.Optimizer):
    """m ← ρm + (1 − ρ)g; θ ← θ − η sign(m)."""

    def __init__(self, params: Any, lr: float, rho: float) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["rho"])
                p.add_(m.sign(), alpha=-group["lr"])


def signum(params: Any, *, lr: LR, rho: Annotated[UnitOpen, "decay of the mean of gradients"] = 0.9) -> Signum:
    return Signum(params, lr, rho)


def test_one_entry_is_one_more_optimizer(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "signum", signum)
    changes = [
        "optimizer={name: signum, lr: 0.01, rho: [0.5, 0.9]}",
        "averaging=[{scheme: none}, {scheme: ema, decay: 0.9}]",
    ]
    records = trained(own, tmp_path / "run", changes)
    assert set(records["optimizer"]) == {"signum"}
    assert set(records["optimizer_options"]) == {'{"rho": 0.5}', '{"rho": 0.9}'}
    assert records.groupby("training")["loss"].first().nunique() == 2
    assert {label[-7:] for label in records["training_label"]} == {"rho 0.5", "rho 0.9"}
    assert ("signum", "rho", "0.9", "decay of the mean of gradients") in keys.optimizers().rows
    with pytest.raises(SpecError, match=r"optimizer\.rho: got 1; allowed: a number in \[0, 1\)"):
        load_spec(own, ["optimizer={name: signum, lr: 0.01, rho: 1}"])
    with pytest.raises(SpecError, match=r"optimizer\.rho: adamw has no such setting"):
        cells(load_spec(own, ["optimizer={name: adamw, rho: 0.5}"]))
