"""Checkpoints: exact, whole or not there, and never code."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sweeps import checkpoint


def test_round_trip_is_exact(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(5).to(torch.bfloat16),
        "b": [1, 2.5, "x", None, {"deep": torch.arange(3)}],
        "random": torch.get_rng_state(),
    }
    checkpoint.save(tmp_path / "checkpoint", state)
    again = checkpoint.load(tmp_path / "checkpoint")
    assert again is not None
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["b"][4]["deep"], torch.arange(3))
    assert again["b"][:4] == state["b"][:4]
    assert torch.equal(again["random"], state["random"])


def test_none_before_the_first(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "checkpoint") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "digest"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    checkpoint.save(path, {"a": torch.ones(100)})
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "digest":
        data[-3] = ord("0") if data[-3] != ord("0") else ord("1")
    else:
        data = data[:-10]
    path.write_bytes(bytes(data))
    with pytest.raises(checkpoint.BadCheckpoint, match="sha256"):
        checkpoint.load(path)


MEASURED = """
import resource, sys, torch
from pathlib import Path
from sweeps import checkpoint
from wa import EMA, LAWA, Bank

def anonymous():
    told = Path("/proc/self/status").read_text()
    return int(told.partition("RssAnon:")[2].split()[0]) * 1024

model = torch.nn.Sequential(*[torch.nn.Linear(1000, 1000) for _ in range(20)])
bank = Bank(model, [LAWA(k=4, every=1), EMA(decay=0.9)])
for step in (1, 2, 3, 4):
    bank.update(step)
state = {"model": model.state_dict(), "bank": bank.state_dict(copy=False)}
size = 80e6 + bank.nbytes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
checkpoint.save(Path(sys.argv[1]), state)
saving = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
before = anonymous()
kept = checkpoint.load(Path(sys.argv[1]))
loading = anonymous() - before
bank.load_state_dict(kept["bank"])
print(saving / size, loading / size, torch.equal(kept["model"]["0.weight"], model[0].weight))
"""


def test_saving_and_loading_make_no_copies(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "checkpoint")]
    saving, loading, same = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert float(saving) < 0.1
    assert float(loading) < 0.1
    assert same == "True"


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    import hashlib
    import io
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    buffer = io.BytesIO()
    torch.save({"a": Evil()}, buffer)
    body = buffer.getvalue()
    path = tmp_path / "checkpoint"
    path.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(path)
