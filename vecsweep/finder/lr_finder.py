"""LRFinder: an LR range test on the caller's own model, with the interface of torch-lr-finder."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from vecsweep._bars import Bar
from vecsweep._engine.caller.modes import modes_set_aside
from vecsweep._types import Seeds
from vecsweep.execution import check_count
from vecsweep.finder.checks import check_amp, check_loader, check_objects, check_smoothing
from vecsweep.finder.history import History, smooth_like_history
from vecsweep.finder.loaders import DataLoaderIter, TrainDataLoaderIter, ValDataLoaderIter
from vecsweep.finder.ramps import ExponentialLR, LinearLR, draw_ramps, find_mode
from vecsweep.finder.seeds import SeedRequest, find_answer, train_seeds
from vecsweep.finder.snapshot import Snapshot, StateCacher, Surroundings
from vecsweep.finder.steps import Steps
from vecsweep.results import Answer

__all__ = [
    "DataLoaderIter",
    "ExponentialLR",
    "LRFinder",
    "LinearLR",
    "StateCacher",
    "TrainDataLoaderIter",
    "ValDataLoaderIter",
]


class LRFinder(History, Steps):
    """Find a learning rate by Smith's range test: train while the learning rate rises step by step, and watch the loss.

    Arguments, attributes and results are those of torch-lr-finder 0.2.2, and so are the numbers: random numbers are
    drawn in the same order, so that the same seed gives the same history. What is otherwise:

    - The model, the optimizer and the loss scale are as they were when `range_test` returns, also after an exception or
      Ctrl-C: weights, buffers, gradients, modes, learning rates, parameters that are trained outside the model. With
      `restore=False` they stay as the test left them until `reset()`.
    - `reset()` goes back to the latest start of a test, or else to when the finder was made. It can be called at any
      time, several times.
    - The test ends at a loss that is NaN or infinite, which is the last of the history.
    - Below a best loss of zero, the test ends at a loss above
      `best + (diverge_th - 1) * max(abs(best), abs(first))`; a multiple of a negative loss lies below it.
    - A validation loss is averaged over the samples that were seen, not divided by the length of the data set, of which
      `drop_last` and samplers leave out a part. Its loader may lack a length.
    - A loss is divided by `accumulation_steps` out of place, and a model is not moved unless `device` is given.
    - Nothing is printed: `stop_reason` says why a test ended early. The progress bar shows on a terminal only.
    - `suggestion()` gives the number without a plot; `range_test(..., seeds=8)` averages over seeds.

    Args:
        model: what is trained.
        optimizer: over its parameters, without a scheduler. Its learning rate is where the test begins, unless
            `start_lr` is given.
        criterion: `(outputs, labels) -> scalar loss`.
        device: where the test runs; None for where the model is.
        memory_cache: whether the copies of weights and optimizer state are kept in memory; otherwise in files without
            a name, which are gone when the finder is.
        cache_dir: the folder of these files; None for the system's temporary one.
        amp_backend: "torch" for mixed precision in training, as torch-lr-finder has it; validation is in the model's
            own. None for none. "native", another name of torch.amp, is "torch" with a
            `grad_scaler` and None without one.
        amp_config: keywords for `torch.amp.autocast`; `device_type` is that of `device` unless it is among them.
        grad_scaler: scales the losses of mixed precision; `torch.amp.GradScaler(enabled=False)` where nothing needs to
            be scaled, as with bfloat16.

    Attributes:
        history: "lr" and "loss" of each step. The loss is smoothed; `history["lr"][0]` is the first learning rate that
            was tried, and no suggestion.
        best_loss: the lowest of the history; None before a test.
        stop_reason: why the test ended before its last step, in words; None if it did not.
        history_by_seed: with `seeds`, the smoothed losses of each seed; None without.

    Raises:
        RuntimeError: the optimizer has a scheduler.
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range.
        OSError: `cache_dir` cannot be written to.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> import vecsweep as vs
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        >>> finder = vs.LRFinder(model, optimizer, nn.functional.mse_loss)
        >>> loader = DataLoader([(torch.ones(2), torch.zeros(1))] * 8, batch_size=4)
        >>> finder.range_test(loader, end_lr=1, num_iter=40)
        >>> 1e-4 < finder.suggestion() < 1
        True

    Reference:
        Smith 2015, https://arxiv.org/abs/1506.01186; torch-lr-finder 0.2.2, https://github.com/davidtvs/pytorch-lr-finder.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        criterion: Callable[[Any, Any], Tensor],
        device: torch.device | str | None = None,
        memory_cache: bool = True,
        cache_dir: str | os.PathLike[str] | None = None,
        amp_backend: str | None = None,
        amp_config: dict[str, Any] | None = None,
        grad_scaler: Any = None,
    ) -> None:
        super().__init__()
        check_objects(model, optimizer, criterion)
        self.model = model
        self.optimizer = optimizer
        self.criterion = criterion
        self._surroundings: Surroundings | None = None  # of a test whose traces are still there
        self._check_for_scheduler()
        self.memory_cache = memory_cache
        self.cache_dir = cache_dir
        self.model_device = next(model.parameters()).device
        self._is_moved = device is not None
        self.device = self.model_device if device is None else torch.device(device)
        if amp_backend == "native":
            amp_backend = None if grad_scaler is None else "torch"
        self.amp_backend = amp_backend or None
        self.grad_scaler = grad_scaler
        self.amp_config = {"device_type": self.device.type} | (amp_config or {})
        check_amp(amp_backend, self.amp_config, grad_scaler)
        self.state_cacher = StateCacher(memory_cache, cache_dir)
        self._before = self._take_snapshot()

    def range_test(
        self,
        train_loader: DataLoader[Any] | TrainDataLoaderIter,
        val_loader: DataLoader[Any] | ValDataLoaderIter | None = None,
        start_lr: float | Sequence[float] | None = None,
        end_lr: float = 10,
        num_iter: int = 100,
        step_mode: str = "exp",
        smooth_f: float = 0.05,
        diverge_th: float = 5,
        accumulation_steps: int = 1,
        non_blocking_transfer: bool = True,
        *,
        restore: bool = True,
        seeds: Seeds | None = None,
    ) -> None:
        """Train for `num_iter` steps while the learning rate rises to `end_lr`, and note both in `history`.

        The loss of a step is that of its training batch before the update; with `val_loader` that of the whole
        validation set after it. From the second step on it is smoothed:
        `smooth_f * loss + (1 - smooth_f) * previous`.

        Args:
            train_loader: a DataLoader whose batches begin with inputs and labels, or a `TrainDataLoaderIter`. It starts
                over when it runs out.
            val_loader: likewise, or a `ValDataLoaderIter`; the model is evaluated on it after each step, in eval mode.
            start_lr: the first learning rate, of all groups, or a list with one for each; None, or 0 as in
                torch-lr-finder, for the optimizer's own.
            end_lr: the last, of all groups.
            num_iter: steps, at least 2.
            step_mode: "exp" for equal ratios between learning rates, "linear" for equal differences.
            smooth_f: weight of the newest loss, in [0, 1); 0 for no smoothing.
            diverge_th: the test ends at a loss above `diverge_th` times the best.
            accumulation_steps: batches in each step, whose losses are averaged.
            non_blocking_transfer: whether batches are copied to a GPU while it works.
            restore: whether all is put back at the end; otherwise `reset()` must be called before another test.
            seeds: None for one test on the model itself, with torch's global generator as it stands. How many seeds, or
                which, for a test with each in one batched pass of `vecsweep.sweep`: each has batches and dropout of its
                own, the optimizer begins without state, the global generators are not used, and `history` is the mean,
                to which the rule of `diverge_th` is applied.

        Raises:
            RuntimeError: the optimizer has a scheduler, or a test with `restore=False` was not followed by `reset()`.
            TypeError: an argument is of the wrong kind, or the criterion gives no tensor.
            ValueError: an argument is out of range, a loader yields nothing, or the criterion gives several numbers.
            StopIteration: the batches of a `TrainDataLoaderIter` without `auto_reset` ran out.
        """
        self._check_for_scheduler()
        if not self._is_moved:
            self.device = next(self.model.parameters()).device
        mode = find_mode(step_mode)
        check_count("num_iter", num_iter)
        check_count("accumulation_steps", accumulation_steps)
        check_smoothing(smooth_f, diverge_th)
        base_lrs = self._base_lrs(start_lr)
        ramps = draw_ramps(base_lrs, end_lr, num_iter, mode)
        check_loader("train_loader", train_loader, TrainDataLoaderIter)
        if val_loader is not None:
            check_loader("val_loader", val_loader, ValDataLoaderIter)
        if seeds is not None:
            request = SeedRequest(
                model=self.model,
                optimizer=self.optimizer,
                criterion=self.criterion,
                loaders=(train_loader, val_loader),
                base_lrs=base_lrs,
                end_lr=end_lr,
                num_iter=num_iter,
                mode=mode,
                seeds=seeds,
                accumulation_steps=accumulation_steps,
                device=self.device,
                autocast=None if self.amp_backend is None else self.amp_config,
                is_restoring=restore,
            )
            self._test_seeds(request, smooth_f, diverge_th)
            return
        train_iter = TrainDataLoaderIter(train_loader) if isinstance(train_loader, DataLoader) else train_loader
        val_iter = ValDataLoaderIter(val_loader) if isinstance(val_loader, DataLoader) else val_loader
        self._forget()
        self._before = self._take_snapshot()
        self._surroundings = Surroundings(self._before)
        try:
            self._surroundings.drop_gradients()
            self._move_to_test_device()
            with modes_set_aside(), Bar(ramps, disable=None) as bar:
                for lrs in bar:
                    self._set_learning_rate(lrs)
                    loss = self._train_batch(
                        train_iter, accumulation_steps, non_blocking_transfer=non_blocking_transfer
                    )
                    if val_iter is not None:
                        loss = self._validate(val_iter, non_blocking_transfer=non_blocking_transfer)
                    if self._note(lrs[0], loss, smooth_f, diverge_th):
                        bar.set_postfix_str(str(self.stop_reason))
                        break
        finally:
            if restore:
                self.reset()
            else:
                self._mark_as_left(base_lrs)

    def find(self, train_loader: Any, *, val_loader: Any = None, **options: Any) -> Answer:
        """Find the learning rate for a run of a given length and schedule, which a range test does not know of.

        It is trained on copies: what the finder holds stays as it is, its history too.

        Args:
            train_loader: of (inputs, labels).
            val_loader: likewise, to judge by; None to judge by the training loss.
            **options: as `vecsweep.find_lr` takes them: `epochs` or `num_steps`, `schedule`, `budget` and others.

        Returns:
            The learning rate, the interval of those that are as good, and the trained model.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: an argument is out of range, or the task cannot be trained.

        Example:
            `LRFinder(model, optimizer, criterion).find(loader, val_loader=val, epochs=10, schedule="one-cycle").lr`
        """
        return find_answer(self.model, self.optimizer, self.criterion, (train_loader, val_loader), self.device, options)

    def reset(self) -> None:
        """Put the model and the optimizer back to where the latest test began, or else to when the finder was made."""
        if self._surroundings is not None:
            self._surroundings.drop_gradients()
        self._before.restore()
        if self._surroundings is not None:
            self._surroundings.restore()
            self._surroundings = None

    def _take_snapshot(self) -> Snapshot:
        modules = [*self.model.modules(), *(self.criterion.modules() if isinstance(self.criterion, nn.Module) else ())]
        return Snapshot(dict.fromkeys(modules), self.optimizer, self.grad_scaler, self.state_cacher)

    def _move_to_test_device(self) -> None:
        if not self._is_moved:
            return
        self.model.to(self.device)
        if self.device != self.model_device and self.optimizer.state:
            self.optimizer.load_state_dict(self.optimizer.state_dict())  # takes it to where the parameters are

    def _set_learning_rate(self, new_lrs: Sequence[float]) -> None:
        """Set the learning rate of each group."""
        for group, lr in zip(self.optimizer.param_groups, new_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _mark_as_left(self, base_lrs: list[float]) -> None:
        """Leave the note of a scheduler, by which another test is refused until `reset`."""
        for group, lr in zip(self.optimizer.param_groups, base_lrs, strict=True):
            group["initial_lr"] = lr

    def _base_lrs(self, start_lr: float | Sequence[float] | None) -> list[float]:
        """Where each group begins."""
        groups = self.optimizer.param_groups
        if isinstance(start_lr, list | tuple) and start_lr:
            if len(start_lr) != len(groups):
                raise ValueError(
                    "Length of `new_lrs` is not equal to the number of parameter groups in the given optimizer; "
                    f"`start_lr` has {len(start_lr)} for {len(groups)}. Pass one number for all of them, or as many as "
                    "there are."
                )
            return [float(lr) for lr in start_lr]
        if start_lr:
            return [float(start_lr)] * len(groups)  # type: ignore[arg-type]  # it is no sequence any more
        return [float(group["lr"]) for group in groups]

    def _check_for_scheduler(self) -> None:
        if not any("initial_lr" in group for group in self.optimizer.param_groups):
            return
        if self._surroundings is not None:
            raise RuntimeError("The latest test ran with `restore=False` and left its traces. Call `reset` first.")
        raise RuntimeError(
            "Optimizer already has a scheduler attached to it, which would set other learning rates: it has an "
            "`initial_lr`. Make the scheduler after the range test."
        )

    def _test_seeds(self, request: SeedRequest, smooth_f: float, diverge_th: float) -> None:
        """Train copies, and note their mean."""
        modes = [(module, module.training) for module in self.model.modules()]
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self.model.train()
            for group in self.optimizer.param_groups:
                group["lr"] = request.base_lrs[0]
            seeds, rates, losses = train_seeds(request)
        finally:
            for module, mode in modes:
                module.training = mode
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr
        self._forget()
        for lr, loss in zip(rates, losses.mean(axis=1), strict=True):
            if self._note(float(lr), float(loss), smooth_f, diverge_th):
                break
        num_noted = len(self.history["loss"])
        by_seed = zip(seeds, losses[:num_noted].T, strict=True)
        self.history_by_seed = {seed: smooth_like_history(own.tolist(), smooth_f) for seed, own in by_seed}
