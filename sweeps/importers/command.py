"""`wa import`: other people's logs and checkpoints as run folders, a command a source."""

from __future__ import annotations

import re
from pathlib import Path

import click

from sweeps.border import Group, Told
from sweeps.wording import counted

_EXACT = ("--algoperf-exact", "--exact")
_LEADERBOARD = re.compile(r"v[0-9.]+")


class ImportCommand(click.Command):
    """A command whose --algoperf-exact stands alone or names a leaderboard: ``--algoperf-exact v0.6``."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        spread: list[str] = []
        for word, following in zip(arguments, [*arguments[1:], ""], strict=False):  # of no word, none
            alone = word in _EXACT and not _LEADERBOARD.fullmatch(following)
            spread += [word, "as logged"] if alone else [word]
        return super().parse_args(context, spread)


@click.group("import", cls=Group)
def import_() -> None:
    """Turn another benchmark's logs, or a training's checkpoints, into a run folder."""


@import_.command("algoperf", cls=ImportCommand)
@click.argument("logdir", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Run folder to write: new or empty.")
@click.option(
    "--algoperf-exact",
    "--exact",
    "exact",
    type=click.Choice(["v0.5", "v0.6", "v1.0", "as logged"]),
    metavar="[LEADERBOARD]",
    help="Score by AlgoPerf's own code, quirks included: of v0.5, v0.6 or v1.0, or alone of the logs' own leaderboard.",
)
@click.option(
    "--counts-calls",
    multiple=True,
    metavar="SUBMISSION",
    help="Its global_step counts calls, not optimizer steps: withhold its steps. May be repeated.",
)
@click.option("--baseline", metavar="SUBMISSION", help="The one that the report measures the others against.")
def import_algoperf(
    logdir: Path, out: Path, exact: str | None, counts_calls: tuple[str, ...], baseline: str | None
) -> None:
    """Import AlgoPerf's trial folders, print their scores and write a report.

    LOGDIR holds <submission>/study_<s>/<workload>_<framework>/trial_<t>/, or is one submission's folder.
    """
    from analysis import report as reports
    from analysis.statistics import algoperf_score
    from sweeps import terminal
    from sweeps.importers.algoperf import import_algoperf as read_logs

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    console = terminal.console()
    done = read_logs(logdir, out, frozenset(counts_calls), baseline)
    left_out = "".join(f", {count:,} {why}" for why, count in done.left_out.items())
    read = counted(done.num_read, "line")
    say(f"{counted(done.num_trials, 'trial')}; {read} read, {done.num_recorded:,} recorded{left_out}")
    for note in done.notes:
        say(note)
    evaluations = algoperf_score.read_evaluations(out)
    code = algoperf_score.code_of(evaluations, exact if exact in algoperf_score.LEADERBOARDS else True)
    found = algoperf_score.score(evaluations, code if exact and code else False)
    found.write(out / "tables")
    own = f"AlgoPerf's own code, {code}"
    rule = own if exact else f"the clean rule; --algoperf-exact for {own}"
    rows = [
        (one.submission, f"{one.score:.6f}", f"{one.integral:.6f}", one.num_workloads)
        for one in found.scores.itertuples()
    ]
    columns = ("submission", "score", "integral", "base workloads")
    console.print(terminal.table(columns, rows, title=f"scores by {rule}"))
    say(f"the clean rule and {own} differ in {len(found.differences)} numbers: tables/algoperf_differences.csv")
    say(f"report: {reports.write(out)}")


@import_.command("checkpoints")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Run folder to write: new or empty.")
@click.option("--workload", required=True, metavar="NAME", help="Whose model and data: 'pkg.mod:Name', or a family.")
@click.option("--preset", default="mini", show_default=True)
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the first training; others count on."
)
@click.option("--target", type=float, help="The metric's value to reach, where the workload has none yet.")
@click.option("--step-pattern", metavar="REGEX", help="Where a name tells the step, as a group: 'epoch_([0-9]+)'.")
def import_checkpoints(
    folders: tuple[Path, ...],
    out: Path,
    workload: str,
    preset: str,
    seed: int,
    target: float | None,
    step_pattern: str | None,
) -> None:
    """Import checkpoints of a training, to ask them about averages: nothing is trained.

    DIR holds the checkpoints of one training, each a safetensors file, a torch file or a folder of shards, with its
    step in its name; several are trainings of the same with other seeds. The files stay where they are. OUT/study.yaml
    is a study of them for `wa run`.
    """
    from sweeps import terminal
    from sweeps.importers import checkpoints

    try:
        done = checkpoints.import_checkpoints(
            folders, out, workload, preset, seed=seed, pattern=step_pattern, target=target
        )
    except ValueError as error:
        raise Told(str(error)) from None
    for line in checkpoints.said(done, out):
        terminal.console().print(line, soft_wrap=True, markup=False)
