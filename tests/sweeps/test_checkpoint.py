"""Checkpoints: exact, whole or not there, and never code."""

from pathlib import Path

import pytest
import torch

from sweeps import training_state


def test_round_trip_is_exact(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(5).to(torch.bfloat16),
        "b": [1, 2.5, "x", None, {"deep": torch.arange(3)}],
        "random": torch.get_rng_state(),
    }
    training_state.write_checkpoint(tmp_path / "checkpoint", state)
    again = training_state.read_checkpoint(tmp_path / "checkpoint")
    assert again is not None
    assert torch.equal(again["a"], state["a"])
    assert torch.equal(again["b"][4]["deep"], torch.arange(3))
    assert again["b"][:4] == state["b"][:4]
    assert torch.equal(again["random"], state["random"])


def test_none_before_the_first(tmp_path: Path) -> None:
    assert training_state.read_checkpoint(tmp_path / "checkpoint") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "digest"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint"
    training_state.write_checkpoint(path, {"a": torch.ones(100)})
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "digest":
        data[3] = ord("0") if data[3] != ord("0") else ord("1")
    else:
        data = data[:-10]
    path.write_bytes(bytes(data))
    with pytest.raises(training_state.BadCheckpoint, match="sha256"):
        training_state.read_checkpoint(path)


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
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.raises(pickle.UnpicklingError):
        training_state.read_checkpoint(path)
