"""The tables of keys: each key of a block once, with the default that it has; the docs show the same."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import sweeps.spec
from sweeps import keys
from sweeps.blocks import ScheduleBlock
from sweeps.cli import main
from sweeps.optimizers import OPTIMIZERS
from sweeps.study_model import BLOCKS, GridBlock, StudyModel, optimizer_block
from workloads.protocol import families

DOCS = Path(sweeps.spec.__file__).parents[1] / "docs" / "keys.md"


def test_every_key_of_every_block_is_told_once() -> None:
    optimizers = [row[:2] for row in keys.optimizers().rows]
    assert len(set(optimizers)) == len(optimizers)
    assert {name for name, _ in optimizers} == set(OPTIMIZERS)
    assert {key for _, key in optimizers} == set(optimizer_block().model_fields) - {"name"}
    assert [row[0] for row in keys.schedules().rows] == list(ScheduleBlock.model_fields)
    study = {row[0]: row for row in keys.study().rows}
    assert set(study) >= set(StudyModel.model_fields)
    assert {key for key, row in study.items() if row[2] and "." not in key} == set(GridBlock.model_fields)
    assert all(row[-1] for table in (keys.study, keys.optimizers, keys.schedules) for row in table().rows)
    schemes = [row for row in keys.schemes().rows if not row[0]]
    assert all(row[-1] for row in schemes)
    assert len(schemes) == sum(len(block.model_fields) - 1 for block in BLOCKS.values())


@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("optimizers", ["adamw", "weight_decay", "0.01"]),
        ("optimizers", ["sgd", "momentum", "0"]),
        ("optimizers", ["sgd", "nesterov", "false"]),
        ("optimizers", ["schedule_free_adamw", "beta2", "0.999"]),
        ("schedules", ["warmup", "0.0"]),
        ("schemes", ["start", "required"]),
        ("schemes", ["until_full", "absent"]),
    ],
)
def test_the_commands_show_keys_and_defaults(command: str, row: list[str]) -> None:
    done = CliRunner().invoke(main, [command])
    assert done.exit_code == 0
    assert row in [line.split()[: len(row)] for line in done.output.splitlines()]


@pytest.mark.parametrize("table", [keys.study, keys.optimizers, keys.schedules, keys.schemes])
def test_the_docs_hold_the_same_tables(table: object) -> None:
    assert keys.markdown(table()) in DOCS.read_text()  # type: ignore[operator]


@pytest.mark.parametrize("width", [60, 64, 72, 80, 100, 140])
def test_workloads_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = CliRunner().invoke(main, ["workloads"]).output.splitlines()
    rows = [line.split() for line in lines]
    assert max(map(len, lines)) <= width
    assert {(name, preset) for name in families() for preset in ("mini", "full")} <= {tuple(row[:2]) for row in rows}
    (wmt,) = [line for line, row in zip(lines, rows, strict=True) if row[:2] == ["wmt", "full"]]
    assert "30.8491" in wmt
    assert ("published" in wmt) == (width == 140)
    assert len(keys.workloads(width)[1]) == 2 * len(families())


UNKNOWN = [("nosuch", "anytime"), ("horizn", "horizon"), ("sweeps/quikstart.yaml", "quickstart")]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(("name", "first"), UNKNOWN)
def test_an_unknown_study_lists_the_shipped_ones(command: str, name: str, first: str) -> None:
    done = CliRunner().invoke(main, [command, name])
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    listed = done.stderr.split("shipped studies: ")[1].strip().split(", ")
    assert listed[0] == first
    assert set(listed) == {path.stem for path in Path(sweeps.spec.__file__).parent.glob("*.yaml")}


def test_one_is_singular(outside: Path) -> None:
    (outside / "one.yaml").write_text("study: one\nworkloads: lm\naveraging: {scheme: none}\nresources: {cpu: 4096}\n")
    output = CliRunner().invoke(main, ["plan", "one.yaml"]).output
    assert "one: 1 cell, 1 trajectory to train" in output
    assert "on 1 slot of 4096 cpu, " in output


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_plan_fits_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = CliRunner().invoke(main, ["plan", "generalization"]).output.splitlines()
    assert max(map(len, lines)) <= width
    assert set(families()) <= {line.split()[0] for line in lines if line.strip()}
