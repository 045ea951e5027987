"""`wa import checkpoints`: somebody's training as a trace, and a study that asks it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sweeps import durable, random_streams
from sweeps.blocks import SpecError
from sweeps.imported import File, ImportedTrace, described, name_of
from sweeps.run_folder import IMPORTED_STUDY
from sweeps.targets import Target, read_target, targets_file, write_target
from sweeps.trace import TRACES
from sweeps.yaml_file import dump_yaml
from wa.checkpoint_files import STEP, TORCH, BadFile, Checkpoint, Stored, in_order_of_steps, looks, matched, step_in
from wa.state import plain_names
from workloads.protocol import load

KINDS = (".safetensors", *TORCH)
HEADER = """\
# Written by `wa import checkpoints`; edit `averaging:` as you like. Nothing is trained: the weights are read from
# the files, which have every {every:,} steps; an average's `every` and `evaluate: every` must be of steps they have.
"""


@dataclass(frozen=True)
class Imported:
    """What was imported. names: of the traces, one a folder; left_out: what is no checkpoint of a step."""

    names: list[str]
    steps: list[int]
    left_out: list[Path]
    study: Path


def import_checkpoints(
    folders: Sequence[Path],
    run: Path,
    workload: str,
    preset: str = "mini",
    *,
    seed: int = 0,
    pattern: str | None = None,
    target: float | None = None,
) -> Imported:
    """Write a run folder, new or empty, with a trace for each training's folder of checkpoints, and a study of them.

    The files stay where they lie: a trace is an index of them with their sizes and sha256, checked when they are read.
    Trainings are of seeds seed, seed + 1, … target: the metric to reach, which goes into targets.yaml beside the
    workload's file. Raises: BadFile; SpecError where another target is there; UnknownWorkload; OSError.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise BadFile(run, "not empty; allowed: an empty or new folder")
    made: Any = load(workload, preset)
    new_target = None if target is None else _target(made, workload, preset, target)
    with random_streams.kept():
        model: nn.Module = made.model()
    traces, left_out = [], []
    for folder in folders:
        trace, others = _trace(folder, model, (workload, preset), pattern)
        traces.append(trace)
        left_out += others
    steps = sorted(set.intersection(*(set(one.steps) for one in traces)))
    if len(steps) < 2:
        raise BadFile(folders[0], f"{len(steps)} steps that all have; allowed: two or more")
    goal = run.resolve()
    name = re.sub(r"[^A-Za-z0-9._-]", "_", goal.name).lstrip("._-")[:100] or "imported"
    names = [name_of(one.files) for one in traces]
    if twice := [folder for i, folder in enumerate(folders) if names[i] in names[:i]]:
        raise BadFile(twice[0], "the same checkpoints as another folder's; allowed: each training once")
    text = study(name, workload, preset, [seed + i for i in range(len(traces))], names, steps)
    with durable.folder_for(goal, "checkpoints") as new:
        for one, called in zip(traces, names, strict=True):
            durable.make_folder(new / TRACES / called)
            one.write(new / TRACES / called)
        durable.write_atomic(new / IMPORTED_STUDY, text.encode())
    if new_target is not None:
        write_target(workload, new_target)
    return Imported(names, steps, left_out, run / IMPORTED_STUDY)


def _target(made: Any, workload: str, preset: str, value: float) -> Target:
    """A target as somebody says it. Raises: SpecError where there is another."""
    if not math.isfinite(value):
        raise SpecError("--target", f"got {value}; allowed: a number", "wa import checkpoints")
    held, file = read_target(workload, preset), str(targets_file(workload))
    if held is not None and held.value != value:
        raise SpecError(workload, f"its target is {held.value:g} ({held.rule}); allowed: this, or leave it out", file)
    said = {"value": value, "metric": made.metric, "higher_is_better": made.higher_is_better, "preset": preset}
    nothing = {"seeds": [], "values": [], "versions": {}, "date": ""}
    return held or Target.model_validate(said | nothing | {"rule": "as given to `wa import checkpoints`"})


def _trace(
    folder: Path, model: nn.Module, workload: tuple[str, str], pattern: str | None
) -> tuple[ImportedTrace, list[Path]]:
    entries = [path for path in sorted(folder.iterdir()) if path.suffix in KINDS or path.is_dir()]
    told = {path: step_in(path.name, pattern) for path in entries if not path.name.startswith(".")}
    said = [path for path in told if pattern is not None or STEP.search(path.name)]
    # Where names say `step`, a mere number is none (rng_1.pth); at step 0 nothing has been trained.
    chosen = [path for path in said or told if told[path]]
    if not chosen:
        raise BadFile(
            folder, "no checkpoints whose names tell a step; say where it is: --step-pattern 'epoch_([0-9]+)'"
        )
    paths = in_order_of_steps(chosen, pattern)
    opened = [Checkpoint.open(path) for path in paths.values()]
    matched(opened)
    tensors = fitted(model, opened[-1], workload[0])
    # A link stays one: where it leads, the name may lack its ending.
    files = {step: [File.of(file.absolute()) for file in one.files] for step, one in zip(paths, opened, strict=True)}
    places = {step: str(path.absolute()) for step, path in paths.items()}
    return ImportedTrace(folder, workload, places, files, tensors), [path for path in told if path not in chosen]


def fitted(model: nn.Module, checkpoint: Checkpoint, workload: str) -> dict[str, tuple[str, str]]:
    """Of every tensor in the model's state its name in the checkpoint, and the model's dtype.

    Raises: BadFile where names or shapes differ, or a dtype cannot hold what is stored.
    """
    mine = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    plain = plain_names(model, [name for name in mine if name in model.state_dict()])
    tied: dict[int, list[str]] = {}
    for name in plain:
        tied.setdefault(id(mine[name]), []).append(name)
    found, gone = dict[str, tuple[Stored, str]](), []
    for first, *others in tied.values():
        there = next((plain[n] for n in (first, *others) if checkpoint.find(plain[n]) is not None), None)
        if there is None:
            gone.append(plain[first])
        else:
            found[first] = checkpoint.tensors[checkpoint.ties.get(there, there)], there
    alien = [name for name in checkpoint.tensors if name not in plain.values()]
    if gone or alien:
        sides = [f"{what} {', '.join(names[:3])}" for what, names in (("without", gone), ("with", alien)) if names]
        raise BadFile(checkpoint.path, f"of another model than {workload}'s: {' and '.join(sides)}")
    for name, (stored, _) in found.items():
        now = mine[name]
        fits = torch.promote_types(stored.dtype, now.dtype) == now.dtype
        if stored.shape != tuple(now.shape) or not fits or stored.dtype.is_floating_point != now.is_floating_point():
            said = f"{str(now.dtype).removeprefix('torch.')}{list(now.shape)}"
            raise BadFile(checkpoint.path, f"{name!r} is {looks(stored)}, and {said} in {workload}'s model")
    return {name: (there, str(mine[name].dtype).removeprefix("torch.")) for name, (_, there) in found.items()}


def study(
    name: str, workload: str, preset: str, seeds: Sequence[int], weights: Sequence[str], steps: Sequence[int]
) -> str:
    """A study of imported weights, on the widest grid of steps that the checkpoints have."""
    last = steps[-1]
    every = next(one for one in steps if set(range(one, last, one)) <= set(steps))  # at the latest the last
    windows = [k for k in (2, 3, 5, 10, 20, 50, 100) if k * every <= last // 2] or [1]
    told = {
        "study": name,
        "workloads": [workload],
        "preset": preset,
        "seeds": list(seeds),
        "weights": list(weights),
        "step_budget": last,
        "evaluate": {"every": every},
        "averaging": [
            {"scheme": "none"},
            {"scheme": "lawa", "k": windows, "every": every},
            {"scheme": "ema", "horizon": [k * every for k in windows], "every": every},
        ],
        "primary": {"scheme": "lawa", "horizon": windows[len(windows) // 2] * every / last},
    }
    return HEADER.format(every=every) + dump_yaml(told)


def said(done: Imported, run: Path) -> list[str]:
    """What the command tells."""
    lines = [f"{run}: {', '.join(done.names)}; checkpoints of steps {described(done.steps)}"]
    if done.left_out:
        names = ", ".join(path.name for path in done.left_out[:8])
        lines.append(f"left out, since no step is in their names: {names}{', …' if len(done.left_out) > 8 else ''}")
    return [*lines, f"`wa run {done.study} --out {run}` asks them"]
