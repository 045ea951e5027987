"""Somebody's training: a plain torch loop over a workload's model, whose checkpoints are saved as people save them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

Save = Callable[[nn.Module, Path], Path]


def as_safetensors(model: nn.Module, path: Path) -> Path:
    path = path.with_name(f"{path.name}.safetensors")
    save_model(model, str(path))
    return path


def as_torch(model: nn.Module, path: Path) -> Path:
    """Under ``state_dict``, from a compiled model in DistributedDataParallel, beside the optimizer's state."""
    path = path.with_name(f"{path.name}.pt")
    state = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": {0: torch.ones(2)}}}, path)
    return path


def as_shards(model: nn.Module, path: Path) -> Path:
    path.mkdir()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if all(tensor.data_ptr() != other.data_ptr() for other in state.values()):  # tied ones once
            state[name] = tensor
    names = sorted(state)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, some in shards.items():
        save_file({name: state[name].contiguous() for name in some}, path / file, {"format": "pt"})
    told = {name: file for file, some in shards.items() for name in some}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": told}))
    return path


def train(workload: Any, folder: Path, save: Save, steps: Iterable[int], seed: int = 0, name: str = "step_{}") -> None:
    """Train with plain SGD and save at these steps into the folder, which is made."""
    folder.mkdir()
    torch.manual_seed(seed)
    model, wanted = workload.model(), set(steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step, batch in zip(range(1, max(wanted) + 1), workload.batches(seed, 1), strict=False):
        model.train()
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
        if step in wanted:
            save(model, folder / name.format(step))
