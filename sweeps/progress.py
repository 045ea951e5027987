"""What one sees while a sweep runs: trials done / running / failed, eta, best value per workload so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweeps.plan import Trajectory, cost

LINE_SECONDS = 30.0  # between lines where the output is no terminal


@dataclass
class Progress:
    """A listener of `launch` that keeps count and draws one status line (a line now and then without a terminal)."""

    console: Console
    trajectories: Sequence[Trajectory]
    num_done_before: int = 0
    running: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # by workload

    def __post_init__(self) -> None:
        self.by_name: Mapping[str, Trajectory] = {one.name: one for one in self.trajectories}
        self.expected = {one.name: cost(one).seconds for one in self.trajectories}
        self.began = self.said = time.monotonic()
        self.live = (
            Live(console=self.console, refresh_per_second=4, transient=True)
            if self.console.is_terminal
            else None
        )

    def started(self, name: str) -> None:
        self.running.add(name)
        self._draw()

    def progressed(self, name: str, step: int, best: float | None) -> None:
        self.steps[name] = step
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

    def failed(self, name: str) -> None:
        self.lost.add(name)
        self.running.discard(name)
        self._draw(say=True)

    def share_done(self) -> float:
        """Share of the expected work that is done."""
        worked = sum(self.expected[name] * self._share_of(name) for name in self.by_name)
        return worked / sum(self.expected.values())

    def eta_seconds(self) -> float | None:
        """Time for what is left at the pace so far; None before there is a pace."""
        done = self.share_done()
        return None if done <= 0 else (time.monotonic() - self.began) * (1 - done) / done

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
        if eta is not None:
            parts.append(f"eta {duration(eta)}")
        for workload, value in sorted(self.best.items()):
            metric = (
                next(o for o in self.trajectories if o.cells[0].training.workload == workload)
                .cells[0]
                .metric_name
            )
            parts.append(f"best {workload} {metric} {value:.4g}")
        return " · ".join(parts)

    def _draw(self, say: bool = False) -> None:
        if self.live is not None:
            self.live.update(self._bar_and_line())
        elif say or time.monotonic() - self.said > LINE_SECONDS:
            self.said = time.monotonic()
            self.console.print(
                f"[{duration(self.said - self.began)}] {self.line()}", markup=False, soft_wrap=True
            )

    def _bar_and_line(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=1.0, completed=self.share_done(), width=24),
            Text(self.line(), overflow="ellipsis", no_wrap=True),
        )
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
