"""Workloads whose own code fails: found before a launch, one line each; the others' trainings go on without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sweeps.blocks import SpecError
from sweeps.plan import model_size
from sweeps.spec import Spec
from workloads.protocol import UnknownWorkload


def usable(specs: Sequence[Spec]) -> tuple[list[Spec], list[str]]:
    """The studies without those of the user's workloads that cannot be had or built, and a line on each of these.

    Raises: SpecError where a study has no other workload.
    """
    left, lines = [], dict[str, None]()
    for spec in specs:
        broken = {name: line for name in spec.workloads if (line := _failure(spec, name)) is not None}
        if len(broken) == len(spec.workloads):
            name, line = next(iter(broken.items()))
            more = f" (nor can the {len(broken) - 1} other workloads be used)" if len(broken) > 1 else ""
            raise SpecError(f"workloads[{spec.workloads.index(name)}]", line + more, spec.source)
        good = tuple(name for name in spec.workloads if name not in broken)
        left.append(replace(spec, workloads=good) if broken else spec)
        lines |= dict.fromkeys(f"{line}; it is left out" for line in broken.values())
    return left, list(lines)


def _failure(spec: Spec, name: str) -> str | None:
    if ":" not in name:  # a shipped one; a name that is none is bad input, which `cells` tells
        return None
    try:
        for preset in spec.presets:
            model_size(name, preset)
    except UnknownWorkload as error:
        return str(error)
    return None
