"""The short form of benchmarks/bank.py runs and prints its ratios (no bounds: machines in CI are noisy)."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_short_form_prints_every_ratio():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.bank", "--short"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=1) for line in output.splitlines()]
    names = [name for _, name in lines]
    size = "1 M parameters"
    assert {f"{size}: one EMA / torch._foreach_lerp_", f"{size}: one EMA / swa_utils"} <= set(names)
    assert f"{size}: 8 EMAs / 8 calls of torch._foreach_lerp_" in names
    assert {f"{size}: LAWA({k}){told} / a copy" for k in (5, 50, 200) for told in ("", ", read every 20")} <= set(names)
    assert names[-4:] == [
        "bank of 16, every = 8 / training step",
        "bank of 16, every = 8 … 64 / training step",
        "training step, seconds",
        "import wa beyond torch, seconds",
    ]
    assert all(-1 < float(value) < 100 for value, _ in lines)
