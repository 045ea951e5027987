"""A training step asks its device for nothing: the host stays ahead of it.

The device is torch's "meta", which computes shapes and holds no values. What would be read from it, or sent to it
from memory that the device would have to wait for, is counted.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sweeps import training, training_state
from sweeps.cells import cells
from sweeps.data_parallel import Team
from sweeps.feed import tensors
from sweeps.optimizers import OPTIMIZERS
from sweeps.plan import trajectories
from sweeps.spec import parse_spec
from sweeps.training import Passes, Trainer
from workloads.imagenet import normalized
from workloads.protocol import FAMILIES, load
from workloads.speech_features import log_mel

HERE = Path(__file__).parents[2]
CTC = ["librispeech_conformer", "librispeech_deepspeech"]
AVERAGING = [{"scheme": "none"}, {"scheme": "lawa", "k": 2}, {"scheme": "ema", "decay": 0.9}]


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device, and goes on as if it had been told 1."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, where = func._schema.name.removeprefix("aten::"), [one.is_meta for one in tensors((args, kwargs))]
        to = torch.device(kwargs.get("device") or ("meta" if any(where) else "cpu")).type
        waits = not kwargs.get("non_blocking") and len(args) < 3
        if name == "_local_scalar_dense" and any(where):
            return self._waited(name, torch.ones((), dtype=args[0].dtype).item())
        if name == "nonzero" and any(where):
            return self._waited(name, torch.empty(1, args[0].ndim, dtype=torch.int64, device="meta"))
        if name == "index" and any(one.dtype == torch.bool for one in tensors(args[1])):
            return self._waited(name, args[0])
        if name == "_to_copy" and any(where) and to == "cpu":
            return self._waited(name, torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype))
        if name == "_ctc_loss":
            if args[2].is_meta or args[3].is_meta:
                self._waited(name, None)
            alpha = args[0].new_empty(args[0].shape[1], args[0].shape[0], 2 * args[1].shape[1] + 1)
            return args[0].new_empty(args[0].shape[1]), alpha
        if name == "_ctc_loss_backward":
            return torch.empty_like(args[1])
        sent = name == "_to_copy" and not any(where) and to == "meta"
        if waits and (sent or (name == "copy_" and len({*where}) > 1)):
            self._waited("send", None)
        return func(*args, **kwargs)

    def __enter__(self) -> Self:
        self._tensor = torch.tensor  # which no dispatch mode is told of
        torch.tensor = self._made  # type: ignore[assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.tensor = self._tensor  # type: ignore[assignment]
        super().__exit__(*error)

    def _made(self, *args: Any, **kwargs: Any) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            self._waited("send", None)
        return self._tensor(*args, **kwargs)

    def _waited(self, what: str, told: Any) -> Any:
        own = [HERE / room for room in ("sweeps", "wa", "workloads", "tests")]
        stack = [one for one in traceback.extract_stack() if {*Path(one.filename).parents} & {*own}]
        self.found.append(f"{what} at {stack[-3].filename}:{stack[-3].lineno}")
        return told


def waits(monkeypatch: pytest.MonkeyPatch, workload: str, accumulate: int = 1, **optimizer: Any) -> list[str]:
    """What waited in a step with averages."""
    for name in ("_device_has_foreach_support", "_has_foreach_support"):
        monkeypatch.setattr(f"torch.nn.utils.clip_grad.{name}", lambda *_: True)
    monkeypatch.setattr("wa.checks._obstacle", lambda tensor: None)  # the bank refuses what has no values
    monkeypatch.setattr(training, "clock_of", lambda device: lambda: 0.0)
    raw = {"study": "s", "workloads": workload, "step_budget": 8, "averaging": AVERAGING}
    raw |= {"training": {"accumulate": accumulate}, "optimizer": {**optimizer, "grad_clip": 1.0}}
    (one,) = trajectories(cells(parse_spec(raw)), fuse=True)
    state = training_state.fresh(one, load(workload), "meta", Team())
    trainer = Trainer(Passes(one, load(workload), state.model, Team(), "meta"), state)
    for _ in range(2):  # in the first step caches are made, that stay
        with Waits() as counted:
            trainer.train(4, pause=lambda step: True)
    assert state.step == 2
    return counted.found


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in CTC])
def test_a_step_of_a_family(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(monkeypatch, family) == []


@pytest.mark.parametrize("family", ["imagenet_resnet", "wmt"])  # with buffers, with weights that differ
def test_a_step_in_parts(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(monkeypatch, family, accumulate=2) == []


@pytest.mark.parametrize("family", CTC)
def test_a_step_with_ctc_waits_only_in_torchs_own_loss(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the lengths. An LSTM, on a GPU one operation, is here one for each frame: a product stands in."""

    def product(x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor], *_: Any) -> tuple[Tensor, ...]:
        return (x @ weights[0].T)[..., : weights[1].shape[1]], *state

    monkeypatch.setattr("torch.nn.modules.rnn._VF.lstm", product)
    (found,) = waits(monkeypatch, family)
    assert "_ctc_loss" in found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_of_an_optimizer(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    often = {"precondition_every": 1} if optimizer == "shampoo" else {}
    assert waits(monkeypatch, "criteo1tb", name=optimizer, lr=0.001, **often) == []


def test_what_full_presets_make_of_pictures_and_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of their models' steps that the minis have not."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which this device does not have
    pictures, sound = torch.empty(1, 4, 4, 3, device="meta"), torch.empty(2, 2000, dtype=torch.int16, device="meta")
    lengths = torch.empty(2, dtype=torch.int64, device="meta")
    for _ in range(2):
        with Waits() as counted:
            normalized(pictures), log_mel(sound, lengths)
    assert counted.found == []


def test_what_waits_is_counted() -> None:
    there, here = torch.ones(3, device="meta"), torch.ones(3)
    asking = (
        *(lambda: there[0].item(), lambda: bool(there[0] > 0), lambda: there.sum().cpu(), lambda: there.nonzero()),
        *(lambda: there[there > 0], lambda: here.to("meta"), lambda: there.copy_(here)),
        lambda: torch.tensor([1.0], device="meta"),
    )
    for ask in asking:
        with Waits() as counted:
            ask()
        assert len(counted.found) == 1
    with Waits() as counted:
        here.to("meta", non_blocking=True), there * here[0], there.where(there > 0, 0.0)
    assert counted.found == []
