"""W&B beside the driver: its process, `sweeps.publisher`, begun, told that all is written, and left when it is slow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import ValidationError
from rich.console import Console

from analysis.run_folder.run_files import broken, read_bytes, wandb_links
from sweeps.blocks import TrackingBlock
from sweeps.yaml_file import BadYaml, parse_value

FINISH_SECONDS = 15.0  # what the driver grants the publisher at the end of a run


def block(run: Path) -> TrackingBlock:
    """What the folder's spec says of W&B. Raises: analysis.run_folder.records.BadRun."""
    path = run / "spec.yaml"
    try:
        return TrackingBlock(**(parse_value(read_bytes(path).decode()).get("tracking") or {}))
    except (FileNotFoundError, UnicodeDecodeError, BadYaml, ValidationError, AttributeError, TypeError) as error:
        raise broken(path, f"does not say where its runs are ({str(error).splitlines()[0]})") from None


@contextmanager
def publishing(run: Path, told: TrackingBlock, console: Console) -> Iterator[None]:
    """Publish beside a block, and at its end what it has left in the folder; a line says where, or what is missing."""
    publisher = start(run, told)
    try:
        yield
    finally:
        if not finish(publisher):
            console.print(f"W&B is not up to date yet; {run / 'wandb.log'} says why. Records are complete without it.")
        _show_links(run, told, console)


def publish_report(run: Path, console: Console) -> None:
    """Have a report that was written again published, of a folder whose runs are; nobody waits for it."""
    if (run / "wandb" / "told.json").exists():
        told = block(run)
        finish(start(run, told), seconds=0.0)
        _show_links(run, told, console)


def _show_links(run: Path, told: TrackingBlock, console: Console) -> None:
    for study, link in wandb_links(run).items() if told.wandb == "online" else ():
        console.print(f"W&B: {link} ({study})", soft_wrap=True)


def start(run: Path, told: TrackingBlock) -> subprocess.Popen[bytes] | None:
    """Start the publisher beside the driver; None when W&B is disabled."""
    if told.wandb == "disabled":
        return None
    command = [sys.executable, "-P", "-m", "sweeps.publisher", str(run), told.wandb, told.project, told.entity or ""]
    # Where this process uses W&B itself, its service would be the publisher's too, and keep ids in use after a kill.
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    env |= {"WANDB_DIR": str(run.resolve()), "WANDB_MODE": told.wandb, "WANDB_SILENT": "true"}
    env |= {"WANDB_ERROR_REPORTING": "false", "WANDB_CONSOLE": "off"}
    with ExitStack() as stack:
        log: IO[bytes] | int = subprocess.DEVNULL
        with suppress(OSError):  # a full disk costs W&B alone
            log = stack.enter_context(open(run / "wandb.log", "ab"))
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=env)


def finish(publisher: subprocess.Popen[bytes] | None, seconds: float = FINISH_SECONDS) -> bool:
    """Tell the publisher that the records are complete and wait a little; whether it published all of them.

    A slow one goes on by itself; what it does not publish, the next `wa run` on the folder does.
    """
    if publisher is None:
        return True
    assert publisher.stdin is not None
    publisher.stdin.close()
    try:
        return publisher.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        threading.Thread(target=publisher.wait, daemon=True).start()  # no zombie
        return False
