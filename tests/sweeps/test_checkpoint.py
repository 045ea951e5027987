"""Checkpoints: exact, whole or not there, and never code."""

from pathlib import Path

import pytest
import torch

from benchmarks.traces import copies
from sweeps import checkpoint
from sweeps.storage import Place


def test_round_trip_is_exact(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(5).to(torch.bfloat16),
        "b": [1, 2.5, "x", None, {"deep": torch.arange(3)}],
        "random": torch.get_rng_state(),
    }
    checkpoint.save(Place.of(tmp_path / "checkpoint"), state)
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
    checkpoint.save(Place.of(path), {"a": torch.ones(100)})
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


def test_saving_and_loading_make_no_copies() -> None:
    made = copies()
    assert made["saving"] < 0.1
    assert made["loading"] < 1.1  # a part of the state itself: the rest is mapped from the file


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
