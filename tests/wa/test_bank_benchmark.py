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
    assert [name for _, name in lines] == [
        "one EMA update, decay .9 / swa_utils",
        "one EMA update, decay .99 / swa_utils",
        "bank of 16, every = 8 / training step",
        "bank of 16, every = 8 … 64 / training step",
        "training step, seconds",
        "import wa beyond torch, seconds",
    ]
    assert all(-1 < float(value) < 10 for value, _ in lines)
