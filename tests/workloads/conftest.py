"""One thread; each full preset's data set written once a session, and a copy of it to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from full_data import WRITERS, data_set

from workloads.data import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's data set below one root, written when it is first asked for."""
    root = tmp_path_factory.mktemp("data")

    def written(family: str) -> Path:
        folder = root / data_set(family)
        if not folder.exists():
            folder.mkdir()
            WRITERS[folder.name](folder)
        return folder

    return written


@pytest.fixture
def folder(request: pytest.FixtureRequest, data_sets: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set of the module's FAMILY, not to be changed."""
    found = data_sets(request.module.FAMILY)
    monkeypatch.setenv(VARIABLE, str(found.parent))
    return found


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return Path(shutil.copytree(folder, tmp_path / folder.name))
