"""How `wa` reads its arguments: --set with several values, studies by path or by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sweeps.border import check_local
from sweeps.wording import closest_first

STUDIES = Path(__file__).parent


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


def sets_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="PATH=VALUE",
        help="Override keys, as in optimizer.lr=0.01 or averaging[1].k=[5,20]; several may follow.",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")(command)


def accept_changed_code_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--accept-changed-code",
        is_flag=True,
        help="Go on though a workload's source or data is not what the folder was begun with.",
    )(command)


def one_folder(specs: Sequence[Any]) -> None:
    """Several studies need a folder that is none of theirs by name. Raises: SpecError."""
    from sweeps.blocks import SpecError

    if len(specs) > 1:
        raise SpecError("--out", "is required: the run folder that the studies share", "several studies")


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
    there = {file.stem: file for file in STUDIES.glob("*.yaml")}
    if name in (path.stem, f"sweeps/{path.stem}.yaml") and path.stem in there:
        return there[path.stem]
    close, names = closest_first(path.stem, sorted(there))
    asked = f" (did you mean {close}?)" if close else ""
    raise SpecError("", f"no such file{asked}; shipped studies: {', '.join(names)}", name[:80])
