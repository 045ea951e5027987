"""What a checkpoint copies when it is saved and loaded, and how far records from a rounded trace are from exact ones.

    python -m benchmarks.traces [--short]

Copies: the most anonymous memory beyond what was there, over the bytes of the state.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from analysis.run_folder.records import read_live
from sweeps import training_state, trajectory
from sweeps.cells import cells
from sweeps.data_parallel import Team
from sweeps.plan import Trajectory, trajectories
from sweeps.spec import parse_spec
from sweeps.training_state import State
from wa import EMA, LAWA, Bank

WIDTH, LAYERS = 700, 10  # 20 MB of weights, 9 times as much in all
AVERAGES = [{"scheme": name, "horizon": [0.02, 0.05, 0.1, 0.2], "every": 4} for name in ("lawa", "ema")]


def saved_and_loaded(path: Path) -> dict[str, float]:
    """Copies made by saving a state to `path`, and by going on from there in another one, which is new.

    What loading does not map from the file is the state's own.
    """
    state, other = _state(), _state()
    for step in range(1, 5):
        for p in state.model.parameters():
            p.grad = torch.ones_like(p)
        state.optimizer.step()
        state.bank.update(step)
    state.optimizer.zero_grad()
    streams = training_state.of_ranks(state, Team())
    with _peak() as saving:
        training_state.save(state, path, streams)
    with _peak() as loading:
        assert training_state.restore(other, str(path), Team(), 0, logging.getLogger("unheard"))
    size = path.stat().st_size
    return {"saving": saving[0] / size, "loading": loading[0] / size}


def _state() -> State:
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    return State(model, torch.optim.AdamW(model.parameters()), Bank(model, [LAWA(k=4, every=1), EMA(decay=0.9)]))


@contextmanager
def _peak() -> Iterator[list[int]]:
    """[bytes]: the most anonymous memory inside, looked at every millisecond, beyond that at the start."""
    before, over, most = _anonymous(), threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.001):
            most[0] = max(most[0], _anonymous() - before)

    watch = threading.Thread(target=look)
    watch.start()
    try:
        yield most
    finally:
        most[0] = max(most[0], _anonymous() - before)
        over.set()
        watch.join()


def _anonymous() -> int:
    told = Path("/proc/self/status").read_text(encoding="ascii")
    return int(told.partition("RssAnon:")[2].split()[0]) * 1024


def copies() -> dict[str, float]:
    """By what is done: `saving`, `loading`; measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/checkpoint"
        code = "import json; from pathlib import Path; from benchmarks.traces import saved_and_loaded as copies\n"
        code += f"print(json.dumps(copies(Path({path!r}))))"
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(told))


def rounding(workload: str, steps: int) -> dict[str, float]:
    """scheme -> the largest |loss of a replay from bf16 weights ÷ that of the training − 1|, over cells and steps."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        losses = []
        kept = _one(workload, steps, keep={"every": 4, "dtype": "bf16"})
        for one in (kept, replace(_one(workload, steps), name="replay", replays=kept.name)):
            trajectory.run(one, run / "trajectories" / one.name)
            rows = read_live(run / "trajectories" / one.name / "records.jsonl")
            losses.append({(row["cell_id"], row["step"]): row["loss"] for row in rows})
    exact, rounded = losses
    schemes = {cell.cell_id: "none" if cell.scheme is None else type(cell.scheme).__name__ for cell in kept.cells}
    found: dict[str, float] = {}
    for key, loss in exact.items():
        name = schemes[key[0]]
        found[name] = max(found.get(name, 0.0), abs(rounded[key] / loss - 1))
    return found


def _one(workload: str, steps: int, **more: object) -> Trajectory:
    spec = {"study": "b", "workloads": workload, "step_budget": steps, "averaging": [{"scheme": "none"}, *AVERAGES]}
    (one,) = trajectories(cells(parse_spec({**spec, "evaluate": {"every": steps // 10}, **more})), fuse=True)
    return one


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: a smoke test's length."""
    found = {f"copies of a state made by {name} a checkpoint": value for name, value in copies().items()}
    for workload in ("lm",) if short else ("lm", "imagenet_vit"):
        for scheme, error in rounding(workload, 200 if short else 1000).items():
            found[f"{workload}: relative error of a loss of {scheme} from a bf16 trace, at most"] = error
    for name, value in found.items():
        print(f"{name}: {value:.3g}", flush=True)
    return found


if __name__ == "__main__":
    main("--short" in sys.argv)
