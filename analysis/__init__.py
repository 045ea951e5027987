"""Records of a run folder -> tables, figures and a report. Reads the run folder only; needs no torch."""

from analysis.run_folder.records import load

__all__ = ["load"]
