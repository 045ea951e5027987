"""Every node of a Ray cluster, looked at before a sweep begins there: a task on each, all at once, bounded in time."""

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import first_line
from cluster.nodes import Node
from cluster.place import MAX_SKEW_S, Check

LOOK_SECONDS = 120.0  # a node's first import of torch, from a network's file system
PACKAGES = ("wa-sweeps", "torch", "ray")
SAME = "install one version everywhere"
AGAIN = "start its Ray again, or leave it out"

Ask = Callable[[], Sequence[Check]]


def look(nodes: Sequence[Node], ask: Callable[[Node], Ask], seconds: float = LOOK_SECONDS) -> dict[str, list[Check]]:
    """id of a node -> what was found there: versions as here, the clock, and what `ask(node)` answers on the node.

    Where versions differ nothing else is asked, since the answers would be another code's. A node that does not answer
    in `seconds` has one bad check.
    """
    ours, remote = versions(), _task()
    waiting = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        task = remote.options(scheduling_strategy=here, name="look")
        waiting[task.remote(ours, ray.cloudpickle.dumps(ask(node)))] = node
    found, deadline = dict[str, list[Check]](), time.monotonic() + seconds
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        now = time.time()
        for reference in ready:
            node = waiting.pop(reference)
            try:
                found[node.id] = _checks(ours, ray.get(reference), now)
            except Exception as error:  # whatever Ray makes of a worker that does not start
                found[node.id] = [Check("answers", False, first_line(error), AGAIN)]
    for reference, node in waiting.items():
        ray.cancel(reference, force=True)
        found[node.id] = [Check("answers", False, f"not within {seconds:.0f} s", AGAIN)]
    return found


def lacking(checks: Sequence[Check]) -> str | None:
    """What a node lacks first, with the remedy; None where it lacks nothing."""
    bad = next((one for one in checks if one.ok is False), None)
    return None if bad is None else f"{bad.name}: {bad.detail}; {bad.remedy}"


def versions() -> dict[str, str]:
    """Those that must be the same on every node."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _task() -> Any:
    """The remote function: of no module, so that it travels as a value to a node that may not have this package."""

    def answer(ours: dict[str, str], asked: bytes) -> tuple[dict[str, str], list[tuple[Any, ...]], float]:
        import importlib.metadata
        import platform
        import time

        found = {"Python": platform.python_version()}
        for name in ours.keys() - {"Python"}:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
        told = []
        if found["wa-sweeps"] == ours["wa-sweeps"]:
            import ray.cloudpickle

            told = [(one.name, one.ok, one.detail, one.remedy) for one in ray.cloudpickle.loads(asked)()]
        return found, told, time.time()

    # A process of its own for each look: what it imports and sets is in no trial's.
    return ray.remote(num_cpus=0, max_calls=1, max_retries=0)(answer)


def _checks(ours: dict[str, str], answer: tuple[Any, ...], now: float) -> list[Check]:
    theirs, told, clock = answer
    bad = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if _key(name, theirs) != _key(name, ours)]
    if bad:
        return [Check("versions", False, ", ".join(bad), SAME)]
    skew = abs(now - clock)
    remedy = "run NTP on every node: records carry its times"
    clocks = Check("clock", skew <= MAX_SKEW_S, f"{skew:.1f} s from here", remedy)
    return [Check("versions", True, "as here"), clocks, *(Check(*one) for one in told)]


def _key(name: str, found: dict[str, str]) -> str:
    """What must agree: a Python's bug fixes and what a torch was built for (+cu126) may differ."""
    return found[name].rpartition(".")[0] if name == "Python" else found[name].partition("+")[0]
