"""All of them: `make bench`, or `python -m benchmarks --short`."""

import sys

from benchmarks import analysis, bank, launching, memory, trajectory

for benchmark in (bank, memory, trajectory, launching, analysis):
    print(f"# {benchmark.__name__}", flush=True)
    benchmark.main("--short" in sys.argv)
