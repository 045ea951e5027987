"""The status line: counts, eta, best value per workload so far."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sweeps.cells import cells
from sweeps.plan import Trajectory, trajectories
from sweeps.progress import Progress, duration
from sweeps.spec import parse_spec


@pytest.fixture
def four(outside: Path) -> list[Trajectory]:
    raw = {
        "study": "p",
        "workloads": ["lm", "tinywork:Tiny"],
        "averaging": {"scheme": "none"},
        "seeds": [0, 1],
    }
    return trajectories(cells(parse_spec(raw)), fuse=True)


def test_counts_and_best_values_follow_the_trials(four: list[Trajectory]) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200), four, num_done_before=2)
    assert "2 of 6 trials done · 0 running · 0 failed" in progress.line()
    assert "eta" not in progress.line()  # no pace yet
    lm = [one.name for one in four if one.cells[0].training.workload == "lm"]
    tiny = [one.name for one in four if one.name not in lm]
    for name in lm + tiny:
        progress.started(name)
    for name, value in ((lm[0], 2.0), (lm[1], 1.5), (lm[0], 1.9), (tiny[0], 0.5), (tiny[1], 0.4)):
        progress.progressed(name, 10, value)
    line = progress.line()
    assert "4 running" in line
    assert "best lm loss 1.5" in line  # lower is better
    assert "best tinywork:Tiny accuracy 0.5" in line  # higher is better
    assert "eta" in line
    progress.done(lm[0])
    progress.failed(tiny[0])
    assert "3 of 6 trials done · 2 running · 1 failed" in progress.line()
    assert len(out.getvalue().splitlines()) == 2  # without a terminal: a line where a trial ends


def test_eta_is_the_work_left_at_the_pace_so_far(
    four: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(file=io.StringIO()), four[:1])
    progress.progressed(four[0].name, four[0].length_steps // 4, None)
    now[0] = 110.0
    assert progress.eta_seconds() == pytest.approx(30.0)
    progress.done(four[0].name)
    assert progress.eta_seconds() == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
