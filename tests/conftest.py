"""Fixtures that several rooms share: a user's workload outside the repo, a stand-in for the W&B server."""

import json
from pathlib import Path

import pytest
from tiny_workload import write_tiny

pytest_plugins = ["s3_server", "wandb_server"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the workload's module, for a whole session."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    return folder


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the repo with ``tinywork.py`` in it, which is also the current directory."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    write_tiny(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    import sys

    sys.modules.pop("tinywork", None)
    return folder


@pytest.fixture(autouse=True)
def no_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables have the width they have off a terminal, whatever runs the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose charts are made and checked against their schema, and not drawn, which takes seconds."""
    from analysis.presentation import figure_files

    def draw(chart: dict[str, object], folder: Path, name: str) -> int:
        json.dumps(chart, allow_nan=False)
        return 100

    monkeypatch.setattr(figure_files, "write", draw)
    monkeypatch.setattr(figure_files, "bundle", lambda: "")


@pytest.fixture
def uncharted(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of words and tables alone, for what does not look at a chart: making these is most of a report's time."""
    from analysis import report

    monkeypatch.setattr(report.Report, "charts", {})
