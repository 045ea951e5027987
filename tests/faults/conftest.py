"""The run that nothing disturbed, which every disturbed one must equal."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import STUDY, WA

from analysis.run_folder.records import load_records


@pytest.fixture(scope="session")
def undisturbed(tiny_folder: Path) -> pd.DataFrame:
    folder = tiny_folder
    (folder / "kills.yaml").write_text(STUDY)
    done = subprocess.run([WA, "run", "kills.yaml", "--out", "run"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_records(folder / "run")
