"""`wa submit`: studies to a Ray cluster, as a job of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sweeps import border


@click.command(cls=border.Command)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--address", required=True, help="The cluster's dashboard, as in http://head:8265.")
@click.option("--out", help="Run folder as the cluster sees it; default runs/<study> of a single study.")
@click.option("--storage", metavar="URI", help="Of `wa run` there: s3://…, gs://… or a folder that every node sees.")
@click.option("--working-dir", type=click.Path(path_type=Path), help="Folder with your own workloads, sent along.")
@click.option(
    "--send",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Send this file though it looks like a secret; may be repeated.",
)
@click.option("--list", "list_only", is_flag=True, help="List all that would be sent, and send nothing.")
@click.option("--no-wait", is_flag=True, help="Return when the job is accepted.")
@border.accept_changed_code_option
@border.sets_option
def submit(
    files: tuple[str, ...],
    address: str,
    out: str | None,
    storage: str | None,
    working_dir: Path | None,
    send: tuple[Path, ...],
    list_only: bool,
    no_wait: bool,
    accept_changed_code: bool,
    sets: tuple[str, ...],
) -> None:
    """Run a study on a Ray cluster as a Ray job, and follow its log. What is sent is listed first; secrets are refused.

    Several studies run into one folder (--out) and train once what they share, as with `wa run`.
    """
    from cluster.submit import submit as submit_job
    from sweeps.studies import load_specs

    paths = [border.study_file(file) for file in files]
    specs = load_specs(paths, sets)
    if out is not None:
        border.check_local(out, "--out")
    sys.exit(
        submit_job(
            paths,
            address,
            out=border.folder_of(specs, out),
            overrides=sets,
            storage=storage,
            working_dir=working_dir,
            send=send,
            list_only=list_only,
            wait=not no_wait,
            echo=click.echo,
            command=("wa", "run", *["--accept-changed-code"] * accept_changed_code),
        )
    )
