"""The border of the command line: its arguments, and what the world gets wrong as one line with a remedy."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from cluster.secrets import harmless, redacted
from sweeps.wording import closest_first, one_line

MAX_LINE = 2000  # characters: it may quote deep paths, and ends with the remedy
EXIT_INCOMPLETE, EXIT_BAD_INPUT = 1, 2
REMEDIES = {
    errno.ENOSPC: "free some space there, and the same command goes on",
    errno.EDQUOT: "free some of your quota there, and the same command goes on",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f), and the same command goes on",
    errno.EACCES: "choose a place that this user may read and write",
    errno.EPERM: "choose a place that this user may read and write",
    errno.EROFS: "choose a place that can be written",
    errno.EEXIST: "choose another path, or move away what is there",
    errno.ENOTDIR: "choose another path: what stands there or above it is no folder",
    errno.EISDIR: "choose another path: a folder is there",
    errno.ENOENT: "check the path",
    errno.ELOOP: "check the path: its links lead round in circles",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "check the disk, then give the same command again",
    errno.EREMOTEIO: "check the storage, its region or endpoint and the network, then give the same command again",
    errno.ESTALE: "mount the file system again, then give the same command again",
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


# Bad input is a click.ClickException with exit code 2, as click itself has it: the rooms share no package of ours that
# could hold a base class, and this one belongs to a library that every installation has.
class Told(click.ClickException):
    """Bad input as the command line ends with it: one line, exit code 2."""

    exit_code = EXIT_BAD_INPUT

    def show(self, file: Any = None) -> None:
        click.echo(one_line(redacted(f"wa: {self.message}"), MAX_LINE, tail=200), err=True)


class Begun(Told):
    """An error after work had begun: what is done stays, and the exit code is 1."""

    exit_code = EXIT_INCOMPLETE


@contextmanager
def begun() -> Iterator[None]:
    """Inside, work has begun: a full disk or a damaged file is no longer bad input alone."""
    try:
        yield
    except (OSError, click.ClickException) as error:
        told = as_told(error)
        if not isinstance(told, Told):
            raise
        raise Begun(told.message) from error


def as_told(error: OSError | click.ClickException) -> Exception:
    """The error as one line; as it is where it is none of the world's, or click's help."""
    if isinstance(error, Told | click.exceptions.NoArgsIsHelpError):
        return error
    if isinstance(error, click.UsageError):
        words = error.ctx.command_path.split()[1:] if error.ctx else []
        said = one_line(error.format_message(), 200).rstrip(".")
        return Told(f"{said}; `{' '.join(['wa', *words])} --help` says more")
    if isinstance(error, click.ClickException):
        return Told(error.message)
    if error.errno in (None, errno.EPIPE):
        return error
    where = error.filename if error.filename is not None else "this command's output"
    said = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "check the path and its file system")
    return Told(f"{where}: {said[:1].lower()}{said[1:]}; {remedy}")


class LocalPath(click.Path):
    """A path of this machine; an address such as s3://… would become a folder of that name."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        check_local(str(value), "path" if param is None else param.opts[-1])
        return super().convert(value, param, context)


class RunPath(LocalPath):
    """A run folder, or one that is mirrored in a bucket (s3://…, gs://…): then the path of a copy.

    may_be_new: whether nothing may be there yet.
    """

    def __init__(self, may_be_new: bool = False) -> None:
        super().__init__(path_type=Path)
        self.may_be_new = may_be_new

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if context is None or not str(value).startswith(("s3://", "gs://")):
            return super().convert(value, param, context)
        from sweeps.remote_run import copied

        return context.with_resource(copied(str(value), self.may_be_new))


def check_local(text: str, name: str) -> None:
    """Raises: click.UsageError for an address, and for what can be no path. name: of the option or argument."""
    if _URL.match(text):
        raise click.UsageError(f"{name}: {text} is an address; allowed: a path on this machine")
    if "\0" in text or not text:
        raise click.UsageError(f"{name}: {text!r} is no path; allowed: a path on this machine")


class Group(click.Group):
    """A group whose commands take local paths, and end what the world gets wrong with one line and exit code 2 or 1."""

    group_class = type

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        for parameter in command.params:
            if type(parameter.type) is click.Path:
                parameter.type = LocalPath(path_type=Path)
        super().add_command(command, name)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            by = f" by {error}" if str(error) else ""
            raise Begun(f"interrupted{by}; the same command goes on from what is on disk") from None
        except (OSError, click.ClickException) as error:
            raise as_told(error) from None
        except Exception as error:  # a bug, whose traceback Python shows
            if (told := harmless(error)) is not error:
                raise told from None
            raise

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise as_told(error) from None


# --- arguments ----------------------------------------------------------------------------------------------------


class Command(click.Command):
    """A command whose --set takes several values: ``--set a=1 b=2`` is ``--set a=1 --set b=2``."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        spread: list[str] = []
        for argument in arguments:
            follows = len(spread) > 1 and spread[-2] == "--set"
            if follows and "=" in argument and not argument.startswith("-"):
                spread.append("--set")
            spread.append(argument)
        return super().parse_args(context, spread)


sets_option = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="PATH=VALUE",
    help="Override keys, as in optimizer.lr=0.01 or averaging[1].k=[5,20]; several may follow.",
)


def _head(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.startswith("ray://"):
        raise click.UsageError(
            f"--address: {value[:60]} runs nothing here, since the run folder must lie where Tune runs; "
            f"`wa submit FILE --address {value[:60]}` runs it on the head",
            context,
        )
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
accept_changed_code_option = click.option(
    "--accept-changed-code",
    is_flag=True,
    help="Go on though a workload's source or data is not what the folder was begun with.",
)


storage_option = click.option(
    "--storage",
    metavar="URI",
    help="Where checkpoints and traces go, so that nodes share no folder: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a "
    "path that all nodes see; default: the run folder. The run folder's files are mirrored there, and `wa report`, "
    "`wa watch`, `wa compare` and `wa recommend` take that URI as RUN. Credentials come from the environment.",
)


def cluster_options(command: Any) -> Any:
    """--address, --bad-nodes and --wait, handed on as one argument `cluster`."""

    @wraps(command)
    def asked(*arguments: Any, address: str | None, bad_nodes: str, wait: float, **others: Any) -> Any:
        from sweeps.where import Cluster

        return command(*arguments, cluster=Cluster(address, wait * 60, bad_nodes), **others)

    for option in (
        click.option(
            "--address", callback=_head, help="A running Ray cluster (auto or HEAD:6379); default: this machine."
        ),
        click.option(
            "--bad-nodes",
            type=click.Choice(["refuse", "skip"]),
            default="refuse",
            help="A node that lacks something (versions, data, memory, the storage): refuse, or train on the others.",
        ),
        click.option(
            "--wait", type=click.FloatRange(0), default=15.0, help="Minutes to wait for a node with room for a trial."
        ),
    ):
        asked = option(asked)
    return asked


def folder_of(specs: Sequence[Any], out: str | None) -> str:
    """The run folder that was asked for, else that of a single study. Raises: SpecError for several."""
    from sweeps.blocks import SpecError

    if out is None and len(specs) > 1:
        raise SpecError("--out", "is required: the run folder that the studies share", "several studies")
    return f"runs/{specs[0].study}" if out is None else out


def study_file(name: str) -> Path:
    """A study: a path, or one shipped with the package (``quickstart`` or ``sweeps/quickstart.yaml``)."""
    from sweeps.blocks import SpecError

    check_local(name, "FILE")
    path = Path(name)
    try:
        if path.exists():
            return path
    except (OSError, ValueError) as error:  # too long, not to be read, with a NUL
        raise SpecError("", f"cannot be read: {getattr(error, 'strerror', None) or error}", name[:80]) from None
    there = {file.stem: file for file in Path(__file__).parent.glob("*.yaml")}
    if name in (path.stem, f"sweeps/{path.stem}.yaml") and path.stem in there:
        return there[path.stem]
    close, names = closest_first(path.stem, sorted(there))
    asked = f" (did you mean {close}?)" if close else ""
    raise SpecError("", f"no such file{asked}; shipped studies: {', '.join(names)}", name[:80])
