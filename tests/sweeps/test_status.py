"""A run folder's state as it grows, torn lines, what ended how, and how it is drawn; against hand-worked numbers."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from growing_run import AVERAGING, Writer, console, plan_folder
from rich.console import Console

from analysis.run_folder import study
from analysis.run_folder.live_records import as_line
from analysis.statistics.steps_to_target import steps_to_target
from sweeps import run_folder, screen, trajectory
from sweeps.cli import main
from sweeps.recorder import Recorder
from sweeps.spec import parse_spec
from sweeps.status import Status, prespecified
from sweeps.work import work


def drawn(seen: Status, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False)
    console.print(screen.frame(seen, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_growing_folder_is_followed_to_the_point_where_each_meets_the_target(
    run: Path, writers: list[Writer]
) -> None:
    seen = Status(run)
    assert "0 of 2 trials done · 0 running · 0 failed · 2 waiting" in drawn(seen)
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.ema, 20, 0.6))
    seen.look()
    text = drawn(seen)
    assert "w: Does it pay?" in text
    assert "1 running" in text
    assert f"seed {one.one.cells[0].training.seed} · step 20 of 600 (3%)" in text
    assert "target 0.8" in text
    one.record((one.raw, 40, 0.7), (one.ema, 40, 0.9))
    seen.look()
    # EMA: 20 + 20 · (.8 − .6) / (.9 − .6) = 33.3; raw has not met it by step 40
    assert seen.trials[one.one.name].curves[one.ema].met.point == pytest.approx(100 / 3)
    assert "< 0.83 (EMA 1 %)" in drawn(seen)
    assert "1 of 2 met, first at 33" in drawn(seen)
    (pairs,) = [row for row in seen.pairs() if row.scheme == "EMA 1 %"]
    assert (pairs.both, pairs.only_average, pairs.only_baseline, pairs.neither, pairs.open) == (0, 1, 0, 0, 1)
    one.record((one.raw, 60, 0.9))
    seen.look()
    assert "0.67 (EMA 1 %)" in drawn(seen)  # raw: 40 + 20 · .1 / .2 = 50
    assert "0.67 " in drawn(seen).split("average ÷ non-averaged baseline")[1].split("step 60")[0]
    assert "best tinywork:Tiny accuracy 0.9" in drawn(seen)


def test_pairs_leave_no_seed_out(run: Path, writers: list[Writer]) -> None:
    one, other = writers
    for each in writers:
        each.attempt()
    one.record((one.raw, 20, 0.9), (one.ema, 20, 0.7), (one.ema, 40, 0.7))
    other.record((other.raw, 20, 0.1), (other.ema, 20, 0.7))
    one.finish()
    other.finish()
    (pairs,) = [row for row in Status(run).pairs() if row.scheme == "EMA 1 %"]
    assert (pairs.both, pairs.only_average, pairs.only_baseline, pairs.neither, pairs.open) == (0, 0, 1, 1, 0)
    assert pairs.ratio is None


def test_each_training_counts_once_however_many_of_its_seeds_have_met(run: Path) -> None:
    trained = [Writer(run, one) for one in plan_folder(run, seeds=[0, 1], optimizer={"lr": [0.01, 0.03]})]
    slow = [each for each in trained if dict(each.one.cells[0].training.settings)["lr"] == 0.01]
    fast = [each for each in trained if each not in slow]
    for each, ema in ((slow[0], 20), (slow[1], 20), (fast[0], 80)):  # 1/4, 1/4 | 1: over trainings 1/2
        each.attempt()
        each.record((each.raw, 80, 0.8), (each.ema, ema, 0.8))
    (pairs,) = [row for row in Status(run).pairs() if row.scheme == "EMA 1 %"]
    assert pairs.both == 3
    assert pairs.ratio == pytest.approx(0.5)


def test_what_was_read_is_not_read_again(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.raw, 40, 0.6))
    seen = Status(run)
    read = one.live.stat().st_size
    with one.live.open("r+b") as stream:  # unreadable now, if anyone looked
        stream.write(b"#" * (read - 1) + b"\n")
        stream.seek(0, 2)
        stream.write(as_line(one.row(one.raw, 60, 0.7), seen.trials[one.one.name].live.crc)[0])
    seen.look()
    assert seen.trials[one.one.name].curves[one.raw].metric == [0.5, 0.6, 0.7]
    with pytest.raises(ValueError, match="broken record"):
        Status(run)


def test_a_torn_line_waits_for_its_end(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5))
    line = json.dumps(one.row(one.raw, 40, 0.7)).encode() + b"\n"
    with one.live.open("ab") as stream:
        stream.write(line[:70])
    seen = Status(run)
    curve = seen.trials[one.one.name].curves[one.raw]
    assert curve.steps == [20]
    one.record((one.raw, 60, 0.8))  # a restarted trial cuts the torn line off first
    seen.look()
    assert curve.steps == [20, 60]


def test_a_file_begun_anew_is_read_from_its_start(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.raw, 40, 0.6))
    seen = Status(run)
    one.live.unlink()
    one.record((one.raw, 20, 0.55))
    seen.look()
    assert seen.trials[one.one.name].curves[one.raw].metric == [0.55]


def test_done_is_read_once_and_then_known_by_its_marker(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.ema, 20, 0.6))
    seen = Status(run)
    one.record((one.raw, 40, 0.9), (one.ema, 40, 0.8))
    one.finish()
    for looked in (seen, Status(run)):  # one that saw it run, one that comes later
        looked.look()
        trial = looked.trials[one.one.name]
        assert trial.state == "done"
        assert trial.curves[one.raw].best == 0.9
        assert trial.curves[one.raw].met.point == pytest.approx(35.0)
        assert trial.curves[one.ema].met.point == 40.0
    (run / "records" / f"{one.one.name}.parquet").unlink()
    seen.look()
    assert seen.trials[one.one.name].curves[one.raw].best == 0.9


def test_diverged_and_missing_values_never_meet_a_target(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    with Recorder(one.live) as recorder:
        recorder.append(
            [one.row(one.raw, 20, math.nan), one.row(one.raw, 40, 0.9, diverged=True), one.row(one.ema, 20, 0.1)]
        )
    seen = Status(run)
    curve = seen.trials[one.one.name].curves[one.raw]
    assert curve.best is None
    assert math.isnan(curve.met.point)
    drawn(seen)
    one.finish()
    assert Status(run).trials[one.one.name].curves[one.raw].best is None


def test_silence_is_a_stall_and_an_end_is_none(run: Path, writers: list[Writer]) -> None:
    one, other = writers
    one.attempt()
    one.record((one.raw, 20, 0.5))
    other.attempt(status="interrupted")
    seen = Status(run)
    assert [trial.state for trial in seen.trials.values()].count("running") == 1
    patience = seen.trials[one.one.name].patience()
    written = one.live.stat().st_mtime
    seen.look(now=written + patience - 1)
    assert seen.named("stalled") == []
    seen.look(now=written + patience + 1)
    assert [trial.name for trial in seen.named("stalled")] == [one.one.name]
    text = drawn(seen)
    assert "last record 1 min 1 s ago · stalled" in text
    assert "0 running · 0 failed" in text
    assert "1 interrupted · 1 stalled" in text


def test_failed_ones_show_the_end_of_their_log_until_a_retry_runs(run: Path, writers: list[Writer]) -> None:
    one, other = writers
    one.attempt(status="failed")
    (one.folder / "log").write_text("first\nsecond\nthird\nRuntimeError: no [such] luck\n")
    other.attempt()
    other.finish()
    seen = Status(run)
    text = drawn(seen)
    assert "1 failed" in text
    assert "RuntimeError: no [such] luck" in text
    assert "second" in text
    assert "first" not in text.split("failed: ")[1]
    assert screen.ended(seen) is None  # it may be tried again
    seen.look(now=time.time() + screen.QUIET_SECONDS + 5)
    assert screen.ended(seen) == 1
    one.attempt(1)
    seen.look()
    assert [trial.name for trial in seen.named("running")] == [one.one.name]
    assert "no [such] luck" not in drawn(seen)


def test_the_line_counts_best_values_by_workload_and_what_the_launcher_tells(run: Path, writers: list[Writer]) -> None:
    one, other = writers
    for each, value in ((one, 0.5), (other, 0.7)):
        each.attempt()
        each.record((each.raw, 20, value))
    seen = Status(run)
    assert seen.line() == "0 of 2 trials done · 2 running · 0 failed · best tinywork:Tiny accuracy 0.7"
    seen.told[one.one.name] = "failed"  # its process vanished, and its files still say that it runs
    other.finish()
    seen.look()
    assert seen.line() == "1 of 2 trials done · 0 running · 1 failed · best tinywork:Tiny accuracy 0.7"
    assert seen.share_done() == pytest.approx((1 + 20 / 600) / 2)


def test_lower_is_better_where_it_is(outside: Path) -> None:
    (planned,) = plan_folder(outside / "run", workloads="lm", step_budget=600)
    one = Writer(outside / "run", planned)
    one.attempt()
    one.record((one.raw, 20, 3.0), (one.raw, 40, 2.0), (one.raw, 60, 2.5))
    assert Status(outside / "run").line().endswith("best lm loss 2")


def test_wa_run_counts_what_it_trains_and_what_is_done(run: Path, writers: list[Writer]) -> None:
    one, other = writers
    other.attempt(status="interrupted")  # of a study that nobody asks for now
    assert "0 of 1 trials done" in Status(run, only={one.one.name}).line()
    other.attempt()
    other.finish()
    assert "1 of 2 trials done" in Status(run, only={one.one.name}).line()


def test_the_line_of_wa_run_is_said_as_trials_end_and_failures_at_once(
    run: Path, writers: list[Writer], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    one, other = writers
    told, out = console()
    with screen.RunScreen(told, Status(run)) as shown:
        for at, act in ((1.0, lambda: None), (2.5, one.attempt), (5.0, one.finish), (8.0, lambda: None)):
            now[0] = at
            act()
            shown.tick()
        shown.retried(other.one.name, "its node was lost")
        shown.failed(other.one.name, "KeyError: [red]'x'")
    seed = other.one.cells[0].training.seed
    lines = out.getvalue().splitlines()
    assert [line.split(" trials")[0] for line in lines[:2]] == ["[2 s] 0 of 2", "[5 s] 1 of 2"]
    assert lines[2].endswith(f"seed {seed} failed, and is tried again: its node was lost")
    assert lines[3].endswith(f"seed {seed} failed: KeyError: [red]'x'")
    shown.look()
    assert "1 of 2 trials done · 0 running · 1 failed" in shown.status.line()


def test_a_narrow_terminal_shows_the_whole_line(run: Path, writers: list[Writer]) -> None:
    writers[0].attempt()
    writers[0].record((writers[0].raw, 300, 0.5))
    seen = Status(run)
    out = io.StringIO()
    Console(file=out, width=60, color_system=None).print(screen.bar_and_line(seen, 60))
    bar, *rest = out.getvalue().splitlines()
    assert len(bar) == 60
    assert set(bar) <= set("━╸╺ ")
    assert " ".join(" ".join(rest).split()) == seen.line()


def test_json_says_what_the_screen_says(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.ema, 20, 0.6), (one.ema, 40, 1.0))
    done = CliRunner().invoke(main, ["watch", str(run), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    first, second = told["trajectories"]
    assert (told["done"], told["eta_seconds"], first["state"], second["state"]) == (False, None, "running", "waiting")
    assert (first["name"], first["step"], first["length_steps"]) == (one.one.name, 40, 600)
    cells = {cell["cell_id"]: cell for cell in first["cells"]}
    assert cells[one.ema]["best"] == 1.0
    assert cells[one.ema]["met_at_step"] == pytest.approx(30.0)  # .6 at 20, 1 at 40: .8 between them
    assert cells[one.raw]["met_at_step"] is None
    assert {row["scheme"]: row["only_average"] for row in told["to_target_so_far"]}["EMA 1 %"] == 1


def test_eta_is_the_work_left_at_the_pace_of_the_trials(run: Path, writers: list[Writer]) -> None:
    plan = json.loads((run / "plan.json").read_text())
    for entry in plan["trajectories"]:
        entry["expected_seconds"] = 100.0
    (run / "plan.json").write_text(json.dumps(plan))
    one, other = writers
    assert Status(run).eta_seconds() is None
    one.attempt(status="done")
    one.finish(seconds=60.0)
    other.attempt(seconds=30.0, ago=30.0)
    other.record((other.raw, 300, 0.5))  # half of 600 steps
    seen = Status(run)
    # 90 s for 150 s of expected work; 50 s of it are left, on one slot
    assert seen.eta_seconds() == pytest.approx(50 * 90 / 150, abs=5)
    other.finish()
    seen.look()
    assert seen.eta_seconds() == 0


def test_a_real_run_agrees_with_the_analysis(run: Path) -> None:
    averaging = [{"scheme": "none"}, {"scheme": "ema", "horizon": [0.02, 0.1], "every": 1}]
    planned = plan_folder(run, 0.5, seeds=[0, 1], step_budget=200, averaging=averaging, evaluate={"every": 4})
    for one in planned:
        trajectory.run(one, run_folder.trajectory_folder(run, one.name))
        if one.cells[0].training.seed:
            run_folder.compact(run, one.name)
    run_folder.write_trials(run)
    read = study.read(run)
    points = steps_to_target(read.cells, read.records).set_index("cell_id")["point"]
    best = read.records.groupby("cell_id")["metric"].max()
    seen = Status(run)
    assert seen.is_done
    curves = {name: c for trial in seen.trials.values() for name, c in trial.curves.items()}
    assert len(curves) == len(read.cells)
    assert points.notna().sum() >= 4
    for name, curve in curves.items():
        assert curve.met.point == pytest.approx(points[name], nan_ok=True)
        assert curve.best == best.get(name)
    assert "2 of 2 trials done" in drawn(seen)


def test_the_prespecified_horizon_is_compared_and_not_the_best(run: Path, writers: list[Writer]) -> None:
    one = writers[0]
    one.attempt()
    one.record((one.raw, 20, 0.5), (one.ema, 20, 0.6), (one.wide, 20, 0.9))
    trial = Status(run).trials[one.one.name]
    assert [curve.cell["cell_id"] for curve in prespecified(list(trial.curves.values()))] == [one.ema]
    best = screen.best_of_each_scheme(list(trial.curves.values()))
    assert [curve.cell["cell_id"] for curve in best][:2] == [one.raw, one.wide]


def test_of_two_near_horizons_the_nearer_is_compared(run: Path) -> None:
    averaging = [{"scheme": "none"}, {"scheme": "ema", "horizon": [0.008, 0.01, 0.012], "every": 1}]
    (one,) = plan_folder(run, seeds=[0], averaging=averaging)
    (curve,) = prespecified(list(Status(run).trials[one.name].curves.values()))
    assert curve.cell["horizon_fraction"] == pytest.approx(0.01)


def test_bars_share_a_scale_and_cut_the_first_fall() -> None:
    assert screen.curve_bars([[99.0, 8, 7, 6, 5, 4, 3, 1]]) == ["██▇▆▅▄▃▁"]
    assert screen.curve_bars([[0.0, 1.0], [2.0, math.nan]]) == ["▁▅", "█ "]
    assert screen.curve_bars([[1.0] * 100], width=10) == ["▁" * 10]
    assert screen.curve_bars([[float(i) for i in range(100)]], width=4) == ["▁▃▆█"]
    assert screen.curve_bars([[], [math.nan]]) == ["", " "]


def test_a_study_added_meanwhile_is_seen(run: Path, writers: list[Writer]) -> None:
    writers[0].attempt()
    seen = Status(run)
    todo = work(
        [parse_spec({"study": "more", "workloads": "tinywork:Tiny", "seeds": [5], "averaging": AVERAGING[0]})], run
    )
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    seen.look()
    assert set(seen.trials) == {writers[0].one.name, todo.trajectories[0].name}
    assert "more" in drawn(seen)


def test_sixty_columns_say_what_the_tables_say_and_cut_nothing(run: Path, writers: list[Writer]) -> None:
    for one, trifle in zip(writers, (0.0, 1e-7), strict=True):  # equal seeds have no interval
        one.attempt()
        for step in range(20, 320, 20):
            average = 0.55 + trifle + step / 1000
            one.record((one.raw, step, 0.5 + step / 1000), (one.ema, step, average))
    writers[1].attempt(0, "failed")
    (writers[1].folder / "log").write_text("RuntimeError: " + "long " * 40)
    narrow, wide = (drawn(Status(run), width) for width in (60, 160))
    assert max(map(len, narrow.splitlines())) <= 60
    assert "…" not in narrow
    for said in (
        *("EMA 1 %, best of 2 · best accuracy 0.85", "baseline · best accuracy 0.8 · target 0.8 met at 300"),
        *("0.83 (EMA 1 %)", "both met 2", "step 300 of 600 (50%)", "average EMA 1 % · steps ratio where both met 0.83"),
    ):
        assert said in " ".join(narrow.split()), narrow
    bars = {line.strip() for line in narrow.splitlines() if line.strip().startswith("▁")}
    assert len(bars) == 2
    assert all(bar in wide for bar in bars)
