"""`wa calibrate`: targets by rule, from trainings of held-out seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from sweeps import border, terminal


@click.command()
@click.argument("names", nargs=-1, metavar="WORKLOAD...")
@click.option("--all", "every", is_flag=True, help="Every shipped workload.")
@click.option("--preset", default="mini")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/calibrate"))
@border.cluster_options
def calibrate(names: tuple[str, ...], every: bool, preset: str, out: Path, cluster: Any) -> None:
    """Set targets by rule: train held-out seeds, write targets.yaml beside the workload's file.

    The target is the median over 3 held-out seeds of the baseline's best validation metric when its schedule has
    length 0.75. A study may not use those seeds.
    """
    from analysis.run_folder.records import load
    from sweeps.blocks import SpecError
    from sweeps.run import run_studies
    from sweeps.spec import parse_spec
    from sweeps.targets import calibrated, calibration_study, write_target
    from workloads.protocol import families

    chosen = families() if every else list(names)
    if not chosen:
        said = f"is required; allowed: {', '.join(families())}, 'pkg.mod:Name' or --all"
        raise SpecError("WORKLOAD", said, "calibrate")
    spec = parse_spec(calibration_study(chosen, preset), "calibrate")
    console = terminal.console()
    complete = run_studies([spec], out, console, cluster, calibrating=True)
    if not complete:
        console.print(f"calibration is incomplete; the same command continues it in {out}")
        sys.exit(border.EXIT_INCOMPLETE)
    records = load(out)
    records = records[records["workload"].isin(chosen) & (records["preset"] == preset)]
    for workload, target in calibrated(records, preset).items():
        path = write_target(workload, target)
        console.print(f"{workload}: {target.metric} {target.value:.6g} → {path}", soft_wrap=True)
