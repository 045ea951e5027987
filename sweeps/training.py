"""Optimizer steps: batches, gradients over parts and ranks, the bank's updates, and what all that costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sweeps import random_streams
from sweeps.data_parallel import Team
from sweeps.feed import Parts, fed, to_device
from sweeps.plan import Trajectory
from sweeps.step_buffers import StepBuffers
from sweeps.trace import Keeper
from sweeps.training_state import State, streams_of_ranks
from workloads.protocol import Part, Workload, micro_batches

RECOMPUTE_BATCHES = 50  # training batches for batch-norm statistics recomputed under averaged weights


@dataclass(frozen=True)
class Stretch:
    """The steps between two evaluations: the last one's loss and learning rate, the mean loss, the throughput."""

    last_loss: float
    train_loss: float
    step_lr: float
    examples_per_second: float
    diverged: bool


class Passes:
    """Forward passes of one rank, in a training and in evaluations alike: batches in parts, precision, compilation."""

    def __init__(self, trajectory: Trajectory, workload: Workload, model: nn.Module, team: Team, device: str) -> None:
        self.training = trajectory.cells[0].training
        self.workload, self.team, self.device = workload, team, device
        self.clock, self.peak = clock_of(device), dict(self.training.settings).get("lr", math.nan)
        self.length_steps = trajectory.length_steps
        if self.training.compile is not None:
            model.compile(backend=self.training.compile)

    def precision(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.training.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def recompute(self, model: nn.Module) -> Iterator[None]:
        """Forward passes over the first training batches, for batch-norm statistics."""
        # Its own random stream, so that a scheme's statistics do not depend on its company.
        random_streams.seed_all(self.training.seed, self.team.rank)
        batches = self.parts(1)
        with torch.no_grad():
            for _ in range(RECOMPUTE_BATCHES):
                for part in next(batches):
                    with self.precision():
                        self.workload.loss(model, to_device(self.device, part))
                    yield

    def parts(self, first_step: int) -> Iterator[Parts]:
        """This rank's micro-batches, step after step."""
        each = self.training.accumulate
        count = each * self.team.size
        if count == 1:
            return ((batch,) for batch in self.workload.batches(self.training.seed, first_step))
        mine = range(self.team.rank * each, (self.team.rank + 1) * each)
        return micro_batches(self.workload, self.training.seed, first_step, [Part(index, count) for index in mine])

    def lr(self, step: int) -> float:
        """The learning rate of the step after which `step` are done."""
        return self.peak * self.training.schedule.lr_factor(step - 1)

    def stretch(self, state: State, last: Tensor) -> Stretch:
        """What the steps since the last evaluation were; those that follow are counted anew. last: the last loss."""
        steps = state.step - state.evaluated
        losses = torch.stack([last.double().view(()), state.stretch_loss.view(()) / steps])
        last_loss, train_loss = self.team.sum(losses).tolist()
        examples = self.workload.batch_size * steps
        each_second = examples / state.stretch_seconds if state.stretch_seconds else 0.0
        diverged = not math.isfinite(last_loss)
        found = Stretch(last_loss, train_loss, self.lr(state.step), each_second, diverged)
        state.evaluated, state.stretch_seconds = state.step, 0.0
        state.stretch_loss = torch.zeros((), dtype=torch.float64)
        return found


class Trainer:
    """Optimizer steps of one rank, each over its part of the batch in one or more micro-batches."""

    def __init__(self, passes: Passes, state: State, keeper: Keeper | None = None) -> None:
        self.passes, self.state, self.keeper = passes, state, keeper
        self.training, self.workload, self.team = passes.training, passes.workload, passes.team
        self.device, self.clock, self.precision = passes.device, passes.clock, passes.precision
        self.parameters = list(state.model.parameters())
        self.model = self.team.replicate(state.model)
        left = passes.length_steps - state.step
        self.batches = fed(self.device, islice(passes.parts(state.step + 1), left))

    def _next(self, step: int) -> tuple[Parts, Parts]:
        try:
            return next(self.batches)
        except StopIteration:
            raise ValueError(f"batches() ends before step {step}; let it go on for ever") from None

    def train(self, until: int, pause: Callable[[int], bool] = lambda step: False) -> Stretch | None:
        """Steps state.step + 1 … until, or up to one after which `pause(step)`: then None, and the next call goes on.

        Averaging time goes to the bank's clock.
        """
        state = self.state
        start, averaging = self.clock(), 0.0
        loss, step = torch.zeros(()), state.step
        total = state.stretch_loss.to(self.device)
        for step in range(state.step + 1, until + 1):
            parts, there = self._next(step)
            for group in state.optimizer.param_groups:
                group["lr"] = self.passes.lr(step)
            state.optimizer.zero_grad(set_to_none=True)
            loss = self._backward(parts, there).detach()
            total = total + loss  # on the device: reading it each step would wait for it
            if self.training.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.parameters, self.training.grad_clip, foreach=True)
            state.optimizer.step()
            before = time.perf_counter()
            state.bank.update(step)
            if self.keeper is not None:
                self._keep(self.keeper, step, until, loss, start, averaging)
            averaging += time.perf_counter() - before
            if step < until and pause(step):
                break
        seconds = self.clock() - start - averaging
        state.step, state.stretch_loss = step, total
        state.train_seconds += seconds
        state.stretch_seconds += seconds
        return self.passes.stretch(state, loss) if step == until else None

    def _keep(self, keeper: Keeper, step: int, until: int, loss: Tensor, start: float, averaging: float) -> None:
        """Into the trace: the loss, and where one is due, a snapshot."""
        self.state.losses.append(loss)
        if step == until or keeper.wants(step):
            seconds = self.state.train_seconds + self.clock() - start - averaging
            streams = {name: torch.stack(of) for name, of in streams_of_ranks(self.state, self.team).items()}
            losses = torch.stack(self.team.gather(torch.stack(self.state.losses).view(-1)))
            keeper.keep(step, self.state.model, self.state.optimizer, losses, streams, seconds)
            self.state.losses = []

    def _backward(self, parts: Parts, there: Parts) -> Tensor:
        """Gradients of Σ weight·loss / Σ weight over the parts of all ranks; this rank's share of that loss.

        parts: on the host, where their weights are read; there: on the device.
        """
        if len(parts) == self.team.size == 1:
            with self.precision():
                loss = self.workload.loss(self.model, there[0])
            loss.backward()  # type: ignore[no-untyped-call]
            return loss
        shares = self._shares(parts)
        total = torch.zeros((), device=self.device)
        buffers = StepBuffers(self.state.model)
        for i, (part, share) in enumerate(zip(there, shares, strict=True)):
            alone = isinstance(self.model, DistributedDataParallel) and i < len(parts) - 1
            buffers.begin()
            with self.model.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with self.precision():
                    loss = self.workload.loss(self.model, part) * share
                # DistributedDataParallel takes the mean over ranks where the sum is meant.
                (loss * self.team.size).backward()  # type: ignore[no-untyped-call]
            buffers.add()
            total += loss.detach()
        buffers.finish(self.team)
        return total

    def _shares(self, parts: Parts) -> list[Tensor]:
        """On the host: a scalar there multiplies what is on a device without being sent."""
        weigh = getattr(self.workload, "loss_weight", lambda part: 1.0)
        weights = torch.stack([torch.as_tensor(weigh(part), dtype=torch.float64).cpu() for part in parts])
        return list((weights / self.team.sum(weights.sum())).float())


def clock_of(device: str) -> Callable[[], float]:
    """Seconds, when all that was asked of the device is done."""
    if device == "cpu":
        return time.perf_counter

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized
