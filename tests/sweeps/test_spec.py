"""Bad input ends in one line that names file, key path and what is allowed; good input means what it says."""

import re
import time
from pathlib import Path

import pytest

from sweeps.axes import points
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.cli import main
from sweeps.spec import Spec, load_spec
from sweeps.yaml_file import dump_yaml

FACE = """
study: horizon
workloads: [lm, imagenet_vit]
preset: mini
seeds: [0, 1, 2]
step_budget: 1.0
optimizer: {name: nadamw, lr: [0.003, 0.01]}
schedule:
  - {shape: cosine, length: [0.5, 0.75, 1.0], warmup: 0.05, final_lr: 0.0}
  - {shape: linear, length: 1.0, warmup: 0.05, lr_decay: [0.2, 0.0]}
averaging:
  - {scheme: none}
  - {scheme: lawa, k: [5, 20], every: 0.0005}
  - {scheme: ema, decay: [0.9, 0.99], every: 8}
  - {scheme: ema, horizon: [0.005, 0.01, 0.02, 0.04], every: 8}
evaluate: {every: 0.01}
overrides: {imagenet_vit: {optimizer: {lr: 0.002}}}
resources: {cpu: 1, gpu: 0}
tracking: {wandb: offline, project: averaging}
fuse: true
"""


@pytest.fixture
def face(tmp_path: Path) -> Path:
    path = tmp_path / "face.yaml"
    path.write_text(FACE)
    return path


def test_the_face_of_the_design_reads(face: Path) -> None:
    spec = load_spec(face)
    assert spec.seeds == (0, 1, 2)
    assert list(spec.grids["lm"].sizes().values()) == [1, 2, 5, 1, 9]
    assert list(spec.grids["imagenet_vit"].sizes().values()) == [1, 1, 5, 1, 9]  # the override replaces the lr axis
    assert said(spec, "optimizer", "lr", "imagenet_vit") == [0.002]
    assert said(spec, "optimizer", "lr") == [0.003, 0.01]


def said(spec: Spec, block: str, key: str, workload: str = "lm") -> list[object]:
    """What a grid says of one key, point by point."""
    return [one.values[key] for one in points(getattr(spec.grids[workload], block)) if key in one.values]


# (--set assignments on the face, key path in the message, what is allowed or the nearest name)
WRONG = [
    ("horizn=1", "horizn", "unknown key"),
    ("averaging[1].evry=2", "averaging[1].evry", "did you mean 'every'"),
    ("averaging[1].k=five", "averaging[1].k", "an int ≥ 1"),
    ("averaging[1].k=[5, -1]", "averaging[1].k[1]", "an int ≥ 1"),
    ("averaging[1].k=2.0", "averaging[1].k", "an int ≥ 1"),
    ("averaging[1].k=true", "averaging[1].k", "an int ≥ 1"),
    ("averaging[1].k=[]", "averaging[1].k", "empty list"),
    ("averaging[1].k=2000000", "averaging[1].k", "at most the step budget"),
    ("averaging[1].horizon=0.1", "averaging[1]", "k and horizon at once"),
    ("averaging[2].horizon=0.1", "averaging[2]", "decay and horizon at once"),
    ("averaging[3].horizon=1.5", "averaging[3].horizon", "(0, 1]"),
    ("averaging[3].horizon=1000000", "averaging[3].horizon", "at most the step budget"),
    ("averaging[3].horizon=4", "averaging[3].horizon", "at least `every`"),
    ("averaging[3].horizon=.nan", "averaging[3].horizon", "(0, 1]"),
    ("averaging[3].burn_in=1.0", "averaging[3].burn_in", "[0, 1)"),
    ("averaging[3].burn_in=1000000", "averaging[3].burn_in", "less than the step budget"),
    ("averaging[3].init=last", "averaging[3].init", "first, zero"),
    ("averaging[1].until_full=parital", "averaging[1].until_full", "did you mean 'partial'"),
    ("averaging[1].buffers=dead", "averaging[1].buffers", "live, average, recompute"),
    ("averaging[2].decay=1.0", "averaging[2].decay", "[0, 1)"),
    ("averaging[0].scheme=lwa", "averaging[0].scheme", "did you mean 'lawa'"),
    ("averaging[0].scheme=null", "averaging[0].scheme", "none, lawa, ema, tail, wsm"),
    ("averaging[0]={}", "averaging[0].scheme", "is required"),
    ("averaging[0].k=3", "averaging[0].k", "unknown key"),
    ("averaging[0]=lawa", "averaging[0]", "a mapping"),
    ("averaging=[]", "averaging", "empty list"),
    ("averaging[2].decay=[0.9, 0.9]", "averaging[2]", "duplicate cell"),
    ("averaging[0]={scheme: lawa, k: 5, every: 2}", "averaging[1]", "duplicate cell"),
    ("averaging[0]={scheme: tail}", "averaging[0].start", "is required"),
    ("averaging[0]={scheme: ema}", "averaging[0]", "neither decay nor horizon"),
    ("averaging[0]={scheme: wsm}", "averaging[0]", "neither k nor lr_decay"),
    ("averaging[0]={scheme: wsm, k: 5, lr_decay: 0.1}", "averaging[0]", "k and lr_decay at once"),
    ("averaging[0]={scheme: wsm, k: 5, curve: cosin}", "averaging[0].curve", "did you mean 'cosine'"),
    ("averaging[0]={scheme: wsm, lr_decay: 4, every: 8}", "averaging[0].lr_decay", "at least `every`"),
    ("averaging[0]={scheme: wsm, lr_decay: 1.5}", "averaging[0].lr_decay", "(0, 1]"),
    ("averaging[0]={scheme: wsm, k: 2000000}", "averaging[0].k", "at most the step budget"),
    ("evaluate.test=yess", "evaluate.test", "true or false"),
    ("report=horizn", "report", "did you mean 'horizon'"),
    ("report=predictions", "report", "allowed: steps, final_metric, horizon"),
    ("asks=steps", "asks", "is called `report` now; write `report: …`"),
    ("overrides.lm.asks=steps", "overrides.lm.asks", "unknown key"),
    ("primary=ema", "primary", "a mapping such as {scheme: ema, horizon: 0.01}"),
    ("primary.scheme=emma", "primary.scheme", "did you mean 'ema'"),
    ("primary.scheme=none", "primary.scheme", "allowed: lawa, ema, tail, wsm"),
    ("primary.scheme=nosuch:Scheme", "primary.scheme", "cannot import scheme 'nosuch:Scheme'"),
    ("primary.horizon=2.0", "primary.horizon", "(write 2 for 2 steps"),
    ("primary.horizon=[0.01, 0.02]", "primary.horizon", "(0, 1]"),
    ("primary.decay=0.9", "primary.decay", "unknown key"),
    ("seeds=[]", "seeds", "empty list"),
    ("seeds=[0, 0]", "averaging[0]", "duplicate cell"),
    ("seeds=[0, one]", "seeds[1]", "an int from 0"),
    ("seeds=-1", "seeds", "an int from 0"),
    ("step_budget=.inf", "step_budget", "multiple of the workload's own budget"),
    ("step_budget=0", "step_budget", "an int ≥ 1"),
    ("step_budget=1e3", "step_budget", "write 1000 for steps, or 1000x for a multiple"),
    ("step_budget=[0.5, 20.0]", "step_budget[1]", "write 20 for steps, or 20x for a multiple"),
    ("step_budget=1_000", "step_budget", "(write 1000, without quotes)"),
    ("step_budget='500'", "step_budget", "(write 500, without quotes)"),
    ("training.batch_size=512.0", "training.batch_size", "write 512 for examples, or 512x for a multiple"),
    ("averaging[1].every=8.0", "averaging[1].every", "(write 8 for 8 steps"),
    ("averaging[3].horizon=1e2", "averaging[3].horizon", "(write 100 for 100 steps"),
    ("averaging[3].burn_in=50.0", "averaging[3].burn_in", "(write 50 for 50 steps"),
    ("averaging[0]={scheme: tail, start: 1e3}", "averaging[0].start", "(write 1000 for 1000 steps"),
    ("schedule[0].length=100.0", "schedule[0].length", "(write 100 for 100 steps"),
    ("schedule[0].warmup=50.0", "schedule[0].warmup", "(write 50 for 50 steps"),
    ("evaluate.every=1e1", "evaluate.every", "(write 10 for 10 steps"),
    ("seeds=[1e1]", "seeds[0]", "(write 10)"),
    ("seeds=[010, 1:30]", "seeds[1]", "got '1:30'"),
    ("fuse=yes", "fuse", "got 'yes'; allowed: true or false"),
    ("study=010", "study", "in quotes where it reads as a number"),
    ("optimizer.lr=.inf", "optimizer.lr", "a number > 0"),
    ("optimizer.lr=!!float x", "--set optimizer.lr", "is no !!float"),
    ("workloads=[..]", "workloads[0]", "there are criteo1tb"),
    ("workloads=['a:']", "workloads[0]", "as Python spells names"),
    ("workloads=['..:x']", "workloads[0]", "as Python spells names"),
    ("workloads=['os:system']", "workloads[0]", "module of Python's own"),
    (f"workloads=[{'x' * 5000}]", "workloads[0]", "no workload 'xxx"),
    (f"study={'x' * 5000}", "study", "≤ 100 letters"),
    ("optimizer.name=nadmw", "optimizer.name", "did you mean 'nadamw'"),
    ("optimizer.lr=0", "optimizer.lr", "a number > 0"),
    ("optimizer.lr=[0.1, x]", "optimizer.lr[1]", "a number > 0"),
    ("optimizer.momentum=0.9", "optimizer.momentum", "nadamw has no such setting"),
    ("optimizer={name: sgd}", "optimizer.lr", "is required"),
    ("optimizer=3", "optimizer", "a mapping"),
    ("schedule[0].length=1.5", "schedule[0].length", "(0, 1]"),
    ("schedule[0].length=1000000", "schedule[0].length", "at most the step budget"),
    ("schedule[0].warmup=2.0", "schedule[0].warmup", "[0, 1]"),
    ("schedule[1].lr_decay=0.96", "schedule[1].lr_decay", "together at most the length"),
    ("schedule[0].shape=cosin", "schedule[0].shape", "did you mean 'cosine'"),
    ("schedule[0].final_lr=2", "schedule[0].final_lr", "[0, 1]"),
    ("schedule[0]={shape: constant, final_lr: 0.1}", "schedule[0].final_lr", "does not decay"),
    ("schedule[0]={shape: linear, power: 2}", "schedule[0].power", "exponent of shape power; got shape linear"),
    ("schedule[0]={shape: inverse_sqrt, warmup: 0}", "schedule[0].shape", "with a warmup of 1 step or more"),
    ("schedule[0]={shape: inverse_sqrt, warmup: 5, lr_decay: 5, final_lr: 0.9}", "schedule[0].final_lr", "at most 0."),
    ("evaluate.every=0.0", "evaluate.every", "(0, 1]"),
    ("evaluate.every=[0.1, 0.2]", "evaluate.every", "(0, 1]"),
    ("evaluate.every=1000000", "evaluate.every", "at most the step budget"),
    ("overrides.lmm.optimizer.lr=1", "overrides.lmm", "did you mean 'lm'"),
    ("overrides.lm.seeds=[1]", "overrides.lm.seeds", "unknown key"),
    ("overrides.lm.optimizer.lr=-1", "overrides.lm.optimizer.lr", "a number > 0"),
    ("overrides.lm.optimizer.lrr=1", "overrides.lm.optimizer.lrr", "did you mean 'lr'"),
    ("overrides=[1]", "overrides", "workload ->"),
    ("workloads=[lmm]", "workloads[0]", "did you mean 'lm'"),
    ("workloads=[]", "workloads", "empty list"),
    ("workloads=[lm, lm]", "workloads[1]", "stands twice"),
    ("workloads=['no.such:Thing']", "workloads[0]", "cannot import"),
    ("workloads=['json:dumps2']", "workloads[0]", "cannot import"),
    ("preset=maxi", "preset", "mini"),
    ("resources.gpu=1.5", "resources.gpu", "from 0 to 1"),
    ("resources.cpu=0", "resources.cpu", "a number > 0"),
    ("tracking.wandb=maybe", "tracking.wandb", "offline, online, disabled"),
    ("tracking.projct=x", "tracking.projct", "did you mean 'project'"),
    ("fuse=maybe", "fuse", "true or false"),
    ("study=../../etc", "study", "letters, digits"),
    ("study=null", "study", "is empty"),
    ("question=[x]", "question", "a text"),
]


@pytest.mark.parametrize(("assignment", "path", "allowed"), WRONG, ids=[w[0][:60] for w in WRONG])
def test_a_wrong_spec_is_one_line(face: Path, assignment: str, path: str, allowed: str) -> None:
    with pytest.raises(SpecError) as caught:
        cells(load_spec(face, [assignment]))
    line = str(caught.value)
    assert line.startswith(f"{face}: ")
    assert path in caught.value.path
    assert allowed in line
    assert "\n" not in line
    assert len(line) <= 300


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN_FILES = {
    "a list": ("- a\n- b\n", "allowed: a mapping"),
    "empty": ("", "allowed: a mapping"),
    "a word": ("horizon", "allowed: a mapping"),
    "not YAML": ("study: 'x\n", "not YAML"),
    "a tab": ("\tstudy: x\n", "not YAML"),
    "an object": ("study: !!python/object/apply:os.system [ls]\n", "not YAML"),
    "a bomb": (BOMB, "unfolds to more than"),
    "a cycle": ("a: &a [*a]\n", "not YAML"),
    "deep": ("[" * 3000, "deeper than"),
    "deep but closed": ("study: " + "[" * 80 + "]" * 80, "deeper than"),
    "a key twice": ("study: a\nstudy: b\n", "stands twice"),
    "a list as key": ("? [a, b]\n: c\n", "plain word"),
    "binary": (b"\xff\xfe\x00", "not UTF-8"),
    "UTF-16": ("study: x".encode("utf-16"), "not UTF-8 text but UTF-16; save it as UTF-8"),
    "huge": ("a" * 1_000_001, "larger than"),
    "no study": ("workloads: lm\naveraging: {scheme: none}\n", "study: is required"),
    "no averaging": ("study: x\nworkloads: lm\n", "averaging: is required"),
    "a grid bomb": (
        "study: x\nworkloads: lm\nseeds: [0, 1]\noptimizer: {lr: &l ["
        + ", ".join(f"{i}.5" for i in range(1, 1500))
        + "]}\naveraging: [{scheme: ema, decay: ["
        + ", ".join(f"0.{i:04d}" for i in range(1, 1500))
        + "]}]\n",
        "a grid of 4,494,002 cells (2 seeds and presets × 1,499 optimizers × 1,499 averagings of lm); "
        "allowed: at most 100,000",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    content, said = BROKEN_FILES[name]
    path = tmp_path / "broken.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.yaml"], "missing.yaml: no such file"),
        (["face.yaml", "--set", "averaging[1].k=0"], "averaging[1].k"),
        (["face.yaml", "--set", "nonsense"], "--set"),
        (["."], "cannot be read"),
    ],
)
def test_bad_input_exits_2_and_launches_nothing(
    face: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(face.parent)
    with pytest.raises(SystemExit) as exited:
        main([command, *arguments])
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [entry.name for entry in face.parent.iterdir()] == ["face.yaml"]


def test_the_pre_specified_setting_is_the_studys_or_ema_of_one_percent(face: Path) -> None:
    for assignments, scheme, horizon in (
        ([], "ema", 0.01),
        (["primary.scheme=lawa"], "lawa", 0.01),
        (["primary={scheme: wsm, horizon: 40}"], "wsm", 40),
    ):
        spec = load_spec(face, assignments)
        assert (spec.primary.scheme, spec.primary.horizon) == (scheme, horizon)
        assert spec.raw["primary"] == {"scheme": scheme, "horizon": horizon}
    assert load_spec(face).report is None


def test_numbers_are_read_as_written(face: Path) -> None:
    spec = load_spec(face, ["seeds=[010, 0x1F]", "step_budget=[20x, 2.0, 0o20]", "training.batch_size=[2.0, 16x]"])
    assert spec.seeds == (10, 31)
    assert [value for _, value in spec.grids["lm"].step_budget] == [20.0, 2.0, 16]
    assert said(spec, "training", "batch_size") == [2.0, 16.0]


def test_the_case_of_octal_and_exponent_is_refused() -> None:
    case = Path(__file__).parents[2].parent / "shared" / "cases" / "octal_and_exponent.yaml"
    if not case.exists():
        pytest.skip("the shared cases are not beside the repository")
    with pytest.raises(SpecError, match=re.escape("seeds[1]: got '1:30'")):
        load_spec(case)
    with pytest.raises(SpecError, match="write 1000 for steps, or 1000x"):
        load_spec(case, ["seeds=[010]"])


def test_a_large_wrong_spec_is_refused_at_once(tmp_path: Path) -> None:
    rates = ", ".join(f"{i}e-4" for i in range(1, 201))
    late = {  # a grid of 40,000 trainings whose last key is wrong, and one of 8 million cells
        "schedule: {length: 1000000}": f"optimizer: {{lr: [{rates}], weight_decay: [{rates}]}}",
        "evaluate: {every: 0.1}": f"optimizer: {{lr: [{rates}], eps: [{rates}], weight_decay: [{rates}]}}",
    }
    path = tmp_path / "late.yaml"
    for last, grid in late.items():
        path.write_text(f"study: s\nworkloads: lm\n{grid}\naveraging: {{scheme: none}}\n{last}\n")
        began = time.process_time()
        with pytest.raises(SpecError):
            cells(load_spec(path))
        assert time.process_time() - began < 3


def test_cells_are_counted_before_any_is_made(face: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.axes.Written.points", None)
    with pytest.raises(SpecError, match="a grid of 304,560 cells over 2 workloads") as caught:
        load_spec(face, [f"seeds={list(range(2256))}"])
    assert "(2,256 seeds and presets × 2 optimizers × 5 schedules × 9 averagings of lm)" in str(caught.value)


def test_set_overrides_anything(face: Path) -> None:
    assignments = ["optimizer.lr=1e-3", "averaging[1].k=[3]", "evaluate.every=7", "tracking.project=p", "seeds=9"]
    spec = load_spec(face, assignments)
    assert said(spec, "optimizer", "lr") == [0.001]  # 1e-3 is a number, as in YAML 1.2
    assert said(spec, "averaging", "k") == [3]
    assert {cell.evaluate_every_steps for cell in cells(spec)} == {7}
    assert spec.tracking.project == "p"
    assert spec.seeds == (9,)


def test_the_resolved_spec_means_the_same_cells(face: Path, tmp_path: Path) -> None:
    spec = load_spec(face, ["optimizer.lr=0.02"])
    again = tmp_path / "spec.yaml"
    again.write_text(dump_yaml(dict(spec.raw)))
    assert cells(load_spec(again)) == cells(spec)
