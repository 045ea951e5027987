"""The blocks of a spec: which keys there are, and which values each may hold.

Every check says what is allowed, since its message is the line a user reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import click
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from sweeps.wording import among, one_line, shown


class SpecError(click.ClickException, ValueError):
    """Bad input: ``file: key path: what is wrong; what is allowed``."""

    exit_code = 2

    def __init__(self, path: str, message: str, source: str = "spec") -> None:
        path, message = one_line(path, 80, tail=40), one_line(message)
        self.path, self.said, self.source = path, message, source
        told = (one_line(source, 160, tail=120), path, message)
        super().__init__(one_line(": ".join(part for part in told if part)))

    def at(self, source: str) -> SpecError:
        """The same error, naming the file it comes from."""
        return SpecError(self.path, self.said, source)


# --- values ----------------------------------------------------------------------------------------------------


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1000  # what a float can hold
    return isinstance(value, float) and math.isfinite(value)


def _as_meant(value: object) -> str:
    """`` (write 1000)`` where a value says a number in a way that is read as something else."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_]*(\.[0-9]+)?([eE][-+]?[0-9]+)?", value):
        return f" (write {value.replace('_', '')[:40]}, without quotes)"
    return ""


def _checked(accept: Callable[[Any], bool], allowed: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if not accept(value):
            raise ValueError(f"got {shown(value)}; allowed: {allowed}{_as_meant(value)}")
        return value

    return BeforeValidator(check)


def _whole(value: object) -> int | None:
    """The int that a float such as 1e3 may have meant, else None."""
    if type(value) is float and math.isfinite(value) and value == int(value) and 1 < value < 2**40:
        return int(value)
    return None


def _integer(low: int, high: int, what: str = "") -> BeforeValidator:
    bound = f"an int ≥ {low}" if high >= 2**31 else f"an int from {low} to {high}"

    def check(value: Any) -> Any:
        if type(value) is int and low <= value <= high:
            return value
        meant = _as_meant(value) if (whole := _whole(value)) is None else f" (write {whole})"
        raise ValueError(f"got {shown(value)}; allowed: {bound}{what}{meant}")

    return BeforeValidator(check)


def _number(accept: Callable[[float], bool], allowed: str) -> BeforeValidator:
    return _checked(lambda v: _is_number(v) and accept(v), allowed)


def _steps_or_share(steps: int, share: Callable[[float], bool], interval: str, of: str) -> BeforeValidator:
    # The face's rule: an int is steps, a float is a share.
    allowed = f"an int ≥ {steps} (steps) or a float in {interval} (share of the {of})"

    def check(value: Any) -> Any:
        if (type(value) is int and steps <= value < 2**40) or (type(value) is float and share(value)):
            return value
        meant = _as_meant(value)
        if (whole := _whole(value)) is not None:
            meant = f" (write {whole} for {whole} steps, or a share below 1)"
        raise ValueError(f"got {shown(value)}; allowed: {allowed}{meant}")

    return BeforeValidator(check)


ASK_FROM = 10  # a whole float from here on may have meant an int: ask which


def _units_or_multiple(below: int, units: str, own: str) -> BeforeValidator:
    """An int is `units`, a float a multiple of the workload's `own`; ``20x`` is a multiple whatever its size."""
    allowed = f"an int ≥ 1 ({units}), or a float in (0, 1000] or text such as 20x (multiple of {own})"

    def check(value: Any) -> Any:
        if type(value) is int and 1 <= value < below:
            return value
        whole = _whole(value)
        if whole is not None and whole >= ASK_FROM:
            raise ValueError(f"got {shown(value)}; write {whole} for {units}, or {whole}x for a multiple of {own}")
        number = value
        if isinstance(value, str) and re.fullmatch(r"([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})x", value):
            number = float(value[:-1])
        if type(number) is float and 0 < number <= 1000:
            return number
        raise ValueError(f"got {shown(value)}; allowed: {allowed}{_as_meant(value)}")

    return BeforeValidator(check)


def _one_of(*names: str) -> BeforeValidator:
    def check(value: Any) -> Any:
        if value not in names or not isinstance(value, str):
            raise ValueError(f"got {shown(value)}{among(value, names)}")
        return value

    return BeforeValidator(check)


def _optimizer_name(value: Any) -> Any:
    from sweeps.optimizers import OPTIMIZERS  # here, so that reading a spec does not import torch

    if not isinstance(value, str) or value not in OPTIMIZERS:
        raise ValueError(f"got {shown(value)}{among(value, OPTIMIZERS)}")
    return value


def _compile(value: Any) -> Any:
    backends = ("inductor", "aot_eager", "eager")
    if not isinstance(value, bool) and (not isinstance(value, str) or value not in backends):
        raise ValueError(f"got {shown(value)}; allowed: true, false or a backend: {', '.join(backends)}")
    return value


BUDGET = "step budget"
Share = Annotated[int | float, _steps_or_share(1, lambda v: 0 < v <= 1, "(0, 1]", BUDGET)]
ShareFromZero = Annotated[int | float, _steps_or_share(0, lambda v: 0 <= v < 1, "[0, 1)", BUDGET)]
ShareOfLength = Annotated[int | float, _steps_or_share(0, lambda v: 0 <= v <= 1, "[0, 1]", "schedule's length")]
Budget = Annotated[int | float, _units_or_multiple(2**40, "steps", "the workload's own budget")]
BatchSize = Annotated[int | float, _units_or_multiple(2**31, "examples", "the workload's own batch")]
Positive = Annotated[float, _number(lambda v: v > 0, "a number > 0")]
NonNegative = Annotated[float, _number(lambda v: v >= 0, "a number ≥ 0")]
UnitOpen = Annotated[float, _number(lambda v: 0 <= v < 1, "a number in [0, 1)")]
Unit = Annotated[float, _number(lambda v: 0 <= v <= 1, "a number in [0, 1]")]
Count = Annotated[int, _integer(1, 2**40)]
Seed = Annotated[int, _integer(0, 2**31 - 1)]
Buffers = Annotated[Literal["live", "average", "recompute"], _one_of("live", "average", "recompute")]
Name = Annotated[
    str,
    _checked(
        lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", v) is not None,
        "≤ 100 letters, digits, '.', '_' and '-' (it names the run folder and the W&B group), in quotes where it "
        "reads as a number",
    ),
]
Text = Annotated[
    str,
    _checked(
        lambda v: isinstance(v, str) and len(v) <= 1000 and all(c.isprintable() or c in "\t\n" for c in v),
        "a text of ≤ 1000 printable characters",
    ),
]
Asks = Annotated[str, _one_of("steps", "final_metric", "horizon", "predictions")]
Flag = Annotated[bool, _checked(lambda v: isinstance(v, bool), "true or false")]


# --- blocks: scalars only; lists have become axes before they get here --------------------------------------------


class Block(BaseModel):
    """A mapping of known keys with checked scalar values."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerBlock(Block):
    """`optimizer:`; what is left out is the workload's own value."""

    name: Annotated[str, BeforeValidator(_optimizer_name)] | None = None
    lr: Positive | None = None
    beta1: UnitOpen | None = None
    beta2: UnitOpen | None = None
    eps: Positive | None = None
    weight_decay: NonNegative | None = None
    momentum: UnitOpen | None = None
    nesterov: Flag | None = None
    precondition_every: Count | None = None  # steps
    precondition_start: Annotated[int, _integer(0, 2**40, " (steps)")] | None = None
    block_size: Count | None = None
    matrix_eps: Positive | None = None
    grad_clip: Positive | None = None  # largest global gradient norm


class TrainingBlock(Block):
    """`training:`; of how many examples, and how, a step is computed: what is left out is the workload's own."""

    batch_size: BatchSize | None = None  # of all processes and micro-batches together

    precision: Annotated[str, _one_of("fp32", "bf16")] | None = None
    compile: Annotated[bool | str, BeforeValidator(_compile)] | None = None
    accumulate: Annotated[int, _integer(1, 65536, " (micro-batches a step)")] | None = None


class ScheduleBlock(Block):
    """`schedule:`; `length` is where training ends, `warmup` and `lr_decay` are shares of it."""

    shape: Annotated[str, _one_of("cosine", "linear", "constant")] | None = None
    length: Share | None = None
    warmup: ShareOfLength | None = None
    lr_decay: ShareOfLength | None = None
    final_lr: Unit | None = None


class NoneBlock(Block):
    """`averaging: {scheme: none}`: the live weights."""

    scheme: Literal["none"]


class LawaBlock(Block):
    """`averaging: {scheme: lawa}`: k or horizon, never both."""

    scheme: Literal["lawa"]
    k: Count | None = None
    horizon: Share | None = None
    every: Share = 1
    burn_in: ShareFromZero = 0
    until_full: Annotated[str, _one_of("absent", "partial")] = "absent"
    buffers: Buffers = "live"

    @model_validator(mode="after")
    def _one_length(self) -> LawaBlock:
        _exactly_one("k", self.k, "horizon", self.horizon)
        return self


class EmaBlock(Block):
    """`averaging: {scheme: ema}`: decay or horizon, never both."""

    scheme: Literal["ema"]
    decay: UnitOpen | None = None
    horizon: Share | None = None
    every: Share = 1
    burn_in: ShareFromZero = 0
    init: Annotated[str, _one_of("first", "zero")] = "first"
    buffers: Buffers = "live"

    @model_validator(mode="after")
    def _one_length(self) -> EmaBlock:
        _exactly_one("decay", self.decay, "horizon", self.horizon)
        return self


class TailBlock(Block):
    """`averaging: {scheme: tail}`: the mean of every snapshot since `start`."""

    scheme: Literal["tail"]
    start: ShareFromZero
    every: Share = 1
    buffers: Buffers = "live"


class WsmBlock(Block):
    """`averaging: {scheme: wsm}`: k or lr_decay (how long the emulated decay lasts), never both."""

    scheme: Literal["wsm"]
    k: Count | None = None
    lr_decay: Share | None = None
    every: Share = 1
    curve: Annotated[str, _one_of("linear", "cosine", "sqrt")] = "linear"
    burn_in: ShareFromZero = 0
    buffers: Buffers = "live"

    @model_validator(mode="after")
    def _one_length(self) -> WsmBlock:
        _exactly_one("k", self.k, "lr_decay", self.lr_decay)
        return self


AveragingBlock = NoneBlock | LawaBlock | EmaBlock | TailBlock | WsmBlock
AVERAGING: dict[str, type[AveragingBlock]] = {
    "none": NoneBlock,
    "lawa": LawaBlock,
    "ema": EmaBlock,
    "tail": TailBlock,
    "wsm": WsmBlock,
}


class EvaluateBlock(Block):
    """`evaluate:`; every so many steps, and at the end; `test`: then on the test split too."""

    every: Share = 0.01
    test: Flag = False


class ResourcesBlock(Block):
    """`resources:` of one trial; `gpu` may be a fraction of one, or several, with a process each."""

    cpu: Positive = 1
    gpu: Annotated[
        float,
        _number(
            lambda v: 0 <= v <= 1 or (v <= 1024 and v == int(v)),
            "a number from 0 to 1 (a fraction of one GPU) or a whole number of GPUs",
        ),
    ] = 0
    processes: Annotated[int, _integer(1, 1024, " (data-parallel processes of one trial)")] | None = None

    @model_validator(mode="after")
    def _a_device_each(self) -> ResourcesBlock:
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


class TrackingBlock(Block):
    """`tracking:`; W&B mode, project and entity."""

    wandb: Annotated[str, _one_of("offline", "online", "disabled")] = "offline"
    project: Name = "averaging"
    entity: Name | None = None


def _exactly_one(a: str, value_a: object, b: str, value_b: object) -> None:
    if value_a is not None and value_b is not None:
        raise ValueError(f"{a} and {b} at once; allowed: one of them ({b} is {a} told in steps)")
    if value_a is None and value_b is None:
        raise ValueError(f"neither {a} nor {b}; allowed: exactly one of them")
