"""Peak memory of a trial as `wa plan` says it, against the most that its process has held.

    python -m benchmarks.memory [--short]

Without --short: every mini, and ogbg's full preset, three examples a batch, where its data are (WA_DATA_DIR). Each
trial runs in a process of its own, which has imported what one of Ray's workers has. `working` is what is left of the
measured peak when process, weights, optimizer and averages are taken off: data, activations, libraries' scratch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from workloads.data import VARIABLE
from workloads.protocol import FAMILIES

AVERAGING = [
    {"scheme": "none"},
    *({"scheme": name, "horizon": [0.05, 0.2, 0.4], "every": 0.01} for name in ("lawa", "ema")),
]
ONE_TRIAL = """
import json, sys, tempfile
from pathlib import Path
from sweeps import launch, memory, plan, trajectory
from sweeps.cells import cells
from sweeps.spec import parse_spec
(one,) = plan.trajectories(cells(parse_spec(json.loads(sys.argv[1]))), fuse=True)
with tempfile.TemporaryDirectory() as folder:
    trajectory.run(one, Path(folder) / "trajectories" / "one", checkpoint_seconds=0)
# Not getrusage's ru_maxrss, which begins at what the process had that started this one.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"measured": peak, **memory.parts(one)}))
"""


def trial(workload: str, steps: int = 100, **changes: Any) -> dict[str, int]:
    """The bytes that one trial held at most, and the plan's parts of it."""
    spec = {
        "study": "m",
        "workloads": workload,
        "step_budget": steps,
        "averaging": AVERAGING,
        "evaluate": {"every": 0.1},
    }
    command = [sys.executable, "-c", ONE_TRIAL, json.dumps(spec | changes)]
    found: dict[str, int] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return found


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: one mini."""
    found: dict[str, float] = {}
    trials: list[tuple[str, dict[str, Any]]] = [(workload, {}) for workload in (["lm"] if short else FAMILIES)]
    if not short and VARIABLE in os.environ:
        trials.append(("ogbg", {"preset": "full", "training": {"batch_size": 3}}))
    for workload, changes in trials:
        parts = trial(workload, **changes)
        measured, planned = parts.pop("measured"), sum(parts.values())
        name = f"{workload}{' full' if changes else ''}"
        found[f"{name}: peak memory planned / measured"] = planned / measured
        told = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in parts.items())
        working = measured - planned + parts["working"]
        is_told = f"{measured / 2**20:,.0f} MiB (planned: {told}; working is {working / 2**20:,.0f})"
        print(f"{planned / measured:8.3f}  {name}: {is_told}", flush=True)
    return found


if __name__ == "__main__":
    main("--short" in sys.argv)
