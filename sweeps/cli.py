"""`wa`: the command line. Commands import what they need when they run, so that help is immediate."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sweeps import border, terminal
from sweeps.average_command import average
from sweeps.calibrate_command import calibrate
from sweeps.importers.command import import_
from sweeps.submit_command import submit
from sweeps.wording import counted

PATH = click.Path(path_type=Path)  # of this machine, by `border.Group`
RUN = border.RunPath()
POSITIVE = click.FloatRange(0, min_open=True)
SHOWN_ROWS = 40  # of the result table in the terminal; tables/settings.csv has all


@click.group(
    cls=border.Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
    epilog="""\b
A first study, from nothing to a report:
  wa plan sweeps/quickstart.yaml          what would run, and what it would cost
  wa run sweeps/quickstart.yaml           run it on this machine; run again to continue
  wa report runs/quickstart               draw the report again from the records

\b
Exit codes: 0 done · 1 a trial failed or the study is incomplete · 2 bad input, nothing launched
""",
)
@click.version_option(package_name="wa-sweeps", prog_name="wa")
def main() -> None:
    """When, where and why to average weights: sweeps over averaging schemes, horizons and LR decays.

    Cells of the grid that differ only in averaging share one training trajectory.
    """


@main.command(cls=border.Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--out", type=border.RunPath(True), help="Compare with this run folder: plan what is not done.")
@border.json_option
@border.sets_option
def plan(files: tuple[str, ...], out: Path | None, as_json: bool, sets: tuple[str, ...]) -> None:
    """Show cells, trajectories, device-hours and memory of a study; launch nothing.

    FILE is a study's YAML, or the name of a shipped one (quickstart, …). Of several studies it shows each, and
    what they take together, when what they share is trained once.
    """
    from sweeps.expected import as_json as todo_as_json
    from sweeps.plan_text import show
    from sweeps.run import usable
    from sweeps.studies import load_specs
    from sweeps.work import work

    specs, left_out = usable(load_specs(map(border.study_file, files), sets))
    todo = work(specs, out)
    if as_json:
        _echo_json({**todo_as_json(specs, todo), "left_out": left_out})
    else:
        show(specs, todo, out, left_out, terminal.console())
    if left_out:
        sys.exit(border.EXIT_INCOMPLETE)


@main.command(cls=border.Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--out", type=PATH, help="Run folder; default runs/<study>. Continued if it exists.")
@border.cluster_options
@click.option("--checkpoint-seconds", default=10.0, type=click.FloatRange(0), help="Least time between checkpoints.")
@border.storage_option
@border.accept_changed_code_option
@border.sets_option
def run(
    files: tuple[str, ...],
    out: Path | None,
    cluster: Any,
    checkpoint_seconds: float,
    storage: str | None,
    accept_changed_code: bool,
    sets: tuple[str, ...],
) -> None:
    """Run a study to its report; run again to continue.

    FILE is a study's YAML, or the name of a shipped one (quickstart, …). Several studies run into one folder
    (--out) and train once what they share. What the run folder already holds is kept, also of other studies, and
    no finished trajectory is trained twice.
    """
    from sweeps.run import run_studies
    from sweeps.storage import Place
    from sweeps.studies import load_specs

    specs = load_specs(map(border.study_file, files), sets)
    out = Path(border.folder_of(specs, None if out is None else str(out)))
    console = terminal.console()
    complete = run_studies(
        *(specs, out, console, cluster, checkpoint_seconds),
        accept_changed_code=accept_changed_code,
        storage=None if storage is None else Place.of(storage),
        conclude=lambda: _conclude(out, console),
    )
    if not complete:
        what = "the study is" if len(specs) == 1 else "the studies are"
        again = f"`wa run {' '.join(files)} --out {out}` continues {'it' if len(specs) == 1 else 'them'}"
        console.print(f"{what} incomplete; {again}", soft_wrap=True)
        sys.exit(border.EXIT_INCOMPLETE)


def _conclude(run: Path, console: Any, baseline: str | None = None) -> None:
    from analysis import report as reports
    from sweeps.remote_run import put_back

    made = reports.of_run(run, baseline)
    for one in made:
        if (table := one.summary(most=SHOWN_ROWS)).rows:
            console.print(terminal.table(table.columns, table.rows, title=one.name if len(made) > 1 else None))
    with border.begun():
        written = reports.write(run, made)
    for one in made:
        console.print("\n".join([*([one.name] if len(made) > 1 else []), *one.answer]), soft_wrap=True)
    console.print(f"report: {put_back(run, written)}", soft_wrap=True)


@main.command()
@click.argument("run", type=RUN)
@click.option("--baseline", help="Of imported logs: the submission that the others are measured against.")
def report(run: Path, baseline: str | None) -> None:
    """Write tables, figures and report.html of a run folder again, from its records alone.

    Of several studies in it each has a report of its own in reports/<study>/, and report.html is their index.
    """
    from sweeps import tracking

    _conclude(run, terminal.console(), baseline)
    tracking.publish_report(run, terminal.console())


@main.command()
@click.argument("run", type=RUN)
@click.option(
    "--every",
    type=POSITIVE,
    help="Give LAWA's k and EMA's decay at this snapshot interval: steps, or below 1 a share of the step budget.",
)
@click.option("--study", help="Of a folder that holds several: this one alone; default: each in turn.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a program: a list, one entry a study.")
def recommend(run: Path, every: float | None, study: str | None, as_json: bool) -> None:
    """Say which average to use: scheme, horizon, decay, LR-decay length, what it saves, and how sure that is."""
    from analysis import recommend as recommendation

    found = recommendation.recommend(run, every, study)
    if as_json:
        _echo_json([one.as_dict() for one in found])
    for one in [] if as_json else found:
        terminal.console().print(one.text())


@main.command()
@click.argument("a", type=RUN)
@click.argument("b", type=RUN)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for a program.")
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two run folders: what differs around them, the cells both have, and what only one of them has."""
    from analysis import compare as comparison
    from sweeps.remote_run import named

    found = replace(comparison.compare(a, b), a=named(a), b=named(b))
    if as_json:
        _echo_json(found.as_dict())
    else:
        terminal.console().print(found.text())


@main.command()
@click.argument("run", type=border.RunPath(may_be_new=True))
@click.option("--once", is_flag=True, help="Draw it once and return.")
@border.json_option
@click.option("--every", default=2.0, type=POSITIVE, help="Seconds between looks.")
@click.option("--wait", default=600.0, type=click.FloatRange(0), help="Seconds to wait for a folder that is to come.")
def watch(run: Path, once: bool, as_json: bool, every: float, wait: float) -> None:
    """Watch a run folder, running or finished, from any machine that sees it; only reads.

    What runs and how far it is, best metrics beside the target, averages against the non-averaged baseline so far,
    and what failed. Ends when the study is done, or on Ctrl-C; --json looks once.
    """
    from sweeps.remote_run import named, refresh

    if as_json:
        from sweeps.status import Status

        _echo_json({**Status(run).as_json(), "run": named(run)})
        return
    from sweeps.screen import watch as draw

    sys.exit(draw(run, terminal.console(), once, every, wait, lambda: refresh(run)))


@main.command()
@click.argument("run", type=RUN)
@click.option("--out", type=PATH, help="File; default RUN/wandb/workspace.json.")
@click.option("--push", is_flag=True, help="Save it on W&B, with a report; needs WANDB_API_KEY.")
def dashboard(run: Path, out: Path | None, push: bool) -> None:
    """Write the W&B workspace of a run folder as JSON: its panels, filters and groups, from its plan and cells.

    --push saves it on W&B too, beside a report with each study's question, answer, table and panels, and prints
    both links; a second push saves the same two anew.
    """
    from sweeps import dashboard as made
    from sweeps.durable import make_folder, write_atomic
    from sweeps.remote_run import named, put_back

    text = made.as_json(made.workspace(run))
    path = out or run / "wandb" / "workspace.json"
    make_folder(path.parent)
    write_atomic(path, text)
    console, there = terminal.console(), put_back(run, path)
    if not push:
        console.print(f"workspace: {there}; `wa dashboard {named(run)} --push` saves it on W&B", soft_wrap=True)
        return
    try:
        workspace, report = made.push(run)
    except made.PushFailed as error:
        click.echo(f"wa: {error}; the workspace is in {there}", err=True)
        sys.exit(border.EXIT_INCOMPLETE)
    console.print(f"workspace: {workspace}\nreport: {report}", soft_wrap=True)


@main.command()
@border.json_option
def workloads(as_json: bool) -> None:
    """List the workloads: budget, metric, target and where the target comes from."""
    from sweeps import keys

    if as_json:
        _echo_json(keys.workloads_json())
        return
    console = terminal.console()
    headers, rows = keys.workloads(console.width)
    console.print(terminal.table(headers, rows))
    console.print("Your own: 'pkg.mod:Name', as in workloads: [mymodule:MyWorkload] (README, How to add a workload).")


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def _list_keys(what: str, of: str) -> None:
    """A command that lists what a block of a spec may hold."""

    @main.command(what, help=f"List {of}, their defaults and what they are.")
    def show() -> None:
        from sweeps import keys

        made, console = getattr(keys, what)(), terminal.console()
        console.print(terminal.table(made.headers, made.rows))
        console.print(made.note)


_list_keys("optimizers", "the optimizers: the keys of each")
_list_keys("schedules", "the keys of a learning-rate schedule")
_list_keys("schemes", "the averaging schemes: the keys of each")


@main.command()
@click.argument("run", type=PATH)
@click.option("--drop", is_flag=True, help="Free them.")
def traces(run: Path, drop: bool) -> None:
    """List the traces of a run folder: weights that `keep:` kept, so that later questions train nothing."""
    from sweeps import imported, trace

    console = terminal.console()
    if drop:
        console.print(f"{run}: {trace.drop(run) / 2**20:,.1f} MiB freed", soft_wrap=True)
        return
    rows = []
    for one in imported.traces(run):
        steps = f"{len(one.steps):,}", f"{max(one.steps, default=0):,}"
        rows.append((one.folder.name, *steps, one.rounded or "exact", f"{one.nbytes / 2**20:,.1f} MiB"))
    console.print(terminal.table(("trajectory", "snapshots", "last step", "weights", "size"), rows))


@main.command("check-workload")
@click.argument("name")
@click.option("--preset", default="mini")
@click.option("--steps", default=24, type=click.IntRange(8), help="Steps of the trial runs.")
def check_workload(name: str, preset: str, steps: int) -> None:
    """Check that a workload keeps the protocol's promises: deterministic, resumable, safe to fuse.

    NAME is a shipped workload, or your own as 'pkg.mod:Name'. Trains a few short trajectories in a temporary folder.
    """
    from sweeps import pace
    from sweeps.conformance import check

    failed = 0
    for one in check(name, preset, steps):
        failed += not one.ok
        click.echo(f"{'ok  ' if one.ok else 'FAIL'}  {one.name}{': ' + one.detail if one.detail else ''}")
    if failed:
        click.echo(f"{counted(failed, 'check')} failed (workloads/protocol.py says what is promised)")
        sys.exit(border.EXIT_INCOMPLETE)
    click.echo(f"pace  {pace.said(name, preset)}")


main.add_command(import_)
main.add_command(average)
main.add_command(calibrate)
main.add_command(submit)


@main.command()
@click.argument("run", required=False, type=PATH)
@click.option("--address", help="Also this Ray cluster; of HEAD:6379 or auto, on a machine of it, each node.")
@click.option("--start-ray", is_flag=True, help="Also start a Ray here, and stop it again.")
def doctor(run: Path | None, address: str | None, start_ray: bool) -> None:
    """Check this machine (and a run folder's file system) for what a sweep needs."""
    from cluster.doctor import examine, render
    from sweeps import look, memory

    checks = [*examine(run, address, start_ray=start_ray), *(memory.checks(run) if address is None else [])]
    click.echo(render(checks))
    if address is not None and "://" not in address:
        checks += look.table(address, run, terminal.console())
    if any(check.ok is False for check in checks):
        sys.exit(border.EXIT_INCOMPLETE)


if __name__ == "__main__":
    main()
