"""What it takes to analyse a large study: seconds, GiB and how both grow.

    python -m benchmarks.analysis [--short]

A made-up study (benchmarks/synthetic_run.py) is read and every table of it computed, each size in a process of its own,
so that its peak of memory is its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time

from analysis.report import Report
from analysis.run_folder.study import read
from benchmarks.synthetic_run import Size, write

TEN_MILLION = Size(trainings=10)  # 20,000 cells × 500 evaluations
SHORT = Size(workloads=4, seeds=3, averages=24, evaluations=1000)  # 300 cells: 300,000 records


def analysed(run: Path) -> dict[str, float]:
    """Seconds of reading a run folder and computing its tables, and the peak of this process in GiB."""
    start, cpu = perf_counter(), process_time()
    study = read(run)
    read_seconds = perf_counter() - start
    _ = Report(study).frames
    return {
        "records": len(study.records),
        "seconds": perf_counter() - start,
        "of them reading": read_seconds,
        "CPU seconds": process_time() - cpu,
        "peak GiB": _peak_kib() / 2**20,
    }


def _peak_kib() -> int:
    """The most memory this process had. Not ru_maxrss, which a child takes over from the process that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM: this benchmark needs Linux")


def measure(size: Size) -> dict[str, float]:
    """`analysed` in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        run = write(Path(folder) / "run", size)
        command = [sys.executable, "-m", "benchmarks.analysis", "--of", str(run)]
        found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    parsed: dict[str, float] = json.loads(found)
    return parsed


def main(short: bool = False) -> dict[str, float]:
    """Measure and print; short: 300,000 records instead of ten million."""
    size = SHORT if short else TEN_MILLION
    found = measure(size)
    print(f"{size.num_records:,} records of {size.num_cells:,} cells ({asdict(size)})")
    for name, value in found.items():
        print(f"{value:14.2f}  {name}")
    return found


if __name__ == "__main__":
    if "--of" in sys.argv:
        print(json.dumps(analysed(Path(sys.argv[-1]))))
    else:
        main("--short" in sys.argv)
