"""A study as it is written: every key with what it is, its default, and whether `overrides:` may set it.

The keys of an optimizer are the parameters of its builder, those of a scheme the fields of its class: an option is
told there, once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, PlainValidator, ValidationInfo, create_model, model_validator
from pydantic.errors import PydanticUserError

from sweeps.blocks import (
    Axis,
    Block,
    Budget,
    EvaluateBlock,
    Flag,
    KeepBlock,
    Name,
    Positive,
    ScheduleBlock,
    Seed,
    Share,
    Text,
    TrackingBlock,
    TrainingBlock,
    Word,
    axis,
    bad_key,
    one_of,
    option,
    value_type,
)
from sweeps.identity import scheme_class, scheme_name
from sweeps.optimizers import OPTIMIZERS, parameters
from sweeps.resources import ResourcesBlock
from sweeps.wording import among, shown
from wa import Scheme
from wa.options import Option, instead, options
from wa.schemes import SCHEMES
from workloads.protocol import families

# --- optimizer: -----------------------------------------------------------------------------------------------------

GRAD_CLIP = "largest norm of the whole gradient; left out: not clipped"


OptimizerName = Annotated[str, one_of(OPTIMIZERS)]


def optimizer_block() -> type[Block]:
    """`optimizer:` with the keys of every optimizer there is; what is left out is the workload's own value."""
    return _optimizer_block(tuple(OPTIMIZERS))


@cache
def _optimizer_block(names: tuple[str, ...]) -> type[Block]:
    keys: dict[str, Any] = {"name": (Axis[OptimizerName], option(None, "of `wa optimizers`"))}
    for name in names:
        for key, one in parameters(name).items():
            keys.setdefault(key, (axis(one.type), option(None, one.about)))
    keys["grad_clip"] = (Axis[Positive], option(None, GRAD_CLIP))
    block: type[Block] = create_model("OptimizerBlock", __base__=Block, **keys)
    block.example = "name: nadamw, lr: 0.003"
    return block


def _optimizer(raw: Any, info: ValidationInfo) -> Block:
    return optimizer_block().model_validate(raw, context=info.context)


Optimizer = Annotated[Any, PlainValidator(_optimizer)]


# --- averaging: -----------------------------------------------------------------------------------------------------


class AveragingBlock(Block):
    """`averaging:` of one scheme: the fields of its class, and what may stand instead of the first of them."""

    example = "scheme: ema, decay: 0.99, every: 8"
    scheme_type: ClassVar[type[Scheme] | None] = None  # None: the last iterate
    scheme: str

    @model_validator(mode="after")
    def _one_length(self) -> AveragingBlock:
        kind = self.scheme_type
        if kind is None or not instead(kind):
            return self
        either = [next(iter(options(kind))), *instead(kind)]
        given = [key for key in either if key in self.model_fields_set]
        if len(given) > 1:
            other = f"{either[-1]} is {either[0]} told in steps"
            raise ValueError(f"{' and '.join(given)} at once; allowed: one of them ({other})")
        if not given and type(self).model_fields[either[0]].default is None:
            raise ValueError(f"neither {' nor '.join(either)}; allowed: exactly one of them")
        return self


class NoneBlock(AveragingBlock):
    """The last iterate, not averaged."""

    scheme: Literal["none"]


@cache
def averaging_block(kind: type[Scheme]) -> type[AveragingBlock]:
    """The block of a scheme, whose class is a dataclass."""
    keys: dict[str, Any] = {}
    for i, field in enumerate(dataclasses.fields(kind)):  # type: ignore[arg-type]
        others = instead(kind) if i == 0 else {}
        default = field.default if field.default is not dataclasses.MISSING else None if others else ...
        keys[field.name] = _option(*options(kind)[field.name], default)
        keys |= {key: _option(*one, None) for key, one in others.items()}
    block: type[AveragingBlock] = create_model(f"{kind.__name__}Block", __base__=AveragingBlock, **keys)
    block.scheme_type, block.__doc__ = kind, kind.__doc__
    return block


def _option(kind: Any, one: Option, default: Any) -> tuple[Any, Any]:
    return axis(value_type(kind, one.low, one.below, one.steps)), option(default, one.about)


BLOCKS: Mapping[str, type[AveragingBlock]] = {"none": NoneBlock} | {k: averaging_block(v) for k, v in SCHEMES.items()}


def _scheme_name(value: Any, known: Any = BLOCKS) -> str:
    """The name of a scheme, as its cells have it. Raises: ValueError for what names none."""
    if not isinstance(value, str) or (value not in known and ":" not in value):
        raise ValueError(f"got {shown(value)}{among(value, known)}, or your own as 'pkg.mod:Name'")
    if ":" in value:
        try:
            kind = scheme_class(value)
            averaging_block(kind)
            return scheme_name(kind)
        except (TypeError, NameError, PydanticUserError) as error:
            raise ValueError(f"{value}: its fields are no keys of a study: {' '.join(str(error).split())}") from None
    return value


def _averaging(raw: Any, info: ValidationInfo) -> AveragingBlock:
    """The block of the scheme that is named; what is no mapping is refused as one."""
    block: type[AveragingBlock] = NoneBlock
    if isinstance(raw, Mapping):
        if "scheme" not in raw:
            raise bad_key("scheme", f"is required; allowed: {', '.join(BLOCKS)}")
        try:
            name = _scheme_name(raw["scheme"])
        except ValueError as error:
            raise bad_key("scheme", str(error)) from None
        block = BLOCKS.get(name) or averaging_block(scheme_class(name))
    return block.model_validate(raw, context=info.context)


Averaging = Annotated[AveragingBlock, PlainValidator(_averaging)]


# --- the study --------------------------------------------------------------------------------------------------------


class PrimaryBlock(Block):
    """`primary:`, the pre-specified setting."""

    example = "scheme: ema, horizon: 0.01"
    scheme: Annotated[str, BeforeValidator(lambda value: _scheme_name(value, SCHEMES))] = option("ema", "its scheme")
    horizon: Share = option(0.01, "its averaging horizon: steps or a share of the step budget")


Report = Annotated[str | None, one_of(("steps", "final_metric", "horizon"))]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise bad_key(f"[{i}]", f"{shown(name)} stands twice")
    return names


class GridBlock(Block):
    """What makes the grid of a workload: these keys `overrides:` may set too, for one workload."""

    example = "optimizer: {lr: 0.002}"
    step_budget: Axis[Budget] = option(1.0, "length of training: steps, or a multiple of the workload's own")
    optimizer: Axis[Optimizer] = option({}, "what is left out is the workload's own value")
    schedule: Axis[ScheduleBlock] = option({}, "of the learning rate; what is left out is the workload's own value")
    training: Axis[TrainingBlock] = option({}, "how a step is computed; what is left out is the workload's own value")
    averaging: Axis[Averaging] = option(None, "one scheme, or a list of them")
    evaluate: EvaluateBlock = option({}, "when, and on which splits")
    keep: KeepBlock = option({}, "a trace of the weights: later questions train nothing")
    resources: ResourcesBlock = option({}, "of one trial")


Names = Annotated[Axis[Word], AfterValidator(_distinct)]


def _by_workload(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"got {shown(value)}; allowed: workload -> {', '.join(GridBlock.model_fields)}")
    return value


ByWorkload = Annotated[dict[str, GridBlock], BeforeValidator(_by_workload)]


class StudyModel(GridBlock):
    """A study."""

    example = "study: …, workloads: […], averaging: […]"
    renamed: ClassVar[Mapping[str, str]] = {"asks": "report"}
    study: Name = option(..., "names the run folder and the W&B group")
    question: Text | None = option(None, "in words, for the report")
    report: Report = option(None, "what it answers: steps, final_metric or horizon; else what the trainings vary")
    primary: PrimaryBlock = option({}, "the pre-specified setting")
    workloads: Names = option(..., "of `wa workloads`, or your own as 'pkg.mod:Name'")
    preset: Names = option("mini", "mini or full")
    seeds: Axis[Seed] = option([0], "of the trainings")
    weights: Axis[Name] | None = option(None, "imported checkpoints, one name a seed: nothing is trained")
    averaging: Axis[Averaging] = option(..., "one scheme, or a list of them")
    overrides: ByWorkload = option({}, "workload -> its own keys of the grid")
    data_dir: Text | None = option(None, "folder of the full presets' data; else $WA_DATA_DIR")
    resources: ResourcesBlock = option({}, "of one trial")
    tracking: TrackingBlock = option({}, "W&B")
    fuse: Flag = option(True, "false: one trial per cell, the reference")
    branch: Flag = option(True, "false: trainings that begin alike are each trained from their first step")

    @model_validator(mode="after")
    def _weights_of_one_training_each(self) -> StudyModel:
        if self.weights is None:
            return self
        if len(self.weights) != len(self.seeds):
            raise bad_key("weights", f"{len(self.weights)} names for {len(self.seeds)} seeds; allowed: one a seed")
        if len(self.workloads) > 1 or len(self.preset) > 1:
            raise bad_key("weights", "of several workloads or presets; allowed: a study of one, whose weights they are")
        return self

    @model_validator(mode="after")
    def _overrides_of_its_workloads(self) -> StudyModel:
        for name in self.overrides:  # one of a shipped workload that is left out (--set workloads=…) waits for its turn
            if name not in self.workloads and name not in families():
                raise bad_key(f"overrides.{shown(name)[1:-1]}", f"unknown key{among(name, self.workloads)}")
        return self


_FIRST = [key for key in StudyModel.__annotations__ if key in StudyModel.model_fields]
KEYS = list(dict.fromkeys([*_FIRST, *StudyModel.model_fields]))
