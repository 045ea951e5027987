"""Checkpoint files: which tensors they hold and where, and averages of several, streamed piece by piece.

A checkpoint is a safetensors file, a torch file (`weights_only`), or a folder with one of them or with shards and
their ``*.index.json``. Only its header is read when it is opened; elements are, when they are asked for.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .state import plain_names

DTYPES: dict[str, torch.dtype] = {  # as a safetensors file says them
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")  # where a training's torch file has the weights
TORCH = (".pt", ".pth", ".bin", ".ckpt")
KINDS = f"a .safetensors file, a torch file ({', '.join(TORCH)}), or a folder with one, or with shards and their index"


class BadFile(ValueError):
    """A file that cannot be read, averaged or written; the message is one line that names it."""

    def __init__(self, path: Path, said: str) -> None:
        super().__init__(f"{path}: {said}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. offset: bytes before its first element; stride: in elements, as torch's."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...] | None = None  # None: contiguous

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start … stop − 1 in the order in which an index counts them, shape (stop − start,).

        Raises: BadFile where the file ends before them. Of a tensor that is not contiguous all is read each time.
        """
        stop = self.numel if stop is None else stop
        if self.stride is None or stop <= start:
            return self._elements(start, stop - start)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self._elements(0, last + 1).as_strided(self.shape, self.stride).reshape(-1)[start:stop]

    def _elements(self, first: int, count: int) -> Tensor:
        if count <= 0:
            return torch.empty(0, dtype=self.dtype)
        data = bytearray(count * self.dtype.itemsize)
        with open(self.path, "rb") as file:
            file.seek(self.offset + first * self.dtype.itemsize)
            if file.readinto(data) != len(data):
                raise BadFile(self.path, "it ends before its tensors do; copy it again")
        return torch.frombuffer(data, dtype=self.dtype)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint. tensors: name -> where it is, tied ones once; ties: their other names -> the one in `tensors`.

    files: those that hold them, by name. Names of tensors are those without torch's wrappers (torch.compile,
    DistributedDataParallel).
    """

    path: Path
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]
    ties: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """What is at `path`. Raises: BadFile; OSError where nothing is, or it may not be read."""
        found = _one_of(path) if path.is_dir() else path
        shards = _shards(found) if found.name.endswith(".index.json") else {}
        files = [found.with_name(name) for name in sorted(set(shards.values()))] or [found]
        stored, ties = dict[str, Stored](), dict[str, str]()
        for file in files:
            mine, tied = _read(file)
            stored, ties = stored | mine, ties | tied
        if gone := [name for name in shards if name not in stored and name not in ties]:
            raise BadFile(found, f"no shard holds {gone[0]!r}; copy the folder again")
        if not stored:
            raise BadFile(found, "it holds no tensors")
        plain = plain_names(nn.Module(), [*stored, *ties])
        ties = {plain[name]: plain[first] for name, first in ties.items()}
        return cls(path, tuple(files), {plain[name]: one for name, one in stored.items()}, ties)

    def find(self, name: str) -> Stored | None:
        """A tensor by any of its names."""
        return self.tensors.get(self.ties.get(name, name))


def _one_of(folder: Path) -> Path:
    """The file of a folder that has the weights, or leads to them."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    for endings in ((".index.json",), (".safetensors",), TORCH):
        found = [name for name in names if name.endswith(endings)]
        usual = [name for name in found if name.startswith(("model.", "pytorch_model."))]
        if len(found) == 1 or len(usual) == 1:
            return folder / (found if len(found) == 1 else usual)[0]
        if found:
            raise BadFile(folder, f"several files may be the weights ({', '.join(found[:4])}); name the one")
    raise BadFile(folder, f"no checkpoint; allowed: {KINDS}")


def _shards(index: Path) -> dict[str, str]:
    """Tensor -> file, of an index whose files lie beside it."""
    try:
        told: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        names = set(told.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadFile(index, "no index of shards: it has no `weight_map` of tensor -> file") from None
    if odd := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise BadFile(index, f"names a shard {odd[0]!r}; allowed: files beside it")
    if gone := sorted(name for name in names if not index.with_name(name).is_file()):
        raise BadFile(index, f"its shard {gone[0]} is missing; copy the folder again")
    return told


def _read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """(tensors, ties) of one file."""
    path.stat()  # where nothing is, the operating system says so
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if zipfile.is_zipfile(path):
        return _torch(path)
    raise BadFile(path, f"no checkpoint, or torch's of before 1.6 (save that again); allowed: {KINDS}")


def _safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise BadFile(path, "to read it, `pip install safetensors`") from None
    try:
        with safe_open(path, framework="pt") as file:  # that the header is sound, and the file as long as it says
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise BadFile(path, f"broken ({str(error).splitlines()[0]}); copy it again") from None
    with open(path, "rb") as raw:
        size = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(size))
    found = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        if told["dtype"] not in DTYPES:
            raise BadFile(path, f"{name!r} is of dtype {told['dtype']}; allowed: {', '.join(DTYPES)}")
        found[name] = Stored(path, DTYPES[told["dtype"]], tuple(told["shape"]), 8 + size + told["data_offsets"][0])
    return found, {name: first for name, first in metadata.items() if first in found and name not in found}


def _torch(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    try:
        with FakeTensorMode():  # of every tensor where it lies, and no element
            told = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, by what is broken
        alien = re.search(r"GLOBAL (\S+)", str(error))
        said = f"it holds {alien[1]}, which is not read since that runs code" if alien else str(error).splitlines()[0]
        raise BadFile(path, f"{said[:200]}; save the weights alone: torch.save(model.state_dict(), …)") from None
    found, ties, first = dict[str, Stored](), dict[str, str](), dict[tuple[Any, ...], str]()
    for name, tensor in _state_dict(path, told).items():
        if not isinstance(tensor, Tensor):  # as a module's extra state
            continue
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES.values():
            raise BadFile(path, f"{name!r} is {tensor.layout}, {tensor.dtype}; allowed: dense {', '.join(DTYPES)}")
        begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)  # as torch documents
        if begin is None:
            raise BadFile(path, f"torch {torch.__version__} cannot say where its tensors lie; allowed: 2.7 and later")
        stride = None if tensor.is_contiguous() else tensor.stride()
        offset = int(begin) + int(tensor.storage_offset()) * tensor.dtype.itemsize
        stored = Stored(path, tensor.dtype, tuple(tensor.shape), offset, stride)
        place = first.setdefault((offset, stored.dtype, stored.shape, stride), name)
        if place == name or not stored.numel:
            found[name] = stored
        else:
            ties[name] = place
    return found, ties


def _state_dict(path: Path, told: Any) -> Mapping[str, Any]:
    while isinstance(told, Mapping):
        inner = next((told[key] for key in STATE_DICTS if isinstance(told.get(key), Mapping)), None)
        if inner is None:
            break
        told = inner
    if isinstance(told, Mapping) and any(isinstance(value, Tensor) for value in told.values()):
        return {str(name): value for name, value in told.items()}
    there = f"its keys: {', '.join(map(str, list(told)[:5]))}" if isinstance(told, Mapping) else type(told).__name__
    raise BadFile(path, f"no state dict ({there}); allowed: one, or one under {', '.join(STATE_DICTS)}")


def matched(checkpoints: Sequence[Checkpoint]) -> Iterable[tuple[str, list[Stored]]]:
    """Every tensor of checkpoints of one model: (its name, where each has it), in the last one's order.

    Names tied in all of them come once. Raises: BadFile naming file and tensor where names, shapes or dtypes differ.
    """
    newest, found = checkpoints[-1], dict[str, list[Stored]]()
    for name in dict.fromkeys(name for one in (newest, *checkpoints) for name in one.tensors):
        places = [one.find(name) for one in checkpoints]
        if None in places:
            without, have = checkpoints[places.index(None)], next(one for one in checkpoints if one.find(name))
            raise BadFile(without.path, f"it has no {name!r}, which {have.path} has; average checkpoints of one model")
        found[name] = [place for place in places if place is not None]
        for one, place in zip(checkpoints, found[name], strict=True):
            if (place.shape, place.dtype) != (found[name][-1].shape, found[name][-1].dtype):
                said = f"{name!r} is {looks(place)}, and {looks(found[name][-1])} in {newest.path}"
                raise BadFile(one.path, f"{said}; average checkpoints of one model, in one dtype")
    return found.items()


def looks(stored: Stored) -> str:
    """``float32[3, 4]``."""
    return f"{str(stored.dtype).removeprefix('torch.')}{list(stored.shape)}"


# --- steps in names -------------------------------------------------------------------------------------------------

STEP = re.compile(r"(?:step|iter|iteration|checkpoint|ckpt)s?[-_=]?([0-9]+)", re.IGNORECASE)


def step_in(name: str, pattern: str | None = None) -> int | None:
    r"""The step that a checkpoint's name tells, None where it tells none.

    ``step_1000``, ``checkpoint-2000``, ``ckpt_3000.pt``, ``epoch=3-step=400.ckpt``, ``0500.pt``; never an epoch.
    pattern: a regular expression whose first group is the step, ``r"epoch_(\d+)"``. Raises: ValueError for none such.
    """
    if pattern is not None:
        try:
            found = re.search(pattern, name)
            return None if found is None else int(found[1])
        except (re.error, IndexError, ValueError, TypeError) as error:
            raise ValueError(
                f"{pattern!r} is no pattern with the step in a group, as in 'step_([0-9]+)': {error}"
            ) from None
    told = STEP.search(name)
    numbers = [told[1]] if told else re.findall(r"[0-9]+", name.partition(".")[0])
    return int(numbers[0]) if len(numbers) == 1 and (told or "epoch" not in name.lower()) else None


def in_order_of_steps(paths: Iterable[Path], pattern: str | None = None) -> dict[int, Path]:
    """step -> checkpoint, ascending, by `step_in` their names.

    Raises: ValueError where a name tells no step, or two the same.
    """
    found = dict[int, Path]()
    for path in paths:
        step = step_in(path.name, pattern)
        if step is None:
            raise BadFile(path, "its name tells no step; say where it is by --step-pattern, as in 'epoch_([0-9]+)'")
        if step in found:
            raise BadFile(path, f"it is of step {step}, and so is {found[step]}")
        found[step] = path
    return dict(sorted(found.items()))
