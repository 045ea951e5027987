"""`wa average`: the options, the order of the files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from sweeps.cli import main
from wa.checkpoint_files import step_in


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Checkpoints of steps 2, 10 and 100 whose weight is their step, in the order of their names."""
    monkeypatch.chdir(tmp_path)
    for step in (2, 10, 100):
        save_file({"w": torch.tensor([float(step)])}, f"step_{step}.safetensors")
    return sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ([], 112 / 3),
        (["--lawa"], 112 / 3),
        (["--weights", "2,1,1"], (2 * 10 + 100 + 2) / 4),
        (["--ema", "0.5"], ((10 + 100) / 2 + 2) / 2),
        (["--ema", "0.5", "--by-step"], ((2 + 10) / 2 + 100) / 2),
        (["--ema", "0.5", "--step-pattern", "_([0-9]+)"], ((2 + 10) / 2 + 100) / 2),
    ],
)
def test_what_is_averaged(files: list[str], options: list[str], made: float) -> None:
    done = CliRunner().invoke(main, ["average", *files, *options, "-o", "out.safetensors"])
    assert done.exit_code == 0, done.output
    assert done.output == "out.safetensors: the average of 3 checkpoints\n"
    torch.testing.assert_close(load_file("out.safetensors")["w"].item(), made, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lawa", "--ema", "0.9"], "--lawa, --ema and --weights at once; allowed: one of them"),
        (["--weights", "1,2"], "2 weights for 3 checkpoints; allowed: one each"),
        (["--weights", "1,-1,0"], "allowed: finite numbers whose sum is not 0"),
        (["--weights", "1,x,2"], "--weights: got '1,x,2'; allowed: numbers with commas"),
        (["--ema", "1.5"], "decay"),
        (["gone.safetensors"], "gone.safetensors: no such file or directory; check the path"),
        (["--step-pattern", "_("], "'_(' is no pattern with the step in a group"),
        (["--step-pattern", "x([0-9]+)"], "step_10.safetensors: its name tells no step"),
        (["-o", "out.pt"], "out.pt: allowed: the name of a new .safetensors file"),
        (["-o", "step_2.safetensors"], "step_2.safetensors: it exists; choose another path"),
        (["-o", "no/out.safetensors"], "no/out.safetensors: its folder does not exist"),
    ],
)
def test_what_is_refused_is_one_line_and_no_file(files: list[str], arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["average", *files, "-o", "out.safetensors", *arguments])
    assert done.exit_code == 2
    assert said in done.output
    assert done.output.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == files


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_1000", 1000),
        ("checkpoint-2000", 2000),
        ("ckpt_3000.pt", 3000),
        ("epoch=3-step=400.ckpt", 400),
        ("global_step5000", 5000),
        ("resnet50_iter_0000600.pth", 600),
        ("0500.safetensors", 500),
        ("epoch_3.pt", None),
        ("resnet50_100.pt", None),
        ("model-00001-of-00002.safetensors", None),
        ("last.ckpt", None),
    ],
)
def test_steps_in_names(name: str, step: int | None) -> None:
    assert step_in(name) == step
