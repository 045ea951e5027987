"""A study as it is written: every key with what it is, its default, and whether `overrides:` may set it.

The keys of an optimizer are the parameters of its builder, those of a scheme the fields of its class: an option is
told there, once.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    ValidationInfo,
    create_model,
    model_validator,
)

from sweeps.blocks import (
    Axis,
    Block,
    Budget,
    EvaluateBlock,
    Flag,
    Name,
    Positive,
    ResourcesBlock,
    ScheduleBlock,
    Seed,
    Share,
    Text,
    TrackingBlock,
    TrainingBlock,
    Word,
    bad_key,
    one_of,
    value_type,
)
from sweeps.identity import scheme_class
from sweeps.optimizers import OPTIMIZERS, parameters
from sweeps.wording import among, shown
from wa import Scheme
from wa.options import instead, options
from wa.schemes import SCHEMES
from workloads.protocol import families

# --- optimizer: -----------------------------------------------------------------------------------------------------

GRAD_CLIP = "largest norm of the whole gradient; left out: not clipped"


def _optimizer_name(value: Any) -> Any:
    if not isinstance(value, str) or value not in OPTIMIZERS:
        raise ValueError(f"got {shown(value)}{among(value, OPTIMIZERS)}")
    return value


def optimizer_block() -> type[Block]:
    """`optimizer:` with the keys of every optimizer there is; what is left out is the workload's own value."""
    return _optimizer_block(tuple(OPTIMIZERS))


@cache
def _optimizer_block(names: tuple[str, ...]) -> type[Block]:
    keys: dict[str, Any] = {"name": (Axis[Annotated[str, BeforeValidator(_optimizer_name)]], Field(None))}
    for name in names:
        for key, one in parameters(name).items():
            keys.setdefault(key, (Axis[one.type], Field(None, description=one.about)))
    keys["grad_clip"] = (Axis[Positive], Field(None, description=GRAD_CLIP))
    block: type[Block] = create_model("OptimizerBlock", __base__=Block, **keys)
    block.example = "name: nadamw, lr: 0.003"
    return block


def _optimizer(raw: Any, info: ValidationInfo) -> Block:
    return optimizer_block().model_validate(raw, context=info.context)


# --- averaging: -----------------------------------------------------------------------------------------------------


class AveragingBlock(Block):
    """`averaging:` of one scheme: the fields of its class, and what may stand instead of the first of them."""

    example = "scheme: ema, decay: 0.99, every: 8"
    kind: ClassVar[type[Scheme] | None] = None
    scheme: str

    @model_validator(mode="after")
    def _one_length(self) -> AveragingBlock:
        if self.kind is None or not instead(self.kind):
            return self
        either = [next(iter(options(self.kind))), *instead(self.kind)]
        given = [key for key in either if key in self.model_fields_set]
        if len(given) > 1:
            other = f"{either[-1]} is {either[0]} told in steps"
            raise ValueError(f"{' and '.join(given)} at once; allowed: one of them ({other})")
        if not given:
            raise ValueError(f"neither {' nor '.join(either)}; allowed: exactly one of them")
        return self


class NoneBlock(AveragingBlock):
    """The last iterate, not averaged."""

    scheme: Literal["none"]


@cache
def averaging_block(kind: type[Scheme]) -> type[AveragingBlock]:
    """The block of a scheme. Raises: TypeError where the class is no dataclass."""
    keys: dict[str, Any] = {}
    others = {key: (one, None) for key, one in instead(kind).items()}
    for i, field in enumerate(dataclasses.fields(kind)):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING
        default = field.default if not required else None if others and not i else ...
        keys[field.name] = (options(kind)[field.name], default)
        keys |= others if not i else {}
    made = {
        key: (Axis[value_type(type_, one.low, one.below, one.steps)], Field(default, description=one.about))
        for key, ((type_, one), default) in keys.items()
    }
    block: type[AveragingBlock] = create_model(f"{kind.__name__}Block", __base__=AveragingBlock, **made)
    block.kind = kind
    block.__doc__ = inspect.getdoc(kind)
    return block


BLOCKS: Mapping[str, type[AveragingBlock]] = {"none": NoneBlock} | {k: averaging_block(v) for k, v in SCHEMES.items()}
OWN = "own"


def _scheme_name(value: Any, known: Any = BLOCKS) -> str:
    """A scheme's name. Raises: ValueError for what names none."""
    if not isinstance(value, str) or (value not in known and ":" not in value):
        raise ValueError(f"got {shown(value)}{among(value, known)}, or your own as 'pkg.mod:Name'")
    if ":" in value:
        averaging_block(scheme_class(value))
    return value


def _named(raw: Any) -> Any:
    if isinstance(raw, Mapping):
        if "scheme" not in raw:
            raise bad_key("scheme", f"is required; allowed: {', '.join(BLOCKS)}")
        try:
            _scheme_name(raw["scheme"])
        except ValueError as error:
            raise bad_key("scheme", str(error)) from None
    return raw


def _own(raw: Any, info: ValidationInfo) -> AveragingBlock:
    return averaging_block(scheme_class(raw["scheme"])).model_validate(raw, context=info.context)


def _tag(raw: Any) -> str:
    name = raw["scheme"] if isinstance(raw, Mapping) else "none"
    return OWN if ":" in name else name


Averaging = Annotated[
    Union[  # of a table
        *(Annotated[block, Tag(name)] for name, block in BLOCKS.items()),
        Annotated[AveragingBlock, PlainValidator(_own), Tag(OWN)],
    ],
    Discriminator(_tag),
    BeforeValidator(_named),
]


# --- the study --------------------------------------------------------------------------------------------------------


class PrimaryBlock(Block):
    """`primary:`, the pre-specified setting."""

    example = "scheme: ema, horizon: 0.01"
    scheme: Annotated[str, BeforeValidator(lambda value: _scheme_name(value, SCHEMES))] = Field(
        "ema", description="its scheme"
    )
    horizon: Share = Field(0.01, description="its averaging horizon: steps or a share of the step budget")


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise bad_key(f"[{i}]", f"{shown(name)} stands twice")
    return names


class GridBlock(Block):
    """What makes the grid of a workload: these keys `overrides:` may set too, for one workload."""

    example = "optimizer: {lr: 0.002}"
    step_budget: Axis[Budget] = Field(
        1.0, validate_default=True, description="length of training: steps, or a multiple of the workload's own"
    )
    optimizer: Axis[Annotated[Any, PlainValidator(_optimizer)]] = Field(
        {}, validate_default=True, description="what is left out is the workload's own value"
    )
    schedule: Axis[ScheduleBlock] = Field(
        {}, validate_default=True, description="of the learning rate; what is left out is the workload's own value"
    )
    training: Axis[TrainingBlock] = Field(
        {}, validate_default=True, description="how a step is computed; what is left out is the workload's own value"
    )
    averaging: Axis[Averaging] = Field(None, description="one scheme, or a list of them")
    evaluate: EvaluateBlock = Field({}, validate_default=True, description="when, and on which splits")


def _by_workload(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"got {shown(value)}; allowed: workload -> {', '.join(GridBlock.model_fields)}")
    return value


class StudyModel(GridBlock):
    """A study."""

    example = "study: …, workloads: […], averaging: […]"
    renamed: ClassVar[Mapping[str, str]] = {"asks": "report"}
    study: Name = Field(description="names the run folder and the W&B group")
    question: Text = Field(None, description="in words, for the report")
    report: Annotated[str, BeforeValidator(one_of("steps", "final_metric", "horizon"))] = Field(
        None, description="what the report answers: steps, final_metric or horizon; else what the trainings vary"
    )
    primary: PrimaryBlock = Field({}, validate_default=True, description="the pre-specified setting")
    workloads: Annotated[Axis[Word], AfterValidator(_distinct)] = Field(
        description="of `wa workloads`, or your own as 'pkg.mod:Name'"
    )
    preset: Annotated[Axis[Word], AfterValidator(_distinct)] = Field(
        "mini", validate_default=True, description="mini or full"
    )
    seeds: Axis[Seed] = Field([0], validate_default=True, description="of the trainings")
    averaging: Axis[Averaging] = Field(description="one scheme, or a list of them")
    overrides: Annotated[dict[str, GridBlock], BeforeValidator(_by_workload)] = Field(
        {}, description="workload -> its own keys of the grid"
    )
    data_dir: Text = Field(None, description="folder of the full presets' data; else $WA_DATA_DIR")
    resources: ResourcesBlock = Field({}, validate_default=True, description="of one trial")
    tracking: TrackingBlock = Field({}, validate_default=True, description="W&B")
    fuse: Flag = Field(True, description="false: one trial per cell, the reference")

    @model_validator(mode="after")
    def _overrides_of_its_workloads(self) -> StudyModel:
        for name in self.overrides:  # one of a shipped workload that is left out (--set workloads=…) waits for its turn
            if name not in self.workloads and name not in families():
                raise bad_key(f"overrides.{shown(name)[1:-1]}", f"unknown key{among(name, self.workloads)}")
        return self
