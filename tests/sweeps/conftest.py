"""A run folder whose trajectories are written line by line, as a sweep would."""

from pathlib import Path

import pytest
from growing_run import Writer, plan_folder


@pytest.fixture
def run(outside: Path) -> Path:
    return outside / "run"


@pytest.fixture
def writers(run: Path) -> list[Writer]:
    return [Writer(run, one) for one in plan_folder(run, seeds=[0, 1])]
