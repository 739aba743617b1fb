"""What the estimators of `sklearn.py` have in common: parameters as skorch has them, and a fit that finds its lr."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from vecsweep.answer import find_lr
from vecsweep.execution import MOST_SEED, check_count
from vecsweep.results import Answer
from vecsweep.results.sweep import without_weights
from vecsweep.sweeps import sweep
from vecsweep.task import Task
from vecsweep.tasks.batches import ShuffledBatches, batches_in_order

_PREFIXES = ("module__", "criterion__", "optimizer__", "find_lr__")


class Perceptron(nn.Sequential):
    """Two linear layers with ReLU between them.

    Args:
        n_features_in: columns of X.
        n_outputs: classes, or columns of y.
        num_units: of the hidden layer.
    """

    def __init__(self, n_features_in: int, n_outputs: int, num_units: int = 100) -> None:
        super().__init__(nn.Linear(n_features_in, num_units), nn.ReLU(), nn.Linear(num_units, n_outputs))


class NeuralNet(BaseEstimator):
    """What classifiers and regressors have in common."""

    _usual_criterion: ClassVar[type[nn.Module]]

    def __init__(
        self,
        module: Callable[..., nn.Module] = Perceptron,
        *,
        criterion: Callable[..., nn.Module] | None = None,
        optimizer: Callable[..., Optimizer] = SGD,
        lr: float | str = "auto",
        max_epochs: int = 10,
        batch_size: int = 128,
        schedule: Any = "constant",
        validation_fraction: float | None = 0.2,
        device: str | torch.device | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        **kwargs: Any,
    ) -> None:
        self.module = module
        self.criterion = criterion
        self.optimizer = optimizer
        self.lr = lr
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        for name, value in kwargs.items():
            self._set_part(name, value)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name, those of the parts among them.

        Args:
            deep: as scikit-learn has it.
        """
        own = {name: value for name, value in vars(self).items() if name.startswith(_PREFIXES)}
        return super().get_params(deep=deep) | own

    def set_params(self, **params: Any) -> Self:
        """Set parameters by name.

        Args:
            **params: of the estimator, or of a part, as in `module__num_units=50`.

        Raises:
            ValueError: there is no such parameter.
        """
        parts = {name: value for name, value in params.items() if name.startswith(_PREFIXES)}
        super().set_params(**{name: value for name, value in params.items() if name not in parts})
        for name, value in parts.items():
            self._set_part(name, value)
        return self

    def _set_part(self, name: str, value: Any) -> None:
        if not name.startswith(_PREFIXES):
            known = ", ".join(f"{prefix}..." for prefix in _PREFIXES)
            raise TypeError(f"{type(self).__name__} has no parameter {name!r}. Those of parts are named {known}.")
        setattr(self, name, value)

    def _of_part(self, part: str) -> dict[str, Any]:
        """The parameters of a part."""
        start = f"{part}__"
        return {name.removeprefix(start): value for name, value in vars(self).items() if name.startswith(start)}

    def _build(self, n_features_in: int, n_outputs: int) -> nn.Module:
        """Make a module; the sizes go to one that asks for them."""
        sizes = {"n_features_in": n_features_in, "n_outputs": n_outputs}
        asked = inspect.signature(self.module).parameters
        return self.module(**{name: size for name, size in sizes.items() if name in asked} | self._of_part("module"))

    def _fit(self, X: NDArray[Any], y: NDArray[Any], n_outputs: int, stratify: NDArray[Any] | None) -> Self:
        """Train on checked data, targets being what the criterion takes."""
        if self.lr != "auto" and (isinstance(self.lr, str) or not self.lr > 0):
            raise ValueError(f'`lr` must be "auto", or a positive number; got {self.lr!r}.')
        check_count("batch_size", self.batch_size)
        random = check_random_state(self.random_state)
        seed = int(random.randint(2**31 - 1)) % MOST_SEED
        held_out = None
        if self.validation_fraction is not None:
            X, held_x, y, held_y = train_test_split(
                X, y, test_size=self.validation_fraction, stratify=stratify, random_state=random
            )
            held_out = batches_in_order(self._tensor(held_x), torch.tensor(held_y), self.batch_size)
        batches = ShuffledBatches(self._tensor(X), torch.tensor(y), min(self.batch_size, len(X)), drops_last=False)
        options, rate = self._of_part("optimizer"), 0.1 if self.lr == "auto" else float(self.lr)
        criterion = (self.criterion or self._usual_criterion)(**self._of_part("criterion"))
        task = Task(
            lambda: self._build(X.shape[1], n_outputs),
            batches,
            lambda outputs, targets: criterion(self._as_criterion_takes(outputs), targets),
            optimizer=lambda params: self.optimizer(params, lr=rate, **options),
            val_batches=held_out,
        )
        how: dict[str, Any] = {
            "epochs": self.max_epochs,
            "device": self.device,
            "seed": seed,
            "progress": None if self.verbose else False,
        }
        if self.lr == "auto":
            answer = self._find(task, how)
            self.lr_, self.module_ = answer.winner.setting.lr, answer.model()
            # Without what goes on from there, which cannot be pickled and holds all that was trained.
            runs_alone = tuple(replace(runs, _trained=None) for runs in answer.runs)
            self.answer_ = replace(answer, runs=runs_alone, _train_anew=without_weights)
        else:
            runs = sweep(task, lrs=[rate], schedules=[self.schedule], **how)
            self.lr_, self.module_ = rate, runs.model(0)
            if runs.members[0].diverged_at is not None:
                warnings.warn(
                    f"The loss diverged at step {runs.members[0].diverged_at}, with `lr` {rate:.3g}. Take a lower one, "
                    'or `lr="auto"`.',
                    ConvergenceWarning,
                    stacklevel=3,
                )
        return self

    def _find(self, task: Task, how: dict[str, Any]) -> Answer:
        try:
            return find_lr(task, schedule=self.schedule, **how | self._of_part("find_lr"))
        except ValueError as error:
            error.add_note(
                f"`fit` of {type(self).__name__} calls `find_lr`, whose arguments are set as in `find_lr__budget=8`; a "
                "run has more steps with a larger `max_epochs`, or a smaller `batch_size`."
            )
            raise

    def _as_criterion_takes(self, outputs: Tensor) -> Tensor:
        """What the criterion is given of the module's outputs."""
        return outputs

    def _outputs(self, X: Any) -> Tensor:
        """The module's outputs, in eval mode."""
        check_is_fitted(self, "module_")
        X = validate_data(self, X, reset=False, allow_nd=True)
        device = next(self.module_.parameters()).device
        self.module_.eval()
        with torch.no_grad():
            parts = [self.module_(rows.to(device)).cpu() for rows in self._tensor(X).split(self.batch_size)]
        return torch.cat(parts)

    @staticmethod
    def _tensor(X: NDArray[Any]) -> Tensor:
        """Samples as modules take them, in PyTorch's default dtype."""
        return torch.tensor(np.asarray(X), dtype=torch.get_default_dtype())
