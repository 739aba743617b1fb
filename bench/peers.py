"""The LR finders that people use, and ours, each as a function that makes range tests at constant learning rates.

A range test at a constant learning rate is the same work as one whose learning rate rises, and its losses can be
compared with a member of ours. Early stopping, smoothing and progress bars are off where there is a switch; restoring
the model afterwards is part of it.
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

Pairs = list[tuple[Tensor, Tensor]]
RangeTests = Callable[[Sequence[float], int], np.ndarray]  # lrs, num_steps -> losses [step, lr]

MOMENTUM = 0.9
_ABOVE = 1 + 1e-9  # end_lr over start_lr; some finders refuse equal ends


def make_model() -> nn.Module:
    """MLP 64-64-64-10, the same weights each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def vecsweep(batches: Pairs) -> RangeTests:
    """Ours, all learning rates at once; they are equally far apart on a logarithmic scale."""
    import vecsweep as vs

    def optimizer(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.1, momentum=MOMENTUM)

    task = vs.Task(make_model(), batches, F.cross_entropy, optimizer=optimizer)

    def run(lrs: Sequence[float], num_steps: int) -> np.ndarray:
        ends = {"start_lr": float(lrs[0]), "end_lr": float(lrs[-1])}
        return vs.range_test(task, **ends, num_lrs=len(lrs), num_steps=num_steps, progress=False).train_loss

    return run


def torch_lr_finder(batches: Pairs) -> RangeTests:
    """torch-lr-finder 0.2.2, https://github.com/davidtvs/pytorch-lr-finder."""
    from torch_lr_finder import LRFinder

    model, loss_fn, loader = make_model(), _Loss(), _loader(batches)
    finder = LRFinder(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=MOMENTUM), loss_fn)

    def run(lr: float, num_steps: int) -> None:
        ends = {"start_lr": lr, "end_lr": lr * _ABOVE}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it is done
            finder.range_test(loader, **ends, num_iter=num_steps, smooth_f=0, diverge_th=float("inf"))
        finder.reset()

    return partial(_run_all, run, loss_fn)


def ignite(batches: Pairs) -> RangeTests:
    """Ignite's FastaiLRFinder, https://docs.pytorch.org/ignite."""
    from ignite.engine import create_supervised_trainer
    from ignite.handlers import FastaiLRFinder

    logging.getLogger("ignite").setLevel(logging.ERROR)
    model, loss_fn, loader = make_model(), _Loss(), _loader(batches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=MOMENTUM)
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    to_save = {"model": model, "optimizer": optimizer}

    def run(lr: float, num_steps: int) -> None:
        how = {"num_iter": num_steps, "start_lr": lr, "end_lr": lr * _ABOVE, "smooth_f": 0, "diverge_th": float("inf")}
        optimizer.param_groups[0]["lr"] = lr  # its first step is taken with the optimizer's own
        with FastaiLRFinder().attach(trainer, to_save, **how) as tested:
            tested.run(loader)

    return partial(_run_all, run, loss_fn)


def lightning(batches: Pairs) -> RangeTests:
    """Lightning's Tuner.lr_find, https://lightning.ai/docs/pytorch."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    loss_fn, loader = _Loss(), _loader(batches)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = make_model(), 0.1

        def training_step(self, batch: Any) -> Tensor:
            return loss_fn(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=MOMENTUM)

    module = Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def run(lr: float, num_steps: int) -> None:
        how = {"num_training": num_steps, "early_stop_threshold": None, "update_attr": False}
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(accelerator="cpu", devices=1, default_root_dir=folder, max_epochs=-1, **quiet)
            Tuner(trainer).lr_find(module, loader, min_lr=lr, max_lr=lr * _ABOVE, **how)

    return partial(_run_all, run, loss_fn)


def fastai(batches: Pairs) -> RangeTests:
    """The Learner.lr_find of fastai, on torch's SGD, https://docs.fast.ai."""
    import fastai.callback.progress  # adds `no_bar` to Learner
    import fastai.callback.schedule  # noqa: F401 - adds `lr_find`
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    loss_fn = _Loss()
    folder = tempfile.TemporaryDirectory()
    optimizer = partial(OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM)
    loaders = DataLoaders(_loader(batches), _loader(batches), device="cpu")
    learner = Learner(loaders, make_model(), loss_func=loss_fn, opt_func=optimizer, path=folder.name)
    loss_fn.keep = folder  # removed with the finder

    def run(lr: float, num_steps: int) -> None:
        how = {"num_it": num_steps, "stop_div": False, "show_plot": False, "suggest_funcs": None}
        with learner.no_bar():
            learner.lr_find(start_lr=lr, end_lr=lr * _ABOVE, **how)

    return partial(_run_all, run, loss_fn)


FINDERS: dict[str, Callable[[Pairs], RangeTests]] = {
    "vecsweep": vecsweep,
    "torch-lr-finder": torch_lr_finder,
    "ignite": ignite,
    "lightning": lightning,
    "fastai": fastai,
}


class _Loss(nn.Module):
    """Cross-entropy that notes its values, because some finders keep only smoothed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs, targets)
        self.values.append(loss.detach())
        return loss


def _loader(batches: Pairs) -> DataLoader:
    """A loader of whole batches, which costs next to nothing; some finders take nothing but a DataLoader."""
    return DataLoader(batches, batch_size=None)


def _run_all(run: Callable[[float, int], None], loss_fn: _Loss, lrs: Sequence[float], num_steps: int) -> np.ndarray:
    return np.stack(list(_curves(run, loss_fn, lrs, num_steps)), axis=1)


def _curves(
    run: Callable[[float, int], None], loss_fn: _Loss, lrs: Sequence[float], num_steps: int
) -> Iterator[np.ndarray]:
    for lr in lrs:
        loss_fn.values.clear()
        run(float(lr), num_steps)
        yield torch.stack(loss_fn.values[:num_steps]).double().numpy()
