"""What a node of a cluster is asked before a launch: the plan's room, its code and data, and the storage."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster import place
from cluster.nodes import Node, slots
from cluster.place import Check
from sweeps import import_order, memory, origins, terminal
from sweeps.storage import Place
from workloads.data import VARIABLE
from workloads.protocol import load, with_batch_size
from workloads.sources import data_folders, source_files
from workloads.user_errors import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.work import Work

SHARE = "use a --storage that every node reaches: a shared folder, s3://… or gs://…"


@dataclass(frozen=True)
class Asked:
    """What every node is asked; it travels there."""

    trials: Sequence[memory.Trials] = ()
    sources: origins.Sources = field(default_factory=dict)  # the workloads' code and data as they are here
    presets: Sequence[tuple[str, str, int | None]] = ()  # workload, preset, batch size: whose data must be there
    data_dir: str | None = None
    sys_path: Sequence[str] = ()
    storage: str | None = None  # None: the trials write nothing that the node must reach

    @classmethod
    def of(cls, todo: Work, sources: origins.Sources, storage: Place | None) -> Asked:
        """What this process knows of the trials that are to run."""
        trainings = (one.cells[0].training for one in todo.trajectories)
        return cls(
            trials=memory.of_trials([one.spec for one in todo.studies], todo.trajectories),
            sources=sources,
            presets=list(dict.fromkeys((one.workload, one.preset, one.batch_size) for one in trainings)),
            data_dir=os.environ.get(VARIABLE),
            sys_path=import_order.users_paths(),
            storage=None if storage is None else storage.uri,
        )


def at(nodes: Sequence[Node], asked: Asked) -> dict[str, list[Check]]:
    """id of a node -> what it answers, and whether its answer arrives in the storage."""
    from cluster.look import look

    with _probe(asked.storage) as probe:
        answers = {node.id: replace(probe, path=f"{probe.path}-{node.id[-12:]}") for node in nodes if probe is not None}
        found = look(nodes, lambda node: partial(on_node, asked, node.resources, probe, answers.get(node.id)))
        for node, answer in answers.items():
            found[node] = [_arrived(check, answer) if check.name == "storage" else check for check in found[node]]
    return found


def _arrived(check: Check, answer: Place) -> Check:
    """A node may have written into a folder of its own with the storage's path."""
    if not check.ok or answer.exists():
        return check
    return Check("storage", False, f"{answer} was written there and is not to be seen from here", SHARE)


def lacking(asked: Asked, nodes: Sequence[Node]) -> dict[str, str]:
    """id of each node that lacks something -> what, and the remedy, in a line."""
    from cluster.look import lacking as first

    return {node: said for node, checks in at(nodes, asked).items() if (said := first(checks)) is not None}


# --- on the node ----------------------------------------------------------------------------------------------------


def on_node(
    asked: Asked, resources: Mapping[str, float], probe: Place | None = None, answer: Place | None = None
) -> list[Check]:
    """The checks, in the node's own process. resources: as Ray counts them; probe is to be read, answer written."""
    import_order.search_too(asked.sys_path)
    if asked.data_dir is not None:
        os.environ[VARIABLE] = asked.data_dir
    trials = [one for one in asked.trials if slots(resources, one.held.cpu, one.held.gpu)]
    checks = [_memory(trials, resources.get("CPU", 0.0)), place.disk(), _gpus(trials), _code(asked), _data(asked)]
    return checks if probe is None or answer is None else [*checks, _storage(probe, answer)]


def _memory(trials: Sequence[memory.Trials], cpus: float) -> Check:
    for one in trials:
        if (said := one.too_large(cpus, "it")) is not None:
            return Check("memory", False, said, f"allowed: {memory.LESS}, or start its Ray with fewer CPUs")
    return place.memory()


def _gpus(trials: Sequence[memory.Trials]) -> Check:
    import torch

    if any(one.held.gpu for one in trials) and not torch.cuda.is_available():
        return Check("gpus", False, "Ray counts GPUs, torch sees none", "install its driver, or a torch for CUDA")
    return Check("gpus", None, ", ".join(f"{size / memory.GIB:.0f} GiB" for size in place.gpu_bytes()) or "none")


def _code(asked: Asked) -> Check:
    for name, ours in asked.sources.items():
        try:
            here = {"files": source_files(name)}
        except Exception as error:  # a user's module may raise anything when it is imported
            remedy = "put it where the node's Python finds it, or send it along (`wa submit --working-dir`)"
            return Check("code", False, f"{name} cannot be imported ({one_line(error)})", remedy)
        if changes := origins.changes({"files": ours["files"]}, here):
            said = f"{name} is not what it is here ({', '.join(changes)})"
            return Check("code", False, said, "give every node the same files")
    return Check("code", True, "as here")


def _data(asked: Asked) -> Check:
    remedy = "put the same data there, where `data_dir` says"
    for name, preset, examples in asked.presets:
        try:
            getattr(with_batch_size(load(name, preset), examples), "check_data", lambda: None)()
            here = data_folders(name, preset)
        except (Exception, SystemExit) as error:  # a user's check, too
            return Check("data", False, one_line(error), remedy)
        ours = asked.sources.get(name, {}).get("data", {})
        if changes := origins.changes({"data": ours}, {"data": ours | here}):
            return Check("data", False, f"{name}: {', '.join(changes)}, seen from here", remedy)
    return Check("data", True, "as here")


def _storage(probe: Place, answer: Place) -> Check:
    try:
        probe.read()
        answer.write(b"")
    except OSError as error:
        return Check("storage", False, one_line(error), SHARE)
    return Check("storage", True, "read and written")


# --- here -----------------------------------------------------------------------------------------------------------


@contextmanager
def _probe(storage: str | None) -> Iterator[Place | None]:
    """A file that nodes are to read; the folder that the storage will be made in may have to do."""
    if storage is None:
        yield None
        return
    home = Place.of(storage)
    if not home.is_bucket:
        there = Path(home.path)
        home = Place.of(next(path for path in (there, *there.parents) if path.is_dir()))
    probe = home / f".wa-look-{uuid.uuid4().hex[:12]}"
    probe.write(b"")
    try:
        yield probe
    finally:
        for one in home.files(f"{probe.name}*"):
            one.remove()


# --- `wa doctor` ----------------------------------------------------------------------------------------------------


def table(address: str, run: Path | None, console: Console) -> list[Check]:
    """Print what each node of a cluster answers, with what is still to train in `run`; every check of every node."""
    import ray

    from cluster.nodes import alive
    from sweeps.engine import joined  # first: it sets what Ray reads when it is imported

    try:
        asked = _asked_by(run)
        with joined(address):
            try:
                nodes = alive()
                found = at(nodes, asked)
            finally:
                ray.shutdown()
    except click.ClickException as error:
        console.print(f"BAD nodes  {error.format_message()}", soft_wrap=True)
        return [Check("nodes", False, error.format_message())]
    names = list(dict.fromkeys(check.name for checks in found.values() for check in checks))
    rows = []
    for node in nodes:
        cells = {one.name: "BAD" if one.ok is False else " ".join(one.detail.split()[:2]) for one in found[node.id]}
        has = f"{node.resources.get('CPU', 0):g}", f"{node.resources.get('GPU', 0):g}"
        rows.append((node.name, *has, *(cells.get(name, "") for name in names)))
    console.print(terminal.table(("node", "CPU", "GPU", *names), rows))
    for node in nodes:
        for bad in (one for one in found[node.id] if one.ok is False):
            console.print(f"node {node.name}: {bad.name}: {bad.detail}; {bad.remedy}", soft_wrap=True)
    return [check for checks in found.values() for check in checks]


def _asked_by(run: Path | None) -> Asked:
    if run is None or not (run / "spec.yaml").is_file():
        return Asked()
    from sweeps.spec import load_spec
    from sweeps.trace import storage_of
    from sweeps.work import work

    specs = [load_spec(path) for path in sorted((run / "specs").glob("*.yaml")) or [run / "spec.yaml"]]
    return Asked.of(work(specs, run), origins.of_studies(specs), storage_of(run))
