"""A sweep of many short trials: what its driver holds, what a trial costs beside bare Ray Tune, what one can ask of it.

    python -m benchmarks.load [--short]

Through the real `wa run`, in a process of its own. Trials sleep, so that what is measured is everything else. Bare Ray
Tune: reused actors, a searcher of one line, the same Ray with the same settings, as many reports; in turn with
`wa run`, a few times. Overhead: what a trial takes of a slot, from the first one's start to the last one's end, beyond
its sleep.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from analysis.run_folder.records import load_records, load_trials
from sweeps.resources import ResourcesBlock

STEPS = 5  # of a trial, each with an evaluation
SLOTS = 2
FEW = 6
MB = 1e6
WA = [sys.executable, "-c", "import sys; sys.path.insert(0, ''); from sweeps.cli import main; main()"]
BARE = [sys.executable, "-m", "benchmarks.load", "--bare"]


@dataclass
class Driver:
    """A process that sweeps, looked at again and again: (trials done, bytes in memory, seconds on a processor)."""

    process: subprocess.Popen[str]
    seen: list[tuple[int, float, float]] = field(default_factory=list)

    def look(self, done: int) -> None:
        with suppress(OSError, IndexError):  # it has ended
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            times = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            held = int(status.partition("VmRSS:")[2].split()[0]) * 1024
            self.seen.append((done, held, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")))

    def steady(self, trials: int) -> tuple[float, float, float]:
        """Half the range of its memory and the last of it, MB, and processor seconds a trial.

        Over the last four fifths of the trials; without the report, which is written at the end.
        """
        done, held, busy = zip(*(one for one in self.seen if trials / 5 <= one[0] < trials), strict=True)
        return (max(held) - min(held)) / 2 / MB, held[-1] / MB, (busy[-1] - busy[0]) / max(1, done[-1] - done[0])


def sweep(folder: Path, trials: int, workload: str, ask: bool = False) -> tuple[Driver, dict[str, float]]:
    """`wa run` of so many trials in `folder`; ask: look at it half-way, which takes its time from the trials."""
    spec = folder / "spec.json"
    raw = {"study": "load", "workloads": f"benchmarks.sleeper:{workload}", "seeds": list(range(trials))}
    more = {"averaging": {"scheme": "none"}, "evaluate": {"every": 1}, "tracking": {"wandb": "disabled"}}
    spec.write_text(json.dumps({**raw, **more}))
    run, found = folder / "run", {}
    process = subprocess.Popen([*WA, "run", str(spec), "--out", str(run)], stdout=subprocess.DEVNULL, text=True)
    driver, asked = Driver(process), threading.Thread(target=lambda: found.update(_ask(run)))
    while process.poll() is None:
        done = _count(run / "records")
        driver.look(done)
        if ask and done >= trials / 2 and not asked.ident:
            found["files in the folder, half-way, a trial"] = _files(run) / trials
            asked.start()
        time.sleep(0.25)
    if asked.ident:
        asked.join()
    assert process.returncode == 0
    assert _count(run / "records") == trials
    found["files in the folder, at the end, a trial"] = _files(run) / trials
    return driver, found


def _ask(run: Path) -> dict[str, float]:
    """Seconds that those commands take while the run goes on."""
    found = {}
    for words in (("watch", "--once"), ("watch", "--json"), ("report",)):
        start = time.perf_counter()
        subprocess.run([*WA, words[0], str(run), *words[1:]], check=True, stdout=subprocess.DEVNULL)
        found[f"seconds of wa {' '.join(words)}, half-way"] = time.perf_counter() - start
    return found


def _count(folder: Path) -> int:
    with suppress(FileNotFoundError):
        return sum(name.endswith(".parquet") and name[0] != "." for name in os.listdir(folder))
    return 0


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def slot_seconds(began: Sequence[float], ended: Sequence[float]) -> float:
    """What a trial took of a slot; the first few apart, for whose sake processes start and import."""
    return SLOTS * (ended[-1] - began[FEW]) / (len(began) - FEW)


def of_run(run: Path) -> tuple[list[float], list[float]]:
    """When its trials began and ended, seconds."""
    table = load_trials(run)
    assert (table["status"] == "done").all()
    began, ended = (pd.to_datetime(table[name]).astype("int64") / 1e9 for name in ("started", "ended"))
    unit = 1.0 if began.max() > 1e9 else 1e3  # of pandas' resolution
    return sorted(began * unit), sorted(ended * unit)


def bare(trials: int, seconds: float) -> None:
    """Bare Ray Tune; prints when its trials began and ended."""
    from sweeps.engine import engine

    # isort: split
    from ray import tune
    from ray.tune.search import Searcher

    began, ended = list[float](), list[float]()

    class Order(Searcher):  # type: ignore[misc]
        given = 0

        def suggest(self, trial_id: str) -> Any:
            self.given += 1
            return {"seed": self.given} if self.given <= trials else Searcher.FINISHED

        def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None: ...
        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...

    class Clock(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            began.append(trial.last_result["began"])
            ended.append(time.time())

    def train(config: dict[str, Any]) -> None:
        start = time.time()
        for step in range(STEPS):
            time.sleep(seconds / STEPS)
            tune.report({"began": start, "step": step})

    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(SLOTS)
    with engine({"bare": ResourcesBlock(cpu=1)}), tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            tune_config=tune.TuneConfig(search_alg=Order(), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(name="bare", storage_path=folder, callbacks=[Clock()], verbose=0),
        ).fit()
    print(json.dumps([sorted(began), sorted(ended)]))


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: a smoke test's length."""
    trials, each, rounds, workload, sleep = (60, 60, 1, "ShortNap", 0.1) if short else (1000, 100, 3, "Nap", 0.5)
    ours, theirs, found = list[float](), list[float](), dict[str, float]()
    for _ in range(rounds):
        told = subprocess.run([*BARE, str(each), str(sleep)], check=True, stdout=subprocess.PIPE, text=True).stdout
        theirs.append(slot_seconds(*json.loads(told.splitlines()[-1])))
        with tempfile.TemporaryDirectory() as folder:
            sweep(Path(folder), each, workload)
            ours.append(slot_seconds(*of_run(Path(folder) / "run")))
    found["milliseconds of overhead a trial, bare Ray Tune"] = 1e3 * (median(theirs) - sleep)
    found["milliseconds of overhead a trial, wa run"] = 1e3 * (median(ours) - sleep)
    found["slot-seconds a trial, wa run / bare Ray Tune"] = median(a / b for a, b in zip(ours, theirs, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        driver, asked = sweep(Path(folder), trials, workload, ask=True)
        began, ended = of_run(Path(folder) / "run")
        assert len(load_records(Path(folder) / "run")) == trials * STEPS, "records were lost, or are there twice"
    found |= asked
    fifth = trials // 5
    parts = [slot_seconds(began[part], ended[part]) for part in (slice(fifth), slice(-fifth, None))]
    found["slot-seconds a trial, last fifth / first"] = parts[1] / parts[0]
    swing, last, busy = driver.steady(trials)
    found["milliseconds of the driver's processor a trial"] = 1e3 * busy
    found[f"MB of the driver before the end of {trials} trials"] = last
    found[f"± MB of the driver over the last {trials - fifth} trials"] = swing
    for name, value in found.items():
        print(f"{value:8.3f}  {name}")
    return found


if __name__ == "__main__":
    if "--bare" in sys.argv:
        bare(int(sys.argv[2]), float(sys.argv[3]))
    else:
        main("--short" in sys.argv)
