"""Processes that share a bank: each keeps a part, and every average and state is the one of a bank that keeps all."""

import ast
import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from wa import EMA, LAWA, WSM, Bank, Tail, memory_bytes

READ_AT = [10, 25, 40, 60]
SCHEMES = [
    LAWA(9, buffers="average"),
    LAWA(30, until_full="partial"),
    WSM(7),
    EMA(0.9),
    EMA(0.99, buffers="average"),
    Tail(3, 2),
]


class Parts(nn.Module):
    """Tensors of many sizes: some share a piece, one has several, one lies crosswise in memory."""

    def __init__(self):
        super().__init__()
        self.large = nn.Linear(500, 300)
        self.norm = nn.BatchNorm1d(300)
        self.small = nn.ModuleList(nn.Linear(60, 40) for _ in range(30))
        self.crosswise = nn.Parameter(torch.randn(40, 90).t())


def walk(model, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*model.parameters(), model.norm.running_mean, model.norm.running_var):
            tensor.normal_(generator=generator)


def equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list) and one and isinstance(one[0], torch.Tensor):  # cut anyhow
        return torch.equal(torch.cat(one, -1), torch.cat(other, -1))
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def held(bank):
    return {(block.kind, piece.index) for block in bank._averages.blocks for piece in block.mine}


def in_one_of_two(rank, folder):
    """What each process checks; told in its file."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = Parts()
    for read_at in (None, READ_AT):
        alone = Bank(model, SCHEMES, read_at=read_at)
        shared = Bank(model, SCHEMES, read_at=read_at, group=dist.group.WORLD)
        sizes = [torch.tensor(0) for _ in range(2)]
        dist.all_gather(sizes, torch.tensor(shared.nbytes))
        count = sum(parameter.numel() for parameter in model.parameters())
        assert sum(map(int, sizes)) == alone.nbytes == memory_bytes(SCHEMES, count, 4, 600, read_at)
        assert 0.4 < sizes[0] / alone.nbytes < 0.6
        for step in range(1, 61):
            walk(model, step)
            alone.update(step)
            shared.update(step)
            if step == 33:
                state, expected = shared.state_dict(copy=step % 2 == 0), alone.state_dict()
                assert equal(state, expected) if rank == 0 else state == {}
                shared = Bank(model, SCHEMES, read_at=read_at, group=dist.group.WORLD)
                shared.load_state_dict(expected)
            for scheme in shared if step in READ_AT else ():
                mine = alone.tensors(scheme)
                assert equal(shared.tensors(scheme), mine)
                with shared.swapped(scheme):
                    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in mine.items())
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.copy(shared)
    Path(folder, f"done{rank}").write_text(repr(held(shared)))
    dist.destroy_process_group()


def test_two_processes_keep_a_share_each_and_have_the_averages_of_one(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    first, second = (set(ast.literal_eval((tmp_path / f"done{rank}").read_text())) for rank in (0, 1))
    assert first
    assert second
    assert not first & second


if __name__ == "__main__":
    in_one_of_two(int(sys.argv[2]), sys.argv[1])
