"""Finding a workload by family name or by dotted path, and errors that name the remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sweeps.cells import cells
from sweeps.cli import main
from sweeps.spec import parse_spec
from workloads import protocol
from workloads.dotted import complaint
from workloads.protocol import FAMILIES, UnknownWorkload, Workload, load, presets, source_file

USER_MODULE = '''
import torch
from workloads.protocol import Summary

class Line:
    """y = 2x on noisy points."""
    step_budget, batch_size, metric, higher_is_better = 50, 4, "loss", False
    optimizer = {"name": "sgd", "lr": 0.1}
    schedule = {"shape": "constant", "warmup": 0.0}
    step_seconds, eval_seconds = 1e-4, 1e-4

    def __init__(self, preset="mini"):
        self.preset = preset

    def model(self):
        return torch.nn.Linear(1, 1)

    def batches(self, seed, first_step):
        step = first_step
        while True:
            x = torch.randn(4, 1, generator=torch.Generator().manual_seed(seed * 1000 + step))
            yield x, 2 * x
            step += 1

    def loss(self, model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def eval_batches(self, split):
        return [(torch.ones(2, 1), 2 * torch.ones(2, 1))]

    def eval_step(self, model, batch):
        return {"loss": (model(batch[0]) - batch[1]).square().sum(), "examples": torch.tensor(2)}

    def summarize(self, sums):
        loss = sums["loss"] / sums["examples"]
        return Summary(loss, loss, int(sums["examples"]))

LINE = Line()

def make():
    return Line("made")

class Half:
    step_budget = 3
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in a folder outside the repository, the current directory being that folder."""
    (tmp_path / "my_own_workloads.py").write_text(USER_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "my_own_workloads"
    sys.modules.pop("my_own_workloads", None)


@pytest.mark.parametrize("attribute", ["Line", "LINE", "make"])
def test_a_users_own_workload_by_dotted_path(user_module: str, attribute: str) -> None:
    workload = load(f"{user_module}:{attribute}")
    assert isinstance(workload, Workload)
    model, batches = workload.model(), workload.batches(0, 1)
    before = workload.loss(model, next(batches)).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        workload.loss(model, next(batches)).backward()
        optimizer.step()
    assert workload.loss(model, next(batches)).item() < before / 10


def test_the_preset_reaches_a_users_class(user_module: str) -> None:
    assert load(f"{user_module}:Line", "full").preset == "full"  # type: ignore[attr-defined]
    assert load(f"{user_module}:make", "full").preset == "made"  # type: ignore[attr-defined]


def test_targets_lie_beside_the_users_file(user_module: str, tmp_path: Path) -> None:
    assert source_file(f"{user_module}:Line") == tmp_path / "my_own_workloads.py"
    assert source_file("lm").name == "lm.py"


def test_an_unknown_name_lists_the_families() -> None:
    with pytest.raises(UnknownWorkload, match=r"'ml'.*imagenet_vit, .*lm, ogbg"):
        load("ml")


def test_an_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(UnknownWorkload, match=r"'huge'.*mini"):
        load("lm", "huge")


def test_an_unknown_dotted_path_says_why(user_module: str) -> None:
    with pytest.raises(UnknownWorkload, match="nowhere_at_all"):
        load("nowhere_at_all:Thing")
    with pytest.raises(UnknownWorkload, match="Lime"):
        load(f"{user_module}:Lime")


def test_what_a_half_workload_lacks_is_named(user_module: str) -> None:
    with pytest.raises(UnknownWorkload, match=r"lacks batch_size, .*summarize"):
        load(f"{user_module}:Half")


def test_a_preset_is_the_same_object_at_every_call() -> None:
    assert load("lm") is load("lm", "mini")


@pytest.mark.parametrize(
    ("attribute", "value", "allowed"),
    [
        ("step_budget", 100.0, "an int ≥ 1 (steps)"),
        ("step_budget", "100", "an int ≥ 1 (steps)"),
        ("step_budget", True, "an int ≥ 1 (steps)"),
        ("batch_size", 0, "an int ≥ 1 (examples)"),
        ("batch_size", None, "an int ≥ 1 (examples)"),
        ("metric", "", "a name of ≤ 100 printable characters"),
        ("metric", "a\nb", "a name of ≤ 100 printable characters"),
        ("higher_is_better", "no", "True or False"),
        ("higher_is_better", 1, "True or False"),
        ("step_seconds", "x", "a number ≥ 0"),
        ("eval_seconds", float("nan"), "a number ≥ 0"),
        ("splits", "validation", 'a tuple of names, "validation" among them'),
        ("splits", ("test",), 'a tuple of names, "validation" among them'),
        ("batch_norm_parts", 2.5, "an int ≥ 1"),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_one_line_with_what_is_allowed(
    user_module: str, attribute: str, value: object, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = load(f"{user_module}:Line")
    monkeypatch.setattr(type(line), attribute, value, raising=False)
    with pytest.raises(UnknownWorkload) as error:
        load(f"{user_module}:Line")
    assert str(error.value) == f"workload '{user_module}:Line': its {attribute} is {value!r}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("block", "value", "told"),
    [
        ("training", {"batch_size": 4}, "training.batch_size: its attribute `batch_size` says it; allowed: precision,"),
        ("training", {"acumulate": 4}, "training.acumulate: unknown key (did you mean 'accumulate'?); allowed: "),
        ("training", {"accumulate": "4"}, "training.accumulate: got '4'; allowed: an int from 1 to 65536"),
        ("training", {"compile": "gcc"}, "training.compile: got 'gcc'; allowed: true, false or a backend"),
        ("training", 5, "training: got 5; allowed: a mapping such as"),
        ("training", None, "training: got None; allowed: a mapping such as"),
        ("optimizer", None, "optimizer: got None; allowed: a mapping such as"),
        ("optimizer", {"lr": 0.1}, "optimizer: name is required"),
        ("optimizer", {"name": "sgdd", "lr": 0.1}, "optimizer.name: got 'sgdd' (did you mean 'sgd'?); allowed: "),
        ("optimizer", {"name": "sgd", "lr": "0.1"}, "optimizer.lr: got '0.1'; allowed: a number > 0"),
        ("optimizer", {"name": "sgd", "lr": [0.1]}, "optimizer.lr: got [0.1]; allowed: a number > 0"),
        ("optimizer", {"name": "sgd"}, "optimizer.lr: is required by sgd"),
        ("optimizer", {"name": "sgd", "lr": 0.1, "beta1": 0.9}, "optimizer.beta1: unknown key; allowed: name, lr,"),
        ("schedule", {"shape": "cos"}, "schedule.shape: got 'cos' (did you mean 'cosine'?); allowed: "),
        ("schedule", {"length": 1e9}, "schedule.length: got 1000000000.0; allowed: an int ≥ 1 (steps) or a float in"),
        ("schedule", {"shape": "constant", "lr_decay": 0.5}, "schedule: a constant one does not decay; allowed: shape"),
    ],
)
def test_a_workloads_own_blocks_are_checked_before_anything_is_planned(
    user_module: str, block: str, value: object, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(load(f"{user_module}:Line")), block, value, raising=False)
    (tmp_path / "t.yaml").write_text(f"study: t\nworkloads: {user_module}:Line\naveraging: {{scheme: none}}\n")
    for command in ("plan", "run"):
        done = CliRunner().invoke(main, [command, "t.yaml"])
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"wa: t.yaml: {user_module}:Line: its own {told}")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_shipped_attributes_and_blocks_pass_the_same_checks(family: str) -> None:
    for preset in presets(family):
        assert complaint(load(family, preset)) is None
        cells(parse_spec({"study": "t", "workloads": family, "preset": preset, "averaging": {"scheme": "none"}}))


def test_the_list_of_families_is_the_files_that_offer_presets() -> None:
    files = Path(protocol.__file__).parent.glob("*.py")
    assert [path.stem for path in sorted(files) if "\nPRESETS" in path.read_text(encoding="utf-8")] == list(FAMILIES)
