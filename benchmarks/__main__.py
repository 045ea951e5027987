"""All of them: `make bench`, or `python -m benchmarks --short`."""

import sys

from benchmarks import analysis, asking, bank, launching, traces, trajectory

for benchmark in (bank, trajectory, traces, launching, analysis, asking):
    print(f"# {benchmark.__name__}", flush=True)
    benchmark.main("--short" in sys.argv)
