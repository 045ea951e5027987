"""Which nodes of a Ray trials may be placed on: those with room, waited for where none is up yet, and looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import click
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.nodes import Autoscaler, Node, alive, autoscaler, occupy
from sweeps.resources import ResourcesBlock
from sweeps.where import Cluster
from sweeps.wording import counted, duration

ANSWER_SECONDS = 20.0  # for an autoscaler to begin with a node, or to say that none of its types fits
POLL_SECONDS = 1.0

Look = Callable[[Sequence[Node]], Mapping[str, str]]  # nodes -> id of each that lacks something, and what, in a line


class NoRoom(click.ClickException, ValueError):
    """The machine or cluster cannot hold a single trial, does not start, or does not answer."""

    exit_code = 2


def at_once(nodes: Iterable[Node], kind: ResourcesBlock) -> int:
    """How many such trials fit on these nodes together."""
    return sum(node.slots(kind.cpu, kind.gpu) for node in nodes)


def usable(nodes: Iterable[Node], kinds: Collection[ResourcesBlock]) -> list[Node]:
    """The nodes on which a trial fits."""
    return [node for node in nodes if any(at_once([node], kind) for kind in kinds)]


def too_small(nodes: Iterable[Node], kind: ResourcesBlock) -> str:
    """The line for a trial that fits nowhere."""
    each = sorted({(one.resources.get("GPU", 0), one.resources.get("CPU", 0)) for one in nodes}, reverse=True)
    shown = " or ".join(f"{cpus:g} CPU and {gpus:g} GPU" for gpus, cpus in each[:3]) or "none"
    return (
        f"a trial needs {kind.words}; a node here has {shown}: ask for less, as in --set resources='{{cpu: 1, gpu: 0}}'"
    )


def nodes_with_room(kinds: Collection[ResourcesBlock], cluster: Cluster, say: Callable[[str], None]) -> list[Node]:
    """The nodes that are up, once every kind of trial fits on one; an autoscaler is asked for what is lacking.

    Raises: NoRoom, at once where there is no autoscaler, or none of its types fits; else after the cluster's wait.
    """
    began, told, state = time.monotonic(), 0.0, None
    with _Demand() as demand:
        while True:
            nodes = alive()
            lacking = [kind for kind in kinds if not at_once(nodes, kind)]
            if not lacking:
                return nodes
            if cluster.address is None:
                raise NoRoom(too_small(nodes, lacking[0]))
            demand.put(lacking)
            passed = time.monotonic() - began
            state = autoscaler() or state
            if _is_hopeless(lacking[0], state) or (passed > ANSWER_SECONDS and not demand.is_answered(state)):
                raise NoRoom(too_small(nodes, lacking[0]))
            if passed > cluster.wait_seconds:
                failed = f"; its latest launch failed: {state.failed}" if state is not None and state.failed else ""
                raise NoRoom(
                    f"no node with {lacking[0].words} has come within {duration(passed)} (--wait)"
                    f"{demand.named(state)}{failed}"
                )
            if demand.is_answered(state) and passed >= told:
                until = duration(cluster.wait_seconds)
                say(
                    f"waiting for a node with {lacking[0].words}{demand.named(state)}: "
                    f"{duration(passed)} so far, at most {until}"
                )
                told = 60.0 if told == 0 else 2 * told
            time.sleep(POLL_SECONDS)


class _Demand:
    """What an autoscaler is asked for, as placement groups, which end with this process; told of in words."""

    def __init__(self) -> None:
        self.groups: dict[ResourcesBlock, object] = {}
        self.types: list[str] = []

    def __enter__(self) -> _Demand:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self.groups.values():
            remove_placement_group(group)

    def put(self, kinds: Iterable[ResourcesBlock]) -> None:
        for kind in kinds:
            if kind not in self.groups:
                self.groups[kind] = placement_group([bundle(kind)])

    def is_answered(self, state: Autoscaler | None) -> bool:
        """Whether an autoscaler has begun with a node since."""
        self.types += [name for name in (state.types if state else ()) if name not in self.types]
        return bool(self.types)

    def named(self, state: Autoscaler | None) -> str:
        return f" (of type {' or '.join(self.types)})" if self.is_answered(state) else ""


def bundle(kind: ResourcesBlock) -> dict[str, float]:
    """As Ray has it, which knows no zeros."""
    return {name: float(held) for name, held in (("CPU", kind.cpu), ("GPU", kind.gpu)) if held}


def _is_hopeless(kind: ResourcesBlock, state: Autoscaler | None) -> bool:
    return state is not None and bundle(kind) in state.hopeless


@dataclass
class Roll:
    """Nodes that have been looked at, each once; those that lack something are named and left out."""

    look: Look
    avoid: list[str]
    say: Callable[[str], None]
    known: set[str] = field(default_factory=set)
    held: list[object] = field(default_factory=list)  # what keeps others off

    def call(self, nodes: Sequence[Node], refuse: bool = False) -> None:
        """Look at what has not been looked at. Raises: NoRoom for the first that lacks something, where asked to."""
        new = [node for node in nodes if node.id not in self.known]
        self.known |= {node.id for node in new}
        found = self.look(new) if new else {}
        there = {node.id for node in alive()} if found else set()
        found = {node: said for node, said in found.items() if node in there}  # who has gone meanwhile is not bad
        by_id = {node.id: node for node in new}
        if refuse and found:
            (first, said), *others = found.items()
            more = f" (and {counted(len(others), 'other node')}: `wa doctor --address` shows each)" if others else ""
            raise NoRoom(f"node {by_id[first].name}: {said}{more}; or --bad-nodes skip, which trains on the others")
        for node, said in found.items():
            self.avoid.append(node)
            self.held.append(occupy(by_id[node]))
            self.say(f"node {by_id[node].name} is left out: {said}")

    def call_beside(self, nodes: Sequence[Node]) -> None:
        """Look at what has joined, without waiting for it."""
        if any(node.id not in self.known for node in nodes):
            threading.Thread(target=self.call, args=(nodes,), daemon=True, name="roll-call").start()
