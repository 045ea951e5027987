"""The border of the command line: what the world gets wrong is one line with its path, a remedy and an exit code."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sweeps.wording import MAX_LINE, one_line

MAX_PATHS = 2000  # characters of a line that quotes paths of this machine
EXIT_INCOMPLETE, EXIT_BAD_INPUT = 1, 2
# By name, so that help and errors of the command line itself need none of their modules.
BAD_INPUT = frozenset(
    {
        *("SpecError", "BadRun", "NoRoom", "UnknownWorkload", "BadLogs", "SubmitError", "BadData", "BadPath"),
        *("ArrowInvalid", "JSONDecodeError", "UnicodeDecodeError"),
    }
)
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
    errno.ESTALE: "mount the file system again, then give the same command again",
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Begun(Exception):
    """An error after work had begun: what is done stays, and the exit code is 1."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(line(cause))


@contextmanager
def begun() -> Iterator[None]:
    """Inside, work has begun: a full disk or a damaged file is no longer bad input alone."""
    try:
        yield
    except (OSError, ValueError) as error:
        if not is_bad_input(error):
            raise
        raise Begun(error) from error


def is_bad_input(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno is not None and error.errno != errno.EPIPE
    return type(error).__name__ in BAD_INPUT


def line(error: Exception) -> str:
    """What is wrong, where, and how to go on, as one line."""
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    where = error.filename if error.filename is not None else "this command's output"
    said = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, "check the path and its file system")
    return " ".join(f"{where}: {said[:1].lower()}{said[1:]}; {remedy}".split())


def longest(error: Exception) -> int:
    """How many characters of what is wrong are shown: all of a path that exists, and the remedy after it."""
    is_long_by_itself = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
    has_paths = isinstance(error, OSError) or type(error).__name__ == "BadRun"
    return MAX_PATHS if has_paths and not is_long_by_itself else MAX_LINE


class BadPath(ValueError):
    """No path of this machine."""


class LocalPath(click.Path):
    """A path of this machine; an address such as s3://… would become a folder of that name."""

    name = "path"

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        check_local(str(value), "path" if param is None else param.opts[-1])
        return super().convert(value, param, context)


def check_local(text: str, name: str) -> None:
    """Raises: BadPath for an address, and for what can be no path. name: of the option or argument."""
    if _URL.match(text):
        raise BadPath(f"{name}: {text} is an address; allowed: a path on this machine")
    if "\0" in text or not text:
        raise BadPath(f"{name}: {text!r} is no path; allowed: a path on this machine")


class Group(click.Group):
    """A group whose commands take local paths, and end what the world gets wrong with one line and exit code 2 or 1."""

    group_class = type

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        for parameter in command.params:
            if type(parameter.type) is click.Path:
                parameter.type = LocalPath()
        super().add_command(command, name)

    def invoke(self, context: click.Context) -> Any:
        most = MAX_PATHS
        try:
            return super().invoke(context)
        except KeyboardInterrupt as error:
            by = f" by {error}" if str(error) else ""
            said, code = f"interrupted{by}; the same command goes on from what is on disk", EXIT_INCOMPLETE
        except Begun as error:
            said, code = str(error), EXIT_INCOMPLETE
        except (OSError, ValueError) as error:
            if not is_bad_input(error):
                raise
            said, code, most = line(error), EXIT_BAD_INPUT, longest(error)
        except click.UsageError as error:
            raise _one_line_of(error) from None
        click.echo(one_line(f"wa: {said}", most), err=True)
        return context.exit(code)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _one_line_of(error) from None


class _BadUsage(click.ClickException):
    """A wrong command line, said in one line."""

    exit_code = EXIT_BAD_INPUT

    def show(self, file: Any = None) -> None:
        click.echo(one_line(f"wa: {self.message}"), err=True)


def _one_line_of(error: click.UsageError) -> click.ClickException:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error
    words = error.ctx.command_path.split()[1:] if error.ctx else []
    command = " ".join(["wa", *words])
    return _BadUsage(f"{one_line(error.format_message(), 200).rstrip('.')}; `{command} --help` says more")
