"""The processes of one trial: each trains on its part of every batch, together they are one training run.

Rank 0 is the trial itself and the only one that records; the others are its children, run the same loop and end
with it. Gradients are averaged by torch's DistributedDataParallel. A team of one talks to nobody.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.secrets import redacted
from sweeps import failures, import_order, retries
from wa.buffers import STATISTICS, statistics_modules

PATIENCE = timedelta(minutes=30)  # of a rank that waits for another: an evaluation may be long
END_SECONDS = 20.0  # what followers get to end by themselves
# Each rank keeps its statistics until `average_statistics`. The option has another name since torch 2.13.
_OPTIONS = {"broadcast_buffers", "forward_sync_buffers"} & set(inspect.signature(DistributedDataParallel).parameters)
_KEEP_BUFFERS: dict[str, Any] = {max(_OPTIONS): False}


@dataclass(frozen=True)
class Team:
    """The processes that train one trajectory; every method is called by all ranks, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def group(self) -> dist.ProcessGroup | None:
        """Of torch's, that these processes are; None of one."""
        return dist.group.WORLD if self.size > 1 else None

    def sum(self, value: Tensor) -> Tensor:
        """Σ over ranks, the same on all."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def decide(self, flags: Sequence[bool]) -> list[bool]:
        """What rank 0 says."""
        if self.size == 1:
            return list(flags)
        told = torch.tensor(list(flags), dtype=torch.uint8)
        dist.broadcast(told, src=0)
        return [bool(flag) for flag in told.tolist()]

    def gather(self, value: Tensor) -> list[Tensor]:
        """Each rank's tensor, all of one shape and dtype, by rank; on the CPU."""
        if self.size == 1:
            return [value]
        value = value.cpu()
        gathered = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(gathered, value)
        return gathered

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """Pieces of the batches rank, rank + size, … -> those of all batches, joined in the batches' order."""
        if self.size == 1:
            return torch.cat(list(pieces))
        counts = self.gather(torch.tensor(len(pieces)))
        most = max(int(count) for count in counts)
        joined = []
        for piece in [*pieces, *[pieces[0][:0]] * (most - len(pieces))]:
            lengths = [int(n) for n in self.gather(torch.tensor(len(piece)))]
            padded = piece.new_zeros((max(lengths), *piece.shape[1:]))
            padded[: len(piece)] = piece
            joined += [part[:n] for part, n in zip(self.gather(padded), lengths, strict=True)]
        return torch.cat(joined)

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model to call for a loss; its backward pass averages gradients over ranks."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, **_KEEP_BUFFERS)

    @torch.no_grad()
    def average_statistics(self, model: nn.Module) -> None:
        """Running statistics ← their mean over ranks, each of which saw other examples; in one reduction a dtype."""
        modules = statistics_modules(model).values() if self.size > 1 else ()
        buffers = [cast(Tensor, module._buffers[name]) for module in modules for name in STATISTICS]
        for dtype in {buffer.dtype: None for buffer in buffers}:
            alike = [buffer for buffer in buffers if buffer.dtype == dtype]
            means = self.sum(torch.cat([buffer.reshape(-1) for buffer in alike])) / self.size
            for buffer, mean in zip(alike, torch.split(means, [buffer.numel() for buffer in alike]), strict=True):
                buffer.copy_(mean.view_as(buffer))


@contextmanager
def lead(size: int, device: str, log: logging.Logger, task: Mapping[str, Any]) -> Iterator[Team]:
    """Be rank 0 of a team of `size`; its other ranks run `sweeps.follower` on `task`. What they said ends in `log`."""
    if size == 1:
        yield Team()
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wa-team-")))
        rendezvous = folder / "store"
        stack.callback(_quote, range(1, size), folder, log)
        followers = []
        for rank in range(1, size):
            said = stack.enter_context(open(folder / f"log-rank{rank}", "ab"))
            command = [sys.executable, "-P", "-m", "sweeps.follower"]
            follower = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
            stack.callback(_end, follower)
            followers.append(follower)
            place = {"rank": rank, "size": size, "device": device, "rendezvous": str(rendezvous)}
            assert follower.stdin is not None
            told = {**task, **place, "sys_path": import_order.users_paths()}
            follower.stdin.write(json.dumps(told).encode() + b"\n")
            follower.stdin.flush()  # and stays open: its end tells the follower that we are gone
        _wait_until_ready(followers, rendezvous, folder)
        stack.enter_context(joined(0, size, device, rendezvous))
        try:
            yield Team(0, size)
        except Exception as error:
            if not retries.is_lasting(error):  # such as torch's, that a peer is gone: why is it?
                _raise_for_rank(followers, folder, error)
            raise


def ready_file(rendezvous: Path, rank: int) -> Path:
    """What a follower makes when it has started and is about to join."""
    return rendezvous.with_name(f"ready-{rank}")


def _wait_until_ready(followers: Sequence[subprocess.Popen[bytes]], rendezvous: Path, folder: Path) -> None:
    """Joining waits for all ranks, half an hour; so nobody joins before all are there. Raises: RuntimeError."""
    deadline = time.monotonic() + PATIENCE.total_seconds()
    for rank, follower in enumerate(followers, start=1):
        while not ready_file(rendezvous, rank).exists():
            if follower.poll() is not None or time.monotonic() > deadline:
                ended = f"ended with exit code {follower.returncode}" if follower.poll() is not None else "hangs"
                raise RuntimeError(f"process {rank} of the trial {ended} as it starts: {_last_line(folder, rank)}")
            time.sleep(0.02)


def _quote(ranks: Iterable[int], folder: Path, log: logging.Logger) -> None:
    for rank in ranks:
        for line in failures.tail(folder / f"log-rank{rank}"):
            log.warning("process %d: %s", rank, redacted(line))


def _last_line(folder: Path, rank: int) -> str:
    return (failures.tail(folder / f"log-rank{rank}") or ["it said nothing"])[-1].strip()


def _raise_for_rank(followers: Sequence[subprocess.Popen[bytes]], folder: Path, error: Exception) -> None:
    """Raises: RankFailed, where a follower says that it failed and would fail again."""
    for rank, follower in enumerate(followers, start=1):
        with suppress(subprocess.TimeoutExpired):
            if follower.wait(2.0) == retries.LASTING_EXIT:
                raise retries.RankFailed(f"process {rank} of the trial: {_last_line(folder, rank)}") from error


def _end(follower: subprocess.Popen[bytes]) -> None:
    assert follower.stdin is not None
    try:
        follower.wait(END_SECONDS if sys.exc_info()[0] is None else 1.0)
    except subprocess.TimeoutExpired:
        follower.kill()
        follower.wait()
    follower.stdin.close()


@contextmanager
def joined(rank: int, size: int, device: str, rendezvous: Path) -> Iterator[None]:
    """Inside, this process is one of torch's default process group."""
    if device != "cpu":
        torch.cuda.set_device(rank)
    for library in ("GLOO", "NCCL"):  # all ranks are on this machine: nobody else need reach their ports
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    backend, method = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", f"file://{rendezvous}"
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
