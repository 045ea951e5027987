"""The run that nothing disturbed, once a session."""

from pathlib import Path

import pandas as pd
import pytest
from undisturbed_run import undisturbed_records


@pytest.fixture(scope="session")
def undisturbed(tiny_folder: Path) -> pd.DataFrame:
    return undisturbed_records(tiny_folder)
