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
    progress.done(lm[0])
    progress.failed(tiny[0], "why")
    assert "3 of 6 trials done · 2 running · 1 failed" in progress.line()
    assert len(out.getvalue().splitlines()) == 3  # without a terminal: a line where a trial ends, and why it failed


def test_eta_is_the_work_left_at_the_pace_so_far(four: list[Trajectory], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(file=io.StringIO()), four[:1])
    progress.progressed(four[0].name, four[0].length_steps // 4, None)
    now[0] = 110.0
    assert progress.eta_seconds() == pytest.approx(30.0)
    progress.done(four[0].name)
    assert progress.eta_seconds() == 0


def test_no_eta_before_a_twentieth_of_the_work(four: list[Trajectory], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    one = four[0]  # lm, 4,000 steps
    progress = Progress(Console(file=io.StringIO()), [one])
    now[0] = 1.0
    progress.progressed(one.name, one.length_steps // 20 - 1, None)
    assert progress.eta_seconds() is None
    assert "eta" not in progress.line()
    progress.progressed(one.name, one.length_steps // 20, None)
    assert progress.eta_seconds() == pytest.approx(19.0)
    assert "eta 19 s" in progress.line()


def test_eta_goes_by_the_pace_of_the_last_minutes(four: list[Trajectory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick for ten minutes, then at a tenth of that: the eta is that of the slow pace once the window has slid."""
    now = [0.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    one = four[0]
    progress = Progress(Console(file=io.StringIO()), [one])
    step = 0.0
    for steps_a_second, seconds in ((2.0, 600), (0.2, 900)):
        for _ in range(seconds // 5):
            now[0] += 5
            step += 5 * steps_a_second
            progress.progressed(one.name, int(step), None)
    slow = (one.length_steps - step) / 0.2
    assert progress.eta_seconds() == pytest.approx(slow, rel=0.02)
    assert len(progress.moments) < 100


def test_evaluations_further_apart_than_the_window_have_an_eta_all_the_same(
    four: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    progress = Progress(Console(file=io.StringIO()), four[:1])
    for hour in (1, 2):
        now[0] = 3600.0 * hour
        progress.progressed(four[0].name, hour * four[0].length_steps // 8, None)
        for _ in range(40):
            progress.line()
            now[0] += 60
    assert progress.eta_seconds() == pytest.approx(now[0] * 3, rel=0.01)


def test_what_earlier_runs_did_and_what_is_done_twice_is_no_pace(
    four: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    one = four[0]
    half = one.length_steps // 2
    progress = Progress(Console(file=io.StringIO()), [one], steps={one.name: half})
    assert progress.share_done() == pytest.approx(0.5)
    assert progress.eta_seconds() is None
    now[0] = 10.0
    for step in (half - 100, half, half + 100):  # its checkpoint was older than its records
        progress.progressed(one.name, step, None)
    assert progress.eta_seconds() == pytest.approx(10 * (half - 100) / 100)


def test_a_lost_trial_is_one_line_and_no_work(four: list[Trajectory], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    one, other = (each for each in four if each.cells[0].training.workload == "lm")
    progress = Progress(Console(file=out, width=60), [one, other])
    for each in (one, other):
        progress.started(each.name)
    now[0] = 10.0
    progress.progressed(one.name, one.length_steps // 2, None)
    progress.retried(other.name, "its node was lost")
    progress.failed(other.name, "KeyError: [red]'x'")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    seed = other.cells[0].training.seed
    assert lines[0] == f"lm · none · seed {seed} failed, and is tried again: its node was lost"
    assert lines[1] == f"lm · none · seed {seed} failed: KeyError: [red]'x'"
    assert progress.eta_seconds() == pytest.approx(10.0)


def test_a_narrow_terminal_shows_the_whole_line(four: list[Trajectory]) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=60, force_terminal=True, color_system=None), four)
    with progress:
        progress.progressed(four[0].name, four[0].length_steps // 2, 1.5)
    assert progress.live is not None
    progress.console.print(progress._bar_and_line())
    shown = " ".join(out.getvalue().rpartition("━")[2].split())
    assert shown.endswith(progress.line())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7620, "2 h 7 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
