"""`training: {batch_size: …}`: how many examples a step is computed of."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trained import run

from sweeps.blocks import SpecError
from sweeps.cell_row import cell_to_row
from sweeps.cells import cells
from sweeps.identity import Cell, cell_from_dict, cell_to_dict
from sweeps.plan import cost, trajectories
from sweeps.spec import parse_spec
from workloads.protocol import families, load, presets, with_batch_size

SIZED = textwrap.dedent("""
    from dataclasses import dataclass, field
    from tinywork import Tiny

    @dataclass(frozen=True)
    class Sized(Tiny):
        batch_size: int = 8

    class Twelve(Tiny):
        batch_size = 12

    @dataclass(frozen=True)
    class Fixed(Tiny):
        batch_size: int = field(default=8, init=False)
""")


@pytest.fixture
def sized(outside: Path) -> Path:
    (outside / "sizedwork.py").write_text(SIZED)
    return outside


def grid(workload: str = "lm", **training: Any) -> list[Cell]:
    raw = {"study": "t", "workloads": workload, "averaging": {"scheme": "none"}, "evaluate": {"every": 20}}
    return cells(parse_spec({**raw, "training": training}))


def losses(found: list[Cell], folder: Path) -> pd.DataFrame:
    (one,) = trajectories(found, fuse=True)
    return run(one, folder)[["step", "loss", "metric"]]


def test_a_step_is_computed_of_so_many_examples(sized: Path, tmp_path: Path) -> None:
    asked = losses(grid("sizedwork:Sized", batch_size=12), tmp_path / "asked")
    own = losses(grid("sizedwork:Twelve"), tmp_path / "own")
    pd.testing.assert_frame_equal(asked, own, check_exact=True)
    eight = losses(grid("sizedwork:Sized"), tmp_path / "eight")
    assert (eight["loss"] != asked["loss"]).all()


@pytest.mark.parametrize(("asked", "examples"), [(0.5, 4), (2.0, 16), (3, 3), (0.01, 1), (1, 1), (0.31, 2)])
def test_an_int_is_examples_and_a_float_a_multiple(asked: float, examples: int) -> None:
    (cell,) = grid(batch_size=asked)
    assert cell.training.batch_size == examples
    row = cell_to_row(cell, "s", None, 1.0, "cpu", 1)
    assert (row["batch_size"], row["own_batch_size"]) == (examples, 8)
    assert cell_from_dict(cell_to_dict(cell)) == cell
    assert cell.cell_id != grid()[0].cell_id


@pytest.mark.parametrize("asked", [1.0, 8, 1.01])
def test_the_workloads_own_is_the_same_cell_as_leaving_it_out(asked: float) -> None:
    assert load("lm").batch_size == 8
    assert grid(batch_size=asked) == grid()
    assert grid()[0].training.batch_size is None
    with pytest.raises(SpecError, match="duplicate cell"):
        grid(batch_size=[asked, 8])


@pytest.mark.parametrize("family", families())
def test_every_shipped_workload_can(family: str) -> None:
    for workload in presets(family).values():
        assert with_batch_size(workload, 6).batch_size == 6
        assert replace(with_batch_size(workload, 6), batch_size=workload.batch_size) == workload  # type: ignore[type-var]
        assert with_batch_size(workload, None) is workload


@pytest.mark.parametrize("family", ["imagenet_resnet", "imagenet_vit", "lm"])
def test_the_batches_of_a_mini_have_so_many(family: str) -> None:
    batch = next(with_batch_size(load(family), 3).batches(0, 1))
    assert {len(tensor) for tensor in (batch if isinstance(batch, tuple) else (batch,))} == {3}


@pytest.mark.parametrize(
    ("workload", "training", "key", "told"),
    [
        ("lm", {"batch_size": 0}, "batch_size", "an int ≥ 1 (examples)"),
        ("lm", {"batch_size": True}, "batch_size", "an int ≥ 1 (examples)"),
        ("lm", {"batch_size": -0.5}, "batch_size", "(0, 1000]"),
        ("lm", {"batch_size": [4, 0.0]}, "batch_size[1]", "(0, 1000]"),
        ("lm", {"batch_size": 12, "accumulate": 8}, "accumulate", "do not divide a batch of 12"),
        ("tinywork:Tiny", {"batch_size": 4}, "batch_size", "no dataclass with a field `batch_size`"),
        ("sizedwork:Fixed", {"batch_size": 4}, "batch_size", "init=False"),
    ],
)
def test_what_cannot_be_is_one_line(sized: Path, workload: str, training: Any, key: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        grid(workload, **training)
    assert caught.value.path == f"training.{key}"
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_divide_the_batch_that_is_asked_for() -> None:
    assert grid(batch_size=12, accumulate=6)[0].training.accumulate == 6  # which its own 8 could not


def test_a_step_costs_as_much_an_example() -> None:
    (own,), (half,) = (trajectories(grid(**training), fuse=True) for training in ({}, {"batch_size": 0.5}))
    assert cost(half).train_seconds == pytest.approx(cost(own).train_seconds / 2)
    assert cost(half).eval_seconds == cost(own).eval_seconds
