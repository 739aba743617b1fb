"""What whole steps are timed with: a long sweep that can be paused, and plain loops over members."""

import copy
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from greenlet import getcurrent, greenlet
from torch import Tensor

import vecsweep as vs
from vecsweep._engine.graphs import capture

_PLANNED_STEPS = 20_000  # so many that whatever a sweep does once, at its start, is worth its while
BRIEF: dict[str, Any] = {"num_steps": 200, "patience_s": 0.0}  # for `PausedSweep`: too short to time anything
_STEADY = 1.15  # windows that differ by no larger factor are steady
_NUM_SEEN = 16


class PausedSweep:
    """A long sweep that trains only when asked, so that its steps are timed apart from what it costs to start.

    The sweep runs in a greenlet, on the thread of the caller, and waits wherever its batches are asked for too early.

    Args:
        task: what is trained.
        lrs: of the members.
        window_steps: between two looks at the losses; only there can the sweep be paused.
        patience_s: until the steps are taken to be steady, however they vary.
        **how: further arguments of `vecsweep.sweep`.
    """

    def __init__(self, task: vs.Task, lrs: np.ndarray, window_steps: int, patience_s: float = 30.0, **how: Any) -> None:
        self.seen: list[Any] = []  # the first batches
        self.window_steps = window_steps
        self._patience_s = patience_s
        self._source: Iterable[Any] = task.batches
        self._num_allowed = 0
        self._caller = getcurrent()

        def train() -> vs.Sweep:
            options = {"num_steps": _PLANNED_STEPS, "divergence_factor": None, "progress": False, **how}
            try:
                with mock.patch("vecsweep._engine.windows._WINDOW_STEPS", window_steps):
                    return vs.sweep(replace(task, batches=self._gate), lrs=lrs, **options)
            except vs.Interrupted as stopped:
                return stopped.result

        self._sweep = greenlet(train)

    def advance(self, num_windows: int = 1) -> None:
        """Train through so many windows."""
        self._caller = getcurrent()
        self._num_allowed += num_windows * self.window_steps
        self._sweep.switch()

    def settle(self) -> tuple[float, float]:
        """Train until the steps are steady; return seconds a step, and seconds that starting cost beyond the steps."""
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds) < self._patience_s and max(seconds[-2:]) > _STEADY * min(seconds[-2:])):
            started = time.perf_counter()
            self.advance()
            seconds.append(time.perf_counter() - started)
        steady = min(seconds[-2:])
        return steady / self.window_steps, sum(seconds) - steady * len(seconds)

    def stop(self) -> vs.Sweep:
        """End the sweep as Ctrl-C does; return its result so far."""
        return self._sweep.throw(KeyboardInterrupt)

    def _gate(self) -> Iterator[Any]:
        while True:
            for batch in self._source:
                if self._num_allowed == 0:
                    self._caller.switch()
                self._num_allowed -= 1
                if len(self.seen) < _NUM_SEEN:
                    self.seen.append(batch)
                yield batch


class GraphedStockLoop:
    """Members trained one after another on a GPU, each step of each a CUDA graph: what is fastest without batching.

    Args:
        task: what is trained; its optimizer is a function.
        lrs: of the members.

    Raises:
        RuntimeError: a step cannot be captured; no other is disturbed.
    """

    def __init__(self, task: vs.Task, lrs: np.ndarray) -> None:
        self._batches = itertools.cycle([tuple(leaf.cuda() for leaf in batch) for batch in task.batches])
        self._inputs, self._targets = (leaf.clone() for leaf in next(self._batches))
        self._trained: list[tuple[torch.nn.Module, torch.optim.Optimizer]] = []  # on whose memory the graphs work
        self._graphs = [self._capture(task, float(lr)) for lr in lrs]

    def train(self, num_members: int, num_steps: int) -> None:
        """Train the first members."""
        for graph in self._graphs[:num_members]:
            for inputs, targets in itertools.islice(self._batches, num_steps):
                self._inputs.copy_(inputs)
                self._targets.copy_(targets)
                graph.replay()

    def _capture(self, task: vs.Task, lr: float) -> torch.cuda.CUDAGraph:
        model = copy.deepcopy(task.model)
        optimizer = task.optimizer(model.parameters())
        self._trained.append((model, optimizer))
        for group in optimizer.param_groups:
            group["lr"] = lr
            if "capturable" in group:
                group["capturable"] = True

        @torch.enable_grad()
        def step(*_: Tensor) -> list[Tensor]:
            optimizer.zero_grad()
            task.loss_fn(model(self._inputs), self._targets).backward()
            optimizer.step()
            return []

        with capture.aside(self._inputs.device):  # what is set up at first must not be captured
            for _ in range(3):
                step()
        return capture.Captured(step, [self._inputs], [], capture.Pool())._graph


class StockLoop:
    """Members trained one after another, as people do, each from where it stood.

    Args:
        task: what is trained; its optimizer is a function.
        lrs: of the members.
        batches: of every member; those of the task if not given.
    """

    def __init__(self, task: vs.Task, lrs: np.ndarray, batches: Iterable[Any] | None = None) -> None:
        self._task = task
        self._models = [copy.deepcopy(task.model) for _ in lrs]
        self._optimizers = [task.optimizer(model.parameters()) for model in self._models]
        for optimizer, lr in zip(self._optimizers, lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = float(lr)
        source = task.batches if batches is None else batches
        self._batches = [itertools.chain.from_iterable(itertools.repeat(source)) for _ in lrs]
        self._turns = itertools.cycle(range(len(lrs)))

    def train(self, num_members: int, num_steps: int) -> np.ndarray:
        """Train the next members; return their losses before each update, `[step, member]`."""
        return np.stack([self._train(next(self._turns), num_steps) for _ in range(num_members)], axis=1)

    def _train(self, i: int, num_steps: int) -> np.ndarray:
        model, optimizer, losses = self._models[i], self._optimizers[i], list[Tensor]()
        device = next(model.parameters()).device
        for batch in itertools.islice(self._batches[i], num_steps):
            inputs, targets = (leaf.to(device, non_blocking=True) for leaf in batch)
            optimizer.zero_grad()
            loss = self._task.loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).double().cpu().numpy()
