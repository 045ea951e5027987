"""Whether a workload keeps the protocol's promises (workloads/protocol.py), each tried on the real thing.

What rests on a broken promise is not asked: a check is left out where one that it needs has failed, and those by
the loop need all the others.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeps.promises import CHECKS, EVAL_BATCHES, Broken, constants
from sweeps.promises_by_loop import by_the_loop
from workloads.protocol import Batch, Workload, load
from workloads.user_errors import one_line


@dataclass(frozen=True)
class Check:
    """One promise; detail: what was tried, or what is broken and the remedy, in one line."""

    name: str
    ok: bool
    detail: str


def check(name: str, preset: str = "mini", steps: int = 24, folder: Path | None = None) -> Iterator[Check]:
    """Try every promise of workload `name`, a family or a user's ``"pkg.mod:Name"``.

    steps: how long the loop trains each time, at least 4. folder: where its temporary records lie.
    Raises: UnknownWorkload.
    """
    workload = _Shortened(load(name, preset))
    first = _tried("constants", lambda: constants(workload, name, preset))
    yield first
    failed = set() if first.ok else {"constants", *CHECKS}
    for title, (examine, needs) in CHECKS.items():
        if failed.isdisjoint((title, *needs)):
            found = _tried(title, functools.partial(examine, workload))
            failed |= set() if found.ok else {title}
            yield found
        else:
            failed.add(title)
    if not failed:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            for title, examine_loop in by_the_loop(name, preset, steps, Path(temporary)):
                found = _tried(title, examine_loop)
                yield found
                if not found.ok:
                    return


def _tried(name: str, examine: Callable[[], str]) -> Check:
    try:
        return Check(name, True, examine())
    except Broken as broken:
        return Check(name, False, str(broken))
    except (Exception, SystemExit) as error:  # the workload's own
        return Check(name, False, one_line(error))


class _Shortened:
    """A workload with the first EVAL_BATCHES validation batches."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload

        @functools.wraps(workload.eval_batches)
        def first(*args: Any, **kwargs: Any) -> list[Batch]:
            return list(itertools.islice(workload.eval_batches(*args, **kwargs), EVAL_BATCHES))

        self.eval_batches = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workload, name)


def shortened(preset: str) -> _Shortened:
    """What the loop loads for preset ``"NAME@PRESET"`` of workload ``"sweeps.conformance:shortened"``."""
    name, _, own = preset.rpartition("@")
    return _Shortened(load(name, own))
