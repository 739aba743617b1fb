"""scikit-learn: estimators on skorch's conventions, whose `fit` finds its learning rate.

What is different from skorch: the learning rate need not be given; `validation_fraction` stands for `train_split`; a
classifier's criterion is cross-entropy, of outputs without a softmax, if nobody says otherwise; and a module, or the
function that builds one, may ask for `n_features_in` and `n_outputs`, which are what X and y have.

Reference:
    skorch, https://skorch.readthedocs.io/en/stable/user/neuralnet.html
"""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from vecsweep._engine.caller.rng import Streams
from vecsweep._errors import warn_of_stumble
from vecsweep.integrations._sklearn import NeuralNet, Perceptron

__all__ = ["NeuralNetClassifier", "NeuralNetRegressor", "Perceptron"]


class NeuralNetClassifier(ClassifierMixin, NeuralNet):
    """Classify with a PyTorch module, at the learning rate that `find_lr` finds for it.

    Args:
        module: a module's class, or a function that builds one; it returns a score for each class. It is given the
            parameters that begin with `module__`, and of `n_features_in` and `n_outputs` those that it asks for.
        criterion: the loss's class; None for `nn.CrossEntropyLoss`, of outputs without a softmax. For `nn.NLLLoss` they
            are probabilities, as skorch has it.
        optimizer: the optimizer's class.
        lr: "auto" to find it, by `validation_fraction` of the data; or a number.
        max_epochs: passes over the data.
        batch_size: samples in a batch; the last of a pass may be smaller.
        schedule: what the learning rate follows, as in `vecsweep.find_lr`.
        validation_fraction: share of the samples that is held out, of each class alike, to judge learning rates by;
            None for none: they are judged by their losses on what is trained on.
        device: where to train.
        random_state: of the initial weights, the order of the samples and the share that is held out.
        verbose: whether to show progress.
        **kwargs: parameters of a part, as in `module__num_units=50`, `criterion__label_smoothing=0.1`,
            `optimizer__momentum=0.9`, `find_lr__budget=8`.

    Attributes:
        classes_: the classes.
        lr_: that was trained with.
        module_: the trained module.
        answer_: what `vecsweep.find_lr` found, without weights; not there where `lr` is a number.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from vecsweep.integrations.sklearn import NeuralNetClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> net = NeuralNetClassifier(max_epochs=20, batch_size=16, optimizer__momentum=0.9, random_state=0).fit(X, y)
        >>> bool(net.score(X, y) > 0.9)
        True
    """

    _usual_criterion = nn.CrossEntropyLoss

    def fit(self, X: Any, y: Any) -> Self:
        """Find the learning rate, and train.

        Args:
            X: `[sample, feature, ...]`, numbers.
            y: `[sample]`, of two classes at least.

        Raises:
            ValueError: there is something else than numbers in X, or less than two classes, or a parameter is wrong.
        """
        X, y = validate_data(self, X, y, allow_nd=True)
        check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"`y` must hold two classes at least; got one class, {self.classes_[0]}.")
        if self.criterion in (None, nn.CrossEntropyLoss):
            self._look_at_outputs(X)
        return self._fit(X, targets.astype(np.int64), len(self.classes_), targets)

    def _look_at_outputs(self, X: NDArray[Any]) -> None:
        """Warn of a module that gives probabilities, as those for skorch do, where scores are asked for."""
        with Streams(torch.device("cpu")).borrowed(), torch.no_grad():
            try:
                outputs = self._build(X.shape[1], len(self.classes_)).eval()(self._tensor(X[:8]))
            except Exception:
                return
            is_probability = outputs.dim() == 2 and bool((outputs >= 0).all())
            if is_probability and torch.allclose(outputs.sum(dim=1), torch.ones(len(outputs)), atol=1e-4):
                warn_of_stumble(
                    "The module gives probabilities, and cross-entropy takes scores. Pass `criterion=nn.NLLLoss`, as "
                    "skorch has it, or leave out the softmax."
                )

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the probability of each class, `[sample, class]`.

        Args:
            X: `[sample, feature, ...]`.
        """
        outputs = self._outputs(X)
        return np.asarray(outputs if self._gives_probabilities else outputs.softmax(dim=1))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the likeliest class of each sample, `[sample]`.

        Args:
            X: `[sample, feature, ...]`.
        """
        chosen = self._outputs(X).argmax(dim=1).numpy()
        return self.classes_[chosen]

    @property
    def _gives_probabilities(self) -> bool:
        return isinstance(self.criterion, type) and issubclass(self.criterion, nn.NLLLoss)

    def _as_criterion_takes(self, outputs: Tensor) -> Tensor:
        return torch.log(outputs + torch.finfo(outputs.dtype).eps) if self._gives_probabilities else outputs


class NeuralNetRegressor(RegressorMixin, NeuralNet):
    """Predict numbers with a PyTorch module, at the learning rate that `find_lr` finds for it.

    Targets should be of about unit scale, as in `TransformedTargetRegressor(net, transformer=StandardScaler())`.

    Args:
        module: a module's class, or a function that builds one; it returns `[sample, output]`. It is given the
            parameters that begin with `module__`, and of `n_features_in` and `n_outputs` those that it asks for.
        criterion: the loss's class; None for `nn.MSELoss`.
        optimizer: the optimizer's class.
        lr: "auto" to find it, by `validation_fraction` of the data; or a number.
        max_epochs: passes over the data.
        batch_size: samples in a batch; the last of a pass may be smaller.
        schedule: what the learning rate follows, as in `vecsweep.find_lr`.
        validation_fraction: share of the samples that is held out to judge learning rates by; None for none: they are
            judged by their losses on what is trained on.
        device: where to train.
        random_state: of the initial weights, the order of the samples and the share that is held out.
        verbose: whether to show progress.
        **kwargs: parameters of a part, as in `NeuralNetClassifier`.

    Attributes:
        lr_: that was trained with.
        module_: the trained module.
        answer_: what `vecsweep.find_lr` found, without weights; not there where `lr` is a number.

    Example:
        >>> import numpy as np
        >>> from vecsweep.integrations.sklearn import NeuralNetRegressor
        >>> X = np.random.default_rng(0).normal(size=(200, 3))
        >>> net = NeuralNetRegressor(max_epochs=20, batch_size=32, random_state=0).fit(X, X[:, 0] - X[:, 1])
        >>> bool(net.score(X, X[:, 0] - X[:, 1]) > 0.9)
        True
    """

    _usual_criterion = nn.MSELoss

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Find the learning rate, and train.

        Args:
            X: `[sample, feature, ...]`, numbers.
            y: `[sample]` or `[sample, output]`, numbers.

        Raises:
            ValueError: there is something else than numbers in X or y, or a parameter is wrong.
        """
        X, y = validate_data(self, X, y, allow_nd=True, multi_output=True, y_numeric=True)
        self._is_flat = y.ndim == 1
        targets = np.asarray(self._tensor(y.reshape(len(y), -1)))
        return self._fit(X, targets, targets.shape[1], None)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return a number for each sample, `[sample]`, or several, as `fit` was given: `[sample, output]`.

        Args:
            X: `[sample, feature, ...]`.
        """
        outputs = self._outputs(X).numpy().astype(np.float64)
        return outputs.ravel() if self._is_flat else outputs
