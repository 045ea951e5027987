"""What does averaging cost a user, and what did the sweep pay?"""

from __future__ import annotations

import pandas as pd

from analysis import device_hours
from analysis.core import Core

TITLE = "Device-hours"
CAPTION = ""
RULE = device_hours.USER_RULE


def tables(core: Core) -> dict[str, pd.DataFrame]:
    return {"sweep_device_hours": device_hours.sweep_hours(core.cells, core.records, core.study.trials)}
