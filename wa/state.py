"""A bank's state as plain data: names that do not depend on wrappers, and what of a state fits a bank."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .flat import Block
from .lane import Lane, Track
from .schemes import Scheme
from .share import ALONE

FORMAT = 2
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # names only torch gives


class IncompatibleSchemes(NamedTuple):
    """What `Bank.load_state_dict` did not find on both sides, by the schemes' names; as `nn.Module` reports keys.

    missing_keys: in the bank, not in the state. unexpected_keys: in the state, not in the bank.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


@dataclass(frozen=True)
class Fit:
    """What of a state a bank can go on from. Schemes that the state does not have join at its step."""

    step: int
    joined: dict[Scheme, int]
    seconds: dict[Scheme, float]
    lanes: dict[tuple[Track, Block], tuple[Mapping[str, Any], list[Scheme]]]  # of each, its state and its schemes
    incompatible: IncompatibleSchemes


def fit(
    state: Any,
    keys: Mapping[Scheme, str],
    blocks: Sequence[Block],
    plain: Mapping[str, str],
    read_at: Collection[int] | None,
    strict: bool,
) -> Fit:
    """Compare a state with a bank of these schemes and blocks, down to the last tensor's shape.

    Raises: ValueError when it is no bank's state, damaged, of another model, or, if strict, of other schemes;
    KeyError, TypeError, IndexError, AttributeError where a damaged one is not built as a state is.
    """
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"not a bank's state of format {FORMAT}: {found!r}")
    step = index(state["step"])
    rows = {row["scheme"]: row for row in state["schemes"]}
    missing, unexpected = ([k for k in keys.values() if k not in rows], [k for k in rows if k not in keys.values()])
    if strict and (missing or unexpected):
        raise ValueError(
            f"the state is of other schemes: {_differ(', '.join(missing), ', '.join(unexpected), 'bank')}; "
            "load_state_dict(state, strict=False) takes what both have"
        )
    loaded = {scheme: rows[key] for scheme, key in keys.items() if key in rows}
    joined = {scheme: index(loaded[scheme]["joined"]) if scheme in loaded else step for scheme in keys}
    seconds = {scheme: loaded[scheme]["seconds"] + 0.0 if scheme in loaded else 0.0 for scheme in keys}
    if any(not 0 <= at <= step for at in joined.values()):
        raise ValueError(f"the state is damaged: schemes that joined after its step, {step}")
    covered = [block for block in blocks if any(covers(scheme, block) for scheme in loaded)]
    kinds = {block.kind for block in covered}
    places = [i for i, block in enumerate(state["blocks"]) if block["kind"] in kinds]
    check_same_tensors([describe(block, plain) for block in covered], [state["blocks"][i] for i in places])
    there = dict(zip(covered, places, strict=True))
    saved = {(Track(*lane["track"]), lane["block"]): lane for lane in state["lanes"]}
    lanes: dict[tuple[Track, Block], tuple[Mapping[str, Any], list[Scheme]]] = {}
    for scheme in loaded:
        track = Track(*scheme.grid, joined[scheme])
        for block in there if track.taken(step) else ():
            if covers(scheme, block):
                lanes.setdefault((track, block), (saved[track, there[block]], []))[1].append(scheme)
    for (track, block), (lane, members) in lanes.items():
        reads = track.reads(members, read_at) if "windows" in lane["ring"] else None
        _check_like(Lane(imagined(block), members, reads, lane).expected(lane, keys, track.taken(step)), lane, "a lane")
    return Fit(step, joined, seconds, lanes, IncompatibleSchemes(missing, unexpected))


def imagined(block: Block) -> Block:
    """The whole of a block, without memory."""
    return replace(block, device=torch.device("meta"), share=ALONE)


def covers(scheme: Scheme, block: Block) -> bool:
    """Whether a scheme averages this block."""
    return block.kind == "parameters" or scheme.buffers == "average"


def scheme_keys(schemes: Iterable[Scheme]) -> dict[Scheme, str]:
    """A name for each scheme, the same in another process: its repr, without addresses in memory.

    Equal ones are told apart by their order: ``"Mine()"``, ``"Mine() #2"``.
    """
    keys: dict[Scheme, str] = {}
    seen: dict[str, int] = {}
    for scheme in schemes:
        key = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(scheme))
        seen[key] = seen.get(key, 0) + 1
        keys[scheme] = key if seen[key] == 1 else f"{key} #{seen[key]}"
    return keys


def plain_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """name -> the same without what torch's wrappers put in: of compile, data parallelism, checkpointing.

    Those of torch are known by their class, wherever they are; a prefix ``module.`` that all names have is
    taken as a wrapper's too.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    wrappers = {name for name, module in model.named_modules() if isinstance(module, parallel)}
    plain = {}
    for name in names:
        parts = name.split(".")
        kept = [
            part
            for i, part in enumerate(parts)
            if part not in WRAPPERS and not (part == "module" and ".".join(parts[:i]) in wrappers)
        ]
        plain[name] = ".".join(kept)
    while plain and all(name.startswith("module.") for name in plain.values()):
        plain = {name: short.removeprefix("module.") for name, short in plain.items()}
    return plain if len(set(plain.values())) == len(plain) else {name: name for name in plain}


def describe(block: Block, plain: Mapping[str, str]) -> dict[str, Any]:
    """Plain data that two blocks share when a state fits both, with the names that do not depend on wrappers."""
    shapes = {plain[name]: list(shape) for name, shape in block.shapes.items()}
    return {"kind": block.kind, "dtype": str(block.dtype), "shapes": shapes}


def check_same_tensors(mine: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> None:
    """Raises: ValueError naming the first tensors that differ, when a state's blocks are not a bank's."""
    here, there = _tensors(mine), _tensors(theirs)
    gone, new = [k for k in here if k not in there], [k for k in there if k not in here]
    if gone or new:
        raise ValueError(f"the state is of another model: {_differ(_some(gone), _some(new), 'model')}")
    for name, looks in here.items():
        if there[name] != looks:
            raise ValueError(
                f"the state is of another model: {name!r} is {there[name]} in it, and {looks} in this model"
            )
    if list(mine) != list(theirs):
        first = next(pair for pair in zip(there, here, strict=True) if pair[0] != pair[1])
        raise ValueError(
            f"the state is of another model: it has {first[0]!r} where this model has {first[1]!r}, in another order"
        )


def _differ(missing: str, unexpected: str, here: str) -> str:
    told = (f"it has no {missing}" if missing else "", f"this {here} has no {unexpected}" if unexpected else "")
    return ", and ".join(filter(None, told))


def _tensors(blocks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        name: f"{block['kind']} {str(block['dtype']).removeprefix('torch.')}{list(shape)}"
        for block in blocks
        for name, shape in block["shapes"].items()
    }


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


def _check_like(expected: Any, found: Any, where: str) -> None:
    """Raises: ValueError when nested dicts, lists and tensors are not built as expected, whatever the values."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or not expected.keys() <= found.keys():
            raise ValueError(f"the state is damaged: {where} should have {', '.join(map(str, expected))}")
        for key, value in expected.items():
            _check_like(value, found[key], f"{where}[{key!r}]")
    elif isinstance(expected, list) and expected and isinstance(expected[0], Tensor):
        if not isinstance(found, list | tuple) or _end_to_end(found) != _end_to_end(expected):
            looks = f"{expected[0].dtype}, {_end_to_end(expected)[-1]} elements in all"
            raise ValueError(f"the state is damaged: {where} should be tensors, {looks}")
    elif isinstance(expected, list):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            raise ValueError(f"the state is damaged: {where} should be a list of {len(expected)}")
        for i, (value, other) in enumerate(zip(expected, found, strict=True)):
            _check_like(value, other, f"{where}[{i}]")
    elif isinstance(expected, Tensor) and not (
        isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    ):
        looks = f"{expected.dtype}{list(expected.shape)}"
        raise ValueError(f"the state is damaged: {where} should be a tensor, {looks}")


def _end_to_end(tensors: Sequence[Any]) -> tuple[Any, ...]:
    """The dtype and shape of tensors laid side by side along their last dimension; () where they cannot be."""
    if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        return ()
    rows = {(tensor.dtype, tensor.shape[:-1]) for tensor in tensors}
    return (*rows.pop(), sum(tensor.shape[-1] for tensor in tensors)) if len(rows) == 1 else ()
