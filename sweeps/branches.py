"""Trajectories that begin alike train their beginning once: which is the trunk, and where the branches start.

Up to a step their learning rates are equal, bit for bit, and all else is. The trunk leaves its state there
(`sweeps/forks.py`), and a branch goes on from it: its records are those of a training from the first step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sweeps.identity import Training
from sweeps.plan import Branch, Trajectory, cost
from sweeps.schedules import Schedule, shared_steps

LEAST_SHARE = 0.1  # of a trajectory's steps: to save less, a warm-up say, is not worth the wait for another trial
ANY_SCHEDULE = Schedule("constant", 0, 0, 0, 1.0)


def branched(todo: Sequence[Trajectory], begun: Iterable[Trajectory] = ()) -> list[Trajectory]:
    """The trajectories, those that can be as branches of others; what most wait for first.

    begun: those on disk, which stay as they are, with the `forks` that a branch can still start from.
    """
    begun = list(begun)
    names = {one.name for one in begun}
    groups: dict[tuple[Training, int], list[Trajectory]] = {}
    for one in todo:
        if one.name not in names and one.replays is None and one.cells[0].training.weights is None:
            groups.setdefault(_alike(one), []).append(one)
    found = {one.name: one for one in todo}
    for alike, group in groups.items():
        trunks = [one for one in begun if one.forks and _alike(one) == alike]
        joined = {one.name: made for one in group if (made := _joined(one, trunks)) is not None}
        apart = _parted([one for one in group if one.name not in joined])
        found |= joined | {one.name: one for one in apart}
    seconds = {name: cost(one).seconds for name, one in found.items()}
    for one in found.values():
        if one.branch is not None and one.branch.trunk in found:
            seconds[one.branch.trunk] += cost(one).seconds
    return sorted(found.values(), key=lambda one: (-seconds[one.name], one.name))


def parting(one: Trajectory, trunk: Trajectory) -> int:
    """After how many steps of `trunk` the other can start; its last one, where it is evaluated, is its own."""
    steps = min(shared_steps(one.schedule, trunk.schedule), one.length_steps - 1)
    off_the_grid = trunk.length_steps % trunk.cells[0].evaluate_every_steps != 0
    # Where the trunk ends it is evaluated, and the other need not be.
    return steps - 1 if steps == trunk.length_steps and off_the_grid else steps


def _alike(one: Trajectory) -> tuple[Training, int]:
    """What trunk and branch have in common. The step budget only says what shares are of."""
    cell = one.cells[0]
    return replace(cell.training, step_budget=0, schedule=ANY_SCHEDULE), cell.evaluate_every_steps


def _saved(one: Trajectory, trunk: Trajectory) -> int:
    """Steps that need not be trained where `one` is a branch of `trunk`; 0 where it had better not be one."""
    kept, there = ((each.keep_every_steps, each.keep_dtype) for each in (one, trunk))
    if one is trunk or (kept[0] is not None and kept != there):  # a trace has all steps of its training
        return 0
    steps = parting(one, trunk)
    return steps if steps >= LEAST_SHARE * one.length_steps else 0


def _joined(one: Trajectory, trunks: Iterable[Trajectory]) -> Trajectory | None:
    """As a branch of a trunk that has begun and carries what it asks for."""
    schemes = {cell.scheme for cell in one.cells}
    steps = {
        Branch(trunk.name, step)
        for trunk in trunks
        if one.length_steps in trunk.branch_lengths
        and schemes <= {cell.scheme for cell in (*trunk.cells, *trunk.riders)}
        for step in trunk.forks
        if step <= _saved(one, trunk)
    }
    return replace(one, branch=max(steps, key=lambda branch: branch.step)) if steps else None


def _parted(group: Sequence[Trajectory]) -> list[Trajectory]:
    """Trunks, each with all that may branch from it: first the one that saves most."""
    saved = {(one.name, trunk.name): _saved(one, trunk) for trunk in group for one in group}
    left, found = list(group), list[Trajectory]()
    while left:
        trunk = max(left, key=lambda one: sum(saved[other.name, one.name] for other in left))
        steps = {one.name: saved[one.name, trunk.name] for one in left}
        branches = [replace(one, branch=Branch(trunk.name, steps[one.name])) for one in left if steps[one.name]]
        if not branches:
            return [*found, *left]
        left = [one for one in left if one is not trunk and not steps[one.name]]
        found += [_with_forks(trunk, branches), *branches]
    return found


def _with_forks(trunk: Trajectory, branches: Sequence[Trajectory]) -> Trajectory:
    own = {cell.scheme for cell in trunk.cells}
    like = replace(trunk.cells[0], evaluate_test=False, keep_every_steps=None)
    asked = dict.fromkeys(cell.scheme for one in branches for cell in one.cells if cell.scheme not in own)
    return replace(
        trunk,
        forks=tuple(sorted({one.branch.step for one in branches if one.branch is not None})),
        branch_lengths=tuple(sorted({one.length_steps for one in branches})),
        riders=tuple(replace(like, scheme=scheme) for scheme in asked),
    )
