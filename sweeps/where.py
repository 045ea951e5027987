"""Where a study is to run, as the command line says it."""

from __future__ import annotations

from dataclasses import dataclass

WAIT_SECONDS = 900.0


@dataclass(frozen=True)
class Cluster:
    """A Ray to run on, and what to do about nodes that are not up or lack something."""

    address: str | None = None  # None: this machine
    wait_seconds: float = WAIT_SECONDS  # for a node with room for a trial, at the start and whenever there is none
    bad_nodes: str = "refuse"  # a node that lacks something: refuse the run, or skip the node


HERE = Cluster()
