"""`wa`, but for its reports, which take longer than what most tests of killed processes look at."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from sweeps import cli, run


def conclude(run: Path, console: Any, baseline: str | None = None) -> None:
    (run / "report.html").write_text("undrawn")


if __name__ == "__main__":
    cli._conclude = conclude
    if storage := os.environ.get("UNDRAWN_STORAGE"):
        run.run_studies = partial(run.run_studies, storage=storage)
    sys.exit(cli.main())
