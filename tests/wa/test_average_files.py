"""Averages of checkpoint files are the bank's, bit for bit, from every kind of file; what does not match is no file."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from own_checkpoints import Save, as_safetensors, as_shards, as_torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wa import EMA, LAWA, Bank, Scheme
from wa.checkpoint_files import Checkpoint
from wa.files import average, scheme_of


class Net(nn.Module):
    """Tied weights, a convolution in channels_last, batch norm with its counter, a mask of −inf."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 5), nn.Linear(5, 9)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm, self.half = nn.BatchNorm1d(5), nn.Linear(3, 2, dtype=torch.bfloat16)
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))


def _moved(model: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for name, b in model.named_buffers() if name != "mask")]:
            tensor.add_(torch.randn(tensor.shape).to(tensor.dtype) if tensor.is_floating_point() else 1)


def _saved(folder: Path, save: Sequence[Save], number: int, scheme: Scheme | None = None) -> tuple[list[Path], Any]:
    """Checkpoints of a model that moves, and what a bank has made of the same; the model is as in the last."""
    model = Net()
    bank = Bank(model, [scheme] if scheme else [])
    paths = []
    for step in range(1, number + 1):
        _moved(model, step)
        bank.update(step)
        paths.append(save[step % len(save)](model, folder / f"step_{step}"))
    return paths, bank


@pytest.mark.parametrize("save", [as_safetensors, as_torch, as_shards])
@pytest.mark.parametrize(("number", "ema"), [(3, None), (70, None), (5, 0.5), (5, 0.97)])
def test_an_average_of_files_has_the_bits_of_the_banks(
    tmp_path: Path, save: Save, number: int, ema: float | None
) -> None:
    scheme = LAWA(number, buffers="average") if ema is None else EMA(ema, buffers="average")
    paths, bank = _saved(tmp_path, [save], number, scheme)
    average(paths, tmp_path / "out.safetensors", ema=ema)
    made, wanted = load_file(tmp_path / "out.safetensors"), bank.tensors(scheme)
    assert made.keys() == wanted.keys()
    for name, tensor in made.items():
        assert tensor.dtype == wanted[name].dtype
        assert torch.equal(tensor, wanted[name]), name


def test_kinds_may_be_mixed_and_torch_says_the_same(tmp_path: Path) -> None:
    paths, _ = _saved(tmp_path, [as_safetensors, as_torch, as_shards], 4)
    average(paths, tmp_path / "out.safetensors")
    model, theirs = Net(), None
    for step in range(1, 5):
        _moved(model, step)
        theirs = theirs or AveragedModel(model)
        theirs.update_parameters(model)
    made = load_file(tmp_path / "out.safetensors")
    assert theirs is not None
    for name, parameter in theirs.module.named_parameters():
        tolerance = 1e-2 if parameter.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(made[name], parameter.data, rtol=tolerance, atol=tolerance)


def test_weights_are_shares_of_their_sum(tmp_path: Path) -> None:
    for i in range(3):
        save_file({"w": torch.full((4,), float(i)), "n": torch.tensor(i)}, tmp_path / f"{i}.safetensors")
    average(sorted(tmp_path.glob("*.safetensors")), tmp_path / "out.safetensors", weights=[1, 2, 5])
    made = load_file(tmp_path / "out.safetensors")
    assert made["w"].tolist() == [1.5] * 4  # (0 + 2 + 10) / 8
    assert made["n"] == 2
    scheme = scheme_of(3, weights=[1, 2, 5])
    assert scheme.coefficients(3) == {1: 0.125, 2: 0.25, 3: 0.625}
    assert scheme.horizon == 2 * 0.5 + 1  # lag: (2·1 + 1·2 + 0·5) / 8


def test_the_output_loads_as_the_model_and_carries_its_checksum(tmp_path: Path) -> None:
    from safetensors.torch import load_model

    paths, _ = _saved(tmp_path, [as_safetensors], 2)
    out = tmp_path / "out.safetensors"
    average(paths, out)
    model = Net()
    load_model(model, str(out))  # strict: tied names are told in the metadata
    assert model.head.weight is model.embed.weight
    with safe_open(out, framework="pt") as file:
        told = file.metadata()
    plain = out.read_bytes().replace(told["sha256"].encode(), b"0" * 64, 1)
    assert hashlib.sha256(plain).hexdigest() == told["sha256"]
    assert told["format"] == "pt"
    assert json.loads(told["of"]) == ["step_1.safetensors", "step_2.safetensors"]


def test_names_tied_in_one_file_alone_are_averaged_apart(tmp_path: Path) -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "b": shared}, tmp_path / "1.pt")
    torch.save({"a": torch.zeros(3), "b": torch.full((3,), 3.0)}, tmp_path / "2.pt")
    for order in ([1, 2], [2, 1]):
        out = tmp_path / f"{order[0]}.safetensors"
        average([tmp_path / f"{i}.pt" for i in order], out)
        assert load_file(out)["a"].tolist() == [0.5] * 3
        assert load_file(out)["b"].tolist() == [2.0] * 3


def _bad(name: str, tensor: Tensor | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = load_file(path) | ({} if tensor is None else {name: tensor})
        if tensor is None:
            del state[name]
        save_file(state, path)

    return write


REFUSED = {
    "missing": (_bad("b", None), "2.safetensors: it has no 'b', which", "1.safetensors has"),
    "more": (_bad("c", torch.ones(2)), "1.safetensors: it has no 'c', which", "2.safetensors has"),
    "shape": (_bad("b", torch.ones(3)), "1.safetensors: 'b' is float32[2], and float32[3] in", "2.safetensors"),
    "dtype": (_bad("b", torch.ones(2).double()), "1.safetensors: 'b' is float32[2], and float64[2] in", "one dtype"),
    "nan": (_bad("b", torch.tensor([1.0, torch.nan])), "2.safetensors: 'b' holds NaN", "leave this checkpoint out"),
    "infinity": (_bad("b", torch.tensor([1.0, torch.inf])), "2.safetensors: 'b' holds infinity", "leave"),
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "2.safetensors: broken", "copy it again"),
    "no checkpoint": (lambda path: path.write_bytes(b"hello"), "2.safetensors: broken", "copy it again"),
    "fp8": (
        lambda path: [save_file({"b": torch.ones(2).to(torch.float8_e4m3fn)}, p) for p in path.parent.iterdir()],
        "2.safetensors: cannot average 'b', float8_e4m3fn[2]",
        "the weights it was made from",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_averaged_is_one_line_and_no_file(tmp_path: Path, case: str) -> None:
    for i in (1, 2):
        save_file({"a": torch.ones(2, 2), "b": torch.ones(2)}, tmp_path / f"{i}.safetensors")
    spoil, *said = REFUSED[case]
    spoil(tmp_path / "2.safetensors")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
        average([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], tmp_path / "out.safetensors")
    assert all(words in str(told.value) for words in said)
    assert sorted(tmp_path.iterdir()) == before


def test_a_torch_file_that_would_run_code_or_has_no_weights_is_named(tmp_path: Path) -> None:
    import argparse

    torch.save({"args": argparse.Namespace(lr=1), "model": {"a": torch.ones(1)}}, tmp_path / "code.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "empty.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "torn.pt").write_bytes((tmp_path / "code.pt").read_bytes()[:200])
    for name, said in {
        "code": "holds argparse.Namespace, which is not read since that runs code",
        "empty": "no state dict (its keys: epoch, lr)",
        "old": "before 1.6",
        "torn": "no checkpoint",
    }.items():
        with pytest.raises(ValueError, match=r"^[^\n]+$") as told:
            Checkpoint.open(tmp_path / f"{name}.pt")
        assert f"{name}.pt: " in str(told.value)
        assert said in str(told.value)


def test_a_torch_file_from_a_gpu_is_read_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.arange(12.0).view(3, 4)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"model": {"w": weight, "part": weight[1:, ::2], "_extra_state": {}}}, tmp_path / "a.pt")
    found = Checkpoint.open(tmp_path / "a.pt").tensors
    assert found["w"].read().tolist() == weight.flatten().tolist()
    assert found["part"].read().tolist() == [4.0, 6.0, 8.0, 10.0]  # a view with gaps
    assert found["part"].read(1, 3).tolist() == [6.0, 8.0]


def test_without_safetensors_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="to read it, `pip install safetensors`"):
        Checkpoint.open(tmp_path / "a.safetensors")


def test_an_index_leads_nowhere_else(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for shard, said in {"../secret.safetensors": "allowed: files beside it", "gone.safetensors": "is missing"}.items():
        index.write_text(json.dumps({"weight_map": {"a": shard}}))
        with pytest.raises(ValueError, match=said):
            Checkpoint.open(tmp_path)
    save_file({"b": torch.ones(1)}, tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match="no shard holds 'a'"):
        Checkpoint.open(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="no index of shards"):
        Checkpoint.open(index)


def test_an_output_that_is_there_stays(tmp_path: Path) -> None:
    for i in (1, 2):
        save_file({"a": torch.ones(2)}, tmp_path / f"{i}.safetensors")
    (tmp_path / "out.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="it exists"):
        average([tmp_path / "1.safetensors", tmp_path / "2.safetensors"], tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"mine"


MEASURE = """
    import sys
    from pathlib import Path
    from wa.files import average

    def peak():
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

    folder = Path(sys.argv[1])
    average(sorted(folder.glob("*.small")), folder / "small.safetensors")  # what is made once a process
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    average(sorted(folder.glob("?.safetensors")), folder / "out.safetensors")
    print(peak() - before)
"""


def test_memory_is_less_than_two_tensors(tmp_path: Path) -> None:
    size = 3 << 20  # of float32: tensors of 12 MiB, checkpoints of 36
    for i in range(4):
        save_file({f"{j}": torch.full((size,), float(i)) for j in range(3)}, tmp_path / f"{i}.safetensors")
        (tmp_path / f"{i}.small").mkdir()
        save_file({"a": torch.ones(2)}, tmp_path / f"{i}.small" / "a.safetensors")
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 2 * size * 4, f"{int(ran.stdout) / 2**20:.1f} MiB"
    assert load_file(tmp_path / "out.safetensors")["2"][-1] == 1.5
