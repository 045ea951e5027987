"""The values and blocks of a study: which keys there are, what each may hold, what it is when left out.

Every check says what is allowed, since its message is the line a user reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin

import click
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from sweeps import schedules
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


def _whole(value: object) -> int | None:
    """The int that a float such as 1e3 may have meant, else None."""
    if type(value) is float and math.isfinite(value) and value == int(value) and 1 < value < 2**40:
        return int(value)
    return None


def _checked(accept: Callable[[Any], bool], allowed: str, whole: str = "") -> BeforeValidator:
    """whole: what to write instead of a float that may have meant the int n."""

    def check(value: Any) -> Any:
        if accept(value):
            return value
        n = _whole(value) if whole else None
        meant = _as_meant(value) if n is None else f" (write {whole.format(n=n)})"
        raise ValueError(f"got {shown(value)}; allowed: {allowed}{meant}")

    return BeforeValidator(check)


def integer(low: int, high: int = 2**40, what: str = "") -> BeforeValidator:
    """A check of an int within bounds; what: said behind them."""
    bound = f"an int ≥ {low}" if high >= 2**31 else f"an int from {low} to {high}"
    return _checked(lambda v: type(v) is int and low <= v <= high, f"{bound}{what}", "{n}")


def number(accept: Callable[[float], bool], allowed: str) -> BeforeValidator:
    """A check of a finite number."""
    return _checked(lambda v: _is_number(v) and accept(v), f"a number {allowed}".rstrip())


def _steps_or_share(
    steps: int, share: Callable[[float], bool], interval: str, of: str = "step budget"
) -> BeforeValidator:
    """An int is steps, a float is a share."""
    return _checked(
        lambda v: (type(v) is int and steps <= v < 2**40) or (type(v) is float and share(v)),
        f"an int ≥ {steps} (steps) or a float in {interval} (share of the {of})",
        "{n} for {n} steps, or a share below 1",
    )


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


def one_of(names: Collection[str]) -> BeforeValidator:
    """A check that says which of the names was meant."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"got {shown(value)}{among(value, names)}")
        return value

    return BeforeValidator(check)


Share = Annotated[int | float, _steps_or_share(1, lambda v: 0 < v <= 1, "(0, 1]")]
ShareFromZero = Annotated[int | float, _steps_or_share(0, lambda v: 0 <= v < 1, "[0, 1)")]
ShareOfLength = Annotated[int | float, _steps_or_share(0, lambda v: 0 <= v <= 1, "[0, 1]", "schedule's length")]
Budget = Annotated[int | float, _units_or_multiple(2**40, "steps", "the workload's own budget")]
BatchSize = Annotated[int | float, _units_or_multiple(2**31, "examples", "the workload's own batch")]
Positive = Annotated[float, number(lambda v: v > 0, "> 0")]
NonNegative = Annotated[float, number(lambda v: v >= 0, "≥ 0")]
UnitOpen = Annotated[float, number(lambda v: 0 <= v < 1, "in [0, 1)")]
Unit = Annotated[float, number(lambda v: 0 <= v <= 1, "in [0, 1]")]
Number = Annotated[float, number(lambda v: True, "")]
Int = Annotated[int, integer(-(2**40))]
Count = Annotated[int, integer(1)]
Seed = Annotated[int, integer(0, 2**31 - 1)]
Step = Annotated[int, integer(0, what=" (steps)")]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 1000 and all(c.isprintable() or c in "\t\n" for c in value)


Name = Annotated[
    str,
    _checked(
        lambda v: isinstance(v, str) and NAME.fullmatch(v) is not None,
        "≤ 100 letters, digits, '.', '_' and '-' (it names the run folder and the W&B group), "
        "in quotes where it reads as a number",
    ),
]
Text = Annotated[str, _checked(_is_text, "a text of ≤ 1000 printable characters")]
Word = Annotated[str, _checked(lambda v: isinstance(v, str) and v != "", "a name")]
Flag = Annotated[bool, _checked(lambda v: isinstance(v, bool), "true or false")]
OF_TYPE: Mapping[Any, Any] = {int: Int, float: Number, bool: Flag, str: Text}


def value_type(kind: Any, low: float = -math.inf, below: float = math.inf, steps: bool = False) -> Any:
    """How a study says a value of a plain type: checked; where it counts steps, as steps or a share of the budget."""
    if steps:
        return ShareFromZero if low == 0 else Share
    if get_origin(kind) is Literal:
        return Annotated[str, one_of(get_args(kind))]
    if kind is float and (low, below) != (-math.inf, math.inf):
        allowed = f"in [{low:g}, {below:g})" if math.isfinite(below) else f"≥ {low:g}"
        return Annotated[float, number(lambda v: low <= v < below, allowed)]
    if kind is int and math.isfinite(low):
        return Annotated[int, integer(int(low))]
    return OF_TYPE.get(kind, kind)


T = TypeVar("T")


def _points(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, list) or info.context == ONE:
        return [value]
    if not value:
        raise ValueError("empty list: the grid has no cells; allowed: one value or more")
    return value


ONE = "one"  # context of a validation where a list is no axis: what a workload says of itself
Axis = Annotated[tuple[T, ...], BeforeValidator(_points)]  # a scalar is one point, a list is as many


def axis(kind: Any) -> Any:
    """`Axis` of a type that only a table knows."""
    return cast(Any, Axis)[kind]


def option(default: Any, about: str) -> Any:
    """A key of a block: what it is when left out, ``...`` where it must be given, and what it means."""
    return Field(default, description=about, validate_default=default not in (None, ...))


def bad_key(key: str, said: str) -> PydanticCustomError:
    """What is wrong with a key of the mapping that is being checked, or with an item: ``[2]``."""
    return PydanticCustomError("key", "{said}", {"said": said, "key": key})


# --- blocks -------------------------------------------------------------------------------------------------------


class Block(BaseModel):
    """A mapping of known keys; `renamed`: keys that a study may no longer use -> what they are called.

    elsewhere: keys that are said in another place -> where.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    example: ClassVar[str] = ""
    renamed: ClassVar[Mapping[str, str]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            raise ValueError(f"got {shown(raw)}; allowed: a mapping such as {{{cls.example}}}")
        for key, value in raw.items():
            if key in cls.renamed:
                raise bad_key(key, f"is called `{cls.renamed[key]}` now; write `{cls.renamed[key]}: …`")
            if key not in cls.model_fields:
                said = cls.elsewhere.get(key, "unknown key")
                raise bad_key(shown(key)[1:-1], f"{said}{among(key, cls.model_fields)}")
            if value is None:
                raise bad_key(key, "is empty; give a value or leave the key out")
        for key, field in cls.model_fields.items():
            if field.is_required() and key not in raw:
                raise bad_key(key, "is required")
        return raw


Shape = Annotated[str, one_of(get_args(schedules.Shape))]
Precision = Annotated[str, one_of(("fp32", "tf32", "bf16"))]
Accumulate = Annotated[int, integer(1, 65536, " (micro-batches a step)")]


class ScheduleBlock(Block):
    """`schedule:`; what is left out is the workload's own, else the default here."""

    example = "shape: cosine, length: 1.0"
    shape: Axis[Shape] = option(
        "cosine", "constant, or how it decays: cosine, linear, 1-sqrt, power; inverse_sqrt falls, then decays linearly"
    )
    length: Axis[Share] = option(1.0, "where training ends: steps (an int) or a share of the step budget (a float)")
    warmup: Axis[ShareOfLength] = option(0.0, "linear from zero: steps or a share of the length")
    lr_decay: Axis[ShareOfLength] = option(
        None,
        "decay at the end: steps or a share of the length; 0.0 never decays; "
        "left out: all after warm-up (inverse_sqrt: none)",
    )
    power: Axis[Positive] = option(schedules.POWER, "exponent of shape power: (1 − share of the decay done)^power")
    final_lr: Axis[Unit] = option(0.0, "learning rate at the end, a share of its peak")


def _backend(value: Any) -> Any:
    backends = ("inductor", "aot_eager", "eager")
    if not isinstance(value, bool) and (not isinstance(value, str) or value not in backends):
        raise ValueError(f"got {shown(value)}; allowed: true, false or a backend: {', '.join(backends)}")
    return value


Compile = Annotated[bool | str, BeforeValidator(_backend)]


class OwnTrainingBlock(Block):
    """How a step is computed: what a workload may say itself."""

    example = "precision: bf16"
    elsewhere = {"batch_size": "its attribute `batch_size` says it"}
    precision: Axis[Precision] = option(
        "fp32", "fp32, tf32 or, of the forward pass, bf16; a full preset on a GPU: tf32"
    )
    compile: Axis[Compile] = option(False, "true, false or a backend of torch.compile")
    accumulate: Axis[Accumulate] = option(1, "micro-batches a step")
    deterministic: Axis[Flag] = option(True, "false: faster kernels, whose results on a GPU are not the same each time")


class TrainingBlock(OwnTrainingBlock):
    """`training:`; of how many examples, and how, a step is computed."""

    example = "batch_size: 2.0, precision: bf16"
    batch_size: Axis[BatchSize] = option(
        None, "examples a step, of all processes and micro-batches together, or a multiple of the workload's own"
    )


AVERAGES = ("all", "paired", "bracket")  # the fuller one first


def fullest(*ways: str) -> str:
    """Of the values of `evaluate.averages` the one that makes most evaluations."""
    return min(ways, key=AVERAGES.index)


class EvaluateBlock(Block):
    """`evaluate:`"""

    example = "every: 0.01"
    every: Share = option(0.01, "steps between evaluations, or a share of the step budget; the end counts")
    test: Flag = option(False, "at the end on the test split too")
    averages: Annotated[str, one_of(AVERAGES)] = option(
        "all",
        "all: averages in full at every evaluation; paired: by a part of the examples where that is enough; "
        "bracket: where they cross the target and a few levels",
    )


class KeepBlock(Block):
    """`keep:`"""

    example = "every: 8"
    every: Share | None = option(None, "steps between the weights kept, or a share of the step budget; default: none")
    dtype: Annotated[str, one_of(("bf16",))] | None = option(None, "bf16 rounds them; left out: as they are, exactly")


MODES = ("offline", "online", "disabled")


class TrackingBlock(Block):
    """`tracking:`"""

    example = "wandb: offline, project: averaging"
    wandb: Annotated[str, one_of(MODES)] = option("offline", "mode of W&B: offline, online or disabled")
    project: Name = option("averaging", "of W&B")
    entity: Name | None = option(None, "of W&B: a user or a team")
