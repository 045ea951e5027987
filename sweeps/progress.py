"""What one sees while a sweep runs: trials done / running / failed, eta, best value per workload so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.failures import described
from sweeps.plan import Trajectory, cost

BAR_WIDTH = 24
LINE_SECONDS = 30.0  # between lines where the output is no terminal
WINDOW_SECONDS = 600.0  # whose pace the eta goes by: what was quick or slow before that no longer counts
MOMENTS = 60  # that the window is kept in
ETA_SHARE = 0.05  # of the work to be done before there is an eta


@dataclass
class Progress:
    """A listener of `launch` that keeps count and draws one status line (a line now and then without a terminal)."""

    console: Console
    trajectories: Sequence[Trajectory]
    num_done_before: int = 0
    running: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)  # as far as each is; given: what earlier runs have done
    best: dict[str, float] = field(default_factory=dict)  # by workload
    worked: float = 0.0  # expected seconds of what has been trained since this began
    moments: deque[tuple[float, float]] = field(default_factory=deque)  # (when, worked), over the window

    def __post_init__(self) -> None:
        self.by_name: Mapping[str, Trajectory] = {one.name: one for one in self.trajectories}
        self.expected = {one.name: cost(one).seconds for one in self.trajectories}
        self.began = self.said = time.monotonic()
        self.moments.append((self.began, 0.0))
        self.live = (
            Live(
                console=self.console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,  # what libraries print does not belong here
                redirect_stderr=False,
            )
            if self.console.is_terminal
            else None
        )

    def started(self, name: str) -> None:
        self.running.add(name)
        self._draw()

    def progressed(self, name: str, step: int, best: float | None) -> None:
        self._work(name, step)
        one = self.by_name[name].cells[0]
        workload = one.training.workload
        if best is not None:
            known = self.best.get(workload)
            if known is None or (best > known) == one.higher_is_better:
                self.best[workload] = best
        self._draw()

    def done(self, name: str) -> None:
        self.finished.add(name)
        self.running.discard(name)
        self._draw(say=True)

    def retried(self, name: str, reason: str) -> None:
        self._tell(name, f"failed, and is tried again: {reason}")

    def failed(self, name: str, reason: str) -> None:
        self.lost.add(name)
        self.running.discard(name)
        self._tell(name, f"failed: {reason}")
        self._draw(say=True)

    def _tell(self, name: str, what: str) -> None:
        self.console.print(f"{described(self.by_name[name])} {what}", markup=False, soft_wrap=True)

    def share_done(self) -> float:
        """Share of the expected work that is done."""
        worked = sum(self.expected[name] * self._share_of(name) for name in self.by_name)
        return worked / sum(self.expected.values())

    def _work(self, name: str, step: int) -> None:
        one = self.by_name[name]
        gained = step - self.steps.get(name, 0)
        self.worked += self.expected[name] * max(0, gained) / one.length_steps  # none for what is done again
        self.steps[name] = max(step, self.steps.get(name, 0))

    def eta_seconds(self) -> float | None:
        """Time for what is left at the pace of the last minutes; None before there is a pace to go by."""
        now = time.monotonic()
        if now - self.moments[-1][0] > WINDOW_SECONDS / MOMENTS:
            self.moments.append((now, self.worked))
        # The moment before the window stays while it is the only one to measure from.
        while len(self.moments) > 2 and now - self.moments[1][0] > WINDOW_SECONDS:
            self.moments.popleft()
        over = self.finished | self.lost
        left = sum(self.expected[name] * (1 - self._share_of(name)) for name in self.by_name if name not in over)
        if left <= 0:
            return 0.0
        began, before = self.moments[0]
        if self.worked <= before:  # evaluations are further apart than the window is long
            began, before = self.began, 0.0
        if self.share_done() < ETA_SHARE or self.worked <= before:
            return None
        return (now - began) * left / (self.worked - before)

    def _share_of(self, name: str) -> float:
        if name in self.finished or name in self.lost:
            return 1.0
        return self.steps.get(name, 0) / self.by_name[name].length_steps

    def line(self) -> str:
        """The status line."""
        before = self.num_done_before
        parts = [
            f"{len(self.finished) + before} of {len(self.trajectories) + before} trials done",
            f"{len(self.running)} running",
            f"{len(self.lost)} failed",
        ]
        eta = self.eta_seconds()
        if eta:
            parts.append(f"eta {duration(eta)}")
        for workload, value in sorted(self.best.items()):
            metric = next(o for o in self.trajectories if o.cells[0].training.workload == workload).cells[0].metric_name
            parts.append(f"best {workload} {metric} {value:.4g}")
        return " · ".join(parts)

    def _draw(self, say: bool = False) -> None:
        if self.live is not None:
            self.live.update(self._bar_and_line())
        elif say or time.monotonic() - self.said > LINE_SECONDS:
            self.said = time.monotonic()
            self.console.print(f"[{duration(self.said - self.began)}] {self.line()}", markup=False, soft_wrap=True)

    def _bar_and_line(self) -> Table:
        line, share, width = self.line(), self.share_done(), self.console.width
        grid = Table.grid(padding=(0, 1))
        if BAR_WIDTH + 2 + len(line) <= width:
            grid.add_row(ProgressBar(total=1.0, completed=share, width=BAR_WIDTH), Text(line))
        else:  # the line wraps, and has all the width for it
            grid.add_row(ProgressBar(total=1.0, completed=share, width=width))
            grid.add_row(Text(line))
        return grid

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.stop()


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 7 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
