"""What a node says before a launch, asked in this process; and what is made of the answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from sweeps import engine  # noqa: F401  (first: it sets what Ray reads when it is imported)

# isort: split
from cluster import look as looks
from cluster import place
from cluster.nodes import Autoscaler, Node
from cluster.place import Check
from sweeps import look, memory, origins, roll
from sweeps.look import Asked, on_node
from sweeps.resources import ResourcesBlock
from sweeps.roll import NoRoom, Roll, nodes_with_room
from sweeps.storage import Place
from sweeps.where import Cluster
from workloads.data import VARIABLE

ONE = Node("a" * 56, "10.0.0.1", {"CPU": 2.0})
TWO = Node("b" * 56, "10.0.0.2", {"CPU": 2.0})
CPU = ResourcesBlock(cpu=1)


def bad(checks: Sequence[Check]) -> dict[str, str]:
    assert all(one.remedy for one in checks if one.ok is False)
    return {one.name: one.detail for one in checks if one.ok is False}


def test_a_sound_node_lacks_nothing(outside: Path) -> None:
    sources = {"tinywork:Tiny": {"files": origins.source_files("tinywork:Tiny"), "data": {}}}
    asked = Asked(sources=sources, presets=[("tinywork:Tiny", "mini", None), ("lm", "mini", None)])
    assert bad(on_node(asked, ONE.resources)) == {}


def test_code_that_is_missing_or_another(outside: Path) -> None:
    found = bad(on_node(Asked(sources={"nowhere:Tiny": {"files": {"nowhere.py": "0"}}}), ONE.resources))
    assert "nowhere:Tiny cannot be imported" in found["code"]
    found = bad(on_node(Asked(sources={"tinywork:Tiny": {"files": {"tinywork.py": "0"}}}), ONE.resources))
    assert found["code"] == "tinywork:Tiny is not what it is here (tinywork.py has changed)"


def test_data_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/elsewhere")
    asked = Asked(presets=[("ogbg", "full", None)], data_dir=str(tmp_path))
    assert str(tmp_path) in bad(on_node(asked, ONE.resources))["data"]


def test_memory_is_held_against_what_fits_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "total_bytes", lambda: 8 << 30)
    trials = memory.Trials("lm", CPU, {"process": 3 << 30}, number=9)
    wide = memory.Trials("lm", ResourcesBlock(cpu=64), {"process": 99 << 30}, number=9)  # fits no such node
    assert bad(on_node(Asked(trials=[trials, wide]), {"CPU": 2.0})) == {}
    assert (
        "3.0 GiB a process (process 3.0), it has 8.0 GiB for 4 at once"
        in bad(on_node(Asked(trials=[trials]), {"CPU": 4.0}))["memory"]
    )


def test_gpus_that_ray_counts_and_torch_does_not_see() -> None:
    trials = memory.Trials("lm", ResourcesBlock(cpu=1, gpu=1), {"process": 1}, number=1)
    assert "torch sees none" in bad(on_node(Asked(trials=[trials]), {"CPU": 1.0, "GPU": 1.0}))["gpus"]
    assert bad(on_node(Asked(trials=[trials]), {"CPU": 1.0})) == {}  # no such trial goes there


def test_the_storage_is_read_and_written_on_the_node_and_read_here(tmp_path: Path) -> None:
    def there(root: Path) -> dict[str, list[Check]]:
        def of_nodes(nodes: Sequence[Node], ask: object) -> dict[str, list[Check]]:
            found = {}
            for node in nodes:
                checks = ask(node)  # type: ignore[operator]
                probe, answer = (Place.of(root / Path(one.path).name) for one in checks.args[2:])
                found[node.id] = [look._storage(probe, answer)]
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(looks, "look", of_nodes)
            return look.at([ONE], Asked(storage=str(tmp_path / "here" / "run")))

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    assert bad(there(tmp_path / "here")[ONE.id]) == {}
    assert "No such file" in bad(there(tmp_path / "there")[ONE.id])["storage"]
    assert [*tmp_path.glob("here/*"), *tmp_path.glob("here/.*")] == []


def test_versions_and_clocks() -> None:
    ours = {"Python": "3.11.7", "wa-sweeps": "1.0", "torch": "2.13.0+cpu", "ray": "2.60.0"}

    def checks(clock: float = 5.0, **theirs: str) -> list[Check]:
        return looks._checks(ours, (ours | theirs, [], clock), 5.0)

    assert bad(checks(Python="3.11.9", torch="2.13.0+cu126")) == {}
    assert bad(checks(Python="3.12.7")) == {"versions": "Python 3.12.7 there, 3.11.7 here"}
    assert bad(checks(torch="2.12.0+cpu")) == {"versions": "torch 2.12.0+cpu there, 2.13.0+cpu here"}
    assert bad(checks(clock=1.0)) == {"clock": "4.0 s from here"}
    assert str(looks.lacking(checks(clock=1.0))).startswith("clock: 4.0 s from here; run NTP")


def test_who_lacks_something_is_refused_or_left_out_and_each_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    there = [ONE, TWO]
    monkeypatch.setattr(roll, "occupy", lambda node: node)
    monkeypatch.setattr(roll, "alive", lambda: there)

    def lacks(nodes: Sequence[Node]) -> dict[str, str]:
        looked.extend(node.name for node in nodes)
        return {node.id: "disk: full; free some" for node in nodes if node is TWO}

    said: list[str] = []
    with pytest.raises(NoRoom, match=r"node 10.0.0.2: disk: full; free some; or --bad-nodes skip"):
        Roll(lacks, [], said.append).call([ONE, TWO], refuse=True)
    roll_call = Roll(lacks, [], said.append)
    roll_call.call([ONE])
    roll_call.call_beside([ONE, TWO])
    next(one for one in threading.enumerate() if one.name == "roll-call").join(10) if not roll_call.avoid else None
    roll_call.call_beside([ONE, TWO])
    assert looked[2:] == ["10.0.0.1", "10.0.0.2"]
    assert roll_call.avoid == [TWO.id]
    assert roll_call.held == [TWO]
    assert said == ["node 10.0.0.2 is left out: disk: full; free some"]
    there.remove(TWO)
    Roll(lacks, [], said.append).call([ONE, TWO], refuse=True)  # it went while it was looked at, as spot nodes do


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "a trial needs 1 CPU and 0 GPU; a node here has none"),
        (Autoscaler(hopeless=({"CPU": 1.0},)), "a trial needs 1 CPU"),
        (Autoscaler(types=("spot",), failed="no quota"), r"\(--wait\) \(of type spot\); its latest launch failed: no"),
    ],
)
def test_nodes_that_do_not_come(monkeypatch: pytest.MonkeyPatch, state: Autoscaler | None, said: str) -> None:
    clock, lines = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(roll.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(roll.time, "sleep", sleep)
    monkeypatch.setattr(roll, "alive", list)
    monkeypatch.setattr(roll, "autoscaler", lambda: state)
    monkeypatch.setattr(roll, "placement_group", lambda bundles: bundles)
    removed: list[object] = []
    monkeypatch.setattr(roll, "remove_placement_group", removed.append)
    with pytest.raises(NoRoom, match=said):
        nodes_with_room([CPU], Cluster("head:6379", wait_seconds=200), lines.append)
    assert removed == [[{"CPU": 1.0}]]
    waited = [line.partition(": ")[2] for line in lines]
    told = ("0 s", "1 min 0 s", "2 min 0 s") if state is not None and state.types else ()
    assert waited == [f"{time} so far, at most 3 min 20 s" for time in told]
