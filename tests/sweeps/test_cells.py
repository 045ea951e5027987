"""Cells: shares become steps by hand-worked numbers, ids are functions of what a cell is."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest

import sweeps.spec
from sweeps.blocks import SpecError
from sweeps.cell_row import cell_to_row
from sweeps.cells import cells
from sweeps.identity import Cell, cell_from_dict, cell_to_dict
from sweeps.spec import load_spec, parse_spec
from wa import EMA, LAWA, WSM, Tail
from workloads.protocol import load

BASE: dict[str, Any] = {
    "study": "s",
    "workloads": "lm",
    "step_budget": 1000,
    "optimizer": {"lr": 0.01},
    "schedule": {"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
    "averaging": {"scheme": "none"},
    "evaluate": {"every": 0.01},
}


STUDIES = Path(sweeps.spec.__file__).parent


def only(**changes: Any) -> Cell:
    (cell,) = cells(parse_spec({**BASE, **changes}))
    return cell


@pytest.mark.parametrize(
    ("block", "scheme"),
    [
        ({"scheme": "lawa", "k": 5, "every": 0.002}, LAWA(k=5, every=2)),
        ({"scheme": "lawa", "horizon": 0.04, "every": 8}, LAWA(k=5, every=8)),
        ({"scheme": "lawa", "horizon": 41, "every": 8}, LAWA(k=5, every=8)),
        ({"scheme": "lawa", "k": 3, "burn_in": 0.1, "until_full": "partial"},
         LAWA(k=3, burn_in=100, until_full="partial")),
        ({"scheme": "ema", "decay": 0.9, "every": 8}, EMA(decay=0.9, every=8)),
        ({"scheme": "ema", "horizon": 0.024, "every": 8}, EMA(decay=0.5, every=8)),  # (24 − 8)/(24 + 8)
        ({"scheme": "ema", "horizon": 8, "every": 8}, EMA(decay=0.0, every=8)),
        ({"scheme": "ema", "decay": 0.9, "init": "zero", "buffers": "average", "burn_in": 7},
         EMA(decay=0.9, init="zero", buffers="average", burn_in=7)),
        ({"scheme": "tail", "start": 0.5, "every": 10}, Tail(start=500, every=10)),
        ({"scheme": "wsm", "lr_decay": 0.2, "every": 0.01, "curve": "cosine"}, WSM(20, 10, "cosine")),
        ({"scheme": "wsm", "lr_decay": 97, "every": 8, "curve": "sqrt"}, WSM(12, 8, "sqrt")),
        ({"scheme": "wsm", "k": 5, "buffers": "average", "burn_in": 0.1},
         WSM(5, 1, "linear", buffers="average", burn_in=100)),
    ],
)  # fmt: skip
def test_averaging_blocks_in_steps(block: dict[str, Any], scheme: Any) -> None:
    assert only(averaging=block).scheme == scheme


@pytest.mark.parametrize(
    ("block", "steps"),
    [
        ({}, ("cosine", 1000, 50, 950, 0.0)),
        ({"length": 0.75}, ("cosine", 750, 37, 713, 0.0)),  # int(.05 · 750) = 37
        ({"length": 500, "warmup": 10}, ("cosine", 500, 10, 490, 0.0)),
        ({"shape": "linear", "lr_decay": 0.2}, ("linear", 1000, 50, 200, 0.0)),
        ({"shape": "linear", "lr_decay": 0.2, "final_lr": 0.1}, ("linear", 1000, 50, 200, 0.1)),
        ({"shape": "linear", "lr_decay": 0.0}, ("constant", 1000, 50, 0, 1.0)),
        ({"shape": "constant"}, ("constant", 1000, 50, 0, 1.0)),
        ({"shape": "1-sqrt", "lr_decay": 100}, ("1-sqrt", 1000, 50, 100, 0.0)),
        ({"shape": "power", "power": 1, "lr_decay": 0.1}, ("linear", 1000, 50, 100, 0.0)),
        ({"shape": "inverse_sqrt"}, ("inverse_sqrt", 1000, 50, 0, 1.0)),
        ({"shape": "inverse_sqrt", "length": 500, "lr_decay": 0.1}, ("inverse_sqrt", 500, 25, 50, 0.0)),
    ],
)
def test_schedules_in_steps(block: dict[str, Any], steps: tuple[Any, ...]) -> None:
    base = {"warmup": 0.05} if block.get("shape") == "constant" else {"warmup": 0.05, "final_lr": 0.0}
    schedule = only(schedule={**base, **block}).training.schedule
    found = (schedule.shape, schedule.length_steps, schedule.warmup_steps, schedule.lr_decay_steps, schedule.final_lr)
    assert found == steps


CHANGES: list[dict[str, Any]] = [
    {"seeds": 1},
    {"workloads": "imagenet_vit"},
    {"step_budget": 999},
    {"optimizer": {"lr": 0.02}},
    {"optimizer": {"lr": 0.01, "grad_clip": 1.0}},
    {"optimizer": {"name": "adamw", "lr": 0.01}},
    {"schedule": {"length": 0.5}},
    {"schedule": {"warmup": 0.3}},
    {"schedule": {"final_lr": 0.3}},
    {"schedule": {"shape": "linear"}},
    {"schedule": {"shape": "power"}},
    {"schedule": {"shape": "power", "power": 3}},
    {"training": {"batch_size": 4}},
]


def test_ids_tell_trainings_apart_and_averages_share_one() -> None:
    trainings = [only(), *(only(**change) for change in CHANGES)]
    assert len({cell.trajectory_id for cell in trainings}) == len(trainings)
    blocks = [
        {"scheme": "none"},
        {"scheme": "lawa", "k": [2, 3], "every": [1, 2]},
        {"scheme": "lawa", "k": 2, "until_full": "partial"},
        {"scheme": "ema", "decay": 0.9, "init": ["first", "zero"]},
        {"scheme": "ema", "decay": 0.9, "buffers": ["average", "recompute"], "burn_in": [0, 3]},
        {"scheme": "tail", "start": 0},
        {"scheme": "wsm", "k": 2, "curve": ["linear", "cosine", "sqrt"]},
    ]
    averages = cells(parse_spec({**BASE, "averaging": blocks}))
    assert len(averages) == 1 + 4 + 1 + 2 + 4 + 1 + 3
    assert {cell.trajectory_id for cell in averages} == {only().trajectory_id}
    assert len({cell.cell_id for cell in averages}) == len(averages)


def test_ids_stay_over_releases() -> None:
    # Run folders outlive versions of this code: changing these breaks every folder there is.
    optimizer = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
    cell = only(optimizer=optimizer, averaging={"scheme": "ema", "decay": 0.9})
    assert (cell.trajectory_id, cell.cell_id) == ("ef92cd972341", "327084d9c6ef")


def test_ids_of_a_shipped_study_stay() -> None:
    # As the folder of its first run has them, from before there were merges, batch sizes and test splits.
    ids = ["872eae0588b5", "41dcfeed2132", "0729faacc822", "3d3c279e2c6c", "51a15d3f9954"]
    found = cells(load_spec(STUDIES / "speedup.yaml", ["workloads=lm", "seeds=0"]))
    assert [cell.cell_id for cell in found] == ids
    assert {cell.trajectory_id for cell in found} == {"2b2bf6f42309"}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_can_be_planned(path: Path) -> None:
    found = cells(load_spec(path))
    assert {cell.training.seed for cell in found} >= {0, 1, 2}
    assert any(cell.scheme is None for cell in found)


def test_open_questions_asks_what_its_header_says() -> None:
    found = cells(load_spec(STUDIES / "open_questions.yaml", ["seeds=0"]))
    of: dict[str, list[Cell]] = {}
    for cell in found:
        of.setdefault(cell.training.workload, []).append(cell)
    assert {cell.training.batch_size for cell in of["lm"]} == {4, None, 16}  # of 8
    assert {cell.training.step_budget for cell in of["lm"]} == {load("lm").step_budget}
    graphs = [cell.scheme for cell in of["ogbg"]]
    windows = sorted(scheme.k for scheme in graphs if isinstance(scheme, LAWA))
    decays = sorted(scheme.decay for scheme in graphs if isinstance(scheme, EMA))
    assert windows == [5, 10, 20, 40, 80, 160]
    assert [(1 + decay) / (1 - decay) for decay in decays] == pytest.approx(windows)
    total = load("imagenet_vit").step_budget
    real = {cell.training.schedule.lr_decay_steps / total for cell in of["imagenet_vit"]}
    merges = [cell.scheme for cell in of["imagenet_vit"] if isinstance(cell.scheme, WSM)]
    assert real == {0, 0.1, 0.2}
    assert {scheme.k * scheme.every / total for scheme in merges} == {0.1, 0.2}
    assert {scheme.curve for scheme in merges} == {"linear", "cosine", "sqrt"}
    policies = {(type(cell.scheme), cell.scheme.buffers) for cell in of["imagenet_resnet"] if cell.scheme}
    assert policies == {(kind, how) for kind in (LAWA, EMA) for how in ("live", "average", "recompute")}


def test_the_evaluation_grid_is_no_part_of_a_cell() -> None:
    assert only(evaluate={"every": 0.1}).cell_id == only().cell_id


def test_round_trip_through_plain_values() -> None:
    blocks = [{"scheme": "lawa", "k": 2}, {"scheme": "ema", "decay": 0.3}, {"scheme": "tail", "start": 0}]
    blocks.append({"scheme": "wsm", "k": 3, "curve": "sqrt"})
    for cell in [only(), *cells(parse_spec({**BASE, "averaging": blocks}))]:
        again = cell_from_dict(cell_to_dict(cell))
        assert again == cell
        assert again.cell_id == cell.cell_id


@pytest.mark.parametrize(
    ("block", "steps"),
    [
        ({"scheme": "lawa", "k": 5, "every": 8}, 40),
        ({"scheme": "ema", "decay": 0.5, "every": 8}, 24),
        ({"scheme": "ema", "horizon": 0.01, "every": 1}, 10),
        ({"scheme": "tail", "start": 0.5, "every": 10}, 500),
        ({"scheme": "wsm", "lr_decay": 0.04, "every": 8}, 40),
        # as symmetric as linear; a lag of √¼ + √½ + √¾ snapshots
        ({"scheme": "wsm", "k": 4, "every": 8, "curve": "cosine"}, 32),
        ({"scheme": "wsm", "k": 4, "every": 8, "curve": "sqrt"}, 41.1701),
    ],
)
def test_one_horizon_axis_for_every_scheme(block: dict[str, Any], steps: float) -> None:
    row = cell_to_row(only(averaging=block), "s", None, 1.0, "cpu", 1)
    assert row["horizon_steps"] == steps
    assert row["horizon_fraction"] == steps / 1000


def test_what_a_schedule_leaves_out_is_the_workloads_own() -> None:
    own = load("lm").schedule
    schedule = only(schedule={}).training.schedule
    assert schedule.shape == own["shape"]
    assert schedule.warmup_steps == int(own["warmup"] * 1000)
    assert schedule.final_lr == own["final_lr"]


def test_an_optimizer_inherits_only_where_the_settings_are_the_same() -> None:
    own = dict(only(optimizer={}).training.settings)
    assert dict(only(optimizer={"name": "adamw"}).training.settings) == own
    with pytest.raises(SpecError, match="is required"):
        only(optimizer={"name": "sgd"})
    sgd = only(optimizer={"name": "sgd", "lr": 0.1})
    assert dict(sgd.training.settings) == {"lr": 0.1, "momentum": 0, "nesterov": 0, "weight_decay": 0}


class Own:
    """A user's workload as far as cells read it."""

    step_budget, batch_size, metric, higher_is_better = 100, 8, "loss", False
    optimizer: ClassVar[dict[str, Any]] = {}
    schedule: ClassVar[dict[str, Any]] = {}
    training: ClassVar[dict[str, Any]] = {}


def of_own(
    monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any], changes: dict[str, Any] | None = None, **own: Any
) -> Cell:
    made = Own()
    for key, value in {"optimizer": optimizer, **own}.items():
        setattr(made, key, value)
    monkeypatch.setattr("sweeps.cells.load", lambda name, preset: made)
    spec = {"study": "s", "workloads": "m:Own", "averaging": {"scheme": "none"}, **(changes or {})}
    (cell,) = cells(parse_spec(spec))
    return cell


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        (
            {"name": "adamw", "lr": 0.1},
            {},
            {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
        ),
        ({"name": "sgd", "lr": 0.1}, {}, {"lr": 0.1, "momentum": 0, "nesterov": 0, "weight_decay": 0}),
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.5},
            {"lr": 0.2, "nesterov": True},
            {"lr": 0.2, "momentum": 0.5, "nesterov": 1, "weight_decay": 0},
        ),
        (
            {"name": "sgd", "lr": 0.1},
            {"name": "adamw", "lr": 1e-3},
            {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01},
        ),
        (
            {"name": "nadamw", "lr": 0.1, "beta2": 0.5},
            {"name": "adamw"},
            {"lr": 0.1, "beta1": 0.9, "beta2": 0.5, "eps": 1e-8, "weight_decay": 0.01},
        ),
    ],
)
def test_what_study_and_workload_leave_out_is_torchs_default(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert dict(of_own(monkeypatch, own, {"optimizer": asked}).training.settings) == expected


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"optimizer": {"name": "adamw", "lr": 0.1, "betas": (0.9, 0.99)}}, "own optimizer.betas: unknown key"),
        ({"optimizer": {"name": "adamw", "lr": 0.1, "momentum": 0.9}}, "own optimizer.momentum: unknown key"),
        ({"optimizer": {"name": "adamW", "lr": 0.1}}, "did you mean 'adamw'"),
        ({"optimizer": {"lr": 0.1}}, "name is required"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.lr: is required"),
        ({"optimizer": "sgd"}, "allowed: a mapping"),
        ({"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}}, "allowed: with a momentum > 0"),
        ({"schedule": {"warm_up": 0.1}}, "did you mean 'warmup'"),
        ({"training": {"precison": "bf16"}}, "did you mean 'precision'"),
        ({"training": {"batch_size": 16}}, "own training.batch_size: its attribute `batch_size` says it"),
        ({"optimizer": {"name": "sgd", "lr": [0.1, 0.2]}}, "own optimizer.lr: got [0.1, 0.2]; allowed: a number > 0"),
    ],
)
def test_a_workloads_own_blocks_are_held_to_the_same_keys(
    monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        of_own(monkeypatch, **{"optimizer": {"name": "sgd", "lr": 0.1}, **own})
    assert len(str(caught.value)) <= 300


def test_a_workloads_own_lr_decay_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"shape": "linear", "warmup": 0.1, "lr_decay": 0.2}
    schedule = of_own(monkeypatch, {"name": "sgd", "lr": 0.1}, schedule=own).training.schedule
    assert (schedule.warmup_steps, schedule.lr_decay_steps) == (10, 20)


def test_an_average_that_would_never_exist_is_refused() -> None:
    with pytest.raises(SpecError, match="no average yet"):
        only(schedule={"length": 0.1}, averaging={"scheme": "lawa", "k": 20, "every": 10})
    only(schedule={"length": 0.1}, averaging={"scheme": "lawa", "k": 20, "every": 10, "until_full": "partial"})


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [({}, "constant"), ({"length": 0.5}, "constant"), ({"shape": "cosine"}, "cosine"), ({"final_lr": 0.5}, "cosine")],
)
def test_schedule_free_keeps_its_lr_unless_a_schedule_says_otherwise(schedule: dict[str, Any], shape: str) -> None:
    cell = only(optimizer={"name": "schedule_free_adamw"}, schedule=schedule)
    assert cell.training.schedule.shape == shape
    assert cell.training.schedule.warmup_steps == 0.1 * cell.training.schedule.length_steps  # lm's own
    assert only(optimizer={"name": "nadamw"}, schedule=schedule).training.schedule.shape == "cosine"
