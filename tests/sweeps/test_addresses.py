"""A path of the command line is a path on this machine: an address of another store is refused before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sweeps import cli

PATHS = {
    "run": ("run", "b.yaml", "--out"),
    "plan": ("plan", "b.yaml", "--out"),
    "plan a file": ("plan",),
    "report": ("report",),
    "recommend": ("recommend",),
    "compare": ("compare", "run"),
    "watch": ("watch", "--once"),
    "dashboard": ("dashboard",),
    "dashboard --out": ("dashboard", "run", "--out"),
    "import": ("import", "algoperf"),
    "import -o": ("import", "algoperf", "run", "-o"),
    "calibrate": ("calibrate", "lm", "--out"),
    "doctor": ("doctor",),
    "submit": ("submit", "b.yaml", "--address", "http://127.0.0.1:1", "--out"),
    "submit --working-dir": ("submit", "b.yaml", "--address", "http://127.0.0.1:1", "--working-dir"),
}
READERS = ("plan", "report", "recommend", "compare", "watch", "dashboard")  # of a run that may lie in a bucket


@pytest.mark.parametrize("command", PATHS)
@pytest.mark.parametrize("address", ["s3://bucket/run", "file:///run"])
def test_an_address_is_no_path(outside: Path, command: str, address: str) -> None:
    if address.startswith("s3") and command in READERS:
        address = "s3://bucket/run?access_key=x"  # what a mirrored run's may not say
    (outside / "run").mkdir()
    (outside / "b.yaml").write_text("study: b\nworkloads: lm\naveraging: {scheme: none}\n")
    before = sorted(outside.rglob("*"))
    done = CliRunner().invoke(cli.main, [*PATHS[command], address])
    assert done.exit_code == 2
    assert address.partition("?")[0] in done.stderr or "unknown option access_key" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("command", [("run", "b.yaml"), ("calibrate", "lm")])
def test_a_ray_client_is_sent_to_submit(outside: Path, command: tuple[str, ...]) -> None:
    (outside / "b.yaml").write_text("study: b\nworkloads: lm\naveraging: {scheme: none}\n")
    before = sorted(outside.rglob("*"))
    done = CliRunner().invoke(cli.main, [*command, "--address", "ray://head:10001"])
    assert done.exit_code == 2
    assert "`wa submit FILE --address ray://head:10001`" in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(outside.rglob("*")) == before


def test_every_path_of_every_command_is_checked() -> None:
    def types(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield type(parameter.type).__name__
        for below in getattr(command, "commands", {}).values():
            yield from types(below)

    found = set(types(cli.main))
    assert "LocalPath" in found
    assert not {"Path", "File"} & found
