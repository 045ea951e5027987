"""All of them: `make bench`, or `python -m benchmarks --short`."""

import sys

from benchmarks import analysis, asking, bank, launching, load, memory, sharing, traces, trajectory

for benchmark in (bank, memory, trajectory, sharing, traces, launching, load, analysis, asking):
    print(f"# {benchmark.__name__}", flush=True)
    benchmark.main("--short" in sys.argv)
