"""The Workload protocol: what a family file offers and the training loop asks for.

A workload is stateless data plus pure functions, so resuming, branching and evaluating many averages
need no cooperation from it. Constants are data: plain attributes, readable without building a model.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from workloads.dotted import UnknownWorkload as UnknownWorkload
from workloads.dotted import load_dotted

Batch = Any  # a tensor, or any nesting of tuples, lists and dicts of tensors; other leaves stay on the host
Sums = dict[str, Tensor]  # name -> scalars, added up over the batches of a split; tensors with axes, joined


@dataclass(frozen=True)
class Part:
    """Part `index` of `count` of every batch: what one data-parallel process or one micro-batch sees."""

    index: int = 0
    count: int = 1

    @property
    def every(self) -> slice:
        """Every `count`-th example from `index` on."""
        return slice(self.index, None, self.count)


WHOLE = Part()


class Summary(NamedTuple):
    """What one evaluation of one model says.

    loss: mean validation loss. metric: the target metric (may be the loss). examples: how many were seen.
    metrics: what stands beside, by name: ``{"accuracy": 0.5}``; it is recorded, no target is set on it.
    """

    loss: float
    metric: float
    examples: int
    metrics: Mapping[str, float] = MappingProxyType({})


@runtime_checkable
class Workload(Protocol):
    """One family at one preset.

    Attributes (data, plain or properties):
      step_budget: T, optimizer steps of a full-length run.
      batch_size: examples a step; `training: {batch_size: …}` changes it where it is a field of a dataclass.
      metric: the name of the target metric, for example ``"loss"`` or ``"accuracy"``.
      higher_is_better: the metric's direction.
      optimizer: the default optimizer block, for example ``{"name": "nadamw", "lr": 0.01, "beta1": 0.9}``.
      schedule: the default schedule block, for example ``{"shape": "cosine", "warmup": 0.05}``.
      step_seconds: device-seconds of a training step, for `wa plan`'s estimate: on a CPU core for a mini, on a
        V100 for a full preset of AlgoPerf's.
      eval_seconds: device-seconds of one evaluation of one model there.

    A workload may also have:
      splits: what `eval_batches` can be asked for, with a test split ``("validation", "test")``; the default is
        ``("validation",)``.
      training: the default training block, of precision, compile, accumulate and deterministic:
        ``{"precision": "bf16"}``.
      batch_norm_parts: over how many parts of a batch its batch norm is computed, processes and micro-batches
        together: other numbers are refused, unless a study says `accumulate` itself.
      micro_batches(seed, first_step, parts): an iterator of tuples, these parts of each batch; one loader for all.
      loss_weight(batch): how much its loss counts among the parts of a batch (tokens, labels; the default is 1), so
        that the loss of a batch is Σ weight·loss / Σ weight over its parts. The batch is on the host.
      check_data(): raises `workloads.data.BadData` where its data is missing or malformed; asked before a study
        launches anything.
    """

    @property
    def step_budget(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def optimizer(self) -> Mapping[str, Any]: ...
    @property
    def schedule(self) -> Mapping[str, Any]: ...
    @property
    def step_seconds(self) -> float: ...
    @property
    def eval_seconds(self) -> float: ...

    def model(self) -> nn.Module:
        """A fresh model on the CPU; its initial weights are a function of the seed.

        The global random streams of torch, numpy and Python are seeded with it.
        """

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        """Endless training batches from step `first_step` (the first step is 1).

        Batch s is a function of (seed, s) alone: `batches(seed, 1)` skipped by n equals `batches(seed, n + 1)`.
        part: this share of each batch; the parts together are the whole batch, each example once. A workload
        without this argument trains in one process and one piece.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar training loss; `model` is in train mode.

        A function of model, batch and the global random streams (torch's, numpy's, Python's), which a checkpoint
        keeps: no clock, no state of its own.
        """

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        """The batches of ``"validation"``, or of another of its `splits`: the same ones in order at every call.

        part: every `count`-th batch from batch `index` on.
        """

    def eval_step(self, model: nn.Module, batch: Batch) -> Sums:
        """Sums over one batch; `model` is in eval mode and gradients are off. No state, no randomness.

        Scalars are added up in float64. A tensor with axes (the predictions a ranking metric needs) is joined
        with those of the other batches along its first axis, in their order.
        """

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        """Sums over all batches of a split -> (loss, metric, examples[, metrics]).

        sums: floats, and CPU tensors for what was joined.
        """


class EvaluationOnly:
    """A base for a workload whose weights are imported: what it cannot do, training, it refuses.

    It adds metric, higher_is_better, model, eval_batches, eval_step and summarize.
    """

    step_budget = batch_size = 1  # a study of imported weights says its own budget
    optimizer: Mapping[str, Any] = MappingProxyType({})
    schedule: Mapping[str, Any] = MappingProxyType({})

    def batches(self, seed: int, first_step: int) -> Iterator[Batch]:
        raise NotImplementedError(f"{type(self).__name__} only evaluates; to train or recompute, give it batches, loss")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} only evaluates; to train or recompute, give it batches, loss")


FAMILIES = (  # the files of this folder that offer PRESETS
    *("criteo1tb", "fastmri", "imagenet_resnet", "imagenet_vit", "librispeech_conformer", "librispeech_deepspeech"),
    *("lm", "ogbg", "wmt"),
)


def families() -> list[str]:
    """The names of the shipped families."""
    return list(FAMILIES)


def load(name: str, preset: str = "mini") -> Workload:
    """The workload called `name`: a family's file name, or a user's ``"pkg.mod:Name"``.

    ``Name`` is a workload, or a class or function that makes one; it is given ``preset=`` if it takes it.
    The current directory is searched too, after all that is installed.

    Raises: UnknownWorkload (a ValueError), with the nearest remedy in its message.
    """
    if ":" in name:
        made: Workload = load_dotted(name, preset)
        return made
    if name not in (known := families()):
        near = difflib.get_close_matches(name[:100], known, n=1)
        asked = f" (did you mean {near[0]!r}?)" if near else ""
        listed = ", ".join([*near, *(one for one in known if one not in near)])
        raise UnknownWorkload(f"no workload {name[:60]!r}{asked}; there are {listed}, or your own as 'pkg.mod:Name'")
    there = presets(name)
    if preset not in there:
        raise UnknownWorkload(f"workload {name!r} has no preset {preset[:60]!r}; it has {', '.join(there)}")
    return there[preset]


def presets(family: str) -> Mapping[str, Workload]:
    """The presets of a family of this folder."""
    found: Mapping[str, Workload] = importlib.import_module(f"workloads.{family}").PRESETS
    return found


def takes_part(workload: Workload) -> bool:
    """Whether its batches can be had in parts."""
    return all("part" in inspect.signature(f).parameters for f in (workload.batches, workload.eval_batches))


def micro_batches(workload: Workload, seed: int, first_step: int, parts: Sequence[Part]) -> Iterator[tuple[Batch, ...]]:
    """These parts of each batch, from step `first_step` on, by one loader where the workload makes them together."""
    together = _who_defines(workload, "micro_batches")
    # a class that makes other batches than the one it is derived from makes other micro-batches
    if together is not None and issubclass(together, _who_defines(workload, "batches") or object):
        made: Iterator[tuple[Batch, ...]] = workload.micro_batches(seed, first_step, parts)  # type: ignore[attr-defined]
        return made
    return zip(*(workload.batches(seed, first_step, part) for part in parts), strict=True)


def _who_defines(workload: Workload, name: str) -> type | None:
    return next((one for one in type(workload).__mro__ if name in vars(one)), None)


def splits(workload: Workload) -> tuple[str, ...]:
    """The splits it can be evaluated on."""
    return tuple(getattr(workload, "splits", None) or ("validation",))


def with_batch_size(workload: Workload, batch_size: int | None) -> Workload:
    """The same workload with so many examples a step; None: as it is.

    Raises: ValueError where it is no dataclass with a field `batch_size`.
    """
    if batch_size is None:
        return workload
    told: Any = workload
    names = [field.name for field in dataclasses.fields(told)] if dataclasses.is_dataclass(told) else []
    if "batch_size" not in names:
        raise ValueError("cannot change its batch size: it is no dataclass with a field `batch_size`")
    changed: Workload = dataclasses.replace(told, batch_size=batch_size)
    return changed


def module_name(name: str) -> str:
    """The module that workload `name` is in."""
    return name.partition(":")[0] if ":" in name else f"workloads.{name}"


def source_file(name: str) -> Path:
    """The file that defines workload `name`; its targets.yaml lies beside it."""
    if ":" not in name:
        return Path(__file__).parent / f"{name}.py"
    load(name)
    return Path(str(sys.modules[name.partition(":")[0]].__file__))
