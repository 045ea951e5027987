"""A run folder's state drawn in the terminal: the line of `wa run`, and the screen of `wa watch`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from analysis.run_folder.run_files import BadRun
from sweeps.failures import described
from sweeps.run_folder import may_become_a_run
from sweeps.status import Curve, Status, Trial, prespecified
from sweeps.wording import duration

EXIT_DONE, EXIT_INCOMPLETE = 0, 1
LOOK_SECONDS = 2.0  # between looks of `wa run` at its folder
LINE_SECONDS = 30.0  # between lines where the output is no terminal
BAR_WIDTH = 24
QUIET_SECONDS = 60.0  # a failed trial is tried again before that; then the study has ended incomplete
PAIRS_TITLE = "steps to the target, average ÷ non-averaged baseline, so far"
COUNTS = ("both met", "average only", "baseline only", "neither", "open")
BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # of a curve
BLOCK_LINES = 7  # of a running trajectory
NARROW = 100  # columns that tables need; below, what they say stands in lines
WAIT_SECONDS = 600.0  # for a run folder that is not there yet


class Lines:
    """The status line where the output is no terminal: when a trial has ended, and now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began, self.said, self.over = time.monotonic(), -math.inf, -1

    def say(self, status: Status, at_once: bool = False) -> None:
        now, over = time.monotonic(), len(status.named("done", "failed"))
        if at_once or over != self.over or now - self.said > LINE_SECONDS:
            self.said, self.over = now, over
            self.console.print(f"[{duration(now - self.began)}] {status.line()}", markup=False, soft_wrap=True)


class RunScreen:
    """The listener of `launch`: what fails is told as it comes, the status line is drawn from the folder."""

    def __init__(self, console: Console, status: Status) -> None:
        self.console, self.status, self.lines = console, status, Lines(console)
        self.looked = time.monotonic()
        # What libraries print does not belong here.
        self.live = Live(console=console, transient=True, redirect_stdout=False, redirect_stderr=False)

    def tick(self) -> None:
        """Called many times a second."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.look()
        if self.console.is_terminal:
            self.live.update(bar_and_line(self.status, self.console.width))
        else:
            self.lines.say(self.status)

    def look(self) -> None:
        with suppress(BadRun, OSError):  # whoever compacts the records says what is wrong with them
            self.status.look()
        self.looked = time.monotonic()

    def retried(self, name: str, reason: str) -> None:
        self._tell(name, f"failed, and is tried again: {reason}")

    def failed(self, name: str, reason: str) -> None:
        self.status.told[name] = "failed"
        self._tell(name, f"failed: {reason}")

    def _tell(self, name: str, what: str) -> None:
        self.console.print(f"{described(self.status.trials[name].plan)} {what}", markup=False, soft_wrap=True)

    def __enter__(self) -> RunScreen:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()


def bar_and_line(status: Status, width: int) -> Table:
    """Share of the work done as a bar, beside the status line where that fits, else above it."""
    line, grid = status.line(), Table.grid(padding=(0, 1))
    fits = BAR_WIDTH + 2 + len(line) <= width
    bar = ProgressBar(total=1.0, completed=status.share_done(), width=BAR_WIDTH if fits else width)
    for row in [(bar, Text(line))] if fits else [(bar,), (Text(line),)]:
        grid.add_row(*row)
    return grid


def watch(
    run: Path,
    console: Console,
    once: bool = False,
    every: float = 2.0,
    wait: float = WAIT_SECONDS,
    refresh: Callable[[], None] = lambda: None,
) -> int:
    """Draw the folder until all its trials are done, one frame where `once`; a line now and then without a terminal.

    wait: seconds granted to a folder that is new or empty, as before its `wa run` or while that one starts.
    refresh: brings the folder up to date, where it is a copy.
    Returns the exit code: 0 done, looked at once, or interrupted; 1 where trials failed and nothing goes on.
    Raises: analysis.run_folder.records.BadRun where `run` is no run folder.
    """
    try:
        if once:
            console.print(frame(Status(run), console))
            return EXIT_DONE
        _await(run, console, every, wait, refresh)
        seen, lines = Status(run), Lines(console)
        live = Live(frame(seen, console), console=console, auto_refresh=False) if console.is_terminal else None
        with live or nullcontext():
            while True:
                code = ended(seen)
                if live is None:
                    lines.say(seen, at_once=code is not None)
                if code is not None:
                    return code
                time.sleep(every)
                refresh()
                seen.look()
                if live is not None:
                    live.update(frame(seen, console), refresh=True)
    except KeyboardInterrupt:
        return EXIT_DONE


def _await(run: Path, console: Console, every: float, seconds: float, refresh: Callable[[], None]) -> None:
    """Until the folder has a plan, which is written last; at once where it never will."""
    if seconds <= 0 or (run / "plan.json").exists() or not may_become_a_run(run):
        return
    within = f"for {duration(seconds)} at most; Ctrl-C ends it"
    console.print(f"{run}: no run folder yet; waiting for one, {within}", markup=False, soft_wrap=True)
    deadline = time.monotonic() + seconds
    while not (run / "plan.json").exists() and time.monotonic() < deadline:
        time.sleep(every)
        refresh()


def ended(seen: Status) -> int | None:
    """The exit code once nothing more will come; None while something may."""
    if seen.is_done:
        return EXIT_DONE
    is_over = len(seen.named("failed", "done")) == len(seen.trials)
    is_quiet = all(trial.quiet_seconds > QUIET_SECONDS for trial in seen.named("failed"))
    return EXIT_INCOMPLETE if is_over and is_quiet else None


def frame(seen: Status, console: Console) -> RenderableType:
    """One look at the folder: studies, the status line, baseline against averages, what runs, what failed."""
    parts: list[RenderableType] = [
        _text(f"{entry['study']}: {entry['question'] or ''}".rstrip(": "), "bold") for entry in seen.plan["studies"]
    ]
    parts.append(_text(seen.line()))
    is_narrow = console.width < NARROW
    rows = []
    for pair in seen.pairs():
        *met, still_open = pair.both, pair.only_average, pair.only_baseline, pair.neither, pair.open
        if any(met):
            ratio = "—" if pair.ratio is None else f"{pair.ratio:.2f}"
            rows.append((pair.workload, pair.scheme, ratio, *map(str, (*met, still_open))))
    if rows:
        headers = ("workload", "average", "steps ratio where both met", *COUNTS)
        parts += [_text(PAIRS_TITLE, "bold"), _table(headers, rows, is_narrow)]
    active = seen.named("running", "stalled")
    taken = len(parts) + (1 + is_narrow) * len(rows) + 5
    room = max(1, (console.height - taken) // (BLOCK_LINES * (1 + is_narrow)))
    shown = active[:room] if console.is_terminal else active
    parts += [_running(trial, is_narrow) for trial in shown]
    if len(shown) < len(active):
        parts.append(_text(f"… and {len(active) - len(shown)} more running", "dim"))
    parts += [_failed(trial) for trial in seen.named("failed")]
    return Group(*parts)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], is_narrow: bool) -> RenderableType:
    """A table; where it is narrow a line a row, with the headers of what it has, and the curve below it."""
    if is_narrow:
        lines = []
        for first, *rest in rows:
            named = [f"{h} {value}" for h, value in zip(headers[1:], rest, strict=True) if h and value not in NOTHING]
            lines.append(_text(" · ".join([first, *named])))
            if not headers[-1] and rest[-1].strip():
                lines.append(_text(f"  {rest[-1]}"))
        return Group(*lines)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(_text(header, "dim"))
    for row in rows:
        table.add_row(*map(_text, row))
    return table


NOTHING = ("", "—", "0")


def _running(trial: Trial, is_narrow: bool) -> RenderableType:
    first, length, stalled = trial.first, trial.plan.length_steps, trial.state == "stalled"
    head = (
        f"{first['workload']} · {first['training_label']} · seed {first['seed']} · "
        f"step {trial.step:,} of {length:,} ({trial.share:.0%}) · last record {duration(trial.age or 0)} ago"
    )
    best, ratios, rows = best_of_each_scheme(list(trial.curves.values())), ratios_so_far(trial), []
    for curve, bar in zip(best, curve_bars([curve.metric for curve in best]), strict=True):
        rivals = [other for other in trial.curves.values() if other.scheme == curve.scheme]
        label = "baseline" if curve.scheme == "none" else str(curve.cell["scheme_label"])
        name = f"{label}, best of {len(rivals)}" if rivals[1:] else label
        value = "—" if curve.best is None else f"{curve.best:.5g}"
        rows.append((name, value, _met(rivals), ratios.get(curve.scheme, ""), bar))
    goal = "no target" if math.isnan(first["target"]) else f"target {first['target']:.4g}"
    headers = ("", f"best {first['metric_name']}", goal, "steps, average ÷ baseline", "")
    shown = _text(head + " · stalled" * stalled, "red" if stalled else "bold")
    return Group(shown, _table(headers, rows, is_narrow), _text(""))


def curve_bars(metrics: Sequence[Sequence[float]], width: int = WIDTH) -> list[str]:
    """Unicode curves of several series on one scale, a bar a share of the steps; a space where there is no value.

    The scale leaves out the first eighth of each series, whose fall would flatten the rest; bars beyond it are cut.
    """
    binned = [np.asarray(values, dtype=np.float64) for values in metrics]
    # The last value of each of at most `width` equal parts.
    binned = [v if len(v) <= width else v[(np.arange(1, width + 1) * len(v)) // width - 1] for v in binned]
    late = [values[len(values) // 8 :] for values in binned]
    finite = np.concatenate([values[np.isfinite(values)] for values in late] or [np.empty(0)])
    if len(finite) == 0:
        return [" " * len(values) for values in binned]
    low, span = float(finite.min()), float(finite.max() - finite.min()) or 1.0
    return ["".join(_bar((value - low) / span) for value in values) for values in binned]


def _bar(share: float) -> str:
    return BARS[min(len(BARS) - 1, max(0, int(share * len(BARS))))] if math.isfinite(share) else " "


def best_of_each_scheme(curves: Sequence[Curve]) -> list[Curve]:
    """The baseline first, then each scheme's cell with the best metric so far."""
    found: dict[str, Curve] = {}
    for curve in sorted(curves, key=lambda curve: (curve.scheme != "none", curve.scheme)):
        held, sign = found.setdefault(curve.scheme, curve), 1 if curve.cell["higher_is_better"] else -1
        if curve.best is not None and (held.best is None or sign * curve.best > sign * held.best):
            found[curve.scheme] = curve
    return list(found.values())


def ratios_so_far(trial: Trial) -> dict[str, str]:
    """scheme -> steps to the target, average ÷ baseline, at the pre-specified horizon; a bound until that has met."""
    found: dict[str, str] = {}
    base = next((curve for curve in trial.curves.values() if curve.scheme == "none"), None)
    if base is None:
        return found
    for curve in prespecified(trial.curves.values()):
        point, against, label = curve.met.point, base.met.point, str(curve.cell["scheme_label"])
        if not math.isnan(point) and not math.isnan(against):
            found[curve.scheme] = f"{point / against:.2f} ({label})"
        elif not math.isnan(point) and base.steps:  # the baseline will take longer than it has
            found[curve.scheme] = f"< {point / base.steps[-1]:.2f} ({label})"
    return found


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
