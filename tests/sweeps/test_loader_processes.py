"""The processes that make batches: one loader a rank, the same batches in every split, and none outlives its trial."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from batches import equal

from workloads.protocol import FAMILIES, WHOLE, Part, Workload, load, micro_batches
from workloads.task import Task

WORKLOAD = textwrap.dedent("""
    import dataclasses, os, time
    from pathlib import Path
    from workloads.lm import PRESETS, LanguageModel

    HERE = Path(__file__).parent

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Loaded(LanguageModel):
        def train_batch(self, *asked):
            (HERE / f"made-by-{os.getpid()}").touch()
            return super().train_batch(*asked)

        def loss(self, model, batch):
            what = (HERE / "what").read_text()
            if what == "fails":
                raise ValueError("no more")
            if what == "is killed":
                (HERE / "ready").touch()
                time.sleep(60)
            return super().loss(model, batch)

    MINI = {one.name: getattr(PRESETS["mini"], one.name) for one in dataclasses.fields(PRESETS["mini"])}
    work = Loaded(**MINI | {"num_workers": 1, "num_eval_windows": 2})
""")
TRIALS = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from sweeps import trajectory
    from sweeps.cells import cells
    from sweeps.plan import trajectories
    from sweeps.spec import parse_spec

    def main():
        spec = {"study": "s", "workloads": "loadedwork:work", "step_budget": 2, "averaging": {"scheme": "none"}}
        (one,) = trajectories(cells(parse_spec(spec)), fuse=True)
        kept = []
        for what in ("ends", "fails", "is killed"):
            Path("what").write_text(what)
            try:
                trajectory.run(one, Path("trajectories") / what)
            except ValueError as error:
                kept.append(error)  # and all that its traceback holds
            made = {int(path.name.removeprefix("made-by-")) for path in Path().glob("made-by-*")} - {os.getpid()}
            left = [pid for pid in made if Path(f"/proc/{pid}").exists()]
            print(what, len(made), left, len(kept), flush=True)

    if __name__ == "__main__":  # a worker reads this file too
        main()
""")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waited_for(condition: Any, seconds: float = 60.0) -> bool:
    until = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < until:
        time.sleep(0.1)
    return bool(done)


def test_none_outlives_a_trial_that_ends_fails_or_is_killed(tmp_path: Path) -> None:
    (tmp_path / "loadedwork.py").write_text(WORKLOAD)
    (tmp_path / "trials.py").write_text(TRIALS)
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    trials = subprocess.Popen(
        [sys.executable, "trials.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE
    )
    try:
        assert waited_for(lambda: (tmp_path / "ready").exists() or trials.poll() is not None, 120.0)
        made = {int(path.name.removeprefix("made-by-")) for path in tmp_path.glob("made-by-*")}
        assert [pid for pid in made if lives(pid)]
    finally:
        trials.send_signal(signal.SIGKILL)
        said, _ = trials.communicate()
    assert said.decode().splitlines() == ["ends 1 [] 0", "fails 2 [] 1"]
    assert len(made) == 3
    assert waited_for(lambda: not [pid for pid in made if lives(pid)])


@pytest.mark.parametrize("family", [name for name in FAMILIES if load(name).batch_size > 1])
def test_a_ranks_micro_batches_are_those_of_a_loader_each(family: str) -> None:
    workload = load(family)
    for mine in ([Part(2, 4), Part(3, 4)], [Part(i, 4) for i in range(4)]):  # of the second of two ranks, of one alone
        alone = zip(*(workload.batches(3, 2, part) for part in mine), strict=True)
        assert all(map(equal, itertools.islice(micro_batches(workload, 3, 2, mine), 2), alone))


def test_a_rank_has_one_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr("workloads.task.DataLoader", lambda *_, **options: made.append(options) or iter(()))
    workload: Workload = dataclasses.replace(load("lm"), num_workers=4)  # type: ignore[type-var]
    micro_batches(workload, 0, 1, [Part(index, 8) for index in range(8)])
    assert [options["num_workers"] for options in made] == [4]


def test_batches_of_a_derived_class_are_its_own_in_parts_too() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Zeros(type(load("lm"))):  # type: ignore[misc]
        def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Any:
            return (torch.zeros_like(batch) for batch in super().batches(seed, first_step, part))

    mini = load("lm")
    assert isinstance(mini, Task)
    zeros = Zeros(**{one.name: getattr(mini, one.name) for one in dataclasses.fields(mini)})
    assert not any(part.any() for part in next(micro_batches(zeros, 0, 1, [Part(0, 2), Part(1, 2)])))
