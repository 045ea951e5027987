"""`resources:`, what one trial holds of a machine: by workload, and less of it for a replay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import ValidationError, model_validator

from sweeps.blocks import Block, Positive, bad_key, integer, number, option

if TYPE_CHECKING:
    from sweeps.plan import Trajectory
    from sweeps.spec import Spec

Gpus = Annotated[
    float,
    number(
        lambda v: 0 <= v <= 1 or (v <= 1024 and v == int(v)),
        "from 0 to 1 (a fraction of one GPU) or a whole number of GPUs",
    ),
]
Processes = Annotated[int, integer(1, 1024, " (data-parallel processes of one trial)")]


class ReplayBlock(Block):
    """`resources.replay:`"""

    example = "cpu: 1, gpu: 0"
    cpu: Positive | None = option(None, "CPU cores of a replay; left out: a training's")
    gpu: Gpus | None = option(None, "GPUs of a replay; left out: a training's")
    processes: Processes | None = option(None, "data-parallel processes of a replay; left out: one a GPU")


class ResourcesBlock(Block):
    """`resources:` of one trial; `gpu` may be a fraction of one, or several, with a process each."""

    example = "cpu: 1, gpu: 0"
    cpu: Positive = option(1, "CPU cores of one trial")
    gpu: Gpus = option(0, "GPUs of one trial, or a fraction of one")
    processes: Processes | None = option(None, "data-parallel processes of one trial; left out: one a GPU")
    replay: ReplayBlock | None = option(None, "of a trial that replays a trace and trains nothing; left out: the same")

    @model_validator(mode="after")
    def _a_device_each(self) -> ResourcesBlock:
        if self.replay is not None:
            try:
                self.of(replays=True)
            except ValidationError as error:
                raise bad_key("replay", error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        if self.processes is None:
            return self
        if self.gpu and self.processes != max(1, self.gpu):
            raise ValueError(f"{self.processes} processes on {self.gpu:g} GPU; allowed: one a GPU, or leave it out")
        if not self.gpu and self.processes > self.cpu:
            raise ValueError(f"{self.processes} processes on {self.cpu:g} CPU; allowed: at most one a CPU")
        return self

    @property
    def num_processes(self) -> int:
        """Data-parallel processes of one trial: one a GPU; on CPUs one, unless it says more."""
        return self.processes or max(1, int(self.gpu))

    @property
    def words(self) -> str:
        """What it holds, for a reader."""
        return f"{self.cpu:g} CPU and {self.gpu:g} GPU"

    @property
    def devices(self) -> tuple[float, str]:
        """(devices a trial holds, their kind): GPUs when it has any, else CPUs."""
        return (self.gpu, "gpu") if self.gpu else (self.cpu, "cpu")

    def of(self, replays: bool) -> ResourcesBlock:
        """Those of a trial that replays, or of one that trains."""
        if self.replay is None or not replays:
            return self
        told = {"cpu": self.cpu, "gpu": self.gpu} | self.replay.model_dump(exclude_none=True)
        return ResourcesBlock.model_validate(told)


def of_trajectory(trajectory: Trajectory, specs: Sequence[Spec]) -> ResourcesBlock:
    """What its trial holds: as every study with its workload says, and by whether it trains or replays."""
    workload = trajectory.cells[0].training.workload
    asking = next(spec for spec in specs if workload in spec.resources)
    return asking.trial(workload, replays=trajectory.replays is not None)
