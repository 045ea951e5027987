"""`wa watch`: a run folder drawn in the terminal, again every few seconds, until its study is done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from analysis.resampling import with_interval
from analysis.steps_to_target import Floats
from sweeps.progress import LINE_SECONDS, duration
from sweeps.run_folder import may_become_a_run
from sweeps.watch import Curve, Pairs, RunWatch, Trial, chosen

EXIT_DONE, EXIT_INCOMPLETE = 0, 1
QUIET_SECONDS = 60.0  # a failed trial is tried again before that; then the study has ended incomplete
PAIRS_TITLE = "to the target, average ÷ raw weights, so far"
COUNTS = ("both met", "average only", "raw only", "neither", "open")
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # of a curve
BLOCK_LINES = 7  # of a running trajectory
NARROW = 100  # columns that tables need; below, what they say stands in lines
WAIT_SECONDS = 600.0  # for a run folder that is not there yet


def watch(run: Path, console: Console, once: bool = False, every: float = 2.0, wait: float = WAIT_SECONDS) -> int:
    """Draw the folder until all its trials are done, one frame where `once`; a line now and then without a terminal.

    wait: seconds granted to a folder that is new or empty, as before its `wa run` or while that one starts.
    Returns the exit code: 0 done, looked at once, or interrupted; 1 where trials failed and nothing goes on.
    Raises: analysis.records.BadRun where `run` is no run folder.
    """
    try:
        if not once:
            _await(run, console, every, wait)
        seen = RunWatch(run)
        if once:
            console.print(frame(seen, console))
            return EXIT_DONE
        if console.is_terminal:
            return _draw_on(seen, console, every)
        return _say_on(seen, console, every)
    except KeyboardInterrupt:
        return EXIT_DONE


def _await(run: Path, console: Console, every: float, seconds: float) -> None:
    """Until the folder has a plan, which is written last; at once where it never will."""
    if seconds <= 0 or (run / "plan.json").exists() or not may_become_a_run(run):
        return
    within = f"for {duration(seconds)} at most; Ctrl-C ends it"
    console.print(f"{run}: no run folder yet; waiting for one, {within}", markup=False, soft_wrap=True)
    deadline = time.monotonic() + seconds
    while not (run / "plan.json").exists() and time.monotonic() < deadline:
        time.sleep(every)


def _draw_on(seen: RunWatch, console: Console, every: float) -> int:
    with Live(frame(seen, console), console=console, auto_refresh=False) as live:
        while (code := ended(seen)) is None:
            time.sleep(every)
            seen.look()
            live.update(frame(seen, console), refresh=True)
    return code


def _say_on(seen: RunWatch, console: Console, every: float) -> int:
    began = time.monotonic()
    said, told = -math.inf, -1
    while True:
        code = ended(seen)
        now, over = time.monotonic(), len(seen.named("done", "failed"))
        if code is not None or over != told or now - said > LINE_SECONDS:
            said, told = now, over
            line = f"[{duration(now - began)}] {status(seen, console)}"
            console.print(line, markup=False, soft_wrap=True)
        if code is not None:
            return code
        time.sleep(every)
        seen.look()


def ended(seen: RunWatch) -> int | None:
    """The exit code once nothing more will come; None while something may."""
    if seen.is_done:
        return EXIT_DONE
    failed = seen.named("failed")
    over = len(failed) + len(seen.named("done")) == len(seen.trials)
    quiet = all(trial.quiet_seconds > QUIET_SECONDS for trial in failed)
    return EXIT_INCOMPLETE if over and quiet else None


def status(seen: RunWatch, console: Console) -> str:
    """The line of `wa run`, and what only a watcher must say."""
    others = [(len(seen.named(state)), state) for state in ("waiting", "interrupted", "stalled")]
    return " · ".join([seen.status(console).line(), *(f"{n} {state}" for n, state in others if n)])


def frame(seen: RunWatch, console: Console) -> RenderableType:
    """One look at the folder: studies, the status line, raw against averages, what runs, what failed."""
    parts: list[RenderableType] = [
        _text(f"{entry['study']}: {entry['question'] or ''}".rstrip(": "), "bold") for entry in seen.plan["studies"]
    ]
    parts.append(_text(status(seen, console)))
    is_narrow = console.width < NARROW
    rows = [row for row in seen.pairs() if row.both or row.only_average or row.only_raw or row.neither]
    if rows:
        parts.append(_pair_lines(rows) if is_narrow else _pair_table(rows))
    active = seen.named("running", "stalled")
    taken = len(parts) + (1 + is_narrow) * len(rows) + 5
    room = max(1, (console.height - taken) // (BLOCK_LINES * (1 + is_narrow)))
    shown = active[:room] if console.is_terminal else active
    parts += [_running(trial, is_narrow) for trial in shown]
    if len(shown) < len(active):
        parts.append(_text(f"… and {len(active) - len(shown)} more running", "dim"))
    parts += [_failed(trial) for trial in seen.named("failed")]
    return Group(*parts)


def curve_bars(metrics: Sequence[Sequence[float]], width: int = WIDTH) -> list[str]:
    """Unicode curves of several series on one scale, a bar a share of the steps; a space where there is no value.

    The scale leaves out the first eighth of each series, whose fall would flatten the rest; bars beyond it are cut.
    """
    binned = [_binned(np.asarray(values, dtype=np.float64), width) for values in metrics]
    late = [values[len(values) // 8 :] for values in binned]
    finite = np.concatenate([values[np.isfinite(values)] for values in late] or [np.empty(0)])
    if len(finite) == 0:
        return [" " * len(values) for values in binned]
    low, span = float(finite.min()), float(finite.max() - finite.min()) or 1.0
    return ["".join(_bar((value - low) / span) for value in values) for values in binned]


def _binned(values: Floats, width: int) -> Floats:
    """The last value of each of at most `width` equal parts."""
    if len(values) <= width:
        return values
    return values[(np.arange(1, width + 1) * len(values)) // width - 1]


def _bar(share: float) -> str:
    if not math.isfinite(share):
        return " "
    return BARS[min(len(BARS) - 1, max(0, int(share * len(BARS))))]


def _pair_table(rows: Sequence[Pairs]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=PAIRS_TITLE, title_justify="left")
    for header in ("workload", "average", "steps ratio of both [95 %]", *COUNTS):
        table.add_column(header)
    for row in rows:
        table.add_row(*map(_text, (row.workload, row.scheme, _ratio(row), *map(str, _counts(row)))))
    return table


def _pair_lines(rows: Sequence[Pairs]) -> Group:
    lines = [_text(PAIRS_TITLE, "bold")]
    for row in rows:
        counts = ", ".join(f"{name} {n}" for name, n in zip(COUNTS, _counts(row), strict=True) if n)
        lines.append(_text(f"{row.workload} · {row.scheme} · {_ratio(row)}\n  {counts}"))
    return Group(*lines)


def _ratio(row: Pairs) -> str:
    ratio = with_interval(row.ratio) if row.both else "—"
    return f"{ratio}, no effect" if row.ratio.low <= 1 <= row.ratio.high else ratio


def _counts(row: Pairs) -> tuple[int, ...]:
    return row.both, row.only_average, row.only_raw, row.neither, row.open


def _running(trial: Trial, is_narrow: bool) -> RenderableType:
    first, length = trial.first, trial.plan.length_steps
    head = (
        f"{first['workload']} · {first['training_label']} · seed {first['seed']} · "
        f"step {trial.step:,} of {length:,} ({trial.share():.0%}) · last record {duration(trial.age or 0)} ago"
    )
    if trial.state == "stalled":
        head += " · stalled"
    target = first["target"]
    goal = "no target" if math.isnan(target) else f"target {target:.4g}"
    best = best_of_each_scheme(list(trial.curves.values()))
    bars = curve_bars([curve.metric for curve in best])
    ratios = ratios_so_far(trial)
    rows = []
    for curve, bar in zip(best, bars, strict=True):
        scheme = str(curve.cell["scheme"])
        rivals = [other for other in trial.curves.values() if other.cell["scheme"] == scheme]
        value = "—" if curve.best is None else f"{curve.best:.5g}"
        rows.append((_name(curve, rivals), value, _met(rivals), ratios.get(scheme, ""), bar))
    shown = _text(head, "red" if trial.state == "stalled" else "bold")
    headers = (f"best {first['metric_name']}", goal, "steps, average ÷ raw")
    block = _block_lines(headers, rows) if is_narrow else _block_table(headers, rows)
    return Group(shown, block, _text(""))


def _block_table(headers: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for header in ("", *headers, ""):
        table.add_column(_text(header, "dim"))
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _block_lines(headers: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Group:
    lines = [_text(" · ".join(headers), "dim")]
    for name, value, met, ratio, bar in rows:
        lines.append(_text(" · ".join([f"{name}: {value}", *(said for said in (met, ratio) if said not in ("", "—"))])))
        if bar.strip():
            lines.append(_text(f"  {bar}"))
    return Group(*lines)


def best_of_each_scheme(curves: Sequence[Curve]) -> list[Curve]:
    """Raw weights first, then each scheme's cell with the best metric so far."""
    schemes = sorted({str(curve.cell["scheme"]) for curve in curves}, key=lambda name: (name != "none", name))
    found = []
    for scheme in schemes:
        mine = [curve for curve in curves if curve.cell["scheme"] == scheme]
        sign = 1.0 if mine[0].cell["higher_is_better"] else -1.0
        found.append(max(mine, key=lambda curve: -math.inf if curve.best is None else sign * curve.best))
    return found


def ratios_so_far(trial: Trial) -> dict[str, str]:
    """scheme -> steps to the target, average ÷ raw, at the horizon fixed beforehand; a bound while raw has not met."""
    curves = list(trial.curves.values())
    raw = next((curve for curve in curves if curve.cell["scheme"] == "none"), None)
    found = {}
    for curve in chosen(curves) if raw is not None else ():
        assert raw is not None
        point, against = curve.met.point, raw.met.point
        label = str(curve.cell["scheme_label"])
        if math.isnan(point):
            continue
        if not math.isnan(against):
            found[str(curve.cell["scheme"])] = f"{point / against:.2f} ({label})"
        elif raw.steps:  # raw will take longer than it has
            found[str(curve.cell["scheme"])] = f"< {point / raw.steps[-1]:.2f} ({label})"
    return found


def _name(curve: Curve, rivals: Sequence[Curve]) -> str:
    label = str(curve.cell["scheme_label"])
    return "raw" if curve.cell["scheme"] == "none" else f"{label}, best of {len(rivals)}" if rivals[1:] else label


def _met(rivals: Sequence[Curve]) -> str:
    """Of one scheme's cells, how many have met the target and where the first did."""
    points = [curve.met.point for curve in rivals if not math.isnan(curve.met.point)]
    if not points:
        return "—"
    share = f"{len(points)} of {len(rivals)} met, first at" if len(rivals) > 1 else "met at"
    return f"{share} {min(points):,.0f}"


def _failed(trial: Trial) -> Text:
    first = trial.first
    head = f"failed: {first['workload']} · {first['training_label']} · seed {first['seed']} · {trial.folder / 'log'}"
    return _text("\n".join([head, *(f"  {line}" for line in trial.log_tail())]), "red")


def _text(words: str, style: str = "") -> Text:
    return Text(words, style=style)  # never markup: names come from users
